"""The tokenizer, the text tower and the head that CLIP makes of class names.

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
from vpt_jax.utils import trees

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
  return clip.Tokenizer(merges)


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
  monkeypatch.setattr(clip, "_NUM_MERGES", len(MERGES))
  path = write(tmp_path / "x.gz", [*MERGES, "not even a merge"])
  assert clip.Tokenizer(path).encode("cat")[0, 1] == CAT


def test_bad_merges(merges, tmp_path):
  def refused(match):
    with pytest.raises(ValueError, match=match) as error:
      clip.Tokenizer(path)
    assert str(path) in str(error.value) and clip.MERGES_URL in str(error.value)

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
    clip.fetch, "fetch", lambda *args: asked.append(args) or merges
  )
  assert clip.Tokenizer(cache=tmp_path).encode("cat")[0, 1] == CAT
  assert asked == [(clip.MERGES_URL, f"sha256:{clip.MERGES_SHA256}", tmp_path)]


@pytest.mark.parametrize("missing", ["ftfy", "tokenizers"])
def test_without_the_extra(missing, monkeypatch):
  monkeypatch.setitem(sys.modules, "ftfy", sys)
  monkeypatch.setitem(sys.modules, missing, None)
  with pytest.raises(ImportError, match=rf"{missing}: install vpt_jax\[clip\]"):
    clip.Tokenizer()


# The text tower.

LENGTH, VOCAB = 9, 40


@functools.cache
def tower(dtype=jnp.float32):
  """(apply, params), jitted; all parameters random."""
  module = clip.TextTower(
    width=32,
    depth=2,
    num_heads=4,
    output_dim=12,
    context_length=LENGTH,
    vocab_size=VOCAB,
    dtype=dtype,
  )
  params = jax.eval_shape(module.init, jax.random.key(0), ids())["params"]
  flat = trees.flatten(params)
  rng = np.random.default_rng(0)
  params = trees.unflatten(
    {
      name: jnp.asarray(
        rng.normal(0, 0.3, leaf.shape) + name.endswith("scale"), jnp.float32
      )
      for name, leaf in flat.items()
    }
  )
  return jax.jit(module.apply), params


def ids():
  """[5, 9]: texts of 1 to 7 tokens between start (38) and end (39)."""
  rng = np.random.default_rng(1)
  out = np.zeros((5, LENGTH), np.int32)
  for row, length in zip(out, (1, 2, 3, 5, 7)):
    row[: length + 2] = [38, *rng.integers(1, 38, length), 39]
  return out


def test_names_and_shapes():
  flat = trees.flatten(tower()[1])
  assert {
    name: leaf.shape
    for name, leaf in flat.items()
    if "encoderblock" not in name
  } == {
    "Transformer/encoder_norm/bias": (32,),
    "Transformer/encoder_norm/scale": (32,),
    "pos_embedding": (LENGTH, 32),
    "projection/kernel": (32, 12),
    "token_embedding": (VOCAB, 32),
  }
  assert flat["Transformer/encoderblock_1/MlpBlock_0/Dense_0/kernel"].shape == (
    32,
    128,
  )


def test_text_after_the_end_has_no_effect():
  apply, params = tower()
  texts = ids()
  feature = apply({"params": params}, texts)
  assert feature.shape == (5, 12) and feature.dtype == jnp.float32
  changed = np.where(texts == 0, 7, texts)
  np.testing.assert_array_equal(apply({"params": params}, changed), feature)
  for place in (0, 1):
    changed = texts.copy()
    changed[:, place] = texts[:, place] % 37 + 1
    moved = np.abs(apply({"params": params}, changed) - feature).max(axis=1)
    assert (moved > 1e-3).all()


def test_nothing_sees_what_comes_later():
  """Another end: the feature is that of the shorter text."""
  apply, params = tower()
  texts = ids()[-1:].repeat(2, axis=0)
  texts[1, 4] = 39
  short = texts[:1].copy()
  short[0, 4:] = [39, 0, 0, 0, 0]
  np.testing.assert_allclose(
    apply({"params": params}, texts)[1],
    apply({"params": params}, short)[0],
    rtol=0,
    atol=1e-6,
  )


def test_texts_of_another_length():
  apply, params = tower()
  with pytest.raises(ValueError, match=r"ids are \[5, 8\], .* needs \[N, 9\]"):
    apply({"params": params}, ids()[:, :8])


def test_half_precision():
  full, half = (
    apply({"params": params}, ids())
    for apply, params in (tower(), tower(jnp.bfloat16))
  )
  assert half.dtype == jnp.float32
  error = np.abs(half - full).max() / np.abs(full).max()
  assert 1e-5 < error < 0.05


def test_parity_with_torch():
  torch = pytest.importorskip("torch")
  apply, params = tower()
  flat = {
    name: torch.tensor(np.asarray(leaf))
    for name, leaf in trees.flatten(params).items()
  }

  def norm(x, name):
    return torch.nn.functional.layer_norm(
      x, (32,), flat[f"{name}/scale"], flat[f"{name}/bias"], eps=1e-5
    )

  def dense(x, name):
    return x @ flat[f"{name}/kernel"] + flat[f"{name}/bias"]

  with torch.no_grad():
    texts = torch.tensor(ids(), dtype=torch.long)
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    x = flat["token_embedding"][texts] + flat["pos_embedding"]
    for i in range(2):
      block = f"Transformer/encoderblock_{i}"
      name = f"{block}/MultiHeadDotProductAttention_0"
      attention = torch.nn.MultiheadAttention(32, 4, batch_first=True)
      qkv = [f"{name}/{part}" for part in ("query", "key", "value")]
      attention.in_proj_weight.copy_(
        torch.cat([flat[f"{part}/kernel"].reshape(32, 32).T for part in qkv])
      )
      attention.in_proj_bias.copy_(
        torch.cat([flat[f"{part}/bias"].reshape(32) for part in qkv])
      )
      attention.out_proj.weight.copy_(
        flat[f"{name}/out/kernel"].reshape(32, 32).T
      )
      attention.out_proj.bias.copy_(flat[f"{name}/out/bias"])
      y = norm(x, f"{block}/LayerNorm_0")
      x = x + attention(y, y, y, attn_mask=mask, need_weights=False)[0]
      y = dense(norm(x, f"{block}/LayerNorm_1"), f"{block}/MlpBlock_0/Dense_0")
      y = y * torch.sigmoid(1.702 * y)
      x = x + dense(y, f"{block}/MlpBlock_0/Dense_1")
    x = norm(x, "Transformer/encoder_norm")
    x = x[torch.arange(5), texts.argmax(dim=-1)] @ flat["projection/kernel"]
  np.testing.assert_allclose(
    apply({"params": params}, ids()), x.numpy(), rtol=1e-5, atol=1e-5
  )


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
  head = clip.zero_shot(apply, encode, NAMES, TEMPLATES)
  assert head.shape == (5, 4) and head.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(head, axis=0), 1, rtol=1e-6)
  for column, name in zip(head.T, NAMES):
    texts = [f"a photo of a {name}.", name, f"{{{name}, 100% {{x}}"]
    x = np.asarray(apply(encode(texts)))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).sum(axis=0)
    np.testing.assert_allclose(column, x / np.linalg.norm(x), atol=1e-5)


def test_order_of_classes_and_of_templates():
  head = clip.zero_shot(apply, encode, NAMES, TEMPLATES)
  np.testing.assert_array_equal(
    clip.zero_shot(apply, encode, NAMES[::-1], TEMPLATES), head[:, ::-1]
  )
  np.testing.assert_allclose(
    clip.zero_shot(apply, encode, NAMES, TEMPLATES[::-1]), head, atol=1e-6
  )


@pytest.mark.parametrize("size,calls", [(1, 12), (5, 3), (12, 1), (99, 1)])
def test_batches_have_one_size(size, calls):
  shapes = []
  head = clip.zero_shot(
    lambda x: shapes.append(x.shape) or apply(x),
    encode,
    NAMES,
    TEMPLATES,
    batch_size=size,
  )
  assert shapes == [(min(size, 12), 77)] * calls
  np.testing.assert_allclose(
    head, clip.zero_shot(apply, encode, NAMES, TEMPLATES), atol=1e-6
  )


def test_from_names_to_a_head(tokenizer):
  module = clip.TextTower(
    width=16, depth=1, num_heads=2, output_dim=6, vocab_size=END + 1
  )
  variables = jax.jit(module.init)(jax.random.key(0), tokenizer.encode("cat"))
  run = jax.jit(functools.partial(module.apply, variables))
  head = clip.zero_shot(
    run, tokenizer.encode, ["cat", "the", "bc"], ["a {}.", "{}"], batch_size=4
  )
  feature = run(tokenizer.encode(["the"] * 4))[0]
  one = clip.zero_shot(run, tokenizer.encode, ["the"], ["{}"])
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
    clip.zero_shot(apply, encode, names, templates)
