#!/usr/bin/env bash
# Sets up .venv, then runs the main job on this machine:
#   bash launch/local.sh                                    embedded default
#   bash launch/local.sh --config=configs/vapt_vtab.py:eurosat [...]
# DRY_RUN=1 prints the commands instead; PYTHON names the Python for .venv.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source launch/env.sh "[tfds]"
[ $# -gt 0 ] || set -- --config=configs/vapt_vtab.py
run exec python -m vpt_jax.main "$@"
