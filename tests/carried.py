"""The published form of deep prompts, to compare the package's with.

Prompts are carried through every block as full tokens, their outputs dropped
after it, and the last block computes every row.
"""

import jax.numpy as jnp

from vpt_jax.model import Model


class CarriedModel(Model):
  """`Model` with queries, outputs and MLPs for all prompts."""

  def features(self, image, *, train=False):
    """Returns the pooled feature [B, D]."""
    backbone = self.backbone
    method = self.method
    last = backbone.spec.depth - 1
    tokens = backbone.embed(method.image(image, train=train))
    tokens = tokens.with_prompt(method.prompts(image, tokens, train=train))
    for i in range(backbone.spec.depth):
      tokens = method.before(i, tokens, train=train)
      context = method.context(i, tokens, train=train)
      if context is not None:
        tokens = tokens.with_prompt(context)
      out = backbone.block(i, tokens, temperature=method.temperature(i))
      tokens = method.after(i, tokens, out, train=train)
      if context is not None and i < last:
        tokens = tokens.with_prompt(None)
    normed = tokens.replace(x=backbone.norm(tokens.x))
    rows = normed.rows(self.pool or backbone.spec.pool)
    return jnp.mean(rows.x, axis=1)
