"""Compares what is known of a checkpoint with the backbone it is loaded into.

Shapes can fit and the network be another one all the same. What disagrees is
refused; what is not known, and matters, is asked.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from vpt_jax.nn.tokens import Spec
from vpt_jax.utils.logs import log
from vpt_jax.weights import diagnosis
from vpt_jax.weights.facts import Facts

_QUERY = r"Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/"

UNKNOWN_CLIP = (
  "it is a CLIP, and nothing says which activation it has: OpenAI's, "
  "MetaCLIP's and DFN's have quick GELU, LAION's and DataComp's the exact one"
)


@dataclasses.dataclass(frozen=True)
class Told:
  """What the user said, which then need not be known of the file.

  Attributes:
    gelu: the activation was chosen.
    eps: the norms' eps was chosen.
    pool: how features are pooled was chosen.
    grid: of the file's positions (rows, columns), if it was told.
    all: the file is the one that the backbone is of: the model zoo's own, or
      that of an adapter, whose run was checked. Nothing is asked or compared.
  """

  gelu: bool = False
  eps: bool = False
  pool: bool = False
  grid: tuple[int, int] | None = None
  all: bool = False


NOTHING = Told()


def check(
  known: Facts,
  told: Told,
  spec: Spec,
  template: Mapping[str, Any],
  arrays: Mapping[str, Any],
) -> None:
  """Raises ValueError where a file's network is not the backbone's.

  Args:
    known: of the file.
    told: by the user.
    spec: of the backbone.
    template: path -> array or ShapeDtypeStruct of the backbone.
    arrays: of the file, under our names.
  """
  if told.all:
    return
  _check_is_of_file(known, arrays)
  _check_heads(known, template)
  _check_window(known)
  is_clip = "embedding_norm/scale" in arrays and not _is_swin(template)
  _check_gelu(known, told, spec, is_clip)
  _check_eps(known, told, spec)


def _is_swin(arrays: Mapping[str, Any]) -> bool:
  """Returns whether these are the arrays of a Swin."""
  return "window" in diagnosis.shape_of(arrays)


def _check_is_of_file(known: Facts, arrays: Mapping[str, Any]) -> None:
  """Raises ValueError if the config beside a file is of another model."""
  shape = diagnosis.shape_of(arrays)
  for name, said in (("width", known.width), ("depth", known.depth)):
    found = shape.get(name, 0)
    if said and found and said != found:
      raise ValueError(
        f"{known.source} is of a model of {name} {said}, the file of one of "
        f"{name} {found}; move it away, or put the file's own config there"
      )


def _check_heads(known: Facts, template: Mapping[str, Any]) -> None:
  """Raises ValueError for another number of heads, which no shape tells."""
  kernel = template.get(_QUERY + "kernel")
  if kernel is None or not known.heads or _is_swin(template):
    return
  heads = kernel.shape[1]
  if heads != known.heads:
    raise ValueError(
      f"{known.source} says {known.heads} attention heads, this backbone has "
      f"{heads}; choose a config.backbone.name with {known.heads}"
    )


def _check_window(known: Facts) -> None:
  """Raises ValueError for windows of a Swin that are no squares.

  Tables of relative positions in 5 x 13 windows have as many rows, 225, as
  those in 8 x 8.
  """
  if known.window and known.window[0] != known.window[1]:
    rows, columns = known.window
    raise ValueError(
      f"{known.source} says windows of {rows} x {columns}; here they are "
      "squares: choose another backbone"
    )


def _check_gelu(known: Facts, told: Told, spec: Spec, is_clip: bool) -> None:
  """Raises ValueError for another activation, and asks where none is known."""
  if told.gelu:
    if known.gelu and known.gelu != spec.gelu:
      log.warning(
        "%s says activation %r; %r is computed, as the config asks for",
        known.source,
        known.gelu,
        spec.gelu,
      )
    return
  if not known.gelu and is_clip:
    raise ValueError(
      f"{UNKNOWN_CLIP}. Set "
      "config.backbone.gelu=quick or config.backbone.gelu=exact, or put the "
      "model's config.json or open_clip_config.json beside the file"
    )
  if known.gelu and known.gelu != spec.gelu:
    raise ValueError(
      f"{known.source} says activation {known.gelu!r}, this backbone has "
      f"{spec.gelu!r}; {_advice('gelu', known.gelu)}"
    )


def _advice(field: str, value: Any) -> str:
  """Returns what to set."""
  known_values = ("exact", "quick", "tanh")
  if field == "gelu" and value not in known_values:
    return f"it is none of {', '.join(known_values)}: choose another backbone"
  return f"set config.backbone.{field}={value}"


def _check_eps(known: Facts, told: Told, spec: Spec) -> None:
  """Raises ValueError for another eps of the norms."""
  if told.eps or not known.eps:
    return
  if not math.isclose(known.eps, spec.eps, rel_tol=1e-6):
    raise ValueError(
      f"{known.source} has norms with eps {known.eps:g}, this backbone with "
      f"{spec.eps:g}; {_advice('eps', f'{known.eps:g}')}"
    )
