"""Makes CLIP's zero-shot head from class names, without any image.

Class names in templates go through the byte-pair encoding (`Tokenizer`) and
the text tower (`backbones/clip.py`); the texts' features are the columns of a
linear head for CLIP's visual tower (Radford et al. 2021, arXiv 2103.00020,
section 3.1).
"""

import collections
from collections.abc import Callable, Sequence
import gzip
import html
from pathlib import Path
import zlib

import jax
import numpy as np

from vpt_jax.backbones.clip import CONTEXT_LENGTH, VOCAB_SIZE
from vpt_jax.utils import extras
from vpt_jax.weights import download

MERGES_URL = (
  "https://github.com/openai/CLIP/raw/main/clip/bpe_simple_vocab_16e6.txt.gz"
)
MERGES_SHA256 = (
  "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
)
START = "<|startoftext|>"
END = "<|endoftext|>"
SUFFIX = "</w>"
# All 256 bytes, inside and at the end of a word; the start and the end of a
# text. The file has more lines than this, which CLIP does not use.
_NUM_MERGES = VOCAB_SIZE - 2 * 256 - 2
# Contractions, words, single digits, and runs of what is left.
_PIECES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"

Merge = tuple[str, str]


class Tokenizer:
  """OpenAI's byte-pair encoding, in lower case."""

  def __init__(
    self, merges: str | Path | None = None, cache: str | Path | None = None
  ):
    """Reads the merges.

    Args:
      merges: gzipped file, one merge a line after a first line that is not;
        None: OpenAI's, fetched once.
      cache: folder, see `download.fetch`.

    Raises:
      MissingExtra: the extra `clip` is not installed.
      FetchError: OpenAI's file is not in the cache and cannot be fetched.
      ValueError: the file holds no merges.
    """
    try:
      import ftfy
      import tokenizers
    except ImportError as error:
      raise extras.MissingExtra(error, "CLIP's tokenizer", "clip") from error
    if merges is None:
      merges = download.fetch(MERGES_URL, f"sha256:{MERGES_SHA256}", cache)
    vocabulary, pairs = _read_merges(merges)
    self._fix = ftfy.fix_text
    self._encoder = tokenizers.Tokenizer(
      tokenizers.models.BPE(vocabulary, pairs, end_of_word_suffix=SUFFIX)
    )
    into_pieces = tokenizers.pre_tokenizers.Split(
      tokenizers.Regex(_PIECES), "removed", invert=True
    )
    into_bytes = tokenizers.pre_tokenizers.ByteLevel(
      add_prefix_space=False, use_regex=False
    )
    self._encoder.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
      [into_pieces, into_bytes]
    )
    self._encoder.add_special_tokens([START, END])
    self._start = vocabulary[START]
    self._end = vocabulary[END]

  def encode(
    self, texts: str | Sequence[str], truncate: bool = False
  ) -> np.ndarray:
    """Returns the ids of texts [N, 77], int32: start, text, end, zeros.

    Args:
      texts: N texts, or a single one.
      truncate: cut texts that are too long instead of refusing them.

    Raises:
      ValueError: a text is too long.
    """
    if isinstance(texts, str):
      texts = [texts]
    longest = CONTEXT_LENGTH - 2  # beside start and end
    rows = np.zeros((len(texts), CONTEXT_LENGTH), np.int32)
    encoded = self._encoder.encode_batch([self._clean(text) for text in texts])
    for row, text, pieces in zip(rows, texts, encoded, strict=True):
      ids = pieces.ids
      if len(ids) > longest and not truncate:
        raise ValueError(
          f"text {text!r} takes {len(ids)} tokens, above the {longest} that "
          "CLIP reads; shorten it or set truncate"
        )
      ids = [self._start, *ids[:longest], self._end]
      row[: len(ids)] = ids
    return rows

  def _clean(self, text: str) -> str:
    # Twice, as CLIP does: "&amp;lt;" is "<".
    text = html.unescape(html.unescape(self._fix(text)))
    return " ".join(text.split()).lower()


def _byte_symbols() -> list[str]:
  """Returns the characters that the 256 bytes are written as.

  A byte is its own character, or one past 255 if that cannot be printed.
  """
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = range(256, 512 - len(printable))
  return [chr(code) for code in (*printable, *others)]


def _read_merges(path: str | Path) -> tuple[dict[str, int], list[Merge]]:
  """Reads a file of merges.

  Returns:
    (ids of the tokens, pairs in order of precedence).

  Raises:
    ValueError: the file cannot be read, or a line is no merge.
  """
  try:
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
      lines = file.read().split("\n")[1 : _NUM_MERGES + 1]
  except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
    raise ValueError(
      f"cannot read the merges in {path}: {error}; {MERGES_URL} "
      "is the file that CLIP uses"
    ) from error
  inside = _byte_symbols()
  at_end = [symbol + SUFFIX for symbol in inside]
  vocabulary = {symbol: i for i, symbol in enumerate([*inside, *at_end])}
  pairs = []
  filled = [line for line in lines if line]
  for number, line in enumerate(filled, start=2):  # the first one is a header
    pair = tuple(line.split())
    if len(pair) != 2 or not set(pair) <= vocabulary.keys():
      raise ValueError(
        f"{path}, line {number}: {line!r} is no merge of two "
        f"known tokens; {MERGES_URL} is the file that CLIP uses"
      )
    pairs.append(pair)
    vocabulary.setdefault("".join(pair), len(vocabulary))
  vocabulary[START] = len(vocabulary)
  vocabulary[END] = len(vocabulary)
  return vocabulary, pairs


def zero_shot(
  apply: Callable[[np.ndarray], jax.Array],
  encode: Callable[[list[str]], np.ndarray],
  class_names: Sequence[str],
  templates: Sequence[str],
  batch_size: int = 256,
) -> np.ndarray:
  """Returns a linear head [D, K] for unit image features, a column per class.

  A column is the mean of the class's unit text features over the templates,
  scaled to unit length again.

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
  _check_texts(class_names, templates)
  texts = []
  for name in class_names:
    for template in templates:
      # No str.format: other braces mean themselves.
      texts.append(template.replace("{}", name))
  features = _unit(_in_batches(apply, encode(texts), batch_size))
  features = features.reshape(len(class_names), len(templates), -1)
  return _unit(features.mean(axis=1)).T


def _check_texts(class_names: Sequence[str], templates: Sequence[str]) -> None:
  """Raises ValueError for names or templates that make no head."""
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


def _in_batches(
  apply: Callable[[np.ndarray], jax.Array], ids: np.ndarray, batch_size: int
) -> np.ndarray:
  """Returns the features [N, D] of ids [N, 77], from batches of one size."""
  size = min(batch_size, len(ids))
  missing = -len(ids) % size
  padded = np.pad(ids, ((0, missing), (0, 0)))
  parts = []
  for start in range(0, len(padded), size):
    part = apply(padded[start : start + size])
    parts.append(np.asarray(part, np.float32))
  return np.concatenate(parts)[: len(ids)]


def _unit(x: np.ndarray) -> np.ndarray:
  """Returns the rows of x [..., D] at unit length."""
  return x / np.linalg.norm(x, axis=-1, keepdims=True)
