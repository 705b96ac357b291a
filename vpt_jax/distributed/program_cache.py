"""Keeps compiled programs on disk, so that a later run starts faster."""

import hashlib
import os
from pathlib import Path
import platform
import re
from typing import Any

import jax


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
  config.update("jax_compilation_cache_dir", str(folder))
  # The many small ones of a start take longer than the few large ones.
  config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


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
