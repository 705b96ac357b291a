"""Aligned tables of text."""

import pytest

from vpt_jax.utils import text_tables

ROWS = [("name", "images", "note"), ("a", "5", ""), ("longer", "1,000", "x")]


def test_columns_are_aligned_without_trailing_spaces():
  assert text_tables.align(ROWS).split("\n") == [
    "name    images  note",
    "a       5",
    "longer  1,000   x",
  ]


def test_numbers_are_aligned_at_the_right():
  assert text_tables.align(ROWS, right={1}).split("\n") == [
    "name    images  note",
    "a            5",
    "longer   1,000  x",
  ]


def test_no_rows_are_no_text():
  assert text_tables.align([]) == ""


def test_rows_must_have_the_same_length():
  with pytest.raises(ValueError, match="zip"):
    text_tables.align([("a", "b"), ("a",)])
