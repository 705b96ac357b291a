"""Makes a checked config of what a user wrote: `resolve`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vpt_jax import model as model_lib
from vpt_jax import problems
from vpt_jax.backbones import factory as backbones
from vpt_jax.config import normalization, sections
from vpt_jax.config.options import check_fields, check_type, refusal
from vpt_jax.data import datasets, masked_datasets, own_sources, tasks
from vpt_jax.data.transforms import views
from vpt_jax.methods import registry as methods
from vpt_jax.ops import gelu
from vpt_jax.utils import lookup
from vpt_jax.weights import facts, load


def resolve(config: ConfigDict, named_task: bool = True) -> ConfigDict:
  """Returns a checked copy, without what is not used and nothing left open.

  Sections of other methods are dropped; fields that are empty, or that a config
  of an older version lacks, get their values. Resolving twice changes nothing.

  Args:
    config: see `sections.py`.
    named_task: False if the caller brings the data.

  Raises:
    ValueError: a value that no run could use; with its field, and what was
      expected.
  """
  config = ConfigDict(config.to_dict())
  lookup.choose(config.method, methods.METHODS, "method")
  drop_unused_sections(config)
  add_missing_fields(config)
  check_values(config)
  name_task(config, named_task)
  choose_network(config)
  choose_preprocessing(config, named_task)
  choose_policies(config)
  choose_scales(config)
  if not config.trainable:
    config.trainable = methods.get(config.method).trainable
  check_together(config)
  check_parts(config)
  return config


def drop_unused_sections(config: ConfigDict) -> None:
  """Removes the sections that this run does not read."""
  for method in methods.METHODS:
    if method != config.method and method in config:
      del config[method]
  if "condense" in config and not config.condense.get("shares", ()):
    del config.condense
  if "sweep" in config and config.get("mode") != "sweep":
    del config.sweep
  if "segmentation" in config and not problems.of_run(config).dense:
    del config.segmentation


def add_missing_fields(config: ConfigDict) -> None:
  """Gives fields that an older config lacks their defaults."""
  wanted = "segmentation" if problems.of_run(config).dense else ""
  for field, value in sections.default_values("").items():
    if field not in config:
      config[field] = value
  for section in (*sections.SECTIONS, config.method):
    if section not in config:
      values = sections.default_values(section)
      is_left_out = section in sections.OPTIONAL and section != wanted
      if is_left_out or not values:
        continue
      config[section] = ConfigDict()
    for field, value in sections.default_values(section).items():
      if field not in config[section]:
        config[section][field] = value


def check_values(config: ConfigDict) -> None:
  """Checks each field of a config by itself, the sections that are there.

  Raises:
    ValueError: a field that is not known, or a value that it may not have.
  """
  values = config.to_dict()
  top = {
    name: value
    for name, value in values.items()
    if name not in sections.SECTIONS and name not in methods.METHODS
  }
  check_fields(sections.fields_of(""), top, "")
  for section in (*sections.SECTIONS, *methods.METHODS):
    if section in values:
      check_fields(sections.fields_of(section), values[section], section)


def check_saved(values: Mapping[str, Any]) -> None:
  """Checks the resolved config that a file holds, before it is used.

  Args:
    values: the config, as JSON; fields that came after version 0.1 may be
      missing.

  Raises:
    ValueError: a field that is missing or not known, or a value that it may not
      have.
  """
  _check_all_there("", values)
  method = values["method"]
  check_type("method", method, "")
  lookup.choose(method, methods.METHODS, "method")
  for section in (*sections.SECTIONS, *methods.METHODS):
    if section in values and not isinstance(values[section], Mapping):
      raise refusal(section, values[section], "a section with fields")
  for section in sections.SECTIONS:
    if section in values or section not in sections.OPTIONAL:
      _check_all_there(section, values.get(section, {}))
  config = ConfigDict(dict(values))
  check_values(config)
  if problems.of_run(config).dense:
    _check_dense_saved(config)


def _check_all_there(section: str, values: Mapping[str, Any]) -> None:
  """Raises ValueError for a missing field that version 0.1 already had.

  Args:
    section: its name, "" for the top level.
    values: of the section.
  """
  later = sections.added_later()
  for field in sections.fields_of(section):
    path = (section, field.name) if section else (field.name,)
    if field.name not in values and path not in later:
      raise ValueError(f"config.{'.'.join(path)} is missing")


def _check_dense_saved(config: ConfigDict) -> None:
  """Raises ValueError for a saved section `segmentation` that no run has.

  No version 0.1 had it: all of its fields are there.
  """
  section = config.get("segmentation", {})
  for field in sections.fields_of("segmentation"):
    if field.name not in section and not field.metadata["since"]:
      raise ValueError(f"config.segmentation.{field.name} is missing")
  check_test_views(config)


def name_task(config: ConfigDict, named_task: bool) -> None:
  """Checks the task's name; images of the user's own get one by their file.

  Raises:
    ValueError: an unknown task, an unknown kind of source, or images of the
      user's own under the name of a known task.
  """
  source = own_sources.canonical(config.data.source)
  config.data.source = source
  if own_sources.is_own(source):
    own_name = own_sources.name_of(source)
    config.task = config.task or own_name
    known = {*tasks.TASKS, *masked_datasets.TASKS}
    if config.task in known and not config.data.own_copy:
      leave = ""
      if own_name not in known:
        leave = (
          f"leave it to them, config.task= (which gives {own_name!r}), or "
        )
      raise ValueError(
        f"config.task={config.task!r} is the name of a known task, but "
        f"config.data.source={source!r} are images of your own, whose results "
        f"would be taken for that task's: {leave}choose another name, "
        "config.task=NAME; or, if they are a copy of this task's images, say "
        "so: config.data.own_copy=True"
      )
  elif named_task and problems.of_run(config).dense:
    masked_datasets.check_name(config.task)
  elif named_task:
    tasks.get(config.task)


def choose_network(config: ConfigDict) -> None:
  """Fills in what a config beside the user's own checkpoint says of it.

  What the config of the run says goes first. Files at addresses are not
  fetched for this: where it matters, they are refused when they are read.

  Raises:
    ValueError: the config beside it is damaged.
  """
  backbone = config.backbone
  entry = backbones.get(backbone.name)
  if entry.keeps_gelu and backbone.gelu == "torch":
    backbone.gelu = entry.arch.get("gelu", entry.module.gelu)
  path = backbone.checkpoint
  if path in ("", "random") or not load.is_local(path):
    return
  known = facts.of(Path(path).expanduser())
  is_open = backbone.gelu in ("", "torch")
  is_other = known.gelu in gelu.NAMES and known.gelu != backbones.gelu_of(
    backbone
  )
  if is_open and is_other:
    backbone.gelu = known.gelu
  own_eps = entry.arch.get("eps", entry.module.eps)
  if not backbone.eps and known.eps and known.eps != own_eps:
    backbone.eps = known.eps
  grid = facts.grid_of(known, backbones.patch_size(entry))
  if not backbone.grid and grid is not None and grid[0] != grid[1]:
    backbone.grid = grid


def choose_preprocessing(config: ConfigDict, named_task: bool) -> None:
  """Fills in how images are prepared, where the config leaves it open."""
  data = config.data
  is_dense = problems.of_run(config).dense
  if not data.preprocess:
    data.preprocess = "vtab"
    if named_task and not is_dense:
      data.preprocess = datasets.own_family(config.task, data.source)
  if not data.augment:
    data.augment = "none" if is_dense else views.OWN[data.preprocess]
  normalization.choose(config, named_task)


def choose_policies(config: ConfigDict) -> None:
  """Gives a dense head, which has no `head/bias`, policies of its own.

  Those that were set are kept.
  """
  published = sections.default_values("optim")["policies"]
  is_default = list(map(list, config.optim.policies)) == [
    list(policy) for policy in published
  ]
  if problems.of_run(config).dense and is_default:
    config.optim.policies = ((".*", {}),)


def choose_scales(config: ConfigDict) -> None:
  """Fills in the sizes at which segmentation sees images."""
  if "segmentation" not in config:
    return
  section = config.segmentation
  # As published: (2048, 512) for windows of 512 pixels.
  section.scale = section.scale or (4 * config.image_size, config.image_size)
  section.test_scale = section.test_scale or section.scale


def check_together(config: ConfigDict) -> None:
  """Raises ValueError for values that exclude each other."""
  compute = config.compute
  if compute.attention == "cudnn" and compute.dtype == "float32":
    raise ValueError(
      "compute.attention='cudnn' takes 16-bit numbers only; set "
      "config.compute.dtype=bfloat16"
    )
  optim = config.optim
  if optim.schedule == "poly":
    check_poly(config)
  elif optim.warmup_epochs > config.epochs:
    raise refusal(
      "optim.warmup_epochs", optim.warmup_epochs, f"0 to epochs={config.epochs}"
    )
  if problems.of_run(config).dense:
    check_dense(config)


def check_poly(config: ConfigDict) -> None:
  """Raises ValueError for a poly schedule that no run can have."""
  optim = config.optim
  if optim.warmup_epochs:
    raise refusal(
      "optim.warmup_epochs",
      optim.warmup_epochs,
      "0 with schedule='poly', whose warm-up is counted in steps: set "
      "config.optim.poly_warmup",
    )
  if optim.poly_min > optim.lr:
    raise refusal("optim.poly_min", optim.poly_min, f"at most lr={optim.lr}")


# What a dense head makes meaningless: field -> (its only value, what to do).
ONLY_IMAGES = {
  "head": ("linear", "choose the head in config.segmentation.decoder"),
  "head_groups": ((), "choose classes by config.segmentation.label_map"),
  "head_layers": (0, "choose the head in config.segmentation.decoder"),
  "pool": ("", "a dense head reads patches: config.segmentation.blocks"),
  "data.augment": ("none", "views are set in the section segmentation"),
  "data.min_scale": (1.0, "set config.segmentation.factors"),
  "data.train_share": (1.0, "list fewer images in train.txt"),
  "backbone.projection": (False, "a dense head reads patches"),
}


def check_dense(config: ConfigDict) -> None:
  """Raises ValueError for what segmentation does not have.

  A field that would be ignored is refused.
  """
  name = config.problem
  for field, (only, remedy) in ONLY_IMAGES.items():
    value = config
    for part in field.split("."):
      value = value[part]
    if value != only and (value or only):  # JSON has [] in place of ()
      raise ValueError(
        f"config.{field}={value!r} is for whole images, not for problem "
        f"{name!r}; leave it {only!r}: {remedy}"
      )
  check_test_views(config)
  if "condense" in config:
    raise ValueError(
      f"condensation ranks prompts by what the class token sees, and problem "
      f"{name!r} has none that is read; set config.condense.shares=()"
    )


def check_test_views(config: ConfigDict) -> None:
  """Raises ValueError for views that would leave pixels or images out."""
  section = config.segmentation
  if section.stride > config.image_size:
    raise refusal(
      "segmentation.stride",
      section.stride,
      f"at most image_size={config.image_size}, as windows would leave pixels "
      "out",
    )
  if section.multi_scale and not section.test_factors:
    raise refusal(
      "segmentation.test_factors",
      tuple(section.test_factors),
      f"one factor at least with multi_scale={section.multi_scale!r}",
    )


def check_parts(config: ConfigDict) -> None:
  """Raises ValueError if backbone, method and head do not fit each other.

  Nothing is computed: only the modules are made, and the method's options
  compared with the backbone.
  """
  # How many classes there are is not known before the data are.
  num_classes = len(config.head_groups) or 1
  model = model_lib.build(config, num_classes)
  model.method.check()
