"""The step and evaluation, as they are, train a model of dense heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpt_jax import model as models
from vpt_jax.backbones.vit import ViT
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.methods.gated import Gated
from vpt_jax.methods.vpt import VPT
from vpt_jax.nn import dense_heads
from vpt_jax.nn.tokens import Reads
from vpt_jax.problems.semantic_segmentation import Segmentation
from vpt_jax.training import evaluation, optim
from vpt_jax.training import step as step_lib
from vpt_jax.utils import trees

VIT = ViT((16, 24), 4, 32, 3, 2, 64)
READS = Reads((1, 2), final_norm=False)
GRIDS = tuple(VIT.spec.grids[i] for i in READS.blocks)
HEADS = {
  "setr": dense_heads.setr(2, GRIDS, main="setr_pup", width=8),
  "linear": dense_heads.LinearHead(2, GRIDS),
}
METHODS = {"vpt": VPT(VIT.spec, 3), "gated": Gated(VIT.spec, 3)}
PROBLEM = Segmentation(2)
STEPS = 40


def bright_parts():
  """Images of noise with a bright part; its edge has no class."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 80, (8, 16, 24, 3), dtype=np.uint8)
  labels = np.zeros((8, 16, 24), np.int32)
  for i, edge in enumerate((4, 8, 8, 12, 12, 16, 16, 20)):
    images[i, :, edge:] += 170
    labels[i, :, edge:] = 1
    labels[i, :, edge] = PROBLEM.ignore
  mask = np.ones(8, np.float32)
  return {"image": images, "label": labels, "mask": mask}


def trained(method, head, batch, shards=1, steps=STEPS, problem=PROBLEM):
  """Returns (model, state, frozen, losses)."""
  model = models.Model(VIT, METHODS[method], 2, reads=READS, dense=HEADS[head])
  rng = jax.random.PRNGKey(0)
  trainable, frozen = trees.split(
    models.init(model, rng), model.method.trainable
  )
  rate_of = optim.poly_rate_of(0.02, STEPS, lr_min=1e-4)
  optimizer = optim.make_optimizer(
    "sgd",
    rate_of(1.0),
    trainable,
    weight_decay=0.0,
    policies=optim.head_policies(),
    rate_of=rate_of,
  )
  collections = models.collections(model, rng)
  state = step_lib.TrainState(
    jnp.int32(0), trainable, optimizer.init(trainable), collections, rng
  )
  step = step_lib.make_train_step(
    model,
    optimizer,
    problem=problem,
    preprocess=Preprocess((16, 24), "half"),
    augment="none",
    shards=shards,
  )
  losses = []
  for _ in range(steps):
    state, metrics = step(state, frozen, batch)
    losses.append(float(metrics["loss"]))
  return model, state, frozen, losses


@pytest.mark.parametrize(
  "method, head", [("gated", "setr"), ("vpt", "setr"), ("vpt", "linear")]
)
def test_a_model_of_dense_heads_learns(method, head):
  """Prompts, all heads and batch statistics; scored by the evaluation."""
  batch = bright_parts()
  model, state, frozen, losses = trained(method, head, batch)
  assert losses[-1] < 0.3 * losses[0]
  apply = evaluation.make_apply(model, Preprocess((16, 24), "half"))
  evaluate = evaluation.make_eval_step(apply, PROBLEM)
  sums, predicted = evaluate(state.trainable, frozen, state.collections, batch)
  scores = PROBLEM.measure(jax.device_get(sums), {}, batch["label"])
  assert scores["miou"] > 90
  assert sums["label"].sum() == 8 * 16 * 23  # without the ignored columns
  assert predicted["prediction"].dtype == jnp.int32


@pytest.mark.parametrize("head", HEADS)
def test_the_number_of_shards_changes_nothing(head):
  """Losses and statistics of a batch with copies, in 1 or 4 parts."""
  batch = bright_parts()
  batch["mask"][6:] = 0
  results = []
  for shards in (1, 4):
    _, state, _, losses = trained("vpt", head, batch, shards, steps=3)
    results.append((losses, state.collections))
  whole, parts = results
  np.testing.assert_allclose(parts[0], whole[0], rtol=1e-4)
  for found, want in zip(
    jax.tree.leaves(parts[1]), jax.tree.leaves(whole[1]), strict=True
  ):
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-5)


def hand_count(head):
  """Multiply-adds of `VIT` with deep prompts and one of `HEADS`, by hand."""
  width, hidden, classes = 32, 64, 2
  patches, prompts = 4 * 6, 3
  tokens = 1 + patches
  keys = tokens + prompts  # prompts are keys and values, and no more

  def block(rows):
    query_and_out = 2 * rows * width**2
    key_and_value = 2 * keys * width**2
    attention = 2 * rows * keys * width
    return query_and_out + key_and_value + attention + 2 * rows * width * hidden

  embedding = patches * 4 * 4 * 3 * width
  # The last block computes all patches, without the class token.
  backbone = embedding + 2 * block(tokens) + block(patches)
  if head == "linear":
    return backbone + patches * 2 * width * classes  # of two blocks
  convolutions = 9 * width * 8 * patches
  for enlarged in (4, 16, 64):  # times as many pixels
    convolutions += 9 * 8 * 8 * enlarged * patches
  # The classifier is before the last enlargement; none of these is a product.
  return backbone + convolutions + 64 * patches * 8 * classes


@pytest.mark.parametrize("head", HEADS)
def test_cost_is_that_of_all_patches_and_the_main_head(head):
  """As auxiliary heads are for training; against a count by hand."""
  model = models.Model(VIT, METHODS["vpt"], 2, reads=READS, dense=HEADS[head])
  assert models.multiply_adds(model) == hand_count(head)
