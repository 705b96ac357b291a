"""Holds the logger of the whole package.

Modules write `from vpt_jax.utils.logs import log` and then `log.info(...)`.
Where the messages go is decided once, by the command that runs.
"""

import logging

from vpt_jax.utils import texts


class Once(logging.Filter):
  """Lets every message through once."""

  def __init__(self) -> None:
    """Knows no message yet."""
    super().__init__()
    self._known: set[str] = set()

  def filter(self, record: logging.LogRecord) -> bool:
    """Returns whether a message is new."""
    message = record.getMessage()
    is_new = message not in self._known
    self._known.add(message)
    return is_new


class Encodable(logging.Filter):
  """Makes every message one that can be written.

  Paths in it need not be UTF-8. A handler that cannot write a message prints a
  traceback in its place.
  """

  def filter(self, record: logging.LogRecord) -> bool:
    """Changes the message where it has to be; always returns True."""
    record.msg = texts.encodable(record.getMessage())
    record.args = ()
    return True


log = logging.getLogger("vpt_jax")
log.addFilter(Encodable())
