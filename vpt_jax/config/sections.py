"""Lists every field of a config: its default, its meaning, and what it may be.

The defaults are VPT's published protocol at ViT-B/16. A method's options are
fields of its class, in `vpt_jax/methods/`. `python -m vpt_jax.config` prints
all of them.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from ml_collections import ConfigDict

from vpt_jax.backbones.model_zoo import BACKBONES
from vpt_jax.config.options import (
  at_least,
  axes,
  between,
  changes_by_task,
  default_of,
  each,
  groups_of_classes,
  inner_share,
  one_of,
  option,
  policies,
  rate,
  regex,
  rows_and_columns,
  share,
  text,
  whole_number,
)
from vpt_jax.config.segmentation_section import SegmentationSection
from vpt_jax.data import datasets
from vpt_jax.data.sources import layouts
from vpt_jax.data.transforms import resize, views
from vpt_jax.distributed.sharding import STRATEGIES
from vpt_jax.methods import registry as methods
from vpt_jax.nn.layers import HEAD_INITS
from vpt_jax.nn.tokens import NORMS, POOLS
from vpt_jax.ops import gelu
from vpt_jax.ops.switch import ATTENTION_FORMS, KINDS
from vpt_jax.problems import heads, PROBLEMS

# What `vpt_jax/training/optim.py` has: this room is below that one.
OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = (
  "cosine",
  "cosine_hardrestart",
  "pgn_cosine_with_warmup",
  "constant",
  "poly",
)
POLY_FORMS = ("mmengine", "mmcv")
FLOATS = ("float32", "bfloat16")

# Of an image and of a step: more is a slip, or no memory has room for it.
LARGEST_IMAGE = 8192
LARGEST_BATCH = 65536
# The largest seed that NumPy's generators take.
LARGEST_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class General:
  """The fields at the top: what is adapted to what, and for how long."""

  problem: str = option(
    "classification",
    one_of(PROBLEMS),
    help="What is learned; vpt_jax/problems/ lists the problems.",
    since="0.2.0",
  )
  task: str = option(
    "",
    help="The data set, a name in vpt_jax/data/tasks.py. With images of your "
    "own (data.source) it is only a name for the results; empty: their file's "
    "or folder's.",
  )
  method: str = option(
    "vapt",
    one_of(methods.METHODS, what="method"),
    help="linear | full | vpt | vapt | pgn | ...: vpt_jax/methods/registry.py "
    "lists the methods. The options of a method are in the section of its "
    "name.",
  )
  name: str = option(
    "",
    help="What tables call the method, if not by its name.",
  )
  trainable: str = option(
    "",
    regex,
    help="Regular expression over parameter paths (`backbone/...`, "
    "`method/...`, `head/...`); what it matches is trained. Empty: the "
    "method's own, which is `(method|head)/.*`, and `.*` for `full`.",
  )
  pool: str = option(
    "",
    one_of(POOLS, or_empty=True),
    help="The tokens whose mean is the feature: cls | img | prompt | "
    "imgprompt. Empty: the backbone's own (ViT, MoCo v3, CLIP: cls; MAE, "
    "Swin: imgprompt).",
  )
  head: str = option(
    "linear",
    one_of(heads.HEADS),
    help="What the head starts from: linear (new) | pretrained (the "
    "checkpoint's own) | zero_shot (CLIP's text features of the class names) "
    "| prototypes (of DINO, a random one for each class, as PGN does).",
  )
  head_groups: tuple = option(
    (),
    groups_of_classes,
    help="With head=pretrained: for each class of the task the classes of the "
    "checkpoint's head that belong to it, as in ((404, 895), (436,)). Empty: "
    "the classes are the same.",
  )
  head_init: str = option(
    "kaiming",
    one_of(HEAD_INITS),
    help="Values that a new head starts from: kaiming (as published; in short "
    "runs on few classes its confident first errors cost much of the "
    "training) | zeros.",
  )
  head_layers: int = option(
    0,
    at_least(0),
    help="Hidden layers of the head (Dense, ReLU, BatchNorm, Dropout 0.1 "
    "each).",
  )
  image_size: int = option(
    224,
    between(1, LARGEST_IMAGE),
    help="Side of the square images that the backbone sees, in pixels. With "
    "another size than the checkpoint's, position embeddings are resized.",
  )
  batch_size: int = option(
    64, between(1, LARGEST_BATCH), help="Images in a training step."
  )
  start: str = option(
    "",
    help="Set by --start=ADAPTER: a digest of the file from whose parameters "
    "the run starts. Empty: from new ones.",
    since="0.2.0",
  )
  epochs: int = option(
    100, at_least(0), help="Passes over the training images; 0: no training."
  )
  steps_per_epoch: int = option(
    0,
    at_least(0),
    help="Above 0 an epoch is so many steps: images come in an endless order, "
    "shuffled anew after each pass, and every batch is full. 0: an epoch is "
    "one pass.",
    since="0.2.0",
  )
  seed: int = option(
    42,
    between(0, LARGEST_SEED),
    help="Seed of initial values, dropout and the order of images.",
  )
  mode: str = option(
    "train",
    one_of(("train", "sweep")),
    help="train: one run | sweep: the papers' protocol, see "
    "vpt_jax/sweeps/protocol.py. Only then the section `sweep` is read.",
  )


@dataclasses.dataclass(frozen=True)
class Backbone:
  """The frozen model."""

  name: str = option(
    "vit_b16_in21k",
    one_of(BACKBONES, what="backbone"),
    help="A name that `python -m vpt_jax.backbones` lists.",
  )
  checkpoint: str = option(
    "",
    help="File (npz, safetensors, PyTorch, msgpack), folder (Orbax, Hugging "
    "Face) or https:// or gs:// "
    'address. Empty: the known one of this name; "random": not pretrained.',
  )
  gelu: str = option(
    "torch",
    one_of(("torch", *gelu.NAMES), or_empty=True),
    help="tanh | exact | quick; empty: what the weights were trained with; "
    "torch: exact in place of tanh, as the papers' code runs weights that "
    "were trained in JAX. With empty and torch a config beside the checkpoint "
    "(config.json, open_clip_config.json) goes first.",
  )
  eps: float = option(
    0.0,
    at_least(0),
    help="Added to the variance in the norms. 0: what the config beside the "
    "checkpoint says, else the backbone's own.",
    since="0.2.0",
  )
  grid: tuple = option(
    (),
    rows_and_columns,
    help="Rows and columns of the checkpoint's positions, as in (9, 16), where "
    "they are on no square grid and no config beside it says so. Empty: as "
    "that config says, else a square.",
    since="0.2.0",
  )
  norm: str = option(
    "",
    one_of(NORMS, or_empty=True),
    help="The final norm: before (the pooling) | after | fresh (after it, "
    "with new weights). Empty: the backbone's own. MAE is `fresh` in VPT and "
    "VAPT, `after` in Gated Prompt Tuning.",
  )
  projection: bool = option(
    False,
    help="Whether the feature goes through the checkpoint's own projection "
    "(CLIP, DINO).",
  )
  frozen_dtype: str = option(
    "float32",
    one_of(FLOATS),
    help="How frozen parameters are stored: float32 | bfloat16.",
  )


@dataclasses.dataclass(frozen=True)
class Data:
  """The images, and what happens to them before the model."""

  dir: str = option(
    "data",
    help="Folder of the data sets: packs `vtab-1k/TASK/...`, tfds, VPT's FGVC "
    "folders. `python -m vpt_jax.data check --data_dir=...` says what is "
    "there.",
  )
  source: str = option(
    "",
    help="Empty: the first of the task's own sources that is there | pack | "
    "json | tfds, or your own images: folder:PATH (class = subfolder) | "
    "csv:PATH (path,label) | npz:PATH | json:PATH (train.json, test.json); or "
    "a path alone, where it says which of them it is.",
  )
  own_copy: bool = option(
    False,
    help="Whether images of your own (data.source) are a copy of those of "
    "`task`, a known one, so that results may have its name.",
    since="0.2.0",
  )
  layout: str = option(
    "auto",
    one_of(layouts.LAYOUTS),
    help="What the folders of folder:PATH mean: classes | parts (train, val "
    "and test above the classes; other folders are left out) | auto: told by "
    "their names, and refused where that is not clear.",
    since="0.2.0",
  )
  columns: str = option(
    "",
    help="The columns of csv:PATH that have images, labels and, if there are "
    "any, parts: their names, as in image,breed,fold, or their numbers from 1 "
    "on, where there is no heading. Empty: told by the usual names.",
    since="0.2.0",
  )
  seed: int = option(
    0,
    between(0, LARGEST_SEED),
    help="Seed of the parts of images that are not split into train, val and "
    "test.",
  )
  preprocess: str = option(
    "",
    one_of(resize.FAMILIES, or_empty=True),
    help="How images come to `image_size`: vtab (straight, bilinear without "
    "antialiasing) | fgvc (shorter side, random crop, flip) | pgn (squash and "
    "recolour). Empty: what the task's papers do, vtab for images of your "
    "own.",
  )
  train_split: str = option(
    "trainval",
    one_of(datasets.PACK_LISTS),
    help="Which part trains: train (800) | trainval (1,000). VTAB-1k picks "
    "hyper-parameters with train/val and reports trainval/test.",
  )
  test_split: str = option(
    "test",
    one_of(datasets.PACK_LISTS),
    help="Which part is evaluated at the end: val (200) | test.",
  )
  train_share: float = option(
    1.0,
    share,
    help="Part of the training images that is used, of each class alike "
    "(sample efficiency). `data.seed` chooses it; smaller parts lie within "
    "larger ones.",
  )
  normalize: str = option(
    "",
    one_of(("backbone", *views.NORMALIZE), or_empty=True),
    help="imagenet | half | clip | none: see "
    "vpt_jax/data/transforms/views.py; backbone: what it was trained with. "
    "Empty: imagenet for a known task, as the papers' code has it for every "
    "backbone, and backbone for images of your own.",
  )
  augment: str = option(
    "",
    one_of(views.AUGMENT, or_empty=True),
    help="Random views of training images: none | flip | crop | flip_crop | "
    "pgn | pgn_crop. Empty: what belongs to `preprocess` (vtab: none, fgvc: "
    "flip, pgn: pgn).",
  )
  min_scale: float = option(
    1.0,
    share,
    help="Least area of random resized crops; 1: no such crops (PGN's default "
    "too).",
  )
  on_error: str = option(
    "raise",
    one_of(("raise", "skip")),
    help="What a missing or damaged image does: raise | skip (and count).",
  )
  device_gb: float = option(
    0.0,
    at_least(0),
    help="Splits up to this size in GiB stay on the device, larger ones are "
    "read ahead batch by batch. 0: half of what the device says is free.",
  )
  cache: str = option(
    "",
    help="Folder of prepared images. Empty: $VPT_JAX_CACHE/data, or else "
    "~/.cache/vpt_jax/data.",
  )


@dataclasses.dataclass(frozen=True)
class Optim:
  """The optimizer."""

  name: str = option(
    "sgd",
    one_of(OPTIMIZERS),
    help="sgd | adam (both with coupled decay, as in PyTorch) | adamw "
    "(decoupled).",
  )
  momentum: float = option(0.9, rate, help="Momentum of sgd.")
  lr: float = option(
    1.0,
    at_least(0),
    help="Learning rate for a batch of 256; what is used is lr / 256 * "
    "batch_size, unless scale_lr is False.",
  )
  scale_lr: bool = option(
    True, help="Whether the learning rate is scaled with the batch size."
  )
  weight_decay: float = option(1e-3, at_least(0), help="Weight decay.")
  schedule: str = option(
    "cosine",
    one_of(SCHEDULES),
    help="cosine | cosine_hardrestart | pgn_cosine_with_warmup | constant; "
    "the factor changes once per epoch, as published. poly: it changes with "
    "every step, see the fields poly_*.",
  )
  warmup_epochs: int = option(
    10, at_least(0), help="Epochs in which the learning rate grows linearly."
  )
  warmup_from_zero: bool = option(
    True,
    help="True as published: epoch e < warm-up has rate lr * e / "
    "warmup_epochs, so THE WHOLE FIRST EPOCH HAS RATE 0. False: lr * (e + 1) "
    "/ warmup_epochs.",
  )
  poly_form: str = option(
    "mmengine",
    one_of(POLY_FORMS),
    help="Of schedule=poly, what remains of T steps before step t: mmengine, 1 "
    "- t / (T - 1) | mmcv, 1 - t / T.",
    since="0.2.0",
  )
  poly_power: float = option(
    0.9, at_least(0), help="Of schedule=poly.", since="0.2.0"
  )
  poly_min: float = option(
    0.0,
    at_least(0),
    help="Of schedule=poly: the rate at its end, of every policy alike.",
    since="0.2.0",
  )
  poly_warmup: int = option(
    0,
    at_least(0),
    help="Of schedule=poly: steps in which the rate first rises linearly.",
    since="0.2.0",
  )
  policies: tuple = option(
    (("head/bias", {"weight_decay": 0.0}), (".*", {})),
    policies,
    help='Ordered (regex over trainable paths, {"lr": factor, '
    '"weight_decay": factor}). As published: no decay of the head\'s bias.',
  )


@dataclasses.dataclass(frozen=True)
class Compute:
  """Number formats, and which programs compute."""

  dtype: str = option(
    "float32",
    one_of(FLOATS),
    help="Format of the backbone's matrix products: float32 | bfloat16. "
    "Norms, softmax, loss, head and prompts stay float32.",
  )
  matmul_precision: str = option(
    "highest",
    one_of(("highest", "high", "default")),
    help="How exact float32 products are on GPU and TPU: highest (float32 "
    "throughout) | high | default (TF32 or bfloat16 inside).",
  )
  attention: str = option(
    "ours",
    one_of(ATTENTION_FORMS),
    help="What computes attention: ours (this package's own form, auto is the "
    "same) | xla (jax.nn.dot_product_attention) | cudnn (the same, fused, on "
    "NVIDIA GPUs in bfloat16; not measured yet).",
  )
  ops: str = option(
    "auto",
    one_of(KINDS),
    help="Which form of the operations in vpt_jax/ops: auto (the fast ones "
    "for the platform) | reference (the plain ones, for comparison).",
    since="0.2.0",
  )
  remat: bool = option(
    False,
    help="True: activations are computed again in the backward pass, which "
    "takes less memory and a third more time; see jax.checkpoint.",
  )


@dataclasses.dataclass(frozen=True)
class Shard:
  """How parameters lie on several devices."""

  strategy: str = option(
    "dp",
    one_of(STRATEGIES),
    help="Frozen parameters: dp (replicated) | fsdp (split over the devices "
    "that split the batch) | tp (heads and hidden units split over groups of "
    "`model` devices); see vpt_jax/distributed/sharding.py.",
  )
  model: int = option(
    1, at_least(1), help="Devices in a group that splits the model, for tp."
  )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """What a killed run resumes from."""

  every_epochs: int = option(
    10, at_least(1), help="Epochs between checkpoints."
  )
  keep: int = option(2, at_least(1), help="How many checkpoints are kept.")


@dataclasses.dataclass(frozen=True)
class Condense:
  """Prompt condensation: vpt_jax/condensation, configs/condense_vtab.py."""

  shares: tuple = option(
    (),
    each(inner_share),
    help="Shares of the prompts to keep, each in a run of its own. Empty: an "
    "ordinary run.",
  )
  statistic: str = option(
    "elementwise_sample_abs",
    help="What ranks the prompts: a name in "
    "vpt_jax/condensation/prompt_scores.py.",
  )
  epochs: int = option(
    20,
    at_least(0),
    help="Fine-tuning of the kept prompts and the head, without warm-up.",
  )
  lr_factor: float = option(
    0.5,
    at_least(0),
    help="The learning rate of fine-tuning is this factor times optim.lr.",
  )
  oracle_images: int = option(
    0,
    at_least(0),
    help="Images for the exact effect of each prompt, to which all statistics "
    "are compared; it takes a forward pass for every prompt. 0: not done.",
  )


@dataclasses.dataclass(frozen=True)
class Sweep:
  """A search, then training with the best values: only with mode=sweep."""

  tasks: tuple = option((), each(text), help="Empty: `config.task` alone.")
  per_task: Mapping[str, Any] = option(
    dict,
    changes_by_task,
    help="Task -> ((field, value), ...) that are different there.",
  )
  grid: tuple = option(
    (),
    axes,
    help="What is searched: (field, values) each. Empty: nothing, only the "
    "seeds. The config files hold what is published of each method.",
  )
  search: str = option(
    "grid",
    help="grid: all combinations | coordinate: one field after the other, the "
    "last one first (VAPT's --fast) | halving: all for a ninth of the epochs, "
    "the best third for a third, the best third of these for all.",
  )
  seeds: tuple = option(
    (42, 44, 82, 100, 800),
    each(whole_number),
    help="Seeds of the runs with the best values.",
  )
  group: int = option(
    0,
    help="How many runs train together, see vpt_jax/sweeps/vmapped_runs.py. 0: "
    "as many as fit.",
  )


@dataclasses.dataclass(frozen=True)
class Clip:
  """Texts of the class names, for head=zero_shot."""

  text_features: str = option(
    "",
    help="File (npy, npz) of the classes' text features [K, D]. Empty: the "
    "text tower makes them from the following fields.",
  )
  class_names: tuple = option(
    (), each(text), help="Names of the classes. Empty: those of the task."
  )
  templates: tuple = option(
    ("a photo of a {}.",),
    each(text),
    help="Texts whose features are averaged; {} is the class name.",
  )
  merges: str = option(
    "",
    help="The standard merges file, bpe_simple_vocab_16e6.txt.gz. Empty: it "
    "is fetched once.",
  )


SECTIONS: dict[str, type] = {
  "backbone": Backbone,
  "data": Data,
  "optim": Optim,
  "compute": Compute,
  "shard": Shard,
  "checkpoint": Checkpoint,
  "condense": Condense,
  "sweep": Sweep,
  "clip": Clip,
  "segmentation": SegmentationSection,
}
# Sections that a resolved config lacks if nothing of them is used.
OPTIONAL = ("condense", "sweep", "segmentation")
# Sections that no config of version 0.1 has.
LATER = ("segmentation",)


def fields_of(section: str) -> tuple[dataclasses.Field, ...]:
  """Returns the fields of a section.

  Args:
    section: a key of `SECTIONS`, a method's name, or "" for the top level.
  """
  if not section:
    return dataclasses.fields(General)
  if section in SECTIONS:
    return dataclasses.fields(SECTIONS[section])
  return methods.option_fields(methods.get(section))


def default_values(section: str) -> dict[str, Any]:
  """Returns the fields of a section with their defaults."""
  values = {field.name: default_of(field) for field in fields_of(section)}
  if section in methods.METHODS:
    values |= methods.DEFAULTS.get(section, {})
  return values


def defaults() -> ConfigDict:
  """Returns a config in which every field has its default."""
  config = ConfigDict(default_values(""))
  for section in (*SECTIONS, *methods.METHODS):
    values = default_values(section)
    if values:  # methods without options have no section
      config[section] = ConfigDict(values)
  return config


def added_later() -> dict[tuple[str, ...], Any]:
  """Returns the fields that configs of version 0.1 lack: path -> default."""
  added: dict[tuple[str, ...], Any] = {}
  for section in ("", *SECTIONS):
    for field in fields_of(section):
      if field.metadata["since"] or section in LATER:
        path = (section, field.name) if section else (field.name,)
        added[path] = default_of(field)
  return added
