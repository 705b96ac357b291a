"""CLIP's language side (Radford et al. 2021, arXiv 2103.00020).

Class names in templates go through the byte-pair encoding and the text tower;
what comes out is a linear head for CLIP's visual tower, in need of no image.
"""

import collections
from collections.abc import Callable, Sequence
import gzip
import html
from pathlib import Path
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vpt_jax.backbones.vit import Dtype, Encoder
from vpt_jax.nn.tokens import Tokens
from vpt_jax.weights import download

MERGES_URL = (
  "https://github.com/openai/CLIP/raw/main/clip/bpe_simple_vocab_16e6.txt.gz"
)
MERGES_SHA256 = (
  "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
)
VOCAB_SIZE = 49408
CONTEXT_LENGTH = 77
START, END, SUFFIX = "<|startoftext|>", "<|endoftext|>", "</w>"
_NUM_MERGES = VOCAB_SIZE - 2 * 256 - 2  # The file goes on, unused.
# Contractions, words, single digits, and runs of what is left.
_PIECES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class TextTower(nn.Module):
  """A causal transformer, read where the text ends.

  Attributes:
    output_dim: width of the space that images and texts share.
    eps: of the norms.
    gelu: as of `ViT`; "quick" is OpenAI's.
    dtype: of the matrix products; norms and softmax are always float32.
  """

  width: int
  depth: int
  num_heads: int
  output_dim: int
  context_length: int = CONTEXT_LENGTH
  vocab_size: int = VOCAB_SIZE
  eps: float = 1e-5
  gelu: str = "quick"
  dtype: Dtype = jnp.float32

  def setup(self):
    normal = nn.initializers.normal
    self.token_embedding = self.param(
      "token_embedding", normal(0.02), (self.vocab_size, self.width)
    )
    self.pos_embedding = self.param(
      "pos_embedding", normal(0.01), (self.context_length, self.width)
    )
    self.Transformer = Encoder(
      self.depth,
      self.num_heads,
      4 * self.width,
      self.gelu,
      self.eps,
      self.dtype,
    )
    self.projection = nn.Dense(
      self.output_dim,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=normal(self.width**-0.5),
    )

  def __call__(self, ids: jax.Array) -> jax.Array:
    """Texts [N, context_length] -> features [N, output_dim].

    Args:
      ids: int32, from `Tokenizer.encode`. The end token has the largest id;
        what follows it has no effect.

    Returns:
      float32, not normalised.

    Raises:
      ValueError: the texts have another length.
    """
    if ids.shape[1:] != (self.context_length,):
      raise ValueError(
        f"ids are {list(ids.shape)}, the text tower needs [N, "
        f"{self.context_length}]"
      )
    x = self.token_embedding[ids] + self.pos_embedding
    tokens = Tokens(x.astype(self.dtype), num_cls=0)
    # Finite: a row without any -inf has a softmax in every precision.
    later = jnp.triu(jnp.full(2 * (self.context_length,), -1e9), k=1)
    for i in range(self.depth):
      tokens = self.Transformer.block(i, tokens, None, 1.0, None, later)
    end = ids.argmax(axis=1)
    x = jnp.take_along_axis(tokens.x, end[:, None, None], axis=1)[:, 0]
    x = self.projection(self.Transformer.norm(x).astype(self.dtype))
    return x.astype(jnp.float32)


class Tokenizer:
  """OpenAI's byte-pair encoding, in lower case."""

  def __init__(
    self, merges: str | Path | None = None, cache: str | Path | None = None
  ):
    """Reads the merges.

    Args:
      merges: gzipped file, one merge a line after a first line that is not;
        None: OpenAI's, fetched once.
      cache: folder, see `fetch`.

    Raises:
      ImportError: the extra `clip` is not installed.
      FetchError: OpenAI's file is not in the cache and cannot be fetched.
      ValueError: the file holds no merges.
    """
    try:
      import ftfy
      import tokenizers
    except ImportError as error:
      raise ImportError(
        f"CLIP's tokenizer needs {error.name}: install vpt_jax[clip]"
      ) from error
    if merges is None:
      merges = download.fetch(MERGES_URL, f"sha256:{MERGES_SHA256}", cache)
    vocab, pairs = _read(merges)
    self._fix = ftfy.fix_text
    self._bpe = tokenizers.Tokenizer(
      tokenizers.models.BPE(vocab, pairs, end_of_word_suffix=SUFFIX)
    )
    self._bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
      [
        tokenizers.pre_tokenizers.Split(
          tokenizers.Regex(_PIECES), "removed", invert=True
        ),
        tokenizers.pre_tokenizers.ByteLevel(
          add_prefix_space=False, use_regex=False
        ),
      ]
    )
    self._bpe.add_special_tokens([START, END])
    self._start, self._end = vocab[START], vocab[END]

  def encode(
    self, texts: str | Sequence[str], truncate: bool = False
  ) -> np.ndarray:
    """Texts -> ids [N, 77], int32: start, text, end, zeros.

    Args:
      texts: N texts, or one.
      truncate: cut texts that are too long instead of refusing them.

    Raises:
      ValueError: a text is too long.
    """
    texts = [texts] if isinstance(texts, str) else texts
    out = np.zeros((len(texts), CONTEXT_LENGTH), np.int32)
    encoded = self._bpe.encode_batch([self._clean(text) for text in texts])
    for row, text, pieces in zip(out, texts, encoded):
      ids = pieces.ids
      if len(ids) > CONTEXT_LENGTH - 2 and not truncate:
        raise ValueError(
          f"text {text!r} takes {len(ids)} tokens, above the "
          f"{CONTEXT_LENGTH - 2} that CLIP reads; shorten it or set truncate"
        )
      ids = [self._start, *ids[: CONTEXT_LENGTH - 2], self._end]
      row[: len(ids)] = ids
    return out

  def _clean(self, text: str) -> str:
    text = html.unescape(html.unescape(self._fix(text)))
    return " ".join(text.split()).lower()


def _read(path: str | Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
  """File of merges -> (ids of the tokens, pairs in order of precedence)."""
  try:
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
      lines = file.read().split("\n")[1 : _NUM_MERGES + 1]
  except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
    raise ValueError(
      f"cannot read the merges in {path}: {error}; {MERGES_URL} "
      "is the file that CLIP uses"
    ) from error
  # A byte is written as its own character, or as one past 255 if that is none.
  seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
  symbols = [*map(chr, seen), *map(chr, range(256, 512 - len(seen)))]
  symbols += [symbol + SUFFIX for symbol in symbols]
  vocab = {symbol: i for i, symbol in enumerate(symbols)}
  pairs = []
  for number, line in enumerate(filter(None, lines), 2):
    pair = tuple(line.split())
    if len(pair) != 2 or not vocab.keys() >= set(pair):
      raise ValueError(
        f"{path}, line {number}: {line!r} is no merge of two "
        f"known tokens; {MERGES_URL} is the file that CLIP uses"
      )
    pairs.append(pair)
    vocab.setdefault("".join(pair), len(vocab))
  return vocab | {START: len(vocab), END: len(vocab) + 1}, pairs


def zero_shot(
  apply: Callable[[np.ndarray], jax.Array],
  encode: Callable[[list[str]], np.ndarray],
  class_names: Sequence[str],
  templates: Sequence[str],
  batch_size: int = 256,
) -> np.ndarray:
  """A linear head [D, K] for normalised image features, one column a class.

  A column is the mean of the class's normalised text features over the
  templates, normalised again.

  Args:
    apply: ids [B, 77] -> text features [B, D]; always the same B.
    encode: texts -> ids [N, 77].
    class_names: K names, all different.
    templates: texts with one `{}` each, where the name is put.
    batch_size: largest B.

  Raises:
    ValueError: a name is blank or given twice, a template has not exactly one
      `{}`, there are none of either, or a text is too long.
  """
  if not class_names or not templates:
    raise ValueError(
      "a zero-shot head needs class names and templates; got "
      f"{len(class_names)} and {len(templates)}"
    )
  for name, times in collections.Counter(class_names).items():
    if not name.strip():
      raise ValueError(f"class name {name!r} is blank")
    if times > 1:
      raise ValueError(
        f"{times} classes have the name {name!r}; the head "
        "could not tell them apart"
      )
  for template in templates:
    if template.count("{}") != 1:
      raise ValueError(
        f"template {template!r} must have exactly one {{}} for "
        "the class name, as in 'a photo of a {}.'"
      )
  # No str.format: other braces mean themselves.
  ids = encode(
    [
      template.replace("{}", name)
      for name in class_names
      for template in templates
    ]
  )
  size = min(batch_size, len(ids))
  padded = np.pad(ids, ((0, -len(ids) % size), (0, 0)))
  features = np.concatenate(
    [
      np.asarray(apply(padded[i : i + size]), np.float32)
      for i in range(0, len(padded), size)
    ]
  )
  features = _unit(features[: len(ids)])
  features = features.reshape(len(class_names), len(templates), -1)
  return _unit(features.mean(axis=1)).T


def _unit(x: np.ndarray) -> np.ndarray:
  return x / np.linalg.norm(x, axis=-1, keepdims=True)
