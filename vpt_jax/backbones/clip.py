"""Defines CLIP's text tower (Radford et al. 2021, arXiv 2103.00020).

The visual tower is `vit.ViT` with `pre_norm`; the tokenizer, and the head that
is made of class names, are in `problems/zero_shot.py`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vpt_jax.backbones.vit import Encoder
from vpt_jax.nn.tokens import Tokens
from vpt_jax.nn.transformer import Dtype
from vpt_jax.ops.switch import Ops

VOCAB_SIZE = 49408
CONTEXT_LENGTH = 77


class TextTower(nn.Module):
  """A causal transformer, read where the text ends.

  Attributes:
    width: D.
    depth: number of blocks.
    num_heads: of attention.
    output_dim: width of the space that images and texts share.
    context_length: of the texts, in tokens.
    vocab_size: number of tokens that there are.
    eps: of the norms.
    gelu: of `ops.gelu.NAMES`; "quick" is OpenAI's.
    dtype: of the matrix products; norms and softmax are always float32.
    ops: form of its operations.
  """

  width: int
  depth: int
  num_heads: int
  output_dim: int
  context_length: int = CONTEXT_LENGTH
  vocab_size: int = VOCAB_SIZE
  eps: float = 1e-5
  gelu: str = "quick"
  dtype: Dtype = jnp.float32
  ops: Ops = Ops()

  def setup(self):
    """Makes the embeddings, the encoder and the projection."""
    normal = nn.initializers.normal
    self.token_embedding = self.param(
      "token_embedding", normal(0.02), (self.vocab_size, self.width)
    )
    self.pos_embedding = self.param(
      "pos_embedding", normal(0.01), (self.context_length, self.width)
    )
    self.Transformer = Encoder(
      self.depth,
      self.num_heads,
      4 * self.width,
      self.gelu,
      self.eps,
      self.dtype,
      self.ops,
    )
    self.projection = nn.Dense(
      self.output_dim,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=normal(self.width**-0.5),
    )

  def __call__(self, ids: jax.Array) -> jax.Array:
    """Returns the features of texts, [N, output_dim] in float32, any length.

    Args:
      ids: [N, context_length], int32, from `zero_shot.Tokenizer.encode`. The
        end token has the largest id; what follows it has no effect.

    Raises:
      ValueError: the texts have another number of tokens.
    """
    if ids.shape[1:] != (self.context_length,):
      raise ValueError(
        f"ids are {list(ids.shape)}, the text tower needs [N, "
        f"{self.context_length}]"
      )
    x = self.token_embedding[ids] + self.pos_embedding
    tokens = Tokens(x.astype(self.dtype), num_cls=0, ops=self.ops)
    # Finite: a row without any -inf has a softmax in every precision.
    square = (self.context_length, self.context_length)
    mask_of_later = jnp.triu(jnp.full(square, -1e9), k=1)
    for i in range(self.depth):
      tokens = self.Transformer.block(
        i,
        tokens,
        context=None,
        temperature=1.0,
        pool=None,
        bias=mask_of_later,
      )
    end = ids.argmax(axis=1)
    x = jnp.take_along_axis(tokens.x, end[:, None, None], axis=1)[:, 0]
    x = self.projection(self.Transformer.norm(x).astype(self.dtype))
    return x.astype(jnp.float32)
