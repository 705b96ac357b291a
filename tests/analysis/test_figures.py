"""Labels and styles of figures."""

from vpt_jax.analysis import (
  figures,
)


def test_labels_tell_keys_apart():
  assert figures.distinguish([("vpt", "b", "t"), ("vapt", "b", "t")]) == (
    ["vpt", "vapt"],
    "b, t",
  )
  assert figures.distinguish([("vpt", "b")]) == ([""], "vpt, b")


def test_lines_can_be_told_apart():
  pairs = {(figures.colour(i), figures.marker(i)) for i in range(70)}
  assert len(pairs) == 70
