"""Holds the logger of the whole package.

Modules write `from vpt_jax.utils.logs import log` and then `log.info(...)`.
Where the messages go is decided once, by the command that runs.
"""

import logging


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


log = logging.getLogger("vpt_jax")
