"""Sets how the C library gives memory to this process; knows nothing of JAX."""

import contextlib
import ctypes
from typing import Any

# Options of glibc's malloc.h, and their values: one arena, which alone may grow
# without limit; no mappings of their own for large requests; nothing is given
# back to the system.
_M_ARENA_MAX = -8
_M_MMAP_MAX = -4
_M_TRIM_THRESHOLD = -1
_OPTIONS = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1}

# Free pieces that are set aside: {bytes: how many}. They are addresses; no
# memory is taken for them before it is written to.
_FREE_PIECES = {2**16: 512, 2**20: 256, 2**24: 32, 2**27: 8}
_WALL_BYTES = 1024


def keep() -> None:
  """Keeps memory that is freed for the next step; call it before JAX starts.

  XLA on CPU asks for the buffers of a step anew each time. By its defaults
  glibc then returns them to the system and gets them back as pages that the
  kernel must clear: 640,000 in a step of ViT-B/16, a tenth of its time.

  What is kept must not be cut up either: a small request takes the smallest
  free piece that it fits in, and a step's buffer of which something was taken
  is too small for the next step. So there are free pieces of every size.
  Where there is no glibc nothing changes.
  """
  with contextlib.suppress(AttributeError, OSError, TypeError):
    libc = ctypes.CDLL(None)
    for option, value in _OPTIONS.items():
      libc.mallopt(option, value)
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    _set_pieces_aside(libc)


def _set_pieces_aside(libc: Any) -> None:
  """Allocates the pieces with walls between them, and frees the pieces."""

  def allocate(size: int) -> int:
    return libc.malloc(ctypes.c_size_t(size)) or 0

  pieces = []
  for size, count in _FREE_PIECES.items():
    for _ in range(count):
      pieces.append(allocate(size))
      # A wall, which is never freed, must lie behind the piece: free neighbours
      # would be joined. A wall that lies further down fills a hole that an
      # import has left; it becomes a free piece too, and another one is made.
      wall = allocate(_WALL_BYTES)
      while 0 < wall < pieces[-1]:
        pieces.append(wall)
        wall = allocate(_WALL_BYTES)
  for piece in pieces:
    libc.free(piece)
