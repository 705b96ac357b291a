"""The analyses of the papers: their numbers, and every command on tiny runs."""

import csv
import functools
import io
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
from PIL import Image
import pytest

from configs import common
from tests import conftest
from vpt_jax import config as configs
from vpt_jax import model as models
from vpt_jax.analysis import (
  attention_maps,
  attention_spectra,
  command,
  condensation_curves,
  curves,
  feature_plane,
  figures,
  gate_weights,
  gradcam,
  prompt_importance,
  subject,
)
from vpt_jax.backbones.swin import Swin
from vpt_jax.backbones.vit import ViT
from vpt_jax.condensation import selection
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.methods.gated import Gated
from vpt_jax.methods.method import Method
from vpt_jax.methods.vapt import VAPT
from vpt_jax.methods.vpt import VPT
from vpt_jax.nn.tokens import Tokens
from vpt_jax.problems import Classification
from vpt_jax.serving import predictor
from vpt_jax.training import checkpoints
from vpt_jax.training import records as results
from vpt_jax.utils import trees

VIT = ViT((8, 8), 4, 16, depth=3, num_heads=2, mlp_dim=32)
MAE = VIT.clone(pool="imgprompt", norm_order="after")
SWIN = Swin((8, 8), 8, (1, 2), (2, 2), window=2, patch_size=2, mlp_ratio=2.0)
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 8, 8, 3)).astype(np.float32)
P, K, T = 3, 4, 5  # prompts, classes, tokens: 1 + 2 x 2


@pytest.fixture(scope="module", autouse=True)
def read_once():
  """Half of the time of most commands is to make the same models again."""
  before = subject.read
  subject.read = functools.cache(before)
  yield
  subject.read = before


def compiled(function, *args):
  """What a function gives, compiled as a whole: op by op takes far longer."""
  return jax.jit(function)(*args)


def matrices(model, variables, images=IMAGES):
  """`attention.matrices`, compiled."""
  return compiled(
    lambda *args: attention_maps.matrices(model, *args), variables, images
  )


def build(backbone, method):
  """(model, variables), larger than initial ones so that all of it matters."""
  model = models.Model(backbone, method, K)
  rng = np.random.default_rng(1)
  return model, {
    "params": jax.tree.map(
      lambda leaf: rng.normal(size=leaf.shape, scale=0.5).astype(np.float32),
      jax.eval_shape(lambda: models.init(model, jax.random.key(0))),
    )
  }


def adapter_of(model, variables, **options):
  """An `Adapter` that no file holds."""
  return subject.Adapter(
    "x/adapter.npz",
    model,
    variables,
    ConfigDict(
      dict(
        {
          "task": "t",
          "batch_size": 2,
          "backbone": {"name": "b"},
          "compute": {"matmul_precision": "highest"},
        },
        **options,
      )
    ),
    Preprocess(model.method.input_size, "half"),
  )


# ---------------------------------------------------------------- attention


@pytest.mark.parametrize("method", [VPT(VIT.spec, P), Method(VIT.spec)])
@pytest.mark.parametrize("remat", [False, True])
def test_attention_is_seen_and_the_logits_stay(method, remat):
  model, variables = build(VIT, method)
  model = model.clone(remat=remat)
  alone = compiled(model.apply, variables, IMAGES)
  logits, _ = compiled(
    lambda *args: model.apply(*args, mutable=["intermediates"]),
    variables,
    IMAGES,
  )
  np.testing.assert_allclose(logits, alone, rtol=1e-6, atol=1e-6)
  found = matrices(model, variables)
  keys = T + (P if isinstance(method, VPT) else 0)
  assert [block.weights.shape for block in found] == [
    (3, 2, T, keys),
    (3, 2, T, keys),
    (3, 2, 1, keys),
  ]
  for block in found:
    np.testing.assert_allclose(block.weights.sum(-1), 1, rtol=1e-5)
  assert "intermediates" not in models.collections(model, jax.random.key(0))


def test_prompts_only_take_their_share_of_the_first_block():
  """w_k with prompts = w_k without, times what the prompts leave."""
  model, variables = build(VIT, VPT(VIT.spec, P))
  plain, bare = (
    models.Model(VIT, Method(VIT.spec), K),
    {"params": {**variables["params"], "method": {}}},
  )
  ours = matrices(model, variables)[0].weights
  want = matrices(plain, bare)[0].weights
  left = 1 - ours[..., T:].sum(-1, keepdims=True)
  assert left.max() < 0.9
  np.testing.assert_allclose(ours[..., :T], want * left, rtol=1e-4)


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("backbone", [VIT, MAE])
def test_shares_are_of_the_rows_that_are_pooled(backbone, deep):
  model, variables = build(backbone, VPT(VIT.spec, P, deep=deep))
  for i, block in enumerate(matrices(model, variables)):
    weights = np.asarray(block.weights).mean(1)
    # Carried prompts lie between class token and patches, others at the end.
    carried = (
      range(1, 1 + P)
      if not deep or (backbone is MAE and i == 2)
      else (range(T, T + P))
    )
    patches = [k for k in range(1, T + P) if k not in carried]
    asking = [0] if backbone is VIT else range(-4, 0)
    row = weights[:, list(asking)].mean(1)
    own, to_prompts, to_patches = attention_maps.shares(
      block, model.backbone.pool
    )
    np.testing.assert_allclose(own, row[:, 0], rtol=1e-5)
    np.testing.assert_allclose(
      to_prompts, row[:, list(carried)].sum(-1), rtol=1e-5
    )
    np.testing.assert_allclose(to_patches, row[:, patches], rtol=1e-5)
    np.testing.assert_allclose(
      own + to_prompts + to_patches.sum(-1), 1, rtol=1e-5
    )


def test_windows_have_no_attention_over_the_image():
  model, variables = build(SWIN, VPT(SWIN.spec, P))
  with pytest.raises(ValueError, match="Swin, which has no attention over"):
    matrices(model, variables)


def test_cumulative_singular_values():
  curve = attention_spectra.cumulative
  np.testing.assert_allclose(curve(np.diag([1.0, 3.0])), [0.75, 1], rtol=1e-6)
  np.testing.assert_allclose(curve(np.full((4, 6), 1 / 6)), 1, rtol=1e-5)
  a, b = RNG.normal(size=(2, 5, 2)), RNG.normal(size=(2, 2, 7))
  low = np.asarray(curve(a @ b))
  assert low.shape == (2, 5) and (low[:, 0] < 0.999).all()
  np.testing.assert_allclose(low[:, 1:], 1, rtol=1e-4)
  identity = np.asarray(curve(np.eye(10)))
  np.testing.assert_allclose(identity, np.arange(1, 11) / 10, rtol=1e-5)
  assert attention_spectra.rank(identity, 0.9) == 9
  assert attention_spectra.rank(identity, 0.95) == 10
  assert attention_spectra.rank(low, 0.99).tolist() == [2, 2]


def test_spectra_leave_the_last_block_out():
  model, variables = build(VIT, VPT(VIT.spec, P))
  pixels = RNG.integers(0, 255, (3, 8, 8, 3)).astype(np.uint8)
  got = attention_spectra.spectra(adapter_of(model, variables), pixels)
  assert got.shape == (2, T)
  weights = matrices(model, variables, pixels / 127.5 - 1)[1].weights
  values = np.linalg.svd(np.asarray(weights, np.float64), compute_uv=False)
  want = (np.cumsum(values, -1) / values.sum(-1, keepdims=True)).mean((0, 1))
  np.testing.assert_allclose(got[1], want, rtol=1e-4)


# ------------------------------------------------------------------ prompts


def gated_adapter(logits, **options):
  model, variables = build(VIT, Gated(VIT.spec, P, **options))
  variables["params"]["method"].update(
    gate_logit=jnp.array(logits), temperature=jnp.array([1.0, 2.0, 99.0])
  )
  return adapter_of(
    model,
    variables,
    method="gated",
    gated={
      "gates": True,
      "hard": False,
      "learn_temperature": True,
      "temperature_min": 0.01,
      "temperature_max": 10.0,
      **options,
    },
  )


def test_weights_of_the_gates_by_hand():
  gate, weight, tau = gate_weights.read(
    gated_adapter([np.log(0.2 / 0.8), np.log(0.5 / 0.5)])
  )
  np.testing.assert_allclose(gate, [0.2, 0.5], rtol=1e-5)
  np.testing.assert_allclose(weight, [0.8 * 0.5, 0.2 * 0.5, 0.5], rtol=1e-5)
  np.testing.assert_allclose(tau, [1, 2, 10])  # as the model clips it
  gate, weight, _ = gate_weights.read(gated_adapter([3.0, -1.0], hard=True))
  assert gate.tolist() == [1, 0] and weight.tolist() == [0, 1, 0]


def test_the_weights_make_the_prompts_of_the_last_block():
  adapter = gated_adapter([0.3, -0.4])
  _, state = compiled(
    lambda *args: adapter.model.apply(*args, mutable=["intermediates"]),
    adapter.variables,
    IMAGES,
  )
  enter = [
    state["intermediates"][f"block_in_{i}"][0][0].prompt for i in range(3)
  ]
  (first, second), weight, _ = gate_weights.read(adapter)
  # Z^l = g Z~^l + (1 - g) Z^{l-1}, solved for what the blocks gave.
  gave = [
    enter[0],
    (enter[1] - (1 - first) * enter[0]) / first,
    (enter[2] - (1 - second) * enter[1]) / second,
  ]
  np.testing.assert_allclose(
    sum(w * z for w, z in zip(weight, gave)), enter[2], rtol=1e-3, atol=1e-4
  )


def hiding(model, variables, numbers):
  """block -> logits with its prompts hidden."""
  apply = jax.jit(prompt_importance.maskable(model, numbers).apply)
  return lambda block: apply(
    {
      **variables,
      "mask": {"method": {"blocks": 1.0 - np.eye(len(numbers))[block]}},
    },
    IMAGES,
  )


@pytest.mark.parametrize("backbone", [VIT, MAE, SWIN])
def test_a_hidden_block_of_vpt_is_the_model_without_its_prompts(backbone):
  model, variables = build(backbone, VPT(backbone.spec, P))
  numbers = subject.prompts(adapter_of(model, variables))
  assert numbers == [P] * 3
  before = compiled(model.apply, variables, IMAGES)
  hidden = hiding(model, variables, numbers)
  for block in (0, 2):
    keep = np.ones((3, P), bool)
    keep[block] = False
    smaller, packed = selection.condensed(model, variables, keep)
    got = hidden(block)
    np.testing.assert_allclose(
      got, compiled(smaller.apply, packed, IMAGES), rtol=1e-4, atol=1e-4
    )
    assert np.abs(got - before).max() > 1e-2


def test_condensed_prompts_can_be_hidden():
  model, variables = build(VIT, VPT(VIT.spec, P))
  keep = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]], bool)
  smaller, packed = selection.condensed(model, variables, keep)
  numbers = subject.prompts(adapter_of(smaller, packed))
  assert numbers == [2, 1, 0]
  none, rest = selection.condensed(model, variables, keep & [[1], [0], [0]])
  np.testing.assert_allclose(
    hiding(smaller, packed, numbers)(1),
    compiled(none.apply, rest, IMAGES),
    rtol=1e-4,
    atol=1e-4,
  )


class WithoutSecond(VAPT):
  """VAPT whose second block gets no prompts."""

  def context(self, i, tokens, *, train):
    return None if i == 1 else super().context(i, tokens, train=train)


class Dropped(VPT):
  """VPT-shallow whose prompts the last block does not get."""

  def before(self, i, tokens, *, train):
    return tokens.with_prompt(None) if i == 2 else tokens


@pytest.mark.parametrize(
  "method,other,block",
  [
    (VAPT(VIT.spec, P), WithoutSecond(VIT.spec, P), 1),
    (VPT(VIT.spec, P, deep=False), Dropped(VIT.spec, P, deep=False), 2),
  ],
)
def test_a_hidden_block_of_other_methods(method, other, block):
  model, variables = build(VIT, method)
  numbers = subject.prompts(adapter_of(model, variables))
  got = hiding(model, variables, numbers)(block)
  want = compiled(model.clone(method=other).apply, variables, IMAGES)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
  before = compiled(model.apply, variables, IMAGES)
  assert np.abs(got - before).max() > 1e-2


def test_accuracies_count_each_image_once():
  model, variables = build(VIT, VPT(VIT.spec, P))
  pixels = RNG.integers(0, 255, (5, 8, 8, 3)).astype(np.uint8)
  labels = RNG.integers(0, K, 5)
  adapter = adapter_of(model, variables, method="vpt")
  whole, without = prompt_importance.scores_without_blocks(
    adapter, pixels, labels
  )
  hits = (
    compiled(model.apply, variables, pixels / 127.5 - 1).argmax(-1) == labels
  )
  assert whole == pytest.approx(100 * hits.mean())
  assert [*without] == [0, 1, 2]
  model, variables = build(VIT, Method(VIT.spec))
  with pytest.raises(ValueError, match="'linear' has no prompts beside"):
    prompt_importance.scores_without_blocks(
      adapter_of(model, variables, method="linear"), pixels, labels
    )


# ------------------------------------------------------------------ gradcam


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


# ------------------------------------------------------------------ records


def record(number, seed, top1, **more):
  config = {
    "seed": seed,
    "vpt": {"num_tokens": number},
    "optim": {"lr": more.pop("lr", 1.0)},
  }
  return {
    "id": f"{number}-{seed}-{len(more)}-{config['optim']['lr']}",
    "stage": "final",
    "status": "done",
    "split": "test",
    "name": "vpt",
    "backbone": {"name": "b"},
    "task": "t",
    "seed": seed,
    "metric": "top1",
    "top1": top1,
    "mean_per_class": -1.0,
    "config": config,
    **more,
  }


def test_points_are_means_over_seeds():
  records = [
    record(50, 1, 80.0),
    record(5, 2, 66.0),
    record(5, 1, 60.0),
    record(5, 3, 0.0, stage="search"),
    record(5, 4, 0.0, status="diverged"),
    record(5, 5, 0.0, split="val"),
    record(5, 1, 1.0, task="u", metric="mean_per_class"),
    record(0, 1, 50.0, name="linear", config={"seed": 1}),
  ]
  found = curves.points(records, "vpt.num_tokens")
  assert [*found] == [("vpt", "b", "t"), ("vpt", "b", "u")]
  five, fifty = found["vpt", "b", "t"]
  assert (five.value, fifty.value) == (5, 50)
  assert five.mean == 63 and five.std == pytest.approx(18**0.5)
  assert sorted(five.seeds) == [1, 2]
  assert (fifty.mean, fifty.std) == (80, 0)
  assert found["vpt", "b", "u"][0].mean == -1


def test_points_refuse_what_would_mix():
  with pytest.raises(
    ValueError,
    match=r"(?s)two runs of seed 1 with vpt.*=5.*"
    r"optim.lr: 1.0 -> 2.0",
  ):
    curves.points(
      [record(5, 1, 60.0), record(5, 1, 70.0, lr=2.0)], "vpt.num_tokens"
    )
  with pytest.raises(ValueError, match="did you mean 'vpt.num_tokens'"):
    curves.points([record(5, 1, 60.0)], "vpt.num_token")
  with pytest.raises(ValueError, match="1 records, none of a finished run"):
    curves.points([record(5, 1, 60.0, stage="search")], "vpt.num_tokens")


def test_condensed_rows():
  rows = lambda tuned: [
    dict(share=1.0, top1_as_is=90.0, top1_tuned=90.0, gmacs=2.0),
    dict(share=0.1, top1_as_is=50.0, top1_tuned=tuned, gmacs=1.5),
  ]
  made = [
    record(5, seed, 0.0, stage="condense", statistic="s", rows=rows(tuned))
    for seed, tuned in ((1, 80.0), (2, 84.0))
  ]
  lines = condensation_curves.condensed([*made, record(5, 1, 1.0)])
  ((key, line),) = lines.items()
  assert key == ("vpt", "b", "t", "s")
  assert line.score.name == "top1"
  low, full = line.shares
  assert low.share == 0.1
  assert low.tuned == [80, 84]
  assert low.gflops == [3.0, 3.0]
  assert (full.share, len(full.as_is)) == (1, 2)
  with pytest.raises(ValueError, match="none of a condensation"):
    condensation_curves.condensed([record(5, 1, 1.0)])


# ---------------------------------------------------------------- embedding


def test_nearest_neighbour_leaves_itself_out():
  features = np.array([[0.0], [0.1], [1.0], [1.1], [0.2]])
  # Of the last one and of the second the nearest has another label.
  labels = np.array([0, 0, 1, 1, 1])
  assert feature_plane.nearest_neighbour(features, labels) == pytest.approx(80)
  assert (
    feature_plane.nearest_neighbour(np.zeros((4, 1)), np.array([0, 1, 2, 3]))
    == 0
  )  # duplicates


def test_pca_finds_the_plane():
  flat = RNG.normal(size=(20, 2)) * [3, 1]
  points, names = feature_plane.plane(
    np.pad(flat, ((0, 0), (0, 4))) + 7, "pca", 0
  )
  distance = lambda x: np.linalg.norm(x[:, None] - x[None], axis=-1)
  np.testing.assert_allclose(distance(points), distance(flat), atol=1e-6)
  assert "component 1" in names[0]


# ----------------------------------------------------------------- commands


def test_labels_tell_keys_apart():
  assert figures.distinguish([("vpt", "b", "t"), ("vapt", "b", "t")]) == (
    ["vpt", "vapt"],
    "b, t",
  )
  assert figures.distinguish([("vpt", "b")]) == ([""], "vpt, b")


def test_lines_can_be_told_apart():
  pairs = {(figures.colour(i), figures.marker(i)) for i in range(70)}
  assert len(pairs) == 70


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """Untrained adapters of the embedded task, and records."""
  folder = tmp_path_factory.mktemp("runs")
  for name, method, backbone, options in (
    ("vpt", "vpt", "vit_test", {}),
    ("vapt", "vapt", "vit_test", {}),
    ("shallow", "vpt", "vit_test", {"deep": False}),
    ("gated", "gated", "vit_test", {}),
    ("linear", "linear", "vit_test", {}),
    ("pad", "pad", "vit_test", {"width": 1}),
    ("swin", "vpt", "swin_test", {}),
  ):
    config = conftest.config.__wrapped__()
    config.method, config.backbone.name = method, backbone
    if options:
      config[method].update(options)
    config = configs.resolve(config)
    model = models.build(config, 10)
    flat = {
      path: RNG.normal(size=leaf.shape, scale=0.1)
      for path, leaf in trees.flatten(
        jax.eval_shape(lambda: models.init(model, jax.random.key(0)))
      ).items()
      # One is as runs leave them: its backbone is made again.
      if name != "vpt" or not path.startswith("backbone/")
    }
    checkpoints.save_adapter(
      folder / name / "adapter.npz",
      flat,
      {
        "backbone": {"name": backbone, "sha256": "random"},
        "config": configs.plain(config),
        "num_classes": 10,
      },
    )
  for number in (1, 4, 64):
    for seed in (1, 2):
      results.Store(folder / "sweep" / "records.jsonl").add(
        record(number, seed, 90.0 + seed)
      )
  results.Store(folder / "condense" / "records.jsonl").add(
    record(
      5,
      1,
      0.0,
      stage="condense",
      statistic="s",
      rows=[
        dict(share=s, top1_as_is=60 * s, top1_tuned=70 * s, gmacs=1.0)
        for s in (1.0, 0.5)
      ],
    )
  )
  Image.fromarray(RNG.integers(0, 255, (20, 30, 3)).astype(np.uint8)).save(
    folder / "photo.png"
  )
  return folder


# Command line, with folders for runs -> rows of the table, a part of its head.
COMMANDS = {
  "attention vpt photo.png --blocks 0,-1": (4, "to_prompts"),
  "attention linear --test 2": (4, "patch_3"),
  "attention pad photo.png": (4, "patch_3"),
  "gates gated": (3, "weight"),
  "eigenvalues linear vpt shallow --images 5": (3, "rank_95"),
  "layers vapt --images 7": (3, "top1"),
  "layers swin --images 3": (5, "top1"),
  "layers shallow --images 3": (3, "change"),
  "curve sweep --field vpt.num_tokens": (3, "std"),
  "curve sweep --field optim.lr": (0, "expected to fail"),
  "condensation condense": (2, "gflops"),
  "embedding vpt --images 20": (20, "class"),
  "embedding linear --images 9 --method pca --seed 3": (9, "x"),
  "gradcam vpt --test 8": (8, "probability"),
  "gradcam swin photo.png --block 1 --class 3": (1, "patch_0"),
  "gradcam pad photo.png --block 0": (1, "patch_0"),
}


def words(line, folder):
  """The command line with paths in place of names."""
  out = []
  for word in line.split():
    path = folder / word
    adapter = path / "adapter.npz"
    out.append(
      str(adapter if adapter.exists() else path if path.exists() else word)
    )
  return out


@pytest.mark.parametrize(
  "line", [line for line in COMMANDS if "lr" not in line]
)
def test_commands_draw_and_tell(line, workdir, tmp_path, capsys):
  import matplotlib

  before, to = dict(matplotlib.rcParams), tmp_path / "out" / "figure.png"
  status = command.main([*words(line, workdir), "--to", str(to)])
  out, errors = capsys.readouterr()
  assert (status, errors) == (0, "")
  assert str(to) in out and dict(matplotlib.rcParams) == before
  with Image.open(to) as image:
    assert image.format == "PNG" and image.mode == "P"
    assert 300 < image.width <= 1200 and len(image.getcolors()) > 8
  header, *rows = csv.reader(io.StringIO(to.with_suffix(".csv").read_text()))
  count, column = COMMANDS[line]
  assert len(rows) == count and column in header
  assert {len(row) for row in rows} == {len(header)}


def test_the_numbers_of_a_table(workdir, tmp_path):
  to = tmp_path / "a.png"
  assert (
    command.main([*words("attention vpt photo.png", workdir), "--to", str(to)])
    == 0
  )
  rows = list(csv.DictReader(io.StringIO(to.with_suffix(".csv").read_text())))
  assert [(row["method"], row["block"]) for row in rows] == [
    ("vpt", "0"),
    ("vpt", "1"),
    ("without", "0"),
    ("without", "1"),
  ]
  for row in rows:
    shares = [
      float(value)
      for name, value in row.items()
      if name.startswith(("to_", "patch_"))
    ]
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    assert (float(row["to_prompts"]) > 0) == (row["method"] == "vpt")

  assert command.main([*words("layers vpt", workdir), "--to", str(to)]) == 0
  first = next(csv.DictReader(io.StringIO(to.with_suffix(".csv").read_text())))
  predict = predictor.load_adapter(workdir / "vpt" / "adapter.npz")
  images = subject.test(subject.read(str(workdir / "vpt" / "adapter.npz")))
  hits = predict(images.pixels).argmax(-1) == images.labels
  assert len(hits) == 797
  assert float(first["top1"]) == pytest.approx(100 * hits.mean(), abs=0.13)


@pytest.mark.parametrize(
  "line,message",
  [
    ("attention vpt", "expected files of images, or --test N; got neither"),
    ("attention vpt photo.png --test 1", "got both"),
    (
      "attention vpt photo.png --blocks 2",
      "--blocks 2: the backbone has blocks 0 to 1",
    ),
    ("attention vpt --test 7", "7 images; a figure has room for 6"),
    ("attention swin photo.png", "Swin, which has no attention over"),
    ("attention vpt none.png", "cannot read image none.png"),
    ("attention none.npz photo.png", "no adapter at none.npz"),
    ("attention vpt photo.png --backbone gone.npz", "gone.npz"),
    ("gates vpt", "only 'gated' has gates, this adapter is of 'vpt'"),
    ("eigenvalues swin", "use an adapter of a ViT"),
    ("layers linear", "'linear' has no prompts beside the tokens"),
    ("layers pad", "'pad' has no prompts beside the tokens"),
    ("curve sweep --field vpt.num_token", "did you mean 'vpt.num_tokens'"),
    ("curve sweep --field optim.lr", "two runs of seed 1 with optim.lr=1.0"),
    ("curve condense --field seed", "none of a finished run"),
    ("curve photo --field seed", "no records.jsonl in or below photo"),
    ("condensation sweep", "none of a condensation"),
    ("embedding vpt --images 3", "3 images; expected at least 4"),
    ("gradcam vpt photo.png --block -1", "no gradient reaches its patches"),
    ("gradcam vpt --test 1 --class 10", "10"),
    ("gates gated --to figure.pdf", "expected a name that ends in .png"),
  ],
)
def test_clear_errors(line, message, workdir, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert command.main(words(line, workdir)) == 1
  out, errors = capsys.readouterr()
  assert errors.startswith("error: ") and message in errors and not out
  assert not list(tmp_path.iterdir())


def test_without_matplotlib(workdir, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  assert command.main(words("gates gated", workdir)) == 1
  assert "pip install -e '.[analyze]'" in capsys.readouterr().err


def test_counts_below_one_are_refused(workdir, capsys):
  with pytest.raises(SystemExit):
    command.main(words("layers vpt --images 0", workdir))
  assert "expected at least 1" in capsys.readouterr().err


def test_files_come_to_the_size_of_the_task(workdir):
  adapter = subject.read(
    str(workdir / "pad" / "adapter.npz"), data_dir="elsewhere"
  )
  assert adapter.config.data.dir == "elsewhere"
  images = subject.files(adapter, [str(workdir / "photo.png")])
  assert images.pixels.shape == (1, 6, 6, 3)  # a frame of 1 goes around it
  assert subject.shown(adapter, images.pixels).shape == (1, 8, 8, 3)
  assert images.names == ["photo.png"]
  assert common.get_config().pad.width == 16
