#!/usr/bin/env bash
# Runs the main job on a slice of Cloud TPU hosts:
#   bash launch/tpu_pod.sh up --config=configs/vapt_vtab.py:eurosat \
#     --workdir=DIR
# Commands:
#   up ARGS    creates or takes the slice, installs, runs, follows the log; all
#              of it again after a preemption; called anew, it follows again
#   create     asks for the slice (a queued resource), waits until it is there
#   install    copies the last commit to all hosts and sets it up
#   run ARGS   starts main on all hosts, in the background
#   logs       follows the log of the first host
#   status     the slice's state, and that of the run on each host
#   stop       SIGTERM, on which main saves; after GRACE seconds SIGKILL
#   delete     gives the slice back; asks, unless YES=1
# Settings, with defaults:
#   NAME=vpt-jax
#   TYPE=v5litepod-16  RUNTIME=v2-alpha-tpuv5-lite   what, with which software
#   PROJECT= ZONE=     those of `gcloud config`
#   SPOT=0             1: cheaper, may be preempted
#   OPTIONS=           more of `queued-resources create`: "--internal-ips"
#   SETUP=             a command for all hosts, before the installation
#   WAIT=86400         seconds in the queue, POLL=30 between looks
#   RESTARTS=100       of a run that was lost;  GRACE=120
# A preempted slice's disks are gone: DIR is to be on one that SETUP mounts,
# SETUP="sudo mkdir -p /mnt/nfs && sudo mount HOST:/share /mnt/nfs" for example.
# DRY_RUN=1 prints the commands instead.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${NAME:=vpt-jax}" "${TYPE:=v5litepod-16}" "${RUNTIME:=v2-alpha-tpuv5-lite}"
: "${SPOT:=0}" "${OPTIONS:=}" "${SETUP:=}" "${WAIT:=86400}" "${POLL:=30}"
: "${RESTARTS:=100}" "${GRACE:=120}"
worker='bash vpt_jax/launch/worker.sh'

# setting VARIABLE PROPERTY: what `gcloud config` has.
setting() {
  local value
  value=$(ask "$1" gcloud config get-value "$2" 2> /dev/null)
  [ -n "$value" ] || fail "no $2; set $1=... or \`gcloud config set $2 ...\`"
  echo "$value"
}

# NONE, READY or what Google calls it. gcloud's errors get `patience` tries.
patience=0
slice=NONE  # what a dry run takes it for
state() {
  local answer try missing=NONE errors=$scratch/errors
  for ((try = 0; ; try++)); do
    answer=$(ask "$slice" gcloud compute tpus queued-resources describe \
      "$NAME" "${place[@]}" --format='value(state.state)' 2> "$errors") ||
      answer=''
    # A request may stay active when its slice is preempted.
    if [ "$answer" = ACTIVE ]; then
      missing=DELETED
      answer=$(ask READY gcloud compute tpus tpu-vm describe "$NAME" \
        "${place[@]}" --format='value(state)' 2> "$errors") || answer=''
    fi
    [ -n "$answer" ] || ! grep -q NOT_FOUND "$errors" || answer=$missing
    [ -z "$answer" ] || break
    [ "$try" -lt "$patience" ] ||
      fail "gcloud could not tell the state of $NAME: $(< "$errors")"
    run sleep "$POLL"
  done
  echo "$answer"
}

create() {
  local options=(--accelerator-type="$TYPE" --runtime-version="$RUNTIME") more
  read -ra more <<< "$OPTIONS"
  [ "$SPOT" = 0 ] || options+=(--spot)
  run gcloud compute tpus queued-resources create "$NAME" "${place[@]}" \
    --node-id="$NAME" "${options[@]}" "${more[@]}"
  slice=ACTIVE
}

delete() {
  run gcloud compute tpus queued-resources delete "$NAME" "${place[@]}" \
    --force --quiet
}

# Returns when the slice is ready; what was preempted is replaced.
ensure() {
  local now last='' until=$((SECONDS + WAIT))
  while :; do
    now=$(state)
    [ "$now" = "$last" ] || say "$NAME: $now"
    last=$now
    case "$now" in
      READY) return ;;
      NONE) create ;;
      SUSPENDED | PREEMPTED | TERMINATED | DELETED) delete ;;
      STOPPED)  # has its disks
        fail "$NAME is stopped; \`gcloud compute tpus tpu-vm start $NAME\`" \
          "starts it"
        ;;
      FAILED)
        fail "the request for $NAME ($TYPE in $ZONE) failed: $(gcloud compute \
          tpus queued-resources describe "$NAME" "${place[@]}" \
          --format='value(state.failedData.error.message)')" \
          "- give it back with \`tpu_pod.sh delete\`, then change it"
        ;;
    esac
    [ "$SECONDS" -lt "$until" ] || fail "$NAME is still $now after WAIT=$WAIT" \
      "seconds; it keeps its place: the same command goes on waiting," \
      "\`tpu_pod.sh delete\` gives it back"
    run sleep "$POLL"
  done
}

# One chain, since `set -e` does not hold where its status is asked for.
install() {
  local archive=$scratch/vpt_jax.tar.gz
  dry || [ -z "$(git status --porcelain)" ] ||
    say "what is not committed is not sent"
  # Once: after a preemption the run goes on with the same code.
  { [ -f "$archive" ] ||
    run git archive --format=tar.gz --output="$archive" HEAD; } &&
    run gcloud compute tpus tpu-vm scp "$archive" "$NAME:" "${place[@]}" \
      --worker=all &&
    { [ -z "$SETUP" ] || run "${ssh[@]}" --worker=all --command="$SETUP"; } &&
    run "${ssh[@]}" --worker=all --command="mkdir -p vpt_jax \
&& tar -xzf ${archive##*/} -C vpt_jax && $worker install"
}

start() {
  local words
  printf -v words ' %q' --distributed=auto "$@"
  run "${ssh[@]}" --worker=all --command="GRACE=$GRACE $worker start$words"
}

logs() { run "${ssh[@]}" --worker=0 --command="$worker logs $1"; }

# outcome ANSWER: of the run: none, running, finished, stopped, lost,
# unreachable or the status of a failure; ANSWER in a dry run.
outcome() {
  local said
  said=$(ask "vpt_jax: $1" "${ssh[@]}" --worker=all \
    --command="if [ -d vpt_jax ]; then $worker state; else echo \
vpt_jax: none; fi") || said=''
  said=$(grep -o 'vpt_jax: .*' <<< "$said" | sort -u)
  case "$said" in
    '') echo unreachable ;;
    'vpt_jax: none') echo none ;;
    'vpt_jax: exit 0') echo finished ;;
    *stopped*) echo stopped ;;
    # When one host goes, processes of others fail: that is no failure.
    *lost* | *none* | *'exit 143'*) echo lost ;;
    *running*) echo running ;;
    *) echo "${said##* }" ;;
  esac
}

up() {
  local now starts=0 silent=0 lines=100 answer=none
  while :; do
    ensure
    patience=20
    now=$(outcome $answer)
    if [ "$now" = unreachable ]; then
      ((++silent <= patience)) || fail "the hosts of $NAME can't be reached"
      run sleep "$POLL"
      continue
    fi
    silent=0
    if [ "$answer" != none ]; then  # of a run that was followed
      case "$now" in
        finished)
          say "finished; \`tpu_pod.sh delete\` gives $NAME back"
          return
          ;;
        stopped) fail "the run was stopped; the same command goes on with it" ;;
        [0-9]*) fail "main failed with status $now, see above" ;;
        running) run sleep "$POLL" ;;
        *) say "the run was lost" ;;
      esac
    fi
    if [ "$now" != running ]; then
      [ "$starts" -le "$RESTARTS" ] ||
        fail "lost $starts times, RESTARTS=$RESTARTS"
      starts=$((starts + 1))
      if ! { install && start "$@"; }; then
        [ "$(state)" != READY ] || fail "could not install or start, see above"
        continue
      fi
    fi
    logs "$lines" || say "the log ended early"
    answer=finished lines=10
  done
}

command=${1:-}
[ $# -eq 0 ] || shift
case "$command" in
  up | create | install | run | logs | status | stop | delete) ;;
  *) fail "unknown command '$command'; see --help" ;;
esac
PROJECT=${PROJECT:-$(setting PROJECT project)}
ZONE=${ZONE:-$(setting ZONE compute/zone)}
place=(--project="$PROJECT" --zone="$ZONE")
# It notices when the other side is gone.
ssh=(gcloud compute tpus tpu-vm ssh "$NAME" "${place[@]}"
  --ssh-flag=-oServerAliveInterval=30)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if [[ "$command" = install || "$command" = run ]]; then
  [ "$(outcome none)" != running ] ||
    fail "a run is going on; \`tpu_pod.sh logs\` follows it, stop ends it"
fi
case "$command" in
  up) up "$@" ;;
  create) ensure ;;
  install) install ;;
  run) start "$@" ;;
  logs) logs 100 ;;
  status)
    say "$NAME: $(state)"
    run "${ssh[@]}" --worker=all --command="$worker state"
    ;;
  stop) run "${ssh[@]}" --worker=all --command="GRACE=$GRACE $worker stop" ;;
  delete)
    if [ "${YES:-0}" = 0 ] && ! dry; then
      read -rp "Delete $NAME ($PROJECT, $ZONE) and its disks? [y/N] " answer ||
        answer=''
      [ "$answer" = y ] || fail "not deleted; YES=1 does not ask"
    fi
    delete
    ;;
esac
