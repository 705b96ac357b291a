"""Configures a table that two CPU cores can make.

EuroSAT with ViT-Ti/16 at 96 px:

    python -m vpt_jax.main --config=configs/eurosat_ti16.py:lora \
        --config.backbone.checkpoint=FILE --config.data.dir=DIR

FILE is a ViT-Ti/16 of ImageNet-1k that takes images in [-1, 1], DIR holds the
pack `vtab-1k/eurosat`. The argument is a key of `METHODS`.

Not the papers' protocol, which takes 100 epochs of SGD: 10 epochs of AdamW, and
a head that starts from zeros. Rates were chosen on the 200 validation images.
"""

from ml_collections import ConfigDict

from configs import common

Fields = dict[str, str | float | bool | tuple]

# Fields that differ from what `get_config` sets for all.
METHODS: dict[str, Fields] = {
  # Features are computed once, so that the published protocol is seconds.
  "linear": {
    "method": "linear",
    "epochs": 100,
    "batch_size": 64,
    "optim.name": "sgd",
    "optim.lr": 0.25,
    "optim.scale_lr": True,
    "optim.warmup_epochs": 10,
    "sweep.grid": common.grid((0.25, 0.5, 1.0, 2.5), (0.01,)),
  },
  "vpt_shallow": {"method": "vpt", "vpt.deep": False},
  "vpt_deep": {"method": "vpt"},
  "vapt": {"method": "vapt"},
  "gated": {"method": "gated", "gated.gate_init": 1.0},
  "pgn": {"method": "pgn"},
  "lora": {"method": "lora"},
  "adapter": {"method": "adapter"},
  "bias": {"method": "linear", "trainable": common.BIAS},
  # The new head learns ten times as fast as the rest.
  "full": {
    "method": "full",
    "optim.lr": 1e-4,
    "sweep.grid": common.grid((3e-5, 1e-4, 3e-4), (0.01,)),
    "optim.policies": (
      ("head/bias", {"weight_decay": 0.0, "lr": 10.0}),
      ("head/.*", {"lr": 10.0}),
      (".*", {}),
    ),
  },
}


def get_config(arg: str = "vpt_deep") -> ConfigDict:
  """Returns the config of a method of the table; see `METHODS`."""
  if arg not in METHODS:
    raise ValueError(
      f"unknown method {arg!r} of eurosat_ti16.py; known: {', '.join(METHODS)}"
    )
  config = common.get_config()
  config.task = "eurosat"
  config.name = arg
  config.backbone.name = "vit_ti16"
  config.backbone.gelu = "tanh"
  config.head_init = "zeros"
  config.image_size = 96
  config.data.normalize = "half"
  config.batch_size = 32
  config.epochs = 10
  config.optim.name = "adamw"
  config.optim.lr = 3e-3
  config.optim.scale_lr = False
  config.optim.weight_decay = 0.01
  config.optim.warmup_epochs = 1
  config.optim.warmup_from_zero = False
  config.sweep.grid = common.grid((1e-3, 3e-3, 1e-2), (0.01,))
  config.vpt.dropout = 0.0
  config.gated.dropout = 0.0
  config.update_from_flattened_dict(METHODS[arg])
  return config
