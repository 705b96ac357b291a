#!/usr/bin/env bash
# Sets up .venv, then runs the tests; arguments go to pytest:
#   bash launch/test.sh [tests/test_model.py ...]
# TEST_JOBS=2 is the number of processes; DRY_RUN=1 prints the commands instead.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source launch/env.sh "[test]"
run exec python -m pytest -n "${TEST_JOBS:-2}" --dist worksteal "$@"
