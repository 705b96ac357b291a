"""Freed memory is kept for the next step."""

from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).resolve().parents[2]

KEEPS = """
import ctypes, resource, threading
from vpt_jax.utils import malloc
{call}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def work():
  buffer = libc.malloc(ctypes.c_size_t(1 << 28))
  ctypes.memset(buffer, 1, 1 << 28)
  # It stays, where it may lie after the buffer.
  libc.malloc(ctypes.c_size_t(200_000))
  libc.free(buffer)

for _ in range(2):
  for size in (40, 4000, 4 << 20):
    libc.malloc(ctypes.c_size_t(size))
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
@pytest.mark.parametrize("keeps", [True, False])
def test_memory_is_kept(keeps):
  """Nor cut up by what stays: 2^16 pages need not be cleared again."""
  out = subprocess.run(
    [sys.executable, "-c", KEEPS.format(call="malloc.keep()" if keeps else "")],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
  )
  assert (int(out.stdout) < 2000) == keeps
