"""Dense heads: shapes, batch statistics, what they refuse.

That SETR's compute what the published code does is in `tests/test_parity.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops.forms import draw
from vpt_jax.distributed import shard_gradients
from vpt_jax.nn import dense_heads
from vpt_jax.nn.dense_heads import DESIGNS, LinearHead, UpHead
from vpt_jax.nn.layers import BatchNorm
from vpt_jax.nn.tokens import Reads
from vpt_jax.ops import bilinear
from vpt_jax.ops.switch import Ops
from vpt_jax.utils import trees

GRID = (2, 3)
PATCHES = draw(4, 6, 8)
KEY = jax.random.key(0)


@pytest.mark.parametrize("name", DESIGNS)
def test_designs_give_logits_of_pixels(name):
  """Main heads those of the image's size, with patches of 16 pixels, or 4."""
  design = dense_heads.design_of(name)
  head = UpHead(5, GRID, design, width=4)
  variables = head.init(KEY, PATCHES)
  logits = head.apply(variables, PATCHES)
  scale = design.enlargement
  assert logits.shape == (4, 2 * scale, 3 * scale, 5)
  assert logits.dtype == jnp.float32
  assert scale == (4 if name == "aux1x4" or name.endswith("_4") else 16)
  flat = trees.flatten(variables["params"])
  assert ("conv_0/bias" in flat) == name.startswith("setr")


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("name", ["pup", "setr_aux_ade"])
def test_the_classifier_before_enlarging_is_that_after_it(name, align_corners):
  """The published order, of which this one has the values: it is linear."""
  head = UpHead(5, GRID, DESIGNS[name], width=4, align_corners=align_corners)
  variables = head.init(KEY, PATCHES)
  found, kept = head.apply(
    variables, PATCHES, mutable=["intermediates"], capture_intermediates=True
  )
  last = f"norm_{len(head.design.scales) - 1}"
  x = jax.nn.relu(kept["intermediates"][last]["__call__"][0])
  sizes = []
  rows, columns = x.shape[1:3]
  for scale in (head.design.scales[-1], head.design.last_scale):
    rows, columns = scale * rows, scale * columns
    sizes.append((rows, columns))
  weights = variables["params"]["classifier"]
  enlarged = bilinear.reference(x, sizes[0], align_corners)
  logits = enlarged @ weights["kernel"][0, 0] + weights["bias"]
  want = bilinear.reference(logits, sizes[1], align_corners)
  np.testing.assert_allclose(found, want, atol=1e-6)


@pytest.mark.parametrize("kind", ["reference", "auto"])
def test_bfloat16_convolutions_give_float32_logits(kind):
  """Norms and logits stay float32, so they are near those of float32."""
  head = UpHead(5, GRID, width=4, ops=Ops(kind))
  variables = head.init(KEY, PATCHES)
  wanted, _ = head.apply(variables, PATCHES, True, mutable=["batch_stats"])
  half = head.clone(dtype=jnp.bfloat16)
  found, _ = half.apply(variables, PATCHES, True, mutable=["batch_stats"])
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, wanted, atol=2e-2 * np.abs(wanted).max())


HEADS = {
  "up": UpHead(3, GRID, DESIGNS["aux1x4"], width=4),
  "linear": LinearHead(3, (GRID,)),
}


@pytest.mark.parametrize("shards", [2, 4])
@pytest.mark.parametrize("name", HEADS)
def test_batch_statistics_are_of_the_global_batch(name, shards):
  """However many parts it lies in, copies that fill it up left out."""
  head = HEADS[name]
  patches = PATCHES if name == "up" else (PATCHES,)
  variables = head.init(KEY, patches)
  batch = {"x": PATCHES, "mask": jnp.array([1, 1, 1, 0])}

  def loss(params, batch):
    own = {**variables, "params": params, "batch": {"mask": batch["mask"]}}
    x = batch["x"] if name == "up" else (batch["x"],)
    logits, changed = head.apply(own, x, True, mutable=["batch_stats"])
    losses = jnp.square(logits).mean((1, 2, 3)) * batch["mask"]
    return losses.sum(), ({}, changed)

  def run(shards, batch):
    differentiate = shard_gradients.value_and_grad(loss, shards)
    return jax.jit(differentiate)(variables["params"], batch)

  (found, (_, changed)), grads = run(shards, batch)
  real = jax.tree.map(lambda x: x[:3], batch)
  (want, (_, changed_whole)), grads_whole = run(1, real)
  np.testing.assert_allclose(found, want, rtol=1e-5)
  for ours, theirs in ((changed, changed_whole), (grads, grads_whole)):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs
    )


def test_the_linear_head_is_a_norm_and_a_product():
  """Of the features of all blocks side by side."""
  second = draw(4, 6, 5, seed=1)
  head = LinearHead(3, (GRID, GRID))
  variables = head.init(KEY, (PATCHES, second))
  found, changed = head.apply(
    variables, (PATCHES, second), True, mutable=["batch_stats"]
  )
  joined = np.concatenate([PATCHES, second], axis=-1)
  mean = joined.mean((0, 1))
  var = joined.var((0, 1))
  normed = (joined - mean) / np.sqrt(var + BatchNorm.eps)
  weights = variables["params"]["classifier"]
  want = normed @ weights["kernel"][0, 0] + weights["bias"]
  np.testing.assert_allclose(found, want.reshape(4, 2, 3, 3), atol=1e-5)
  moved = changed["batch_stats"]["norm"]["mean"]
  np.testing.assert_allclose(moved, 0.1 * mean, atol=1e-6)


def test_blocks_on_other_grids_are_resized_to_the_first():
  """As those of Swin's stages are."""
  coarse = jnp.ones((4, 2, 8))
  head = LinearHead(3, (GRID, (1, 2)))
  variables = head.init(KEY, (PATCHES, coarse))
  logits = head.apply(variables, (PATCHES, coarse))
  assert logits.shape == (4, 2, 3, 3)


def test_dropout_is_drawn_in_training_alone():
  head = LinearHead(3, (GRID,), dropout=0.5)
  variables = head.init(KEY, (PATCHES,))
  first = head.apply(variables, (PATCHES,))
  np.testing.assert_array_equal(first, head.apply(variables, (PATCHES,)))
  drawn, _ = head.apply(
    variables,
    (PATCHES,),
    True,
    mutable=["batch_stats"],
    rngs={"dropout": KEY},
  )
  undropped, _ = head.clone(dropout=0.0).apply(
    variables, (PATCHES,), True, mutable=["batch_stats"]
  )
  assert not np.allclose(drawn, undropped)


def test_auxiliary_heads_are_for_training():
  """They have parameters from the start, and are not computed elsewhere."""
  reads = Reads(blocks=(4, 8, 11), final_norm=False)
  head = dense_heads.setr(3, [GRID] * len(reads.blocks), width=4)
  patches = [PATCHES] * 3
  variables = head.init(KEY, patches)
  assert set(variables["params"]) == {"main", "auxiliary_0", "auxiliary_1"}
  (alone,) = head.apply(variables, patches)
  every = head.apply(variables, patches, with_auxiliary=True)
  assert [logits.shape for logits in every] == [(4, 32, 48, 3)] * 3
  np.testing.assert_array_equal(alone, every[0])
  trained, _ = head.apply(variables, patches, True, mutable=["batch_stats"])
  assert len(trained) == 3
  names = trees.flatten(variables["params"])
  assert "auxiliary_0/conv_1/kernel" in names


@pytest.mark.parametrize(
  "grid, patches", [((3, 3), PATCHES), ((2, 3), PATCHES[:, :5])]
)
def test_patches_that_do_not_fill_the_grid_are_refused(grid, patches):
  """A class token or prompts among them, or another image size."""
  for head, given in (
    (UpHead(3, grid), patches),
    (LinearHead(3, (grid,)), (patches,)),
  ):
    with pytest.raises(ValueError, match=r"got \d patches, expected \d x \d"):
      head.init(KEY, given)


def test_patches_of_another_number_of_blocks_are_refused():
  for head in (dense_heads.setr(3, [GRID] * 2), LinearHead(3, (GRID,) * 2)):
    with pytest.raises(ValueError, match="of 1 blocks, expected 2"):
      head.init(KEY, [PATCHES])


def test_unknown_designs_are_refused():
  with pytest.raises(ValueError, match="did you mean 'setr_aux'"):
    dense_heads.setr(3, [GRID], auxiliary="setr_axu")
  with pytest.raises(ValueError, match="reads no block"):
    dense_heads.setr(3, [])
