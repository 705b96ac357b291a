#!/usr/bin/env bash
# Runs the main job on one host of a slice, where tpu_pod.sh calls it:
#   install       sets up .venv with TPU support
#   start ARGS    starts main in the background; one that still runs is stopped
#   state         prints "HOST vpt_jax: " and none, running, stopped, lost (it
#                 was killed) or "exit STATUS"
#   logs LINES    prints the log's last lines, then follows it to main's end
#   stop          SIGTERM, on which main saves; after GRACE=120 seconds SIGKILL
# DRY_RUN=1 prints the commands instead.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
files=runs/pod

state() {
  if [ -f $files/exit ]; then
    if [ -f $files/stopped ]; then echo stopped; else
      echo "exit $(< $files/exit)"
    fi
  elif [ ! -f $files/pid ]; then
    echo none
  # After a reboot the number may be that of another process.
  elif grep -qs worker.sh "/proc/$(< $files/pid)/cmdline"; then
    echo running
  else
    echo lost
  fi
}

install() {
  if [ -z "${PYTHON:-}" ] && ! dry &&
    ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    # Cloud TPU's images have Python 3.10.
    python3 -m pip install --quiet --user uv
    python3 -m uv python install --quiet 3.12
    PYTHON=$(python3 -m uv python find --managed-python 3.12)
  fi
  source launch/env.sh "[tpu,tfds]"
}

start() {
  if dry; then
    show setsid bash launch/worker.sh main "$@"
    return
  fi
  stop
  mkdir -p $files
  rm -f $files/exit $files/stopped
  # Without any of ssh's files: it would wait until they are closed.
  setsid bash launch/worker.sh main "$@" \
    >> $files/log 2>&1 < /dev/null 3>&- &
  echo $! > $files/pid
}

main() {
  local status=0
  trap : TERM  # main's status is wanted
  # shellcheck disable=SC1091
  source .venv/bin/activate
  python -m vpt_jax.main "$@" || status=$?
  echo "$status" > $files/exit
}

stop() {
  [ "$(state)" = running ] || return 0
  local pid until=$((SECONDS + ${GRACE:-120}))
  pid=$(< $files/pid)
  run touch $files/stopped
  run kill -TERM -- "-$pid"
  dry && return
  while [ "$(state)" = running ]; do
    if [ "$SECONDS" -ge "$until" ]; then
      kill -KILL -- "-$pid"
      echo 137 > $files/exit
    fi
    sleep 0.5
  done
}

case "${1:-}" in
  install | start | main | stop) "$@" ;;
  state) echo "$(hostname) vpt_jax: $(state)" ;;
  logs)
    [ -f $files/pid ] || fail "nothing has been run here"
    run exec tail -n "$2" -f -s 0.2 --pid="$(< $files/pid)" $files/log
    ;;
  *) fail "unknown command '${1:-}'; see --help" ;;
esac
