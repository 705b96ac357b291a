"""Prompt Generation Networks: sizes, statistics, weights, heads, inversion."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image
import pytest

from configs import common
from configs import pgn as pgn_config
from tests import images as images_lib
from tests.conftest import trained
import vpt_jax
from vpt_jax import config as config_lib
from vpt_jax import model as model_lib
from vpt_jax.analysis import inversion
from vpt_jax.backbones import factory
from vpt_jax.backbones.vit import DinoHead
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.methods.pgn import ACTS, IIP, PGN, resize
from vpt_jax.methods.pgn_weights import load_generator
from vpt_jax.nn import layers
from vpt_jax.nn.tokens import Spec
from vpt_jax.problems import Classification, heads
from vpt_jax.serving import predictor
from vpt_jax.training import evaluation
from vpt_jax.training import step as step_lib
from vpt_jax.utils import trees
from vpt_jax.weights import load

TINY = dict(num_tokens=2, library=5, initial_channels=4, groups=2)
TEXTS = np.random.default_rng(0).normal(size=(10, 8))
RNG = jax.random.key(0)


def tiny_config(backbone="vit_test", **options):
  """PGN on digits as 2 x 2 patches: seconds on one core."""
  config = common.embedded(common.get_config())
  config.method = "pgn"
  config.head_init = "kaiming"  # from zeros, all logits would be the same
  config.pgn.update(TINY | options)
  config.backbone.name = backbone
  config.backbone.checkpoint = "random"
  config.image_size = 8
  config.epochs = 2
  config.optim.warmup_epochs = 0
  config.batch_size = 128
  return config


def built(config):
  """(model, its variables), with statistics that are not those of the start."""
  model = model_lib.build(config_lib.resolve(config), 10)
  variables = jax.jit(model.init)(RNG, images_of(1))
  return model, shifted(variables) if "batch_stats" in variables else variables


@pytest.fixture(scope="module")
def tiny():
  """(model, its variables), shared."""
  return built(tiny_config())


def shifted(variables):
  """With other statistics."""
  statistics = trees.flatten(variables["batch_stats"])
  statistics = {
    name: leaf + 0.1 * (1 + jnp.arange(leaf.size))
    for name, leaf in statistics.items()
  }
  return {**variables, "batch_stats": trees.unflatten(statistics)}


def images_of(n, size=8):
  return jax.random.normal(jax.random.key(1), (n, size, size, 3))


# The networks.


@pytest.mark.parametrize(
  "network,trunk,width",
  [
    ("resnet10", 307_312, 128),  # the poster's 12.4 M for twelve data sets
    ("resnet18", 11_689_512 - 513_000, 512),
  ],
)  # torchvision's without fc
def test_parameter_counts(network, trunk, width):
  spec = Spec((224, 224), 32, (768,), ((7, 7),))
  shapes = jax.eval_shape(
    lambda: PGN(spec, network=network).init(
      RNG, jnp.zeros((1, 224, 224, 3)), None, train=False, method="prompts"
    )
  )
  count = {"out": 0, "trunk": 0, "library": 0}
  for path, leaf in trees.flatten(shapes["params"]).items():
    part = "out" if "/out/" in path else path.partition("/")[0]
    count["trunk" if part == "generator" else part] += leaf.size
  assert count == {
    "out": (width + 1) * 16 * 256,
    "trunk": trunk,
    "library": 256 * 768,
  }
  assert sum(count.values()) == 1_032_304 or network == "resnet18"


def test_resize_takes_single_pixels():
  """Bilinear without antialiasing, by the smaller side."""
  image = jnp.arange(2 * 6 * 9 * 3.0).reshape(2, 6, 9, 3)
  np.testing.assert_allclose(resize(image, 2), image[:, 1::3, 1::3], rtol=1e-6)
  for resolution in (0, 6):
    assert resize(image, resolution) is image
  assert resize(image, 12).shape == (2, 12, 18, 3)


@pytest.mark.parametrize("act", ACTS)
def test_prompts_are_mixtures(tiny, act):
  model, variables = tiny
  model = model.clone(method=model.method.clone(act=act))
  _, state = jax.jit(lambda *args: model.apply(*args, mutable="intermediates"))(
    variables, images_of(3)
  )
  seen = {
    name: np.asarray(value[0])
    for name, value in state["intermediates"]["method"].items()
  }
  logits = seen["generator_logits"].reshape(3, 2, 5)
  mixture = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  if act == "sigmoid":
    mixture = 1 / (1 + np.exp(-logits))
  vectors = np.asarray(variables["params"]["method"]["library"])
  np.testing.assert_allclose(seen["prompts"], mixture @ vectors, atol=1e-6)
  assert np.ptp(seen["prompts"], axis=0).max() > 1e-5  # of each image its own


def test_input_independent_prompts():
  config = tiny_config()
  config.method = "iip"
  method = model_lib.build(config_lib.resolve(config), 10).method
  prompt = method.init(RNG, images_of(3), None, train=False, method="prompts")[
    "params"
  ]["prompt"]
  assert isinstance(method, IIP) and prompt.shape == (1, 16, 32)
  np.testing.assert_allclose(prompt.std(), 0.02, rtol=0.15)


@pytest.mark.parametrize(
  "options,error",
  [
    (dict(act="relu"), "unknown pgn.act 'relu'"),
    (dict(network="resnet11"), "unknown pgn.network .* did you mean"),
    (dict(num_tokens=0), "pgn.num_tokens=0; expected at least 1"),
    (dict(resolution=-1), "pgn.resolution=-1; expected at least 0"),
  ],
)
def test_options(options, error):
  with pytest.raises(ValueError, match=error):
    config_lib.resolve(tiny_config(**options))


# Batch statistics.


def test_batch_norm_by_hand():
  x = np.random.default_rng(0).normal(3, 2, (4, 5, 3)).astype(np.float32)
  scale, bias = np.array([1.0, 2, 3]), np.array([0.0, 1, 2])
  norm = layers.BatchNorm()
  variables = norm.init(RNG, x, False)
  variables["params"] = {"scale": scale, "bias": bias}
  mean, var = x.mean((0, 1)), x.var((0, 1))
  y, changed = norm.apply(variables, x, True, mutable=["batch_stats"])
  np.testing.assert_allclose(
    y, (x - mean) / np.sqrt(var + 1e-5) * scale + bias, atol=1e-5
  )
  stored = jax.tree.map(np.asarray, changed["batch_stats"])
  np.testing.assert_allclose(stored["mean"], 0.1 * mean, rtol=1e-5)
  np.testing.assert_allclose(
    stored["var"], 0.9 + 0.1 * var * 20 / 19, rtol=1e-5
  )
  y = norm.apply({**variables, **changed}, x, False)
  np.testing.assert_allclose(
    y,
    (x - stored["mean"]) / np.sqrt(stored["var"] + 1e-5) * scale + bias,
    atol=1e-5,
  )


def test_copies_that_fill_a_batch_are_not_in_its_statistics():
  x = np.random.default_rng(0).normal(3, 2, (5, 4, 3)).astype(np.float32)
  filled = np.concatenate([x, x[:3]])
  norm = layers.BatchNorm()
  variables = norm.init(RNG, x, False)
  batch = {"batch": {"mask": np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)}}
  run = lambda variables, x: norm.apply(
    variables, x, True, mutable=["batch_stats"]
  )
  want, stored = run(variables, x)
  y, changed = run({**variables, **batch}, filled)
  np.testing.assert_allclose(y[:5], want, atol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), changed, stored
  )
  without, _ = run(variables, filled)
  assert np.abs(without[:5] - want).max() > 1e-3


def test_a_step_gives_the_mask_to_batch_norm(tiny):
  model, variables = tiny
  pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
  trainable, frozen = trees.split(variables["params"], r"(method|head)/.*")
  tx = optax.sgd(0.1)

  def after(pixels, mask):
    state = step_lib.TrainState(
      jnp.int32(0),
      jax.tree.map(jnp.array, trainable),
      tx.init(trainable),
      {"batch_stats": jax.tree.map(jnp.array, variables["batch_stats"])},
      jax.random.PRNGKey(0),
    )
    step = step_lib.make_train_step(
      model,
      tx,
      problem=Classification(model.num_classes),
      preprocess=Preprocess(model.method.input_size, "none"),
      augment="none",
    )
    return step(
      state,
      frozen,
      {"image": pixels, "mask": mask, "label": np.zeros(len(pixels), np.int32)},
    )[0].collections

  alone = after(pixels[:4], np.ones(4, np.float32))
  filled = after(pixels, np.array([1, 1, 1, 1, 0, 0], np.float32))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), filled, alone
  )


def test_the_other_images_do_not_matter_in_evaluation(tiny):
  model, variables = tiny
  images = images_of(3)
  others = images.at[1:].add(1.0)
  run = jax.jit(model.apply)
  np.testing.assert_allclose(
    run(variables, images)[0], run(variables, others)[0], atol=1e-5
  )
  train = jax.jit(
    lambda images: model.apply(
      variables, images, train=True, rngs={"dropout": RNG}
    )
  )
  assert np.abs(train(images)[0] - train(others)[0]).max() > 1e-5


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny):
  """(folder, result) of a run from published weights, with texts as CLIP's
  frozen head."""
  folder = tmp_path_factory.mktemp("pgn")
  np.savez(folder / "generator.npz", **published(tiny[1]))
  config = tiny_config("clip_test", weights=str(folder / "generator.npz"))
  config.backbone.projection = True
  config.head = "zero_shot"
  config.trainable = "method/.*"
  config.clip.text_features = str(folder / "texts.npz")
  np.savez(config.clip.text_features, TEXTS)
  model = model_lib.build(config_lib.resolve(config), 10)
  flat = trees.flatten(model_lib.init(model, jax.random.key(7))["backbone"])
  load.save(
    folder / "clip.npz", {**flat, "logit_scale": np.log([10.0])}, np.float32
  )
  config.backbone.checkpoint = str(folder / "clip.npz")
  config.backbone.gelu = "quick"  # Which the file does not say.
  result = vpt_jax.run(config, folder / "run")
  for file in ("generator.npz", "texts.npz"):  # an adapter needs neither
    (folder / file).unlink()
  return folder, result


def test_a_run_with_texts_as_the_head(run):
  folder, result = run
  arrays, metrics = trained(folder / "run")
  kernel = 10 * (TEXTS / np.linalg.norm(TEXTS, axis=1, keepdims=True)).T
  np.testing.assert_allclose(arrays["head/kernel"], kernel, rtol=1e-5)
  assert not arrays["head/bias"].any()
  assert result["trainable_params"] == sum(
    leaf.size for path, leaf in arrays.items() if path.startswith("method/")
  )
  assert metrics[-1]["loss"] < metrics[0]["loss"]


def test_statistics_go_into_the_adapter_and_back(run, tmp_path):
  folder, result = run
  path = folder / "run" / "adapter.npz"
  arrays, _ = trained(folder / "run")
  saved = {
    name: leaf
    for name, leaf in arrays.items()
    if name.startswith("batch_stats/")
  }
  norms = {name.rpartition("/")[0] for name in saved}
  assert norms == {
    f"batch_stats/method/generator/{norm}"
    for norm in (
      "stem_norm",
      "block_0/norm_0",
      "block_0/norm_1",
      "block_1/norm_0",
      "block_1/norm_1",
    )
  }
  for name, leaf in saved.items():
    assert np.abs(leaf - name.endswith("var")).min() > 1e-5  # all have moved

  predict = vpt_jax.load_adapter(path)
  test = images_lib.load("digits", "test", folder="", image_size=(8, 8))
  probabilities = predict(test.images)
  top1 = 100 * (probabilities.argmax(-1) == test.labels).mean()
  np.testing.assert_allclose(top1, result["top1"], atol=0.13)  # one image

  model, variables, meta = predictor.read_model(path)
  preprocess = predictor.read_preprocess(meta, model)
  assert preprocess == predict.preprocess
  apply = jax.jit(evaluation.make_apply(model, preprocess))
  images = test.images[:4]
  ours = jax.nn.softmax(apply(variables, images))
  np.testing.assert_allclose(ours, probabilities[:4], atol=1e-5)
  other = jax.nn.softmax(apply(shifted(variables), images))
  assert np.abs(ours - other).max() > 1e-4

  with np.load(path) as file:
    kept = {name: file[name] for name in file.files if name not in saved}
  np.savez(tmp_path / "without.npz", **kept)
  with pytest.raises(ValueError, match="does not fit the model of its own"):
    vpt_jax.load_adapter(tmp_path / "without.npz")


# Published weights.


def published(variables):
  """A generator's values under the published names, in PyTorch's layouts."""
  params, statistics = (
    trees.flatten(variables[part]["method"])
    for part in ("params", "batch_stats")
  )
  modules = {
    "stem": "input_net.0",
    "stem_norm": "input_net.1",
    "out": "output_net.2",
  }
  for i in range(2):
    modules |= {
      f"block_{i}/conv_0": f"blocks.{i}.net.0",
      f"block_{i}/norm_0": f"blocks.{i}.net.1",
      f"block_{i}/conv_1": f"blocks.{i}.net.3",
      f"block_{i}/norm_1": f"blocks.{i}.net.4",
      f"block_{i}/shortcut": f"blocks.{i}.downsample",
    }
  leaves = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
  }
  flat = {"state_dict/pgn_module.tl_vectors": params.pop("library")}
  for path, leaf in (params | statistics).items():
    module, _, name = path.removeprefix("generator/").rpartition("/")
    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[leaf.ndim]
    flat[f"state_dict/pgn_module.model.{modules[module]}.{leaves[name]}"] = (
      np.transpose(leaf, axes)
    )
  return {name: np.asarray(leaf) for name, leaf in flat.items()}


def test_published_weights(tiny, tmp_path):
  """From a file that the config names, beside what belongs elsewhere."""
  flat = published(tiny[1])
  more = {
    "state_dict/vit.conv_proj.weight": np.ones((1, 1)),
    "state_dict/pgn_module.model.input_net.1.num_batches_tracked": np.array(3),
  }
  file = tmp_path / "generator.npz"

  def start(flat, **options):
    np.savez(file, **flat)
    model = model_lib.build(
      config_lib.resolve(tiny_config(weights=str(file), **options)), 10
    )
    shapes = jax.eval_shape(model.init, RNG, images_of(1))
    return model_lib.start_method(model, shapes.pop("params"), shapes)

  params, collections = start(flat | more)
  found = trees.flatten({"method": params["method"], **collections})
  wanted = trees.flatten(
    {
      "method": tiny[1]["params"]["method"],
      "batch_stats": tiny[1]["batch_stats"],
    }
  )
  assert wanted.keys() == found.keys()
  for name, leaf in wanted.items():
    np.testing.assert_array_equal(found[name], leaf)

  def refused(error, flat, **options):
    with pytest.raises(ValueError, match=error):
      start(flat, **options)

  refused(
    r"generator.npz does not fit the method's options \(generator/out/"
    r"bias: \(12,\) here, \(10,\) in the file; .* library: \(6, 32\)",
    flat,
    library=6,
  )
  refused(
    r"block_1/conv_0/kernel: none here, \(3, 3, 4, 8\) in the file",
    flat,
    groups=1,
  )
  refused(
    "input_net.7.weight' .* is no known part",
    flat | {"state_dict/pgn_module.model.input_net.7.weight": np.ones(3)},
  )
  refused("one 'tl_vectors'; found 0 among", more)


def test_released_weights_are_the_default_network():
  path = (
    Path(__file__).parents[3]
    / "shared"
    / "golden"
    / "pgn_real_pgn_dino_eurosat.npz"
  )
  if not path.exists():
    pytest.skip("needs the project's shared fixtures")
  with np.load(path) as file:
    flat = {
      name.removeprefix("param/"): file[name]
      for name in file.files
      if name.startswith("param/")
    }
  params, statistics = load_generator(flat)
  method = PGN(Spec((224, 224), 16, (384,), ((14, 14),)), library=128)
  shapes = jax.eval_shape(
    lambda: method.init(
      RNG, jnp.zeros((1, 224, 224, 3)), None, train=False, method="prompts"
    )
  )
  for flat, part in ((params, "params"), (statistics, "batch_stats")):
    assert {name: leaf.shape for name, leaf in flat.items()} == {
      name: leaf.shape for name, leaf in trees.flatten(shapes[part]).items()
    }


# Heads.


def head_of(config, extras, shape=(8, 10)):
  fresh = {"kernel": jnp.ones(shape), "bias": jnp.ones(shape[1])}
  return heads.initial(config, None, extras, fresh, ())


@pytest.mark.parametrize(
  "content,error",
  [
    (TEXTS[:9], r"holds float64 \(9, 8\); .* of floats \(10, 8\)"),
    (TEXTS.T, r"holds float64 \(8, 10\)"),
    (TEXTS.astype(int), "holds int64"),
    (np.zeros((10, 8)), "rows that are zero or not finite"),
    (np.full((10, 8), np.nan), "rows that are zero or not finite"),
    (np.array([None]), r"can't be read \(Object arrays"),
  ],
)
def test_texts_that_do_not_fit(tmp_path, content, error):
  config = tiny_config()
  config.head = "zero_shot"
  config.clip.text_features = str(tmp_path / "texts.npy")
  with pytest.raises(ValueError, match="can't be read .*No such file"):
    head_of(config, {})
  os.mkfifo(config.clip.text_features)
  with pytest.raises(ValueError, match="is a pipe; expected a regular file"):
    head_of(config, {})
  os.unlink(config.clip.text_features)
  np.save(config.clip.text_features, content)
  with pytest.raises(ValueError, match=error):
    head_of(config, {"logit_scale": np.zeros(())})
  np.save(config.clip.text_features, TEXTS)
  with pytest.raises(ValueError, match="needs CLIP's logit_scale"):
    head_of(config, {})


def test_prototypes_as_the_head():
  config = pgn_config.get_config("dino,eurosat")
  assert model_lib.build(config, 10).backbone.projection.prototypes == 0
  kernel = np.random.default_rng(0).normal(size=(8, 99))
  extras = {"projection/prototypes/kernel": kernel}
  with pytest.raises(ValueError, match="needs 100 or more prototypes"):
    head_of(config, extras, (8, 100))
  config.backbone.projection = False
  with pytest.raises(ValueError, match="needs DINO's projection head"):
    model_lib.build(config, 10)


def test_logits_of_prototypes_are_some_of_all(monkeypatch, tmp_path):
  monkeypatch.setitem(
    factory.BACKBONES,
    "dino_test",
    dataclasses.replace(
      factory.get("vit_test"), projection=lambda: DinoHead(16, 8, 20)
    ),
  )
  config = tiny_config("dino_test")
  config.method = "linear"
  config.backbone.projection = True
  model = model_lib.build(config, 10)
  params = {"backbone": model_lib.init(model, RNG, ["backbone"])["backbone"]}
  load.save(
    tmp_path / "dino.npz", trees.flatten(params["backbone"]), np.float32
  )
  whole = jax.jit(lambda *args: model.apply(*args, method="features"))(
    {"params": params}, images_of(2)
  )

  config.head = "prototypes"
  config.backbone.checkpoint = str(tmp_path / "dino.npz")
  model = model_lib.build(config, 10)
  params = model_lib.pretrained(model, config, RNG)[0]
  logits = jax.jit(model.apply)({"params": params}, images_of(2))
  rows = [int(np.abs(whole[0] - one).argmin()) for one in logits[0]]
  assert len(set(rows)) == 10  # a random one for every class
  np.testing.assert_allclose(logits, whole[:, np.array(rows)], atol=1e-5)
  again = model_lib.pretrained(model, config, jax.random.key(9))[0]
  np.testing.assert_array_equal(
    again["head"]["kernel"], params["head"]["kernel"]
  )


@pytest.mark.parametrize(
  "arg", ["", "eurosat", "clip,svhn", "vit,eurosat", "dino,cifar100"]
)
def test_configs(arg):
  config = config_lib.resolve(pgn_config.get_config(arg))
  assert config.method == "pgn" and config.task == (
    arg.rpartition(",")[2] or "digits"
  )
  model = model_lib.build(config, 10)
  trained_head = config.trainable.startswith("(method|head)")
  assert trained_head == (arg in ("", "vit,eurosat"))
  assert (
    model.cosine
    == (config.head == "zero_shot")
    == (arg in ("eurosat", "clip,svhn"))
  )
  with pytest.raises(ValueError, match="unknown backbone 'mae' .* clip, vit,"):
    pgn_config.get_config("mae,eurosat")


# Inversion.


@pytest.mark.parametrize("backbone", ["vit_test", "clip_test"])
def test_a_backbone_alone_sees_inverted_prompts(tiny, backbone):
  """48 numbers a patch and width 32, with and without a bias."""
  model, variables = (
    tiny if backbone == "vit_test" else built(tiny_config(backbone))
  )
  variables = jax.tree.map(lambda leaf: leaf, variables)  # a copy
  variables["params"]["method"]["library"] *= 20
  images = images_of(3)
  seen, prompts = jax.jit(
    lambda images: inversion.prompted(model, variables, images)
  )(images)
  kernel, bias = inversion.embedding(variables)
  assert (bias is None) == (backbone == "clip_test")
  pixels, residual = inversion.invert(prompts, kernel, bias)
  assert pixels.shape == (3, 2, 4, 4, 3) and residual.shape == (3, 2)
  inversion.check(residual, kernel, 1e-5)
  alone = jax.jit(
    lambda pixels: inversion.unprompted(model, variables, seen, pixels)
  )
  ours = alone(pixels)
  np.testing.assert_allclose(
    ours, jax.jit(model.apply)(variables, images), atol=1e-4
  )
  assert np.abs(ours - alone(pixels * 0)).max() > 1e-3


def test_what_pixels_cannot_say():
  rng = np.random.default_rng(0)
  prompts = rng.normal(size=(2, 3, 32))
  narrow = rng.normal(size=(2, 2, 3, 32))  # 12 numbers for 32 dimensions
  _, residual = inversion.invert(prompts, narrow)
  error = r"residual of 0.\d+ is left, .* 2 x 2 pixels have 12 numbers for 32"
  with pytest.raises(ValueError, match=error):
    inversion.check(residual, narrow, 1e-3)
  flat = narrow.reshape(12, 32)
  inside = rng.normal(size=(2, 3, 12)) @ flat  # the part that they can
  inversion.check(inversion.invert(inside, narrow)[1], narrow, 1e-5)
  poor = rng.normal(size=(4, 4, 3, 32))
  poor[..., 7] = poor[..., 8]  # not of full rank
  _, residual = inversion.invert(prompts, poor)
  np.testing.assert_allclose(
    residual,
    np.abs(prompts[..., 7] - prompts[..., 8])
    / 2**0.5
    / np.linalg.norm(prompts, axis=-1),
    rtol=1e-4,
  )

  config = tiny_config()
  config.method = "vpt"  # deep
  model = model_lib.build(config_lib.resolve(config), 10)
  with pytest.raises(ValueError, match="method VPT carries no prompts"):
    jax.eval_shape(
      lambda image: inversion.prompted(model, model.init(RNG, image), image),
      images_of(1),
    )


def test_the_command(run, tmp_path, capsys):
  folder, _ = run
  picture = tmp_path / "image.png"
  Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(
    picture
  )
  argv = [
    str(folder / "run" / "adapter.npz"),
    str(picture),
    "--to",
    str(tmp_path / "out"),
  ]
  assert inversion.main(argv) == 0
  text = capsys.readouterr().out
  assert "2 patches of 4 x 4 pixels" in text
  assert float(text.split("differ by ")[1].split()[0]) < 1e-4
  assert np.load(tmp_path / "out" / "patches.npy").shape == (2, 4, 4, 3)
  shown = np.asarray(Image.open(tmp_path / "out" / "patches.png"))
  assert shown.shape == (64, 130, 3)
  assert shown[:, :64].min() == 0 and shown[:, :64].max() == 255
  assert inversion.main([*argv, "--threshold", "1e-12"]) == 1
  assert "can't be written as pixels" in capsys.readouterr().err
  picture.write_bytes(b"no image")
  assert inversion.main(argv) == 1
  assert f"cannot read image {picture}" in capsys.readouterr().err
