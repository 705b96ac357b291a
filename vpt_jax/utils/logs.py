"""Holds the logger of the whole package.

Modules write `from vpt_jax.utils.logs import log` and then `log.info(...)`.
Where the messages go is decided once, by the command that runs.
"""

import logging

log = logging.getLogger("vpt_jax")
