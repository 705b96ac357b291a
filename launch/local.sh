#!/usr/bin/env bash
# Sets up .venv, then runs the main job on this machine:
#   bash launch/local.sh                                    embedded default
#   bash launch/local.sh --config=configs/vapt_vtab.py:eurosat [...]
source "$(dirname "${BASH_SOURCE[0]}")/env.sh" ""
[ $# -gt 0 ] || set -- --config=configs/vapt_vtab.py
exec python -m vpt_jax.main "$@"
