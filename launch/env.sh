# Sourced by the other scripts: makes .venv with this package and its extras
# ($1, for example [test]) installed, and activates it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "error: $python is $("$python" --version 2>&1); Python 3.11 or newer is" \
    "needed; PYTHON=/path/to/python bash launch/... names another" >&2
  exit 1
fi
# An earlier try may have left half an environment.
.venv/bin/python -m pip --version > /dev/null 2>&1 ||
  "$python" -m venv --clear .venv
# shellcheck disable=SC1091
source .venv/bin/activate
python -m pip install --quiet --disable-pip-version-check --editable ".${1:-}"
