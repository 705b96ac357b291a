#!/usr/bin/env bash
# Sets up .venv, then runs the tests; arguments go to pytest. TEST_JOBS is the
# number of processes.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh" "[test]"
exec python -m pytest -n "${TEST_JOBS:-2}" --dist worksteal "$@"
