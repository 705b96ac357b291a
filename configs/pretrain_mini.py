"""Configures how the embedded backbone was made.

A ViT of 0.46 M parameters is trained from scratch:

    python -m vpt_jax.main --config=configs/pretrain_mini.py \
        --config.data.dir=FOLDER_OF_cifar10_jpeg.npz --workdir=runs/mini
    python -m vpt_jax.backbones.convert runs/mini/adapter.npz --to OUT.npz
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
  """Returns the training from scratch: CIFAR-10 at 32 px, AdamW."""
  config = common.get_config()
  config.task = "cifar10"
  config.method = "full"
  config.backbone.name = "vit_mini4"
  config.backbone.checkpoint = "random"
  config.backbone.gelu = "tanh"
  config.image_size = 32
  config.pool = "cls"
  config.batch_size = 128
  config.epochs = 15
  config.data.train_split = "train"
  config.data.normalize = "half"
  config.data.augment = "flip_crop"
  config.optim.name = "adamw"
  config.optim.lr = 1.5e-3
  config.optim.scale_lr = False
  config.optim.weight_decay = 0.05
  config.optim.warmup_epochs = 1
  config.optim.warmup_from_zero = False
  config.optim.policies = (
    (r".*/(bias|scale)|backbone/(cls|pos_embedding)", {"weight_decay": 0.0}),
    (".*", {}),
  )
  config.checkpoint.every_epochs = 1
  return config
