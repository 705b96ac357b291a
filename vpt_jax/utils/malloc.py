"""How this process has its memory; knows nothing of JAX."""

import contextlib
import ctypes

# What `keep` tells glibc (malloc.h): one arena, which alone may grow without
# limit; no maps of their own; nothing is given back.
_MALLOPT = {-8: 1, -4: 0, -1: -1}
# Free pieces for small requests: {bytes: how many}. Addresses, not memory.
_SHELF = {2**16: 512, 2**20: 256, 2**24: 32, 2**27: 8}


def keep() -> None:
  """Has memory that is freed kept for the next step; before JAX is started.

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
    for option, value in _MALLOPT.items():
      libc.mallopt(option, value)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    take = lambda size: libc.malloc(ctypes.c_size_t(size)) or 0
    free = []
    for size, count in _SHELF.items():
      for _ in range(count):
        free.append(take(size))
        # What stays, behind it: neighbours would be joined. Not in a hole that
        # an import has left further down.
        while 0 < (wall := take(1024)) < free[-1]:
          free.append(wall)
    for piece in free:
      libc.free(piece)
