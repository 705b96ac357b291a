"""A package that only some commands need, and is not installed."""

import sys

import pytest

from vpt_jax.data.sources import tfds
from vpt_jax.utils import command_line, extras


def test_the_error_names_the_extra_and_is_shown_as_one_line(
  monkeypatch, tmp_path, capsys
):
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
  with pytest.raises(extras.MissingExtra) as error:
    tfds.Stored(tmp_path)
  assert isinstance(error.value, ImportError)
  assert "needs the package tensorflow_datasets" in str(error.value)

  def work():
    raise error.value

  assert command_line.exit_status(work) == 1
  shown = capsys.readouterr().err
  assert shown.startswith("error: reading ") and "vpt_jax[tfds]" in shown
