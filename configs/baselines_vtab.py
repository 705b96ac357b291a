"""Configures baselines on a VTAB-1k task, by VPT's protocol.

The backbone is ViT-B/16 IN-21k:

    python -m vpt_jax.main --config=configs/baselines_vtab.py:lora,eurosat

The first word is a key of `BASELINES`. Without a task (`...:lora`): the
embedded digits and backbone.
"""

from ml_collections import ConfigDict

from configs import common

Fields = dict[str, str | float | bool | tuple]

# A value of `config.trainable`.
PROMPT_BIAS = r"(method|head)/.*|backbone/.*bias"


def last_blocks(count: int, depth: int) -> str:
  """Returns `trainable` for a ViT's last blocks, final norm and head."""
  numbers = "|".join(str(i) for i in range(depth - count, depth))
  return (
    rf"head/.*|backbone/Transformer/(encoderblock_({numbers})|"
    r"encoder_norm)/.*"
  )


def partial(count: int, lr: float) -> Fields:
  """Returns the fields of partial-k, with the depth of ViT-B."""
  return {
    "method": "linear",
    "trainable": last_blocks(count, 12),
    "optim.lr": lr,
  }


# Fields that differ from `common.py`. What VPT tuned per task (rate, decay,
# the adapters' width) is not published; these are places to start from.
BASELINES: dict[str, Fields] = {
  "full": {
    "method": "full",
    "optim.name": "adamw",
    "optim.lr": 1e-3,
    "optim.weight_decay": 0.01,
    "optim.warmup_epochs": 5,
    "sweep.grid": common.grid(common.FULL_RATES),
  },
  "adapter": {"method": "adapter", "optim.lr": 0.5},
  "lora": {"method": "lora", "optim.lr": 0.5},
  "bias": {"method": "linear", "trainable": common.BIAS, "optim.lr": 0.5},
  "partial1": partial(1, 0.1),
  "partial2": partial(2, 0.1),
  "partial4": partial(4, 0.05),
  # Three layers with the classifier.
  "mlp3": {"method": "linear", "head_layers": 2, "optim.lr": 0.5},
  "prompt_bias": {"method": "vpt", "trainable": PROMPT_BIAS, "optim.lr": 0.5},
  "add": {"method": "add", "add.deep": True},
  # Images stay 224 x 224 inside the frame.
  "pad": {"method": "pad", "image_size": 240, "pad.width": 8},
  "below": {"method": "below", "optim.lr": 0.1},
  "prepend_pixel": {"method": "prepend_pixel"},
  # As published, but for CLIP: batch 256, rate 40, no decay.
  "border": {
    "method": "border",
    "batch_size": 256,
    "optim.lr": 40.0,
    "optim.scale_lr": False,
    "optim.weight_decay": 0.0,
  },
}
# The backbone's own parameters change more slowly than the head.
SLOW_BACKBONE: tuple[tuple[str, dict[str, float]], ...] = (
  ("head/bias", {"weight_decay": 0.0}),
  ("backbone/.*", {"lr": 0.1}),
  (".*", {}),
)


def embedded_partial(count: int) -> Fields:
  """Returns what partial-k has of its own with the embedded ViT's depth."""
  return {
    "trainable": last_blocks(count, 4),
    "optim.policies": SLOW_BACKBONE,
  }


# The same for the embedded task.
EMBEDDED: dict[str, Fields] = {
  "full": {"optim.lr": 1e-3, "sweep.grid": common.grid((1e-3, 3e-4), (0.01,))},
  "partial1": embedded_partial(1),
  "partial2": embedded_partial(2),
  "partial4": embedded_partial(4),
  "prompt_bias": {"vpt.dropout": 0.0},
  "add": {"add.dropout": 0.0},
  "pad": {"pad.width": 2},
  "below": {"optim.policies": SLOW_BACKBONE},
  "border": {"border.init_std": 0.0},
}


def get_config(arg: str = "") -> ConfigDict:
  """Returns the config of a baseline for "METHOD,TASK", or "METHOD": embedded.

  METHOD: see `BASELINES`; TASK: see vpt_jax/data/tasks.py.
  """
  name, _, task = arg.partition(",")
  if name not in BASELINES:
    raise ValueError(
      f"unknown baseline {name!r}; write :METHOD or "
      f":METHOD,TASK, METHOD being {', '.join(BASELINES)}"
    )
  config = common.get_config()
  config.task = task
  config.update_from_flattened_dict(BASELINES[name])
  if not task:
    config = common.embedded(config)
    config.update_from_flattened_dict(EMBEDDED.get(name, {}))
  return config
