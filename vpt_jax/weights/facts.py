"""Says what arrays do not: a network's activation, eps, heads and grid.

Two models can have the same names and shapes and yet compute something else:
OpenAI's CLIP has quick GELU, LAION's the exact one. What decides is read from,
in this order:

- the npz itself, if `convert` wrote it (`FACTS`);
- `config.json` (Hugging Face, timm) or `open_clip_config.json` beside the file;
- the names in the file, where one library alone has them.

Where all are silent and it matters, `agreement.check` asks the user.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import json
import math
from pathlib import Path
import re
from typing import Any

import numpy as np

from vpt_jax.utils import strange_files
from vpt_jax.weights import file_formats

# Name of the array, a JSON text, in npz files that `convert` writes.
FACTS = "vpt_jax_facts"

_CONFIG = "config.json"
_PREPROCESSOR = "preprocessor_config.json"
_OPEN_CLIP_CONFIG = "open_clip_config.json"
_MOST_BYTES = 2**20  # of a config; published ones have a few thousand

# Hugging Face's and timm's names of activations -> ours.
_ACTIVATIONS = {
  "gelu": "exact",
  "quick_gelu": "quick",
  "quickgelu": "quick",
  "gelu_new": "tanh",
  "gelu_fast": "tanh",
  "gelu_tanh": "tanh",
  "gelu_pytorch_tanh": "tanh",
}
# What a config of Hugging Face leaves out where it is the class's default:
# model_type -> (activation, eps).
_HF_DEFAULTS = {
  "clip": ("quick_gelu", 1e-5),
  "clip_vision_model": ("quick_gelu", 1e-5),
  "siglip": ("gelu_pytorch_tanh", 1e-6),
  "siglip_vision_model": ("gelu_pytorch_tanh", 1e-6),
  "vit": ("gelu", 1e-12),
  "vit_mae": ("gelu", 1e-12),
  "deit": ("gelu", 1e-12),
  "swin": ("gelu", 1e-5),
}
# timm runs these with exact GELU under a name without "quickgelu", but they
# were trained with quick GELU: its name decides nothing.
_TRAINED_QUICK = ("openai", "metaclip", "dfn")


@dataclasses.dataclass(frozen=True)
class Facts:
  """What is known of a network beside its arrays.

  Attributes:
    source: the file, or what else, that says it; "": nobody.
    layouts: names of the layouts that files beside the source are in.
    model: what the source calls it.
    gelu: of `ops.gelu.NAMES`, or another activation's name; "": not known.
    eps: of the norms; 0: not known.
    image_size: (height, width) that its positions are for; (): not known.
    window: of a Swin, (rows, columns); (): not known.
    heads: of attention; 0: not known.
    width: D; 0: not known.
    depth: number of blocks; 0: not known.
    mean: of the pixels in [0, 1] that it was trained with; (): not known.
    std: likewise.
  """

  source: str = ""
  layouts: tuple[str, ...] = ()
  model: str = ""
  gelu: str = ""
  eps: float = 0.0
  image_size: tuple[int, ...] = ()
  window: tuple[int, ...] = ()
  heads: int = 0
  width: int = 0
  depth: int = 0
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()

  def to_array(self) -> np.ndarray:
    """Returns what an npz holds under the name `FACTS`."""
    fields = dataclasses.asdict(self)
    del fields["source"], fields["layouts"]
    known = {name: value for name, value in fields.items() if value}
    return np.array(json.dumps(known, sort_keys=True))


NOTHING = Facts()


def take(flat: Mapping[str, Any]) -> tuple[dict[str, Any], Facts | None]:
  """Returns a file's arrays without its facts, and these if it has any.

  Raises:
    ValueError: they are damaged.
  """
  arrays = dict(flat)
  text = arrays.pop(FACTS, None)
  if text is None:
    return arrays, None
  return arrays, _from_text(str(text))


def _from_text(text: str) -> Facts:
  """Returns the facts that `Facts.to_array` wrote.

  Raises:
    ValueError: it did not.
  """
  values = _object(text, f"its {FACTS!r}")
  known: dict[str, Any] = {}
  for field in dataclasses.fields(Facts):
    if field.name not in values:
      continue
    value = values[field.name]
    if isinstance(value, list):
      value = tuple(value)
    kinds = (int, float) if field.name == "eps" else type(field.default)
    is_sound = isinstance(value, kinds) and not isinstance(value, bool)
    if isinstance(value, tuple):
      is_sound = is_sound and all(map(is_number, value))
    if not is_sound:
      raise ValueError(f"its {FACTS!r} is damaged: {field.name} is {value!r}")
    known[field.name] = value
  return Facts(**(known | {"source": "the file itself"}))


def is_number(value: Any) -> bool:
  """Returns whether a value is a finite number."""
  is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
  return is_real and math.isfinite(value)


def of(path: str | Path) -> Facts:
  """Returns what a file itself or the config beside it says.

  Args:
    path: see `beside`; there may be nothing.

  Raises:
    ValueError: one of both is damaged.
  """
  path = Path(path)
  if is_npz(path):
    text = file_formats.read_from_npz(path, FACTS)
    return NOTHING if text is None else _from_text(str(text))
  configs = beside(path)
  return configs[0] if configs else NOTHING


def is_npz(path: Path) -> bool:
  """Returns whether a file is an npz: no library has a config beside these."""
  return path.is_file() and file_formats.is_npz(path)


def beside(path: str | Path) -> tuple[Facts, ...]:
  """Returns what the configs beside a checkpoint say, the likelier one first.

  Args:
    path: of a file, or of a folder of Hugging Face.

  Raises:
    ValueError: a config cannot be read.
  """
  path = Path(path)
  if is_npz(path):
    return ()
  folder = path if path.is_dir() else path.parent
  names = [_CONFIG, _OPEN_CLIP_CONFIG]
  if "open_clip" in path.name:
    names.reverse()
  out = []
  for name in names:
    file = folder / name
    if not file.is_file():
      continue
    found = _from_config(read_json(file), file)
    if found.source:
      out.append(_with_pixels(found, folder / _PREPROCESSOR))
  return tuple(out)


def for_layout(configs: Sequence[Facts], layout: str) -> Facts:
  """Returns what the config of a file's library says, if there is one.

  Args:
    configs: beside the file.
    layout: of the file, see `translate.Translated`.

  Raises:
    ValueError: there are only configs of other models.
  """
  for known in configs:
    if layout in known.layouts:
      return known
  if not configs:
    return NOTHING
  raise ValueError(
    f"{configs[0].source} is of another model or library than this file, whose "
    f"names are those of {layout}; put each model into a folder of its own"
  )


def _with_pixels(known: Facts, file: Path) -> Facts:
  """Returns the facts with the mean and deviation that a second config says.

  Raises:
    ValueError: that config cannot be read.
  """
  if known.mean or not file.is_file():
    return known
  values = read_json(file)
  if not values.get("do_normalize", True):
    return dataclasses.replace(known, mean=(0.0,) * 3, std=(1.0,) * 3)
  try:
    mean = _numbers(values.get("image_mean") or ())
    std = _numbers(values.get("image_std") or ())
  except (TypeError, ValueError) as error:
    raise ValueError(f"{file} is damaged ({error}); move it away") from None
  return dataclasses.replace(known, mean=mean, std=std)


def read_json(file: Path) -> dict[str, Any]:
  """Returns the object in a small JSON file.

  Raises:
    ValueError: it is no such file; naming it.
  """
  with strange_files.open_regular(file) as stream:
    content = stream.read(_MOST_BYTES + 1)
  if len(content) > _MOST_BYTES:
    raise ValueError(
      f"{file} is larger than {_MOST_BYTES} bytes; expected a model's config"
    )
  return _object(content.decode("utf-8", "replace"), str(file))


def _object(text: str, where: str) -> dict[str, Any]:
  """Returns the object of a JSON text.

  Raises:
    ValueError: it is something else.
  """
  try:
    values = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f"{where} is not JSON ({error}); correct it or move it away"
    ) from None
  if not isinstance(values, dict):
    raise ValueError(
      f"{where} holds no JSON object; correct it or move it away"
    )
  return values


def _from_config(values: Mapping[str, Any], file: Path) -> Facts:
  """Returns what a config says, by whose it is; no facts if it is another.

  A run's own `config.json`, for example, is not about the file beside it.
  """
  if "model_cfg" in values:
    read = _open_clip
  elif "model_type" in values:
    read = _hugging_face
  elif "architecture" in values:
    read = _timm
  else:
    return NOTHING
  try:
    found = read(values)
  except (
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
  ) as error:
    raise ValueError(
      f"{file} is not the config of a model ({error}); correct it or move it "
      "away"
    ) from None
  return dataclasses.replace(found, source=str(file))


def _hugging_face(values: Mapping[str, Any]) -> Facts:
  """Returns what `config.json` of transformers says."""
  kind = str(values["model_type"])
  own = values.get("vision_config") or values
  activation, eps = _HF_DEFAULTS.get(kind, ("", 0.0))
  heads = own.get("num_attention_heads", 0)
  depth = own.get("num_hidden_layers", 0)
  if kind == "swin":  # Lists of stages say the rest by themselves.
    heads = 0
    depth = sum(own.get("depths", ()))
  layouts: tuple[str, ...] = ("Hugging Face",)
  if kind.startswith(("clip", "siglip")):
    layouts = ("Hugging Face CLIP", "Hugging Face CLIP, images alone")
  return Facts(
    layouts=layouts,
    model=kind,
    gelu=_activation(own.get("hidden_act", activation)),
    eps=float(own.get("layer_norm_eps", eps)),
    image_size=_size(own.get("image_size", ())),
    window=_size(own.get("window_size", ())) if kind == "swin" else (),
    heads=int(heads),
    width=int(own.get("embed_dim", own.get("hidden_size", 0))),
    depth=int(depth),
  )


def _open_clip(values: Mapping[str, Any]) -> Facts:
  """Returns what `open_clip_config.json` says."""
  model = values["model_cfg"]
  vision = model["vision_cfg"]
  prepare = values.get("preprocess_cfg", {})
  known = Facts(
    layouts=("timm",) if "timm_model_name" in vision else ("OpenAI CLIP",),
    image_size=_size(vision.get("image_size", ())),
    mean=_numbers(prepare.get("mean", ())),
    std=_numbers(prepare.get("std", ())),
  )
  if "timm_model_name" in vision:  # Whose activation its name decides.
    name = str(vision["timm_model_name"])
    return dataclasses.replace(known, model=name)
  width = int(vision.get("width", 0))
  head_width = int(vision.get("head_width", 64))
  is_quick = bool(model.get("quick_gelu", False))
  layers = vision.get("layers", 0)
  return dataclasses.replace(
    known,
    model="open_clip",
    gelu="quick" if is_quick else "exact",
    eps=1e-5,
    heads=width // head_width,
    width=width,
    depth=layers if isinstance(layers, int) else 0,
  )


def _timm(values: Mapping[str, Any]) -> Facts:
  """Returns what `config.json` of timm's hub says."""
  name = str(values["architecture"])
  pretrained = values.get("pretrained_cfg") or {}
  arguments = values.get("model_args") or {}
  size = arguments.get("img_size") or pretrained.get("input_size", ())[1:]
  activation = ""
  if "act_layer" in arguments:
    activation = _activation(str(arguments["act_layer"]).lower())
  elif "clip" in name and "siglip" not in name:
    tag = str(pretrained.get("tag", ""))
    if "quickgelu" in name:
      activation = "quick"
    elif tag and not tag.startswith(_TRAINED_QUICK):
      activation = "exact"
  return Facts(
    layouts=("timm",),
    model=name,
    gelu=activation,
    image_size=_size(size),
    window=_size(arguments.get("window_size", ())) if "swin" in name else (),
    mean=_numbers(pretrained.get("mean", ())),
    std=_numbers(pretrained.get("std", ())),
  )


def _activation(name: str) -> str:
  """Returns our name of an activation, or its own if we have none."""
  if not isinstance(name, str):
    raise TypeError(f"the activation is {name!r}")
  return _ACTIVATIONS.get(name, name)


def _numbers(value: Any) -> tuple[float, ...]:
  """Returns a number for each of three channels; () if there are none."""
  numbers = tuple(float(number) for number in value)
  if len(numbers) not in (0, 3):
    raise ValueError(f"{value!r} is not a number for each channel")
  return numbers


def _size(value: Any) -> tuple[int, ...]:
  """Returns (height, width) of one number or two; () if there is none."""
  if isinstance(value, (list, tuple)):
    sides = tuple(int(side) for side in value)
    if len(sides) not in (0, 2):
      raise ValueError(f"the image size is {value!r}")
    return sides
  side = int(value)
  return (side, side)


def by_names(layout: str, names: Iterable[str]) -> Facts:
  """Returns what the names in a file say where one library alone has them.

  Args:
    layout: see `translate.Translated`.
    names: all that are in the file.
  """
  last_parts = {re.split("[./]", name)[-1] for name in names}
  if layout == "OpenAI CLIP" and "context_length" in last_parts:
    return Facts(source="OpenAI's own file", gelu="quick", eps=1e-5)
  is_swin = "relative_position_bias_table" in last_parts
  if layout == "Hugging Face" and not is_swin:
    return Facts(source="Hugging Face's ViT", eps=1e-12)
  return NOTHING


def merged(first: Facts, second: Facts) -> Facts:
  """Returns what the first says, and where it is silent the second."""
  values = dataclasses.asdict(second)
  for name, value in dataclasses.asdict(first).items():
    if value:
      values[name] = value
  return Facts(**values)


def grid_of(facts: Facts, patch_size: int) -> tuple[int, int] | None:
  """Returns the grid of positions (rows, columns), None if it is not known."""
  if not facts.image_size or not patch_size:
    return None
  height, width = facts.image_size
  return height // patch_size, width // patch_size
