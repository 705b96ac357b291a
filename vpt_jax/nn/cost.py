"""Parameters and multiply-adds of a backbone, without running it."""

from collections.abc import Callable, Iterator
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vpt_jax.utils import trees


def _forward(module: nn.Module) -> jax.Array:
  tokens = module.embed(jnp.zeros((1, *module.spec.image_size, 3)))
  for i in range(module.spec.depth):
    tokens = module.block(i, module.enter(i, tokens))
  return module.norm(tokens.x)


def shapes(module: nn.Module) -> trees.Flat:
  """{path: ShapeDtypeStruct} of a backbone's parameters."""
  init = nn.init(_forward, module)
  return trees.flatten(jax.eval_shape(init, jax.random.key(0))["params"])


def parameters(module: nn.Module) -> int:
  """Number of scalars, without heads and projections.

  The class token's position is part of the class token here, so that a ViT has
  D parameters fewer than where both are kept.
  """
  return by_depth(module, lambda part: _measured(part)[0])


def multiply_adds(module: nn.Module) -> int:
  """Multiply-adds of an image in matrix products and convolutions.

  Papers call this number FLOPs. No prompts; all rows of the last block.
  """
  return by_depth(module, lambda part: _measured(part)[1])


@functools.lru_cache(maxsize=256)
def _measured(module: nn.Module) -> tuple[int, int]:
  """(parameters, multiply-adds), traced."""
  flat = shapes(module)
  return (
    sum(math.prod(leaf.shape) for leaf in flat.values()),
    counted(nn.apply(_forward, module), {"params": trees.unflatten(flat)}),
  )


def counted(function: Callable[..., Any], *args: Any) -> int:
  """Multiply-adds of a call; arrays among its arguments may be shapes."""
  jaxpr = jax.make_jaxpr(function)(*args)
  return sum(map(_count, _equations(jaxpr.jaxpr)))


def by_depth(module: nn.Module, count: Callable[[nn.Module], int]) -> int:
  """`count(module)` from networks of one or two blocks a stage.

  The blocks of a stage cost the same, and tracing 24 of them takes a while.
  """
  staged = hasattr(module, "depths")
  depths = module.depths if staged else (module.depth,)
  short = lambda depths: count(
    module.clone(depths=depths) if staged else module.clone(depth=depths[0])
  )
  once = (1,) * len(depths)
  base = short(once)
  return base + sum(
    (depth - 1) * (short((*once[:s], 2, *once[s + 1 :])) - base)
    for s, depth in enumerate(depths)
  )


def _equations(jaxpr: Any) -> Iterator[Any]:
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from _equations(inner)


def _count(equation: Any) -> int:
  name, out = equation.primitive.name, equation.outvars[0].aval
  if name == "dot_general":
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return math.prod(out.shape) * math.prod(left[axis] for axis in contracted)
  if name == "conv_general_dilated":
    kernel = equation.invars[1].aval.shape
    out_axis = equation.params["dimension_numbers"].rhs_spec[0]
    return math.prod(out.shape) * math.prod(kernel) // kernel[out_axis]
  return 0
