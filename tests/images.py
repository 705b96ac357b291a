"""Loads splits in tests, without a config."""

from vpt_jax.data import datasets


def load(name, split, *, image_size, family="", source="", **options):
  """Returns a split as a config of this task and source would load it."""
  preprocess = datasets.without_normalization(name, source, family, image_size)
  return datasets.load(name, split, preprocess, source=source, **options)
