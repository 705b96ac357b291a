"""Tiny models, adapters and records that the tests of analyses share."""

import jax
from ml_collections import ConfigDict
import numpy as np

from vpt_jax import model as models
from vpt_jax.analysis import (
  attention_maps,
  subject,
)
from vpt_jax.backbones.swin import Swin
from vpt_jax.backbones.vit import ViT
from vpt_jax.data.transforms.preprocess import Preprocess

VIT = ViT((8, 8), 4, 16, depth=3, num_heads=2, mlp_dim=32)
MAE = VIT.clone(pool="imgprompt", norm_order="after")
SWIN = Swin((8, 8), 8, (1, 2), (2, 2), window=2, patch_size=2, mlp_ratio=2.0)
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 8, 8, 3)).astype(np.float32)
P, K, T = 3, 4, 5  # prompts, classes, tokens: 1 + 2 x 2


def compiled(function, *args):
  """What a function gives, compiled as a whole: op by op takes far longer."""
  return jax.jit(function)(*args)


def matrices(model, variables, images=IMAGES):
  """`attention.matrices`, compiled."""
  return compiled(
    lambda *args: attention_maps.matrices(model, *args), variables, images
  )


def build(backbone, method):
  """(model, variables), larger than initial ones so that all of it matters."""
  model = models.Model(backbone, method, K)
  rng = np.random.default_rng(1)
  return model, {
    "params": jax.tree.map(
      lambda leaf: rng.normal(size=leaf.shape, scale=0.5).astype(np.float32),
      jax.eval_shape(lambda: models.init(model, jax.random.key(0))),
    )
  }


def adapter_of(model, variables, **options):
  """An `Adapter` that no file holds."""
  return subject.Adapter(
    "x/adapter.npz",
    model,
    variables,
    ConfigDict(
      dict(
        {
          "task": "t",
          "batch_size": 2,
          "backbone": {"name": "b"},
          "compute": {"matmul_precision": "highest"},
        },
        **options,
      )
    ),
    Preprocess(model.method.input_size, "half"),
  )


def record(number, seed, top1, **more):
  config = {
    "seed": seed,
    "vpt": {"num_tokens": number},
    "optim": {"lr": more.pop("lr", 1.0)},
  }
  return {
    "id": f"{number}-{seed}-{len(more)}-{config['optim']['lr']}",
    "stage": "final",
    "status": "done",
    "split": "test",
    "name": "vpt",
    "method": "vpt",
    "backbone": {"name": "b", "sha256": "random"},
    "task": "t",
    "cell": {},
    "device": "1 x cpu",
    "versions": {},
    "seconds": 1.0,
    "trainable_params": 1,
    "total_params": 2,
    "train_images": 3,
    "group": 1,
    "curve": {},
    "loss": 0.5,
    "count": 4,
    "classes": [],
    "seed": seed,
    "metric": "top1",
    "top1": top1,
    "mean_per_class": -1.0,
    "config": config,
    **more,
  }
