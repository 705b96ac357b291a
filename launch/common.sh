# Sourced first by the other scripts: --help, errors and dry runs. Goes to the
# root of the repository.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
  -h | --help)  # the comment at the head of the script
    sed -n '2,/^\($\|[^#]\)/s/^# \{0,1\}//p' "$0"
    exit
    ;;
esac

# Where dry runs print, from within $(...) too.
exec 3>&1

dry() { [ "${DRY_RUN:-0}" != 0 ]; }
say() { echo "launch: $*" >&2; }
fail() {
  echo "error: $*" >&2
  exit 1
}

# Prints a command, quoted so that it can be pasted.
show() {
  local word line=''
  [ "$1" != exec ] || shift
  for word in "$@"; do
    case "$word" in '' | *[!A-Za-z0-9_./:=,@%+-]*) word=${word@Q} ;; esac
    line+=" $word"
  done
  echo "${line:1}" >&3
}

# run COMMAND...: runs it; DRY_RUN=1 prints it instead.
run() {
  if dry; then show "$@"; else "$@" 3>&-; fi
}

# ask ANSWER COMMAND...: the same for its output, which is ANSWER in a dry run.
ask() {
  local answer=$1
  shift
  if dry; then
    show "$@"
    echo "$answer"
  else
    "$@"
  fi
}

# await PID: waits for a child, returns its status. Signals that are trapped are
# heard within a second. Not by `wait`, which a signal interrupts: if the child
# ends in that moment, bash 5.2 loses its status.
await() {
  while kill -0 "$1" 2> /dev/null; do sleep 1 || true; done
  wait "$1"
}
