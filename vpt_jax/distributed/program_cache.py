"""Keeps compiled programs on disk, so that a later run starts faster."""

import hashlib
import os
from pathlib import Path
import platform
import re
import shutil
from typing import Any
import zlib

import jax

from vpt_jax.utils import system_errors
from vpt_jax.utils.logs import log

# Programs of a start take a few megabytes.
LEAST_FREE = 2**26
# Programs that are older than this file have been found whole.
CHECKED = ".checked"
_ZSTANDARD = b"\x28\xb5\x2f\xfd"  # how such a file begins


def enable() -> None:
  """Keeps compiled programs on disk; a setting of JAX's own takes precedence.

  In `$VPT_JAX_CACHE/programs`, or ~/.cache/vpt_jax/programs, in a folder for
  every kind of processor: JAX does not tell them apart, and a program for
  another one may crash. The folder may be deleted at any time.
  """
  config: Any = jax.config  # Its fields have no types.
  if config.jax_compilation_cache_dir is not None:
    return
  root = os.environ.get("VPT_JAX_CACHE") or "~/.cache/vpt_jax"
  name = f"{platform.machine()}-{_processor_digest()}"
  folder = Path(root).expanduser() / "programs" / name
  try:
    folder.mkdir(parents=True, exist_ok=True)
    _delete_torn(folder)
    free = shutil.disk_usage(folder).free
  except OSError as error:
    why = system_errors.explain(error)
    log.warning("compiled programs are not kept: %s", why)
    return
  if free < LEAST_FREE:  # JAX would warn of each program
    log.warning(
      "compiled programs are not kept: %s has %d bytes free", folder, free
    )
    return
  config.update("jax_compilation_cache_dir", str(folder))
  # The many small ones of a start take longer than the few large ones.
  config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _delete_torn(folder: Path) -> None:
  """Deletes programs that a kill has left half.

  JAX does not write them as a whole, and would warn at every start without ever
  writing them anew. One that another process is writing may be deleted, too:
  then it is compiled once more.
  """
  checked = folder / CHECKED
  since = checked.stat().st_mtime if checked.exists() else 0.0
  checked.touch()
  for path in folder.glob("*-cache"):
    is_new = path.stat().st_mtime >= since - 1
    if is_new and not _is_whole(path.read_bytes()):
      path.unlink(missing_ok=True)


def _is_whole(content: bytes) -> bool:
  """Returns whether a compressed file has its end."""
  if content.startswith(_ZSTANDARD):
    try:
      import zstandard  # JAX uses it where it is installed.
    except ImportError:
      return True
    whole = zstandard.ZstdDecompressor().decompressobj()
    try:
      whole.decompress(content)
    except zstandard.ZstdError:
      return False
    return whole.eof
  reader = zlib.decompressobj()
  try:
    reader.decompress(content)
  except zlib.error:
    return False
  return reader.eof


def _processor_digest() -> str:
  """Returns 12 hex digits, of all that this processor can do."""
  features = platform.processor()
  try:
    text = Path("/proc/cpuinfo").read_text()
  except OSError:  # no Linux
    text = ""
  found = re.search(r"^(flags|Features)\s*:.*", text, re.MULTILINE)
  if found:
    features = found[0]
  return hashlib.sha256(features.encode()).hexdigest()[:12]
