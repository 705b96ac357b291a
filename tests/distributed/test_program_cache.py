"""Compiled programs are kept on disk."""

import os
from pathlib import Path
import subprocess
import sys

import pytest

from vpt_jax.distributed import program_cache

ROOT = Path(__file__).resolve().parents[2]

CACHES = """
import jax
from vpt_jax.distributed import program_cache
program_cache.enable()
jax.jit(lambda x: x + 1)(1.0).block_until_ready()
print(jax.config.jax_compilation_cache_dir)
"""


def compile_one(tmp_path, **variables):
  """A process that compiles a program."""
  env = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))
  }
  env |= {"VPT_JAX_CACHE": str(tmp_path / "ours"), "JAX_PLATFORMS": "cpu"}
  return subprocess.run(
    [sys.executable, "-c", CACHES],
    cwd=ROOT,
    check=True,
    env={**env, **variables},
    capture_output=True,
    text=True,
  )


@pytest.mark.parametrize("own", [True, False])
def test_compiled_programs_are_kept(own, tmp_path):
  variables = {}
  if own:
    variables["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "theirs")
  out = compile_one(tmp_path, **variables)
  folder = Path(out.stdout.strip())
  if own:
    assert folder == tmp_path / "theirs"
  else:
    assert folder.parent == tmp_path / "ours" / "programs"
    assert list(folder.glob("*-cache"))


@pytest.mark.parametrize("left", [0, 0.5])
def test_a_program_that_a_kill_has_left_half_is_compiled_anew(left, tmp_path):
  """JAX warned of it at every start, and never wrote it again."""
  folder = Path(compile_one(tmp_path).stdout.strip())
  (path,) = folder.glob("*-cache")
  whole = path.read_bytes()
  path.write_bytes(whole[: int(left * len(whole))])
  assert compile_one(tmp_path).stderr == ""
  assert program_cache._is_whole(path.read_bytes())
  before = path.stat().st_mtime_ns
  assert compile_one(tmp_path).stderr == ""
  assert path.stat().st_mtime_ns == before


def test_zstandard_is_understood_where_it_is_installed():
  zstandard = pytest.importorskip("zstandard")
  whole = zstandard.ZstdCompressor().compress(b"program" * 1000)
  assert program_cache._is_whole(whole)
  assert not program_cache._is_whole(whole[:-5])


def test_a_disk_that_is_full_or_not_ours_is_said_once(tmp_path):
  """And nothing is kept: JAX warned of each program."""
  (tmp_path / "ours").write_text("a file, no folder")
  out = compile_one(tmp_path)
  assert out.stdout == "None\n"
  assert out.stderr.startswith("compiled programs are not kept: ")
  assert out.stderr.count("\n") == 1
