"""Reads HEIC, as phones save photos, where the extra `heic` is installed."""

import functools
import re

from vpt_jax.utils import extras

_BEGINNING = re.compile(rb"(?s).{4}ftyp(hei|hev|mif1|msf1)")


def is_heic(data: bytes) -> bool:
  """Returns whether a file begins as HEIC does (and some AVIF)."""
  return _BEGINNING.match(data[:12]) is not None


@functools.cache
def enable() -> None:
  """Lets Pillow read HEIC.

  Such images are always turned upright, by the reader itself.

  Raises:
    MissingExtra: the reader is not installed.
  """
  try:
    import pillow_heif  # the extra `heic`
  except ImportError as error:
    purpose = "reading HEIC images (or convert them to JPEG)"
    raise extras.MissingExtra(error, purpose, "heic") from error
  pillow_heif.register_heif_opener()
