"""Compiled programs are kept on disk."""

import os
from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).resolve().parents[2]

CACHES = """
import jax
from vpt_jax.distributed import program_cache
program_cache.enable()
jax.jit(lambda x: x + 1)(1.0).block_until_ready()
print(jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.parametrize("own", [True, False])
def test_compiled_programs_are_kept(own, tmp_path):
  env = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))
  }
  env |= {"VPT_JAX_CACHE": str(tmp_path / "ours"), "JAX_PLATFORMS": "cpu"}
  if own:
    env["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "theirs")
  out = subprocess.run(
    [sys.executable, "-c", CACHES],
    cwd=ROOT,
    check=True,
    env=env,
    capture_output=True,
    text=True,
  )
  folder = Path(out.stdout.strip())
  if own:
    assert folder == tmp_path / "theirs"
  else:
    assert folder.parent == tmp_path / "ours" / "programs"
    assert list(folder.glob("*-cache"))
