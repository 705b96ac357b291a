"""Makes tables and a page of results from records. See README.md."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
  __name__,
  submod_attrs={
    "export": ["latex", "markdown", "table_csv"],
    "page": ["render"],
    "result_tables": ["terminal"],
    "rows": ["Results", "Row", "TaskScore", "collect"],
    "suites": ["SUITES", "Column", "Suite"],
  },
)
