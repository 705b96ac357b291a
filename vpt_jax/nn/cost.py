"""Counts parameters and multiply-adds of a backbone, without running it."""

from collections.abc import Callable, Iterator
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vpt_jax.utils import trees


def _forward(module: nn.Module) -> jax.Array:
  """Returns the normed tokens [1, T, D] of a black image."""
  spec = module.spec
  image = jnp.zeros((1, *spec.image_size, 3))
  tokens = module.embed(image)
  for i in range(spec.depth):
    tokens = module.enter(i, tokens)
    tokens = module.block(i, tokens)
  return module.norm(tokens.x)


def shapes(module: nn.Module) -> trees.Flat:
  """Returns {path: ShapeDtypeStruct} of a backbone's parameters."""
  init = nn.init(_forward, module)
  variables = jax.eval_shape(init, jax.random.key(0))
  return trees.flatten(variables["params"])


def parameters(module: nn.Module) -> int:
  """Returns the number of scalars, without heads and projections.

  The class token's position is part of the class token here, so that a ViT has
  D parameters fewer than where both are kept.
  """
  return by_depth(module, lambda part: _measured(part)[0])


def multiply_adds(module: nn.Module) -> int:
  """Returns the multiply-adds of an image in products and convolutions.

  Papers call this number FLOPs. No prompts; all rows of the last block.
  """
  return by_depth(module, lambda part: _measured(part)[1])


@functools.lru_cache(maxsize=256)
def _measured(module: nn.Module) -> tuple[int, int]:
  """Returns (parameters, multiply-adds) of all its blocks, traced once."""
  flat = shapes(module)
  scalars = sum(math.prod(leaf.shape) for leaf in flat.values())
  forward = nn.apply(_forward, module)
  variables = {"params": trees.unflatten(flat)}
  return scalars, counted(forward, variables)


def counted(function: Callable[..., Any], *args: Any) -> int:
  """Returns the multiply-adds of a call.

  Args:
    function: that is called; it is traced, not run.
    *args: its arguments; arrays among them may be shapes.
  """
  program = jax.make_jaxpr(function)(*args)
  return sum(_count(equation) for equation in _equations(program.jaxpr))


def by_depth(module: nn.Module, count: Callable[[nn.Module], int]) -> int:
  """Returns `count(module)` from networks of one or two blocks a stage.

  The blocks of a stage cost the same, and tracing 24 of them takes a while.

  Args:
    module: with `depths` (Swin) or `depth` (ViT).
    count: of a shorter module; a sum over its blocks and the rest.
  """
  is_staged = hasattr(module, "depths")
  depths = module.depths if is_staged else (module.depth,)

  def count_short(depths: tuple[int, ...]) -> int:
    if is_staged:
      return count(module.clone(depths=depths))
    return count(module.clone(depth=depths[0]))

  single = (1,) * len(depths)
  base = count_short(single)
  total = base
  for stage, depth in enumerate(depths):
    double = (*single[:stage], 2, *single[stage + 1 :])
    total += (depth - 1) * (count_short(double) - base)
  return total


def _equations(jaxpr: Any) -> Iterator[Any]:
  """Yields the equations of a program and of the programs inside it."""
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from _equations(inner)


def _count(equation: Any) -> int:
  """Returns the multiply-adds of one equation."""
  name = equation.primitive.name
  outputs = math.prod(equation.outvars[0].aval.shape)
  if name == "dot_general":
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, _ = equation.invars
    sizes = [left.aval.shape[axis] for axis in contracted]
    return outputs * math.prod(sizes)
  if name == "conv_general_dilated":
    _, kernel = equation.invars
    sizes = kernel.aval.shape
    out_axis, *_ = equation.params["dimension_numbers"].rhs_spec
    return outputs * math.prod(sizes) // sizes[out_axis]
  return 0
