"""Traces what a training step needs of any machine: bytes and FLOPs."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vpt_jax import model as model_lib
from vpt_jax.bench import jax_models
from vpt_jax.nn import cost
from vpt_jax.utils import trees


@dataclasses.dataclass(frozen=True)
class Needs:
  """What a training step needs, on any machine.

  Attributes:
    frozen: bytes of frozen parameters.
    trained: bytes of trained parameters.
    image: bytes kept of an image for the backward pass.
    carried: bytes of a block's tokens, of an image.
    depth: blocks.
    flops: of an image, forward and backward.
  """

  frozen: float
  trained: float
  image: float
  carried: float
  depth: int
  flops: float


def case(
  backbone: str, prompts: int, dtype: str = "bfloat16", head: str = ""
) -> dict[str, Any]:
  """Returns VPT-deep at 224 px, as in `measure.Case`.

  Args:
    backbone: see there.
    prompts: see there.
    dtype: see there.
    head: of `dense_cases.HEADS`: 150 classes at 512 px, as ADE20K.
  """
  return {
    "backbone": backbone,
    "image_size": 512 if head else 224,
    "method": "vpt_deep",
    "prompts": prompts,
    "dtype": dtype,
    "dropout": 0.1,
    "classes": 150 if head else 100,
    "segmentation": head,
    "head_dtype": dtype,
  }


def _bytes(values: Any) -> int:
  """Returns the bytes of all arrays in a tree, or of their shapes."""
  total = 0
  for leaf in jax.tree.leaves(values):
    total += math.prod(leaf.shape) * leaf.dtype.itemsize
  return total


def _model_of_depth(depth: int, options: dict[str, Any]) -> model_lib.Model:
  """Returns the model with so many blocks, the head's among them."""
  model = model_lib.build(jax_models.config_of(options), options["classes"])
  backbone = model.backbone.clone(depth=depth)
  method = model.method.clone(spec=backbone.spec)
  model = model.clone(backbone=backbone, method=method)
  if not options["segmentation"]:
    return model
  return jax_models.with_dense_head(
    model, options["segmentation"], options["head_dtype"]
  )


@functools.cache
def traced(depth: int, **options: Any) -> np.ndarray:
  """Returns the needs of a model: bytes frozen, trained, of an image; FLOPs.

  Args:
    depth: blocks that the backbone has.
    **options: see `case`.
  """
  model = _model_of_depth(depth, options)
  problem = jax_models.problem_of(options)
  shapes = trees.flatten(
    jax.eval_shape(lambda: model_lib.init(model, jax.random.key(0)))
  )
  statistics = jax.eval_shape(
    lambda: model_lib.collections(model, jax.random.key(0))
  )
  frozen = {}
  trained = {}
  for path, leaf in shapes.items():
    if path.startswith("backbone/"):
      frozen[path] = jax.ShapeDtypeStruct(leaf.shape, options["dtype"])
    else:
      trained[path] = leaf

  def loss(trained, frozen, statistics, image, label):
    outputs, _ = model.apply(
      {"params": trees.merge(trained, frozen), **statistics},
      image,
      train=True,
      mutable=list(statistics),
      rngs={"dropout": jax.random.key(0)},
    )
    return problem.loss(outputs, label).mean()

  def pullback(trained, *rest):
    _, pull = jax.vjp(lambda trained: loss(trained, *rest), trained)
    return pull

  def needs_of(images: int) -> np.ndarray:
    """Returns bytes kept for the backward pass, and FLOPs."""
    height, width = model.method.input_size
    image = jax.ShapeDtypeStruct((images, height, width, 3), jnp.float32)
    pixels = (height, width) if options["segmentation"] else ()
    label = jax.ShapeDtypeStruct((images, *pixels), jnp.int32)
    args = (trained, frozen, statistics, image, label)
    # The pullback is a tree, whose leaves are what it needs.
    kept = jax.eval_shape(pullback, *args)
    flops = 2 * cost.counted(jax.grad(loss), *args)
    return np.array([_bytes(kept), flops])

  # Two images less one: weights are among what is kept.
  kept, flops = needs_of(2) - needs_of(1)
  return np.array([_bytes(frozen), _bytes(trained), kept, flops])


def needs(
  backbone: str, prompts: int, dtype: str = "bfloat16", head: str = ""
) -> Needs:
  """Returns what VPT-deep with so many prompts in every block needs.

  All of it is linear in the number of prompts, and in that of blocks from two
  on (the first and the last do less): four small models are traced.

  Args:
    backbone: see `case`.
    prompts: likewise.
    dtype: likewise.
    head: likewise. Auxiliary heads read other blocks in small models, which
      changes what is kept of an image by a thousandth.
  """
  config = jax_models.config_of(case(backbone, 1, dtype))
  spec = model_lib.build(config, 2).backbone.spec

  def whole_depth(prompts: int) -> np.ndarray:
    options = case(backbone, prompts, dtype, head)
    two_blocks = traced(2, **options)
    three_blocks = traced(3, **options)
    return two_blocks + (spec.depth - 2) * (three_blocks - two_blocks)

  one_prompt = whole_depth(1)
  two_prompts = whole_depth(2)
  all_prompts = one_prompt + (prompts - 1) * (two_prompts - one_prompt)
  frozen, trained, image, flops = all_prompts
  tokens = spec.num_cls + math.prod(spec.grids[0])
  return Needs(
    frozen=frozen,
    trained=trained,
    image=image,
    carried=tokens * spec.widths[0] * jnp.dtype(dtype).itemsize,
    depth=spec.depth,
    flops=flops,
  )
