"""Builds the model that a fixture's `meta` and parameters describe."""

from collections.abc import Callable, Sequence
import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.reference import (
  Arrays,
  attention_heads,
  below,
  Names,
  reference_class,
  stage_depths,
  STATS,
)
from vpt_jax import model as model_lib
from vpt_jax.backbones.swin import Swin
from vpt_jax.backbones.vit import ViT
from vpt_jax.methods.gated import Gated
from vpt_jax.methods.inside import Adapter
from vpt_jax.methods.method import Method
from vpt_jax.methods.pixel import Add, Below, Pad, PrependPixel
from vpt_jax.methods.vapt import ACTIVATIONS, VAPT
from vpt_jax.methods.vpt import VPT
from vpt_jax.nn import layers
from vpt_jax.nn.tokens import Spec
from vpt_jax.training import optim
from vpt_jax.utils import lookup, trees
from vpt_jax.weights import diagnosis, identify

Meta = dict[str, Any]

POOLS = {
  "original": "",
  "img_pool": "img",
  "prompt_pool": "prompt",
  "imgprompt_pool": "imgprompt",
}
# Of the backbones' LayerNorms, where `meta` does not say.
EPS = {"vit": 1e-6, "clip": 1e-5, "swin": 1e-5}
VAPT_EPS = 1e-5  # of the norm before a generator
GELUS = ("exact", "tanh", "quick")  # how their names in `meta` begin


def _add(spec: Spec, num_tokens: int, deep: bool) -> Method:
  """Makes one prompt for each token, so that NUM_TOKENS means nothing."""
  return Add(spec, deep=deep)


def _add_one(spec: Spec, num_tokens: int, deep: bool) -> Method:
  """Makes one vector for all tokens."""
  return Add(spec, single=True, deep=deep)


def _pad(spec: Spec, num_tokens: int, deep: bool) -> Method:
  """Makes a border of NUM_TOKENS pixels."""
  return Pad(spec, num_tokens)


def _below(spec: Spec, num_tokens: int, deep: bool) -> Method:
  """Makes NUM_TOKENS more channels."""
  return Below(spec, num_tokens)


def _prepend_pixel(normalize: str) -> Callable[[Spec, int, bool], Method]:
  """Returns what makes patches of pixels that are normalised so."""

  def make(spec: Spec, num_tokens: int, deep: bool) -> Method:
    """Makes NUM_TOKENS patches of pixels."""
    if not normalize:
      return PrependPixel(spec, num_tokens)
    return PrependPixel(spec, num_tokens, normalize)

  return make


# Prompts that do not stand beside the tokens: what makes the method from the
# spec, NUM_TOKENS and DEEP.
LOCATIONS: dict[str, Callable[[Spec, int, bool], Method]] = {
  "add": _add,
  "add-1": _add_one,
  "pad": _pad,
  "below": _below,
  "prepend-pixel": _prepend_pixel(""),
  "prepend-pixel-gaussian": _prepend_pixel("gaussian"),
  "prepend-pixel-imgnettransform": _prepend_pixel("imgnettransform"),
}


class Unsupported(Exception):
  """A sound fixture of something that is not compared; the text says why."""


def prompt_options(meta: Meta) -> dict[str, Any]:
  """Returns the reference's options of prompts, {} where it has none."""
  return meta.get("prompt_cfg") or {}


def is_projected(cfg: dict[str, Any]) -> bool:
  """Returns whether prompts go through a linear layer first."""
  return cfg.get("PROJECT", -1) > 0


def is_gated(meta: Meta) -> bool:
  """Returns whether a fixture is of the repository of Gated Prompt Tuning."""
  return "Gated" in meta.get("reference", "")


def gelu_of(meta: Meta, default: str = "exact") -> str:
  """Returns the library's name of the reference's GELU.

  Raises:
    Unsupported: the library does not have it.
  """
  name = str(meta.get("gelu") or meta.get("activation") or default)
  for gelu in GELUS:
    if name.lower().startswith(gelu):
      return gelu
  raise Unsupported(f"GELU {name!r}")


def layer_norm_eps(meta: Meta, family: str) -> float:
  """Returns eps of the backbone's LayerNorms.

  Args:
    meta: of the fixture. A Swin's `layer_norm_eps` may be that of its other
      classes' config; PyTorch's own default is what it runs with, unless
      `layer_norm_eps_swin` says else.
    family: a key of `EPS`.
  """
  key = "layer_norm_eps_swin" if family == "swin" else "layer_norm_eps"
  return float(meta.get(key) or EPS[family])


def check_supported(meta: Meta, keys: set[str]) -> None:
  """Checks that the library has a fixture's model.

  Raises:
    Unsupported: it does not; the text says what is missing.
  """
  cfg = prompt_options(meta)
  adapter = meta.get("adapter_cfg") or {}
  style = adapter.get("STYLE", "Pfeiffer")
  if style != "Pfeiffer":
    raise Unsupported(f"adapter style {style!r}")
  if any(key.startswith("side") for key in keys):
    raise Unsupported("method: side network")
  _check_location(meta, cfg)
  if is_projected(cfg) and is_gated(meta) and not cfg.get("DEEP"):
    raise Unsupported("projected prompts with gates")
  if is_projected(cfg) and cfg.get("ADAPTIVE"):
    raise Unsupported("projected prompts beside generated ones")
  gelu_of(meta)
  eps = meta.get("deep_prompt_norm_eps", VAPT_EPS)
  if eps != VAPT_EPS:
    raise Unsupported(
      f"eps {eps} of the norm before a generator (ours is {VAPT_EPS})"
    )


def _check_location(meta: Meta, cfg: dict[str, Any]) -> None:
  """Raises Unsupported unless prompts are at a place that the library has."""
  location = cfg.get("LOCATION", "prepend")
  if location == "prepend":
    return
  where = f"{meta.get('reference', '')} {reference_class(meta)}"
  if location not in LOCATIONS or "vit_ablations" not in where:
    raise Unsupported(f"prompt location {location!r}")
  changed = ("NUM_DEEP_LAYERS", "REVERSE_DEEP", "DEEP_SHARED")
  if is_projected(cfg) or any(cfg.get(option) for option in changed):
    raise Unsupported(
      "added prompts that are shared, projected or not in all blocks"
    )


class TrainedHead(model_lib.Model):
  """The head, alone, in training mode; without dropout."""

  def setup(self):
    self.head = layers.Head(
      self.num_classes, hidden_layers=self.hidden_layers, dropout=0.0
    )

  def classify(self, feature, *, train=False):
    return self.head(feature, train=True)


class Published(VPT):
  """VPT with two slips of the published code, to compare all the rest.

  REVERSE_DEEP drops the first T patches at the first prompted block, as if
  they were prompts. FORWARD_DEEP_NOEXPAND removes the prompts, after which
  `img_pool` and `prompt_pool` still count T positions as prompts.

  Attributes:
    counted: the pool that counts so (`img`, `prompt`), or "".
  """

  counted: str = ""

  def before(self, i, tokens, *, train):
    if self.reverse and i == self.prompted[0]:
      rest = tokens.patch[:, self.num_tokens :]
      x = jnp.concatenate([tokens.cls, rest], axis=1)
      return tokens.replace(x=x, grid=None)
    return super().before(i, tokens, train=train)

  def after(self, i, tokens_in, tokens_out, *, train):
    if not self.counted or i != self.spec.depth - 1:
      return tokens_out
    if self.counted == "prompt":
      rows = slice(self.num_tokens)
    else:
      rows = slice(self.num_tokens, None)
    return tokens_out.replace(x=tokens_out.x[:, rows], grid=None)


@dataclasses.dataclass
class Built:
  """A fixture's model.

  Attributes:
    model: what is compared.
    names: of the reference's parameters.
    faithful: where the reference slips and `model` imitates it: the library's
      own model, None if it has none that is comparable.
    slip: what `model` imitates, "" if nothing.
  """

  model: model_lib.Model
  names: Names
  faithful: model_lib.Model | None = None
  slip: str = ""


def architecture(
  flat: trees.Flat, image_size: tuple[int, int], heads: int, **more: Any
) -> ViT | Swin:
  """Returns the backbone that has these parameters.

  Args:
    flat: paths without `backbone/` -> arrays.
    image_size: of the images that it is given.
    heads: of every block of a ViT; a Swin's parameters tell.
    **more: further options of the backbone.
  """
  if any(path.endswith("relative_position_bias") for path in flat):
    return identify.module_of(flat).clone(image_size=image_size, **more)
  shape = diagnosis.shape_of(flat)
  return ViT(
    image_size=image_size,
    num_heads=heads,
    num_cls=1 if "cls" in flat else 0,
    patch_bias="embedding/bias" in flat,
    pre_norm="embedding_norm/scale" in flat,
    **shape,
    **more,
  )


def backbone_of(
  meta: Meta, params: Arrays, flat: trees.Flat, image_size: tuple[int, int]
) -> ViT | Swin:
  """Returns the backbone that a fixture's reference runs.

  Args:
    meta: of the fixture.
    params: its `param/`.
    flat: the backbone's part of them under our names.
    image_size: of its images.
  """
  gelu = gelu_of(meta)
  if stage_depths(params):
    eps = layer_norm_eps(meta, "swin")
    return architecture(flat, image_size, 0, gelu=gelu, eps=eps)
  more: dict[str, Any] = {"gelu": gelu, "eps": layer_norm_eps(meta, "vit")}
  cfg = prompt_options(meta)
  # A norm after the pooling has another name, but in Gated Prompt Tuning.
  pooled_norm = any(key.endswith("fc_norm.weight") for key in params)
  if pooled_norm or "mae" in reference_class(meta):
    more["pool"] = "imgprompt"
    more["norm_order"] = "after"
  if is_gated(meta) and cfg.get("VIT_POOL_TYPE", "original") != "original":
    more["norm_order"] = "after"
  if cfg.get("LOCATION") == "pad":
    border = 2 * cfg["NUM_TOKENS"]
    image_size = (image_size[0] + border, image_size[1] + border)
  heads = attention_heads(params, meta)
  return architecture(flat, image_size, heads, **more)


def build(
  meta: Meta,
  params: Arrays,
  image_size: tuple[int, int],
  train_head: bool = False,
) -> tuple[Built, trees.Flat]:
  """Returns the model of a fixture, and its parameters under our names.

  Running statistics are among them, below `batch_stats/`.

  Args:
    meta: of the fixture.
    params: its `param/`.
    image_size: of its images.
    train_head: the head's batch normalisation is in training mode.

  Raises:
    Unsupported: the library does not have this model.
    ValueError: a parameter that has no counterpart, or the reverse.
  """
  check_supported(meta, set(params))
  names = Names(attention_heads(params, meta), depths=stage_depths(params))
  not_backbone = r"head\.|.*(prompt_|adapter_|gate_logit$|temp$)"
  backbone = names.parameters(
    {
      key: array
      for key, array in params.items()
      if not re.match(not_backbone, key)
    }
  )
  if not any(path.endswith("query/kernel") for path in backbone):
    raise ValueError("no parameter of a known backbone; is it a fixture?")
  flat_backbone = below(backbone, "backbone/")
  module = backbone_of(meta, params, flat_backbone, image_size)
  model_class = TrainedHead if train_head else model_lib.Model
  model = model_class(
    module,
    Method(module.spec),
    _num_classes(params),
    hidden_layers=_hidden_layers(params),
  )
  built = _with_method(model, meta, names)
  flat = built.names.parameters(params)
  check_template(flat, built.model)
  return built, flat


def _num_classes(params: Arrays) -> int:
  """Returns the number of classes of the head."""
  biases = [
    array
    for key, array in params.items()
    if re.fullmatch(r"head(\.last_layer)?\.bias", key)
  ]
  if len(biases) != 1:
    raise ValueError("expected one head.bias or head.last_layer.bias")
  return len(biases[0])


def _hidden_layers(params: Arrays) -> int:
  """Returns the number of the head's hidden layers, each with statistics."""
  statistics = r"head\.projection\.\d+\.running_mean"
  return sum(1 for key in params if re.fullmatch(statistics, key))


def template(model: model_lib.Model) -> trees.Flat:
  """Returns the shapes of a model's parameters and running statistics."""
  image = jnp.zeros((1, *model.method.input_size, 3))
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image))
  flat = trees.flatten(shapes["params"])
  for path, leaf in trees.flatten(shapes.get("batch_stats", {})).items():
    flat[STATS + path] = leaf
  return flat


def check_template(flat: trees.Flat, model: model_lib.Model) -> None:
  """Raises ValueError unless these are the model's parameters, exactly."""
  ours = {path: leaf.shape for path, leaf in template(model).items()}
  theirs = {path: np.shape(leaf) for path, leaf in flat.items()}
  wrong = []
  for path in sorted(ours.keys() | theirs.keys()):
    if ours.get(path) != theirs.get(path):
      wrong.append(
        f"{path}: {ours.get(path, 'none')} here, "
        f"{theirs.get(path, 'none')} in the fixture"
      )
  if wrong:
    raise ValueError("parameters do not fit: " + "; ".join(wrong))


def _with_method(model: model_lib.Model, meta: Meta, names: Names) -> Built:
  """Puts in the method and pool of a reference's option dictionaries."""
  cfg = prompt_options(meta)
  spec = model.backbone.spec
  if not cfg:
    method = model.method
    adapter = meta.get("adapter_cfg")
    if adapter:
      method = Adapter(spec, adapter["REDUCATION_FACTOR"])  # sic
    return Built(model.clone(method=method), names.of(method))
  model = model.clone(pool=_pool(meta, cfg) or spec.pool)
  deep = bool(cfg.get("DEEP"))
  if deep and cfg.get("ADAPTIVE"):
    return _with_vapt(model, cfg, names)
  location = cfg.get("LOCATION", "prepend")
  if location != "prepend":
    method = LOCATIONS[location](spec, cfg["NUM_TOKENS"], deep)
    return Built(model.clone(method=method), names.of(method))
  if is_gated(meta) and not deep:
    method = _gated(spec, cfg)
    return Built(model.clone(method=method), names.of(method))
  return _with_vpt(model, cfg, names)


def _pool(meta: Meta, cfg: dict[str, Any]) -> str:
  """Returns the pool of a reference's options, "" for the backbone's own."""
  name = lookup.choose(cfg.get("VIT_POOL_TYPE", "original"), POOLS, "pool")
  reads_option = not re.search("Swin|moco", reference_class(meta))
  return POOLS[name] if reads_option or is_gated(meta) else ""


def _with_vpt(
  model: model_lib.Model, cfg: dict[str, Any], names: Names
) -> Built:
  """Puts in VPT, with the reference's slips where it has any."""
  spec = model.backbone.spec
  deep = bool(cfg.get("DEEP"))
  reverse = bool(deep and cfg.get("REVERSE_DEEP"))
  noexpand = bool(deep and cfg.get("FORWARD_DEEP_NOEXPAND") and not reverse)
  # Only the reference's plain deep loop reads DEEP_SHARED.
  plain = deep and not reverse and not noexpand
  options = {
    "num_tokens": cfg["NUM_TOKENS"],
    "deep": deep,
    "reverse": reverse,
    "num_layers": min(cfg.get("NUM_DEEP_LAYERS") or spec.depth, spec.depth),
    "shared": bool(plain and cfg.get("DEEP_SHARED")),
    "expand": not noexpand,
    "project": max(0, cfg.get("PROJECT", -1)),
  }
  ours = model.clone(method=VPT(spec, **options))
  names = names.of(ours.method)
  if reverse:
    return Built(
      ours.clone(method=Published(spec, **options)),
      names,
      ours,
      "REVERSE_DEEP takes the first patches for prompts",
    )
  pool = model.pool
  if not noexpand or options["num_layers"] == spec.depth or pool == "cls":
    return Built(ours, names)
  ours = ours.clone(pool="img")  # no prompts are left: the same as imgprompt
  if pool == "imgprompt":
    return Built(ours, names)
  return Built(
    ours.clone(method=Published(spec, counted=pool, **options)),
    names,
    ours if pool == "img" else None,
    f"{pool}_pool counts the removed prompts as if they were there",
  )


def _gated(spec: Spec, cfg: dict[str, Any]) -> Gated:
  """Returns Gated Prompt Tuning with the reference's options."""
  learned = bool(cfg.get("TEMP_LEARN"))
  bounds = {}
  if learned:
    bounds = {
      "temperature_min": cfg["TEMP_MIN"],
      "temperature_max": cfg["TEMP_MAX"],
    }
  return Gated(
    spec,
    cfg["NUM_TOKENS"],
    gates=bool(cfg.get("GATE_PRIOR")),
    num_gates=cfg["GATE_NUM"],
    learn_temperature=learned,
    temperature_init=cfg["TEMP"],
    **bounds,
  )


def _with_vapt(
  model: model_lib.Model, cfg: dict[str, Any], names: Names
) -> Built:
  """Puts in VAPT with the reference's options."""
  first = cfg["VPT_DEPTH"]
  projector = "none"
  if cfg["FEAT_PROJECTOR"]:
    projector = "shared" if cfg["SHARE_PROJECTOR"] else "own"
  # The reference takes an unknown name for the identity.
  activation = cfg["ACTIVATION"]
  if activation not in ACTIVATIONS:
    activation = "identity"
  method = VAPT(
    model.backbone.spec,
    num_tokens=cfg["NUM_TOKENS"],
    static_layers=min(max(first, 1), model.backbone.depth),
    conv=cfg["CONV"],
    kernel_size=cfg["KERNEL"],
    padding=cfg["PADDING"],
    # CHANNELWISE=True is one kernel for all channels.
    per_channel=not cfg["CHANNELWISE"],
    projector=projector,
    hidden=cfg["HIDDEN_DIM"],
    activation=activation,
    learnable_scale=cfg["LEARNABLE_SCALE"],
  )
  return Built(model.clone(method=method), names.of(method, first))


def optimizer(
  meta: Meta, trained: Sequence[str], paths: Sequence[str]
) -> tuple[optax.GradientTransformation, optim.Rate]:
  """Returns the library's optimizer and rate for a trajectory's `SOLVER`.

  Args:
    meta: of the fixture.
    trained: names of the reference's trained parameters.
    paths: ours.

  Raises:
    Unsupported: another optimizer, schedule or trainable set.
  """
  solver = meta["solver"]
  name = solver["OPTIMIZER"]
  decay = solver["WEIGHT_DECAY"]
  _check_solver(solver, trained)
  # The reference takes any other name for SGD. Without decay it has no branch
  # for adamw, and adam forgets the multiplier.
  name = "adam" if name == "adam" else "sgd"
  factor = solver["BIAS_MULTIPLIER"] if decay or name == "sgd" else 1.0
  table = [
    (r"head/bias", {"weight_decay": 0.0}),
    (r".*bias", {"lr": factor}),
    (r".*", {}),
  ]
  policies = []
  left = list(paths)
  for pattern, policy in table:
    if any(re.fullmatch(pattern, path) for path in left):
      policies.append((pattern, policy))  # an idle rule is an error
    left = [path for path in left if not re.fullmatch(pattern, path)]
  factors = optim.epoch_factors(
    solver["SCHEDULER"],
    solver["TOTAL_EPOCH"],
    solver["WARMUP_EPOCH"],
    length=meta["epochs"],
  )
  rate = optim.per_epoch(solver["BASE_LR"] * factors, meta["batches_per_epoch"])
  transformation = optim.make_optimizer(
    name,
    rate,
    paths,
    weight_decay=decay,
    momentum=solver["MOMENTUM"],
    policies=policies,
  )
  return transformation, rate


def _check_solver(solver: dict[str, Any], trained: Sequence[str]) -> None:
  """Raises Unsupported unless the library can train so."""
  positions = ("embeddings.cls_token", "position_embeddings")
  if any(name.endswith(positions) for name in trained):
    raise Unsupported(
      "training of the class token and its position apart (one parameter here)"
    )
  if solver["OPTIMIZER"] == "adamw" and solver["WEIGHT_DECAY"] > 0:
    raise Unsupported(
      "the reference's own AdamW (decay 0.01, eps before the bias correction)"
    )
  schedule = solver["SCHEDULER"]
  if schedule not in optim.SCHEDULES:
    raise Unsupported(f"schedule {schedule!r}")
