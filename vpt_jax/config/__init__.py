"""Configs: their fields, their checks, their files and the command line.

`sections.py` is the documented list of all fields. See README.md.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
  __name__,
  submod_attrs={
    "arguments": ["Command", "parse", "USAGE"],
    "config_files": ["load_config"],
    "identity": ["difference", "digest", "plain", "public", "without_folders"],
    "normalization": ["warning"],
    "options": ["option"],
    "registration": ["register_method", "register_problem"],
    "resolution": ["check_saved", "check_values", "resolve"],
    "sections": ["defaults"],
  },
)
