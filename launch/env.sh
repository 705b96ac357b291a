# Sourced after common.sh: makes .venv with this package and its extras ($1, for
# example [test]) installed, and activates it.
python="${PYTHON:-python3}"
if ! dry && ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'
then
  fail "$python is $("$python" --version 2>&1); Python 3.11 or newer is" \
    "needed; PYTHON=/path/to/python bash launch/... names another"
fi
# An earlier try may have left half an environment.
if ! [ -x .venv/bin/python ] ||
  ! { dry || .venv/bin/python -m pip --version > /dev/null 2>&1; }; then
  run "$python" -m venv --clear .venv
fi
run source .venv/bin/activate
run python -m pip install --quiet --disable-pip-version-check \
  --editable ".${1:-}"
