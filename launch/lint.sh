#!/usr/bin/env bash
# Checks style, the direction of imports and types; needs the extra `dev`:
#   pip install -e '.[dev]' && bash launch/lint.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ruff format --check .
ruff check .
lint-imports
mypy
