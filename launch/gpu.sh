#!/usr/bin/env bash
# Sets up .venv with CUDA, then runs the main job on this machine's GPUs:
#   bash launch/gpu.sh --config=configs/vapt_vtab.py:eurosat [...]
# One process has all of them. Settings:
#   GPUS=0,1    only these
#   PER_GPU=1   of a sweep: one process per GPU, all share its --workdir
# DRY_RUN=1 prints the commands instead.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
dry || command -v nvidia-smi > /dev/null ||
  fail "no nvidia-smi: this machine has no NVIDIA driver; launch/local.sh" \
    "runs on the CPU"
source launch/env.sh "[gpu,tfds]"
# Without it JAX would take the CPU where CUDA can't be used.
run export JAX_PLATFORMS=cuda
if [ "${PER_GPU:-0}" = 0 ]; then
  [ -z "${GPUS:-}" ] || run export CUDA_VISIBLE_DEVICES="$GPUS"
  run exec python -m vpt_jax.main "$@"
  exit
fi

: "${GPUS:=$(ask 0 nvidia-smi --query-gpu=index --format=csv,noheader |
  paste -sd,)}"
[ -n "$GPUS" ] || fail "nvidia-smi lists no GPU"
children=()
trap 'kill -TERM "${children[@]}" 2> /dev/null || true' INT TERM
for gpu in ${GPUS//,/ }; do
  run exec env CUDA_VISIBLE_DEVICES="$gpu" \
    python -m vpt_jax.main "$@" \
    > >(sed -u "s/^/gpu $gpu: /") 2>&1 &
  children+=($!)
done
failed=0
# Those that are left take over what another one did not finish.
for child in "${children[@]}"; do
  await "$child" || failed=$?
done
exit "$failed"
