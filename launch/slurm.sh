#!/usr/bin/env bash
# Runs the main job under SLURM. From a folder that all nodes share:
#   bash launch/slurm.sh --config=configs/vapt_vtab.py:eurosat --workdir=DIR
#   ARRAY=8 bash launch/slurm.sh --config=configs/sweep_vtab.py:vapt \
#     --workdir=DIR
# The first is one job over all nodes, the second a sweep by eight jobs which
# share DIR. Sets up .venv, then submits itself. Settings, with defaults:
#   NODES=1         of a job; above 1 each GPU has a process of its own
#   GPUS=1          per node; 0 for none
#   CPUS=8          per GPU
#   TIME=24:00:00   limit of one job; see below
#   PARTITION= ACCOUNT=   the cluster's defaults
#   OPTIONS=        more of sbatch's: "--mem=64G --constraint=a100"
#   ARRAY=          number of jobs of a sweep; 19%4: four at a time
#   SHARD=0         1: job i of n gets --shard=i/n, for a DIR without file locks
#   GRACE=90        seconds to save in, before the limit
# Two minutes before the limit main saves, and the job is queued again. So is a
# preempted one. DRY_RUN=1 prints the commands instead.

#SBATCH --job-name=vpt_jax
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120

# SLURM runs a copy from elsewhere, in the folder where it was submitted.
here=$(dirname "${BASH_SOURCE[0]}")
[ -f "$here/common.sh" ] || here=launch
source "$here/common.sh"
: "${NODES:=1}" "${GPUS:=1}" "${CPUS:=8}" "${TIME:=24:00:00}" "${ARRAY:=}"
: "${SHARD:=0}" "${GRACE:=90}"

submit() {
  local tasks=1 cpus=$((CPUS * (GPUS > 0 ? GPUS : 1))) options more
  # What JAX expects of SLURM: it gives each process the GPU of its number.
  if [ "$NODES" -gt 1 ] && [ "$GPUS" -gt 1 ]; then
    tasks=$GPUS
    cpus=$CPUS
  fi
  options=(--nodes="$NODES" --ntasks-per-node="$tasks" --cpus-per-task="$cpus"
    --time="$TIME" --export=ALL)
  [ "$GPUS" -eq 0 ] || options+=(--gpus-per-node="$GPUS")
  [ -z "${PARTITION:-}" ] || options+=(--partition="$PARTITION")
  [ -z "${ACCOUNT:-}" ] || options+=(--account="$ACCOUNT")
  if [ -n "$ARRAY" ]; then
    [ "$NODES" -eq 1 ] || fail "ARRAY=$ARRAY with NODES=$NODES; a job of an" \
      "array has one node"
    options+=(--array="1-$ARRAY" --output="runs/slurm/%x-%A_%a.out")
  else
    [ "$SHARD" = 0 ] || fail "SHARD=$SHARD without ARRAY; expected ARRAY=n," \
      "the number of shards"
    options+=(--output="runs/slurm/%x-%j.out")
  fi
  read -ra more <<< "${OPTIONS:-}"
  run mkdir -p runs/slurm
  export NODES GPUS CPUS TIME ARRAY SHARD
  run sbatch "${options[@]}" "${more[@]}" launch/slurm.sh "$@"
}

# A run that has not saved by then goes on from its last checkpoint: better than
# to be ended by the limit, after which nothing is queued again.
too_late() {
  sleep "$GRACE" <&- >&- 2>&- 3>&-
  scontrol requeue "$id"
}

job() {
  local status=0 late='' id=$SLURM_JOB_ID
  if [ -n "$ARRAY" ]; then
    # The id of one job of an array may be that of all of them.
    id=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    [ "$SHARD" = 0 ] || set -- "$@" --shard="$SLURM_ARRAY_TASK_ID/${ARRAY%\%*}"
  fi
  [ "${SLURM_NTASKS:-1}" -eq 1 ] || set -- --distributed=auto "$@"
  # Without it JAX would take the CPU where CUDA can't be used.
  [ "$GPUS" -eq 0 ] || run export JAX_PLATFORMS=cuda
  # Not SIGTERM, which is also how a job is cancelled. `scancel` signals the
  # processes; `srun`, told to end, would kill them after half a minute.
  trap 'scancel --signal=TERM "$id"; too_late & late=$!' USR1
  trap : TERM  # SLURM has told the processes itself
  run exec srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --gpu-bind=none \
    python -m vpt_jax.main "$@" &
  await $! || status=$?
  if [ -n "$late" ] && kill "$late" 2> /dev/null && [ "$status" -ne 0 ]; then
    run scontrol requeue "$id"
  fi
  return "$status"
}

if [ -n "${SLURM_JOB_ID:-}" ]; then
  run source .venv/bin/activate
  job "$@"
else
  [ "$GPUS" -eq 0 ] && extra='[tfds]' || extra='[gpu,tfds]'
  source launch/env.sh "$extra"
  submit "$@"
fi
