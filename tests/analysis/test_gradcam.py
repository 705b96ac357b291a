"""Gradients and maps of Grad-CAM."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.analysis.tiny import build, compiled, IMAGES, P, SWIN, VIT
from vpt_jax.analysis import (
  gradcam,
)
from vpt_jax.backbones.swin import Swin
from vpt_jax.backbones.vit import ViT
from vpt_jax.methods.vpt import VPT
from vpt_jax.nn.tokens import Tokens
from vpt_jax.problems import Classification


def moved(model, variables, block, delta):
  """Logits if `delta` is added to the tokens that a block gives."""

  def spy(call, args, kwargs, context):
    out = call(*args, **kwargs)
    if (
      context.method_name == "block"
      and args
      and args[0] == block
      and (isinstance(context.module, (ViT, Swin)))
    ):
      out = out.replace(x=out.x + delta)
    return out

  with nn.intercept_methods(spy):
    return model.apply(variables, IMAGES)


@pytest.mark.parametrize("backbone,block", [(VIT, 0), (VIT, 1), (SWIN, 0)])
def test_gradcam_by_finite_differences(backbone, block):
  model, variables = build(backbone, VPT(backbone.spec, P))
  gradients = lambda label: compiled(
    lambda variables: gradcam.gradients(
      model, variables, IMAGES, block, label, Classification(model.num_classes)
    ),
    variables,
  )
  logits_of = jax.jit(lambda delta: moved(model, variables, block, delta))
  with jax.default_matmul_precision("highest"):
    classes, logits, tokens, gradient = gradients(None)
    unmoved = logits_of(0 * tokens.x)
    np.testing.assert_allclose(logits, unmoved, rtol=1e-4, atol=1e-4)
    assert classes.tolist() == unmoved.argmax(-1).tolist()
    assert gradient.x.shape == tokens.x.shape
    for slope, chosen in (
      (gradient, np.asarray(classes)),
      (gradients(2)[3], np.full(3, 2)),
    ):
      slope = np.asarray(slope.x)
      size = np.linalg.norm(slope, axis=(1, 2))
      assert (size > 1e-3).all()
      along = slope / size[:, None, None]
      across = np.random.default_rng(0).normal(size=along.shape)
      for way in (
        along,
        across / np.linalg.norm(across, axis=(1, 2), keepdims=True),
      ):
        ahead, behind = (
          np.asarray(logits_of(step * way), np.float64)
          for step in (0.03, -0.03)
        )
        found = ((ahead - behind) / 0.06)[np.arange(3), chosen]
        np.testing.assert_allclose(
          (slope * way).sum((1, 2)) / size, found / size, atol=0.02
        )


def test_heat_by_hand():
  tokens = Tokens(jnp.array([[[9.0, 9.0], [1.0, 2.0], [3.0, -1.0]]]))
  gradient = Tokens(jnp.array([[[9.0, 9.0], [1.0, 0.0], [3.0, 2.0]]]))
  # w = (2, 1): 2 + 2 and 6 - 1; the class token does not count.
  np.testing.assert_allclose(gradcam.heat(tokens, gradient), [[4, 5]])
  np.testing.assert_allclose(
    gradcam.heat(tokens, gradient.replace(x=-gradient.x)), [[0, 0]]
  )


def test_classes_by_name_and_number():
  names = ("forest", "river")
  assert gradcam.class_number("river", names, 2) == 1
  assert gradcam.class_number("0", names, 2) == 0
  with pytest.raises(ValueError, match="did you mean 'river'"):
    gradcam.class_number("rivre", names, 2)
  with pytest.raises(ValueError, match="expected a number from 0 to 3"):
    gradcam.class_number("4", (), 4)
