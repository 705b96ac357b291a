"""Tools that know nothing of models: trees, files, locks, tables, commands.

See README.md.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
  __name__,
  submod_attrs={
    "command_line": ["exit_status"],
    "files": [
      "InUse",
      "lock",
      "lock_if_free",
      "replacing",
      "sweep",
      "waiting_lock",
      "write_atomic",
      "write_json",
    ],
    "logs": ["log"],
    "lookup": ["choose"],
    "signals": ["Preempted", "listen", "saving"],
    "system_errors": ["explain", "naming"],
    "text_tables": ["align"],
    "texts": ["printable", "printable_values", "readable_name"],
    "trees": ["count", "flatten", "match", "merge", "split", "unflatten"],
  },
)
