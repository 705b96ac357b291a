"""Visual Prompt Tuning (Jia et al. 2022, arXiv 2203.12119), section 3.2."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vpt_jax.methods.method import check_options, Method, per_image, prompt_sets
from vpt_jax.nn.layers import Dropout
from vpt_jax.nn.tokens import Tokens


class VPT(Method):
  """Learned prompts beside the tokens of one block (shallow) or of each (deep).

    shallow:  [x_1, Z_1, E_1] = L_1([x_0, P, E_0]),  Z_i carried on
    deep:     [x_i,   _, E_i] = L_i([x_{i-1}, P_{i-1}, E_{i-1}])

  Attributes:
    num_tokens: P, prompts per prompted block.
    deep: False prompts the first block and carries its outputs on.
    first: shallow: the block that the prompts enter.
    num_layers: deep: how many blocks are prompted (0: all), from the first.
    reverse: deep: count them from the last block instead. The published code
      loses the first P patches here; this one does not.
    shared: deep: one set of prompts for all prompted blocks (of a width).
    expand: deep with num_layers: blocks after the last prompted one go on with
      its prompts' outputs, as published by default. False drops them.
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
    depth = self.spec.depth
    if not self.deep:
      if not 0 <= self.first < depth:
        raise ValueError(
          f"vpt.first={self.first}, the backbone has {depth} blocks, from 0 on"
        )
      return range(self.first, self.first + 1)
    if self.first:
      raise ValueError(
        f"vpt.first={self.first} is for shallow prompts; deep "
        "ones of the last n blocks: vpt.num_layers=n and "
        "vpt.reverse=True"
      )
    n = self.num_layers or depth
    if not 1 <= n <= depth:
      raise ValueError(f"vpt.num_layers={n}, the backbone has {depth} blocks")
    return range(depth - n, depth) if self.reverse else range(n)

  @property
  def carried_from(self) -> int | None:
    """The block whose prompts are carried on through the later blocks."""
    last = self.prompted[-1]
    carry = not self.deep or (self.expand and last + 1 < self.spec.depth)
    return last if carry else None

  def setup(self):
    check_options(
      "vpt",
      {
        "num_tokens": (self.num_tokens, 1),
        "num_layers": (self.num_layers, 0),
        "project": (self.project, 0),
      },
      {"dropout": self.dropout},
    )
    if self.project and len(self.spec.stages) > 1:
      raise ValueError(
        "vpt.project needs a backbone of one width, this has "
        f"stages of widths {sorted(set(self.spec.widths))}; "
        "use vpt.project=0"
      )
    sets = 1 + max(self._set(i) for i in self.prompted)
    if self.kept and (
      len(self.kept) != sets
      or any(
        [*kept] != sorted({*kept} & {*range(self.num_tokens)})
        for kept in self.kept
      )
    ):
      raise ValueError(
        f"vpt.kept={self.kept}; expected {sets} tuples, one for each set of "
        f"prompts, of increasing indices below num_tokens={self.num_tokens}"
      )
    self.prompt = prompt_sets(
      self,
      self.prompted,
      self.num_tokens,
      shared=self.shared,
      width=self.project,
      kept=self.kept,
    )
    if self.project:
      bound = self.project**-0.5  # the default bias of torch's linear layer
      self.projection = nn.Dense(
        self.spec.widths[0],
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        bias_init=lambda key, shape, dtype: jax.random.uniform(
          key, shape, dtype, -bound, bound
        ),
      )
    self.prompt_dropout = Dropout(self.dropout)

  def _set(self, i: int) -> int:
    """Which set the prompts of block i are."""
    of = lambda block: next(
      s for s, stage in enumerate(self.spec.stages) if block in stage
    )
    first = self.prompted[0]
    return of(i) - of(first) if self.shared else i - first

  def _prompt(self, i: int, tokens: Tokens, train: bool) -> jax.Array | None:
    prompt = self.prompt[i]
    if prompt is None:
      return None
    if self.project:
      prompt = self.projection(prompt)
    return per_image(prompt, len(tokens.x), self.prompt_dropout, train)

  def prompts(self, image, tokens, *, train):
    if self.carried_from == 0:
      return self._prompt(0, tokens, train)

  def before(self, i, tokens, *, train):
    if i == self.carried_from and i > 0:
      return tokens.with_prompt(self._prompt(i, tokens, train))
    return tokens

  def context(self, i, tokens, *, train):
    if i in self.prompted and i != self.carried_from:
      return self._prompt(i, tokens, train)

  def prompt_bias(self, i):
    """log m of a mask [L, P] in the variables `mask`: 0 removes a prompt.

    softmax_k of exp(logit_k) m_k
    """
    mask = self.get_variable("mask", "prompt")
    carried = self.carried_from is not None and i > self.carried_from
    if mask is None or not (carried or i in self.prompted):
      return None
    return jnp.log(mask[self._set(self.carried_from if carried else i)])
