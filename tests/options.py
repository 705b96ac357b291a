"""The model that a fixture's `meta` describes, built from our parts."""

from collections.abc import Callable, Sequence
import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.reference import Arrays, below, Names, STATS
from vpt_jax import model as models
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
from vpt_jax.weights import diagnosis

POOLS = {
  "original": "",
  "img_pool": "img",
  "prompt_pool": "prompt",
  "imgprompt_pool": "imgprompt",
}


# Prompts that do not stand beside the tokens: what makes the method from the
# spec, NUM_TOKENS and DEEP.
LOCATIONS: dict[str, Callable[[Spec, int, bool], Method]] = {
  "add": lambda spec, n, deep: Add(spec, deep=deep),
  "add-1": lambda spec, n, deep: Add(spec, single=True, deep=deep),
  "pad": lambda spec, n, deep: Pad(spec, n),
  "below": lambda spec, n, deep: Below(spec, n),
  "prepend-pixel": lambda spec, n, deep: PrependPixel(spec, n),
  "prepend-pixel-gaussian": lambda spec, n, deep: PrependPixel(
    spec, n, "gaussian"
  ),
  "prepend-pixel-imgnettransform": lambda spec, n, deep: PrependPixel(
    spec, n, "imgnettransform"
  ),
}


class Unsupported(Exception):
  """A sound fixture of something that is not compared; the text says why."""


def check_supported(meta: dict[str, Any], keys: set[str]) -> None:
  """Raises Unsupported with the reason unless we have that model."""
  where = f"{meta.get('reference', '')} {meta.get('reference_class', '')}"
  cfg = meta.get("prompt_cfg") or {}
  eps = meta.get("layer_norm_eps", 1e-6)
  gelu = meta.get("gelu", "exact")
  location = cfg.get("LOCATION", "prepend")
  elsewhere = location != "prepend"
  style = (meta.get("adapter_cfg") or {}).get("STYLE", "Pfeiffer")
  reasons = {
    f"adapter style {style!r}": style != "Pfeiffer",
    "method: side network": any(key.startswith("side") for key in keys),
    f"prompt location {location!r}": elsewhere
    and (location not in LOCATIONS or "vit_ablations" not in where),
    "added prompts that are shared, projected or not in all blocks": elsewhere
    and (
      cfg.get("PROJECT", -1) > 0
      or any(map(cfg.get, ("NUM_DEEP_LAYERS", "REVERSE_DEEP", "DEEP_SHARED")))
    ),
    "projected prompts with gates": (
      is_gated(meta) and cfg.get("PROJECT", -1) > 0 and not cfg["DEEP"]
    ),
    f"LayerNorm eps {eps} (ours is 1e-6)": eps != 1e-6,
    f"GELU {gelu!r}": not str(gelu).startswith(("exact", "tanh")),
    "projected prompts beside generated ones": bool(
      cfg.get("ADAPTIVE") and cfg.get("PROJECT", -1) > 0
    ),
  }
  for reason, holds in reasons.items():
    if holds:
      raise Unsupported(reason)


def is_gated(meta: dict[str, Any]) -> bool:
  """Whether a fixture is of the repository of Gated Prompt Tuning."""
  return "Gated" in meta.get("reference", "")


class TrainedHead(models.Model):
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
      return tokens.replace(
        x=jnp.concatenate([tokens.cls, rest], axis=1), grid=None
      )
    return super().before(i, tokens, train=train)

  def after(self, i, tokens_in, tokens_out, *, train):
    if self.counted and i == self.spec.depth - 1:
      rows = (
        slice(self.num_tokens)
        if self.counted == "prompt"
        else slice(self.num_tokens, None)
      )
      return tokens_out.replace(x=tokens_out.x[:, rows], grid=None)
    return tokens_out


@dataclasses.dataclass
class Built:
  """A fixture's model.

  Attributes:
    faithful: where the reference slips and `model` imitates it: the library's
      own model, None if it has none that is comparable.
    slip: what `model` imitates, "" if nothing.
  """

  model: models.Model
  names: Names
  faithful: models.Model | None = None
  slip: str = ""


def architecture(
  flat: trees.Flat, image_size: tuple[int, int], heads: int, **more: Any
) -> ViT:
  """The ViT that has these backbone parameters (paths without `backbone/`)."""
  shape = diagnosis.shape_of(flat)
  return ViT(image_size=image_size, num_heads=heads, **shape, **more)


def backbone_of(
  meta: dict[str, Any], flat: trees.Flat, image_size: tuple[int, int]
) -> ViT | Swin:
  """The backbone that a fixture's reference runs."""
  sizes, where = meta["sizes"], str(meta.get("reference_class"))
  gelu = str(meta.get("gelu", "exact"))
  gelu = "tanh" if gelu.startswith("tanh") else "exact"
  if "swin" in where.lower():
    return Swin(
      image_size,
      sizes["embed"],
      tuple(sizes["depths"]),
      tuple(sizes["heads"]),
      sizes["window"],
      sizes["patch"],
      sizes["mlp_ratio"],
      gelu=gelu,
    )
  more = dict(pool="imgprompt", norm_order="after") if "mae" in where else {}
  cfg = meta.get("prompt_cfg") or {}
  if is_gated(meta) and cfg.get("VIT_POOL_TYPE", "original") != "original":
    more["norm_order"] = "after"
  if cfg.get("LOCATION") == "pad":
    image_size = tuple(side + 2 * cfg["NUM_TOKENS"] for side in image_size)
  return architecture(flat, image_size, sizes["heads"], gelu=gelu, **more)


def build(
  meta: dict[str, Any],
  params: Arrays,
  image_size: tuple[int, int],
  train_head: bool = False,
) -> tuple[Built, trees.Flat]:
  """The model of a fixture, and its parameters under our names.

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
  sizes = meta["sizes"]
  depths, heads = tuple(sizes.get("depths", ())), sizes["heads"]
  if depths:
    heads = [n for n, depth in zip(heads, depths) for _ in range(depth)]
  names = Names(heads, depths=depths)
  backbone = names.parameters(
    {
      key: value
      for key, value in params.items()
      if not re.match(r"head\.|.*(prompt_|adapter_|gate_logit$|temp$)", key)
    }
  )
  if not any(path.endswith("query/kernel") for path in backbone):
    raise ValueError("no parameter of a known backbone; is it a fixture?")
  module = backbone_of(meta, below(backbone, "backbone/"), image_size)
  classes = [
    len(value)
    for key, value in params.items()
    if re.fullmatch(r"head(\.last_layer)?\.bias", key)
  ]
  if len(classes) != 1:
    raise ValueError("expected one head.bias or head.last_layer.bias")
  cls = TrainedHead if train_head else models.Model
  model = cls(
    module,
    Method(module.spec),
    classes[0],
    hidden_layers=sum(
      re.fullmatch(r"head\.projection\.\d+\.running_mean", key) is not None
      for key in params
    ),
  )
  built = _with_method(model, meta, names)
  flat = built.names.parameters(params)
  check_template(flat, built.model)
  return built, flat


def template(model: models.Model) -> trees.Flat:
  """Shapes of the model's parameters and running statistics."""
  image = jnp.zeros((1, *model.method.input_size, 3))
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image))
  return {
    **trees.flatten(shapes["params"]),
    **trees.flatten(shapes.get("batch_stats", {}), STATS),
  }


def check_template(flat: trees.Flat, model: models.Model) -> None:
  """Raises ValueError unless these are the model's parameters, exactly."""
  ours = {path: leaf.shape for path, leaf in template(model).items()}
  theirs = {path: np.shape(leaf) for path, leaf in flat.items()}
  wrong = [
    f"{path}: {ours.get(path, 'none')} here, "
    f"{theirs.get(path, 'none')} in the fixture"
    for path in sorted(ours.keys() | theirs.keys())
    if ours.get(path) != theirs.get(path)
  ]
  if wrong:
    raise ValueError("parameters do not fit: " + "; ".join(wrong))


def _with_method(
  model: models.Model, meta: dict[str, Any], names: Names
) -> Built:
  """Puts in the method and pool of a reference's option dictionaries."""
  cfg, spec = meta.get("prompt_cfg"), model.backbone.spec
  depth = spec.depth
  if not cfg:
    adapter, method = meta.get("adapter_cfg"), model.method
    if adapter:
      method = Adapter(spec, adapter["REDUCATION_FACTOR"])
    return Built(model.clone(method=method), names.of(method))
  pool = lookup.choose(cfg.get("VIT_POOL_TYPE", "original"), POOLS, "pool")
  if re.search("Swin|moco", str(meta["reference_class"])) and (
    not is_gated(meta)
  ):
    pool = "original"  # they do not read the option
  pool, deep = POOLS[pool] or spec.pool, bool(cfg["DEEP"])
  model = model.clone(pool=pool)
  if deep and cfg.get("ADAPTIVE"):
    return _with_vapt(model, cfg, names)
  location = cfg.get("LOCATION", "prepend")
  if location != "prepend" or is_gated(meta) and not deep:
    method = (
      _gated(spec, cfg)
      if location == "prepend"
      else LOCATIONS[location](spec, cfg["NUM_TOKENS"], deep)
    )
    return Built(model.clone(method=method), names.of(method))
  reverse = bool(deep and cfg.get("REVERSE_DEEP"))
  noexpand = bool(deep and cfg.get("FORWARD_DEEP_NOEXPAND") and not reverse)
  options = dict(
    num_tokens=cfg["NUM_TOKENS"],
    deep=deep,
    reverse=reverse,
    num_layers=min(cfg.get("NUM_DEEP_LAYERS") or depth, depth),
    # Only the reference's plain deep loop reads DEEP_SHARED.
    shared=bool(
      deep and cfg.get("DEEP_SHARED") and not reverse and not noexpand
    ),
    expand=not noexpand,
    project=max(0, cfg.get("PROJECT", -1)),
  )
  ours = model.clone(method=VPT(spec, **options))
  names = names.of(ours.method)
  if reverse:
    return Built(
      ours.clone(method=Published(spec, **options)),
      names,
      ours,
      "REVERSE_DEEP takes the first patches for prompts",
    )
  if not noexpand or options["num_layers"] == depth or pool == "cls":
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
  learned = bool(cfg["TEMP_LEARN"])
  bounds = (
    dict(temperature_min=cfg["TEMP_MIN"], temperature_max=cfg["TEMP_MAX"])
    if learned
    else {}
  )
  return Gated(
    spec,
    cfg["NUM_TOKENS"],
    gates=bool(cfg["GATE_PRIOR"]),
    num_gates=cfg["GATE_NUM"],
    learn_temperature=learned,
    temperature_init=cfg["TEMP"],
    **bounds,
  )


def _with_vapt(model: models.Model, cfg: dict[str, Any], names: Names) -> Built:
  first, activation = cfg["VPT_DEPTH"], cfg["ACTIVATION"]
  projector = "shared" if cfg["SHARE_PROJECTOR"] else "own"
  method = VAPT(
    model.backbone.spec,
    num_tokens=cfg["NUM_TOKENS"],
    static_layers=min(max(first, 1), model.backbone.depth),
    conv=cfg["CONV"],
    kernel_size=cfg["KERNEL"],
    padding=cfg["PADDING"],
    # CHANNELWISE=True is one kernel for all channels.
    per_channel=not cfg["CHANNELWISE"],
    projector=projector if cfg["FEAT_PROJECTOR"] else "none",
    hidden=cfg["HIDDEN_DIM"],
    # The reference takes an unknown name for the identity.
    activation=activation if activation in ACTIVATIONS else "identity",
    learnable_scale=cfg["LEARNABLE_SCALE"],
  )
  return Built(model.clone(method=method), names.of(method, first))


def optimizer(
  meta: dict[str, Any], trained: Sequence[str], paths: Sequence[str]
) -> tuple[optax.GradientTransformation, optim.Rate]:
  """The library's optimizer and rate for a trajectory's `SOLVER` options.

  Args:
    meta: of the fixture.
    trained: names of the reference's trained parameters.
    paths: ours.

  Raises:
    Unsupported: another optimizer, schedule or trainable set.
  """
  solver = meta["solver"]
  name, decay = solver["OPTIMIZER"], solver["WEIGHT_DECAY"]
  name = name if name in ("adam", "adamw") else "sgd"  # as the reference does
  schedule = solver["SCHEDULER"]
  reasons = {
    "training of the class token and its position apart (one parameter here)": any(
      key.endswith(("embeddings.cls_token", "position_embeddings"))
      for key in trained
    ),
    "the reference's own AdamW (decay 0.01, eps before the bias correction)": name
    == "adamw"
    and decay > 0,
    f"schedule {schedule!r}": schedule not in optim.SCHEDULES,
  }
  for reason, holds in reasons.items():
    if holds:
      raise Unsupported(reason)
  # Without decay the reference has no branch for adamw, and adam forgets the
  # multiplier.
  name = "adam" if name == "adam" else "sgd"
  factor = solver["BIAS_MULTIPLIER"] if decay or name == "sgd" else 1.0
  table = [
    (r"head/bias", {"weight_decay": 0.0}),
    (r".*bias", {"lr": factor}),
    (r".*", {}),
  ]
  policies, left = [], list(paths)
  for pattern, policy in table:
    if any(re.fullmatch(pattern, path) for path in left):
      policies.append((pattern, policy))  # an idle rule is an error
    left = [path for path in left if not re.fullmatch(pattern, path)]
  rate = optim.per_epoch(
    solver["BASE_LR"]
    * optim.epoch_factors(
      schedule,
      solver["TOTAL_EPOCH"],
      solver["WARMUP_EPOCH"],
      length=meta["epochs"],
    ),
    meta["batches_per_epoch"],
  )
  return optim.make_optimizer(
    name,
    rate,
    paths,
    weight_decay=decay,
    momentum=solver["MOMENTUM"],
    policies=policies,
  ), rate
