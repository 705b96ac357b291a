"""The tokenizer, and the head that CLIP makes of class names.

The merges here are a handful; the real ones are fetched by their users.
"""

import functools
import gzip
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpt_jax.backbones import clip
from vpt_jax.problems import zero_shot

MERGES = ["t h", "th e</w>", "c a", "ca t</w>", "a b", "b c</w>", "' s</w>"]
THE, CAT, AB, S = 513, 515, 516, 518  # After 2 * 256 bytes, by rank.
START, END = 519, 520


def byte(value: int, last=False) -> int:
  """Id of a byte; those that can be printed come first."""
  seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
  order = seen + [value for value in range(256) if value not in seen]
  return order.index(value) + 256 * last


def write(path, lines):
  path.write_bytes(gzip.compress("\n".join(["#version", *lines, ""]).encode()))
  return path


@pytest.fixture
def merges(tmp_path):
  pytest.importorskip("tokenizers")
  pytest.importorskip("ftfy")
  return write(tmp_path / "merges.txt.gz", MERGES)


@pytest.fixture
def tokenizer(merges):
  return zero_shot.Tokenizer(merges)


@pytest.mark.parametrize(
  "text,ids",
  [
    ("", []),
    ("the cat", [THE, CAT]),
    ("  The\t\nCAT ", [THE, CAT]),
    ("thecat", [512, byte(ord("e")), CAT]),  # Only the end of a word has </w>.
    ("abc", [AB, byte(ord("c"), last=True)]),  # By rank, not by length.
    ("bc", [517]),
    ("cat's", [CAT, S]),
    ("cat’s", [CAT, S]),
    ("cat&#39;s", [CAT, S]),
    ("<&amp;amp;", [byte(ord("<")), byte(ord("&"), True)]),
    ("cat!?", [CAT, byte(ord("!")), byte(ord("?"), True)]),
    ("12", [byte(ord("1"), True), byte(ord("2"), True)]),  # Digits stand alone.
    ("é", [byte(0xC3), byte(0xA9, True)]),
    ("e\u0301", [byte(0xC3), byte(0xA9, True)]),
    ("É", [byte(0xC3), byte(0xA9, True)]),
    ("😀", [byte(0xF0), byte(0x9F), byte(0x98), byte(0x80, True)]),
    ("cat<|endoftext|>", [CAT, END]),
  ],
)
def test_tokens(text, ids, tokenizer):
  got = tokenizer.encode([text])
  assert got.shape == (1, 77) and got.dtype == np.int32
  expected = [START, *ids, END]
  assert got[0].tolist() == expected + [0] * (77 - len(expected))
  np.testing.assert_array_equal(tokenizer.encode(text), got)


def test_several_texts(tokenizer):
  got = tokenizer.encode(["cat", "the"])
  assert got[:, :4].tolist() == [[START, CAT, END, 0], [START, THE, END, 0]]
  assert tokenizer.encode([]).shape == (0, 77)


def test_long_texts(tokenizer):
  fits, above = "the " * 75, "the " * 75 + "cat"
  ids = [START] + [THE] * 75 + [END]
  assert tokenizer.encode(fits)[0].tolist() == ids
  with pytest.raises(ValueError, match=f"text '{above}' takes 76 .* the 75 "):
    tokenizer.encode(["cat", above])
  assert tokenizer.encode(above, truncate=True)[0].tolist() == ids


def test_merges_past_the_vocabulary_are_not_read(
  tokenizer, tmp_path, monkeypatch
):
  del tokenizer  # Skips where the packages are missing.
  monkeypatch.setattr(zero_shot, "_NUM_MERGES", len(MERGES))
  path = write(tmp_path / "x.gz", [*MERGES, "not even a merge"])
  assert zero_shot.Tokenizer(path).encode("cat")[0, 1] == CAT


def test_bad_merges(merges, tmp_path):
  def refused(match):
    with pytest.raises(ValueError, match=match) as error:
      zero_shot.Tokenizer(path)
    assert str(path) in str(error.value) and zero_shot.MERGES_URL in str(
      error.value
    )

  path = tmp_path / "x.gz"
  refused("No such file")
  path.write_text("t h\n")
  refused("Not a gzipped file")
  path.write_bytes(merges.read_bytes()[:30])
  refused("cannot read")
  path.write_bytes(gzip.compress(b"\xff\xfe"))
  refused("codec can't decode")
  for line in ("a", "a b c", "a xy"):
    write(path, ["t h", line])
    refused(f"line 3: '{line}' is no merge")


def test_openai_merges_come_from_the_cache(merges, tmp_path, monkeypatch):
  asked = []
  monkeypatch.setattr(
    zero_shot.download, "fetch", lambda *args: asked.append(args) or merges
  )
  assert zero_shot.Tokenizer(cache=tmp_path).encode("cat")[0, 1] == CAT
  assert asked == [
    (zero_shot.MERGES_URL, f"sha256:{zero_shot.MERGES_SHA256}", tmp_path)
  ]


@pytest.mark.parametrize("missing", ["ftfy", "tokenizers"])
def test_without_the_extra(missing, monkeypatch):
  monkeypatch.setitem(sys.modules, "ftfy", sys)
  monkeypatch.setitem(sys.modules, missing, None)
  with pytest.raises(
    ImportError, match=rf"{missing}: pip install .vpt_jax\[clip\]"
  ):
    zero_shot.Tokenizer()


# The head.

NAMES = ["cat", "dog", "a {} of {x}", "Cat"]
TEMPLATES = ["a photo of a {}.", "{}", "{{}, 100% {x}"]


def encode(texts):
  """Characters as ids, [N, 77]."""
  return np.array([[ord(c) for c in text.ljust(77, "\0")] for text in texts])


def apply(batch):
  """[B, 77] -> [B, 5], of very different lengths."""
  weight = np.random.default_rng(0).normal(size=(77, 5))
  return jnp.asarray(np.sin(batch) @ weight * batch.sum(axis=1, keepdims=True))


def test_head_is_the_mean_of_unit_features():
  head = zero_shot.zero_shot(apply, encode, NAMES, TEMPLATES)
  assert head.shape == (5, 4) and head.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(head, axis=0), 1, rtol=1e-6)
  for column, name in zip(head.T, NAMES):
    texts = [f"a photo of a {name}.", name, f"{{{name}, 100% {{x}}"]
    x = np.asarray(apply(encode(texts)))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).sum(axis=0)
    np.testing.assert_allclose(column, x / np.linalg.norm(x), atol=1e-5)


def test_order_of_classes_and_of_templates():
  head = zero_shot.zero_shot(apply, encode, NAMES, TEMPLATES)
  np.testing.assert_array_equal(
    zero_shot.zero_shot(apply, encode, NAMES[::-1], TEMPLATES), head[:, ::-1]
  )
  np.testing.assert_allclose(
    zero_shot.zero_shot(apply, encode, NAMES, TEMPLATES[::-1]), head, atol=1e-6
  )


@pytest.mark.parametrize("size,calls", [(1, 12), (5, 3), (12, 1), (99, 1)])
def test_batches_have_one_size(size, calls):
  shapes = []
  head = zero_shot.zero_shot(
    lambda x: shapes.append(x.shape) or apply(x),
    encode,
    NAMES,
    TEMPLATES,
    batch_size=size,
  )
  assert shapes == [(min(size, 12), 77)] * calls
  np.testing.assert_allclose(
    head, zero_shot.zero_shot(apply, encode, NAMES, TEMPLATES), atol=1e-6
  )


def test_from_names_to_a_head(tokenizer):
  module = clip.TextTower(
    width=16, depth=1, num_heads=2, output_dim=6, vocab_size=END + 1
  )
  variables = jax.jit(module.init)(jax.random.key(0), tokenizer.encode("cat"))
  run = jax.jit(functools.partial(module.apply, variables))
  head = zero_shot.zero_shot(
    run, tokenizer.encode, ["cat", "the", "bc"], ["a {}.", "{}"], batch_size=4
  )
  feature = run(tokenizer.encode(["the"] * 4))[0]
  one = zero_shot.zero_shot(run, tokenizer.encode, ["the"], ["{}"])
  np.testing.assert_allclose(
    one[:, 0], feature / np.linalg.norm(feature), atol=1e-6
  )
  assert head.shape == (6, 3)
  assert np.linalg.matrix_rank(head) == 3


@pytest.mark.parametrize(
  "names,templates,match",
  [
    ([], ["{}"], "got 0 and 1"),
    (["cat"], [], "got 1 and 0"),
    (["cat", " "], ["{}"], "class name ' ' is blank"),
    (["cat", "dog", "cat"], ["{}"], "2 classes have the name 'cat'"),
    (["cat"], ["{}", "a photo"], "'a photo' must have exactly one {}"),
    (["cat"], ["{} or {}"], "'{} or {}' must have exactly one {}"),
    (["cat"], ["a {name}"], "'a {name}' must have exactly one {}"),
  ],
)
def test_bad_names_and_templates(names, templates, match):
  with pytest.raises(ValueError, match=match):
    zero_shot.zero_shot(apply, encode, names, templates)
