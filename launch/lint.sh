#!/usr/bin/env bash
# Sets up .venv, then checks style, the direction of imports, and types:
#   bash launch/lint.sh
# DRY_RUN=1 prints the commands instead; PYTHON names the Python for .venv.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source launch/env.sh "[dev]"
run ruff format --check .
run ruff check .
run lint-imports
run mypy
