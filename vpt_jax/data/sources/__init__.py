"""Sources of labelled images, one file for each kind. See ../README.md."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
  __name__,
  submod_attrs={
    "arrays": ["check_images", "digits", "from_arrays", "jpeg_npz", "npz"],
    "class_folders": ["folder"],
    "csv_tables": ["read_csv"],
    "image_files": ["json_splits", "pack"],
    "layouts": ["LAYOUTS"],
    "parts": ["NoImages", "select"],
    "tfds": ["examples"],
  },
)
