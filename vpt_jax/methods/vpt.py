"""Defines Visual Prompt Tuning (Jia et al. 2022, arXiv 2203.12119)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vpt_jax.methods import torch_init
from vpt_jax.methods.method import (
  check_options,
  Method,
  per_image,
  prompt_sets,
  stage_of,
)
from vpt_jax.nn.layers import Dropout
from vpt_jax.nn.tokens import Tokens


class VPT(Method):
  """Learns prompts beside the tokens of one block (shallow) or of each (deep).

    shallow:  [x_1, Z_1, E_1] = L_1([x_0, P, E_0]),  Z_i carried on
    deep:     [x_i,   _, E_i] = L_i([x_{i-1}, P_{i-1}, E_{i-1}])

  with class token x, prompts P or Z and patches E (section 3.2 of the paper).

  Attributes:
    num_tokens: P, prompts per prompted block.
    deep: False prompts the first block and carries its outputs on.
    first: shallow: the block that the prompts enter.
    num_layers: deep: how many blocks are prompted (0: all), from the first.
    reverse: deep: count them from the last block instead. The published code
      loses the first P patches here; this one does not.
    shared: deep: one set of prompts for all prompted blocks (of a width).
    expand: deep with num_layers: blocks after the last prompted one see its
      prompts' outputs, carried on, as published by default. False drops them.
    project: if positive, prompts have this width and one dense layer, shared by
      all blocks, maps them to the backbone's.
    dropout: rate of the prompts' dropout, per image, after the projection.
    kept: condensed prompts: of every set (of a block, or `shared` ones) which
      of its P are there. (): all.
  """

  num_tokens: int = 10
  deep: bool = True
  first: int = 0
  num_layers: int = 0
  reverse: bool = False
  shared: bool = False
  expand: bool = True
  project: int = 0
  dropout: float = 0.1
  kept: tuple[tuple[int, ...], ...] = ()

  @property
  def prompted(self) -> range:
    """Indices of the blocks that get prompts of their own."""
    if not self.deep:
      return range(self.first, self.first + 1)
    depth = self.spec.depth
    count = self.num_layers or depth
    return range(depth - count, depth) if self.reverse else range(count)

  @property
  def carried_from(self) -> int | None:
    """The block whose prompts are carried on through the later blocks."""
    last = self.prompted[-1]
    if not self.deep:
      return last
    blocks_follow = last + 1 < self.spec.depth
    return last if self.expand and blocks_follow else None

  def check(self):
    """Raises ValueError for blocks, widths or prompts that are not there."""
    check_options(
      self,
      "vpt",
      at_least={"num_tokens": 1, "num_layers": 0, "project": 0},
      rates=["dropout"],
    )
    depth = self.spec.depth
    if not self.deep and not 0 <= self.first < depth:
      raise ValueError(
        f"vpt.first={self.first}, the backbone has {depth} blocks, from 0 on"
      )
    if self.deep and self.first:
      raise ValueError(
        f"vpt.first={self.first} is for shallow prompts; deep "
        "ones of the last n blocks: vpt.num_layers=n and "
        "vpt.reverse=True"
      )
    if self.deep and self.num_layers > depth:
      raise ValueError(
        f"vpt.num_layers={self.num_layers}, the backbone has {depth} blocks"
      )
    if self.project and len(self.spec.stages) > 1:
      raise ValueError(
        "vpt.project needs a backbone of one width, this has "
        f"stages of widths {sorted(set(self.spec.widths))}; "
        "use vpt.project=0"
      )
    if self.kept:
      self._check_kept()

  def _check_kept(self):
    """Raises ValueError unless `kept` has increasing indices for every set."""
    num_sets = 1 + max(self._set_of(i) for i in self.prompted)
    valid = len(self.kept) == num_sets
    for indices in self.kept:
      inside = set(indices) & set(range(self.num_tokens))
      if list(indices) != sorted(inside):
        valid = False
    if not valid:
      raise ValueError(
        f"vpt.kept={self.kept}; expected {num_sets} tuples, one for each set "
        f"of prompts, of increasing indices below num_tokens={self.num_tokens}"
      )

  def setup(self):
    """Makes the prompts and, if asked for, the layer that projects them."""
    self.check()
    self.prompt = prompt_sets(
      self,
      self.prompted,
      self.num_tokens,
      shared=self.shared,
      width=self.project,
      kept=self.kept,
    )
    if self.project:
      self.projection = nn.Dense(
        self.spec.widths[0],
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        bias_init=torch_init.bias(self.project),
      )
    self.prompt_dropout = Dropout(self.dropout)

  def _set_of(self, i: int) -> int:
    """Returns the number of the set that the prompts of block i are."""
    first = self.prompted[0]
    if self.shared:
      return stage_of(self.spec, i) - stage_of(self.spec, first)
    return i - first

  def _prompt(self, i: int, tokens: Tokens, train: bool) -> jax.Array | None:
    """Returns the prompts of block i as the block sees them, [B or 1, P, D]."""
    prompt = self.prompt[i]
    if prompt is None:
      return None
    if self.project:
      prompt = self.projection(prompt)
    return per_image(prompt, tokens, self.prompt_dropout, train)

  def prompts(self, image, tokens, *, train):
    """Returns prompts that are carried from the first block on."""
    if self.carried_from != 0:
      return None
    return self._prompt(0, tokens, train)

  def before(self, i, tokens, *, train):
    """Adds prompts that are carried from a later block on."""
    if i != self.carried_from or i == 0:
      return tokens
    return tokens.with_prompt(self._prompt(i, tokens, train))

  def context(self, i, tokens, *, train):
    """Returns the deep prompts of block i, which are not carried on."""
    if i not in self.prompted or i == self.carried_from:
      return None
    return self._prompt(i, tokens, train)

  def prompt_bias(self, i):
    """Returns log m of a mask m [L, P] in the variables `mask`.

      weights of a query over its keys k:  softmax_k(logit_k + log m_k)

    so that 0 removes a prompt. Blocks after `carried_from` see its prompts.
    """
    mask = self.get_variable("mask", "prompt")
    if mask is None:
      return None
    if self.carried_from is not None and i > self.carried_from:
      return jnp.log(mask[self._set_of(self.carried_from)])
    if i in self.prompted:
      return jnp.log(mask[self._set_of(i)])
    return None
