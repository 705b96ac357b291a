"""Every registered method on every kind of backbone; each one's own rules."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import baselines_vtab, common, eurosat_ti16, gated_vtab
from vpt_jax import config as config_lib
from vpt_jax import model as model_lib
from vpt_jax.backbones.swin import Swin
from vpt_jax.backbones.vit import ViT
from vpt_jax.data import tasks
from vpt_jax.data.transforms import views
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.methods import pixel, registry
from vpt_jax.methods.gated import Gated, log_weights, selection_ratio
from vpt_jax.methods.inside import Adapter, LoRA
from vpt_jax.methods.method import Method
from vpt_jax.methods.pixel import Add, Below, Border, Pad, PrependPixel
from vpt_jax.methods.vapt import VAPT
from vpt_jax.methods.vpt import VPT
from vpt_jax.model import Model
from vpt_jax.problems import Classification
from vpt_jax.training import optim
from vpt_jax.training import step as step_lib
from vpt_jax.utils import trees

VIT = ViT((8, 8), 2, 24, depth=2, num_heads=2, mlp_dim=48)
BACKBONES = {
  "vit": VIT,
  "mae": VIT.clone(pool="imgprompt", norm_order="after"),
  # 4 x 4 patches in 2 x 2 windows, then 2 x 2 of them in one.
  "swin": Swin(
    (8, 8), 12, (1, 1), (2, 2), window=2, patch_size=2, mlp_ratio=2.0
  ),
}
DEEPER = VIT.clone(depth=3)
# Small, and without dropout.
OPTIONS = {
  "linear": {},
  "full": {},
  "vpt": dict(num_tokens=3, dropout=0.0),
  "vapt": dict(
    num_tokens=3, hidden=4, dropout=0, dropout_channel=0, dropout_mlp=0
  ),
  "gated": dict(num_tokens=3, dropout=0),
  "adapter": dict(reduction=4),
  "lora": dict(rank=2),
  "add": dict(deep=True, dropout=0),
  "pad": dict(width=1),
  "below": dict(num_channels=2),
  "prepend_pixel": dict(num_tokens=3),
  "border": {},
  "pgn": dict(num_tokens=2, library=5, initial_channels=4, groups=2),
  "iip": dict(num_tokens=3),
}
FRAME = 2 * 8 * 3 + 2 * 6 * 3  # of one pixel, in 8 x 8
# Parameters of the method: 17 tokens of width 24; on Swin 16 of 12, 4 of 24.
COUNTS = {
  "linear": (0, 0),
  "full": (0, 0),
  "vpt": (2 * 3 * 24, 3 * (12 + 24)),
  "vapt": (
    3 * 24 + (2 * 24 + 4 + 9 * 3 + 3) + 2 * 24 * 4,
    3 * 12 + (2 * 24 + 4 + 1 * 3 + 3) + 2 * 24 * 4,
  ),
  "gated": (3 * 24 + 1 + 2, 3 * 12 + 1 + 2),
  "adapter": (
    2 * (2 * 24 * 6 + 6 + 24),
    2 * 12 * 3 + 3 + 12 + 2 * 24 * 6 + 6 + 24,
  ),
  "lora": (2 * 2 * 2 * 2 * 24, 2 * 2 * 2 * (12 + 24)),
  "add": (2 * 17 * 24, 16 * 12 + 4 * 24),
  "pad": (FRAME, FRAME),
  "below": (8 * 8 * 2 + 2 * 2 * 2 * 24, None),
  "prepend_pixel": (3 * 2 * 2 * 3,) * 2,
  "border": (FRAME, FRAME),
  "iip": (3 * 24, 3 * 12),
}
# Where prompts are, for a permutation of them.
PROMPTS = {
  "vpt": ("prompt", 1),
  "gated": ("prompt", 1),
  "iip": ("prompt", 1),
  "prepend_pixel": ("pixels", 0),
}
# On MAE the pool reads prompts; Swin has stages and no class token, and a norm
# after the patch embedding, which `below` refuses.
CASES = [
  (kind, name)
  for kind in BACKBONES
  for name in OPTIONS
  if (kind, name) != ("swin", "below")
]
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
LABELS = np.array([0, 2, 1, 2], np.int32)


def make(method, backbone=VIT, **options):
  """(model, variables): random, so that each path carries signal."""
  model = Model(backbone, method, 3, **options)
  image = jnp.zeros((1, *method.input_size, 3))
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image))
  rng = np.random.default_rng(1)
  flat = {
    path: 0.3 * rng.normal(size=leaf.shape).astype(np.float32)
    + path.endswith(("scale", "temperature"))
    for path, leaf in trees.flatten(shapes["params"]).items()
  }
  statistics = {
    path: np.full(leaf.shape, path.endswith("var"), np.float32)
    for path, leaf in trees.flatten(shapes.get("batch_stats", {})).items()
  }
  variables = {"params": {"method": {}, **trees.unflatten(flat)}}
  return model, variables | (
    {"batch_stats": trees.unflatten(statistics)} if statistics else {}
  )


def built(name, kind):
  backbone = BACKBONES[kind]
  return make(registry.build(name, OPTIONS[name], backbone.spec), backbone)


def images_of(model, pixels=PIXELS):
  return views.prepare(pixels, model.method.input_size, "none")


def changed(variables, path, edit):
  """With one of the method's parameters edited."""
  flat = trees.flatten(variables["params"])
  flat[f"method/{path}"] = edit(flat[f"method/{path}"])
  return {**variables, "params": {"method": {}, **trees.unflatten(flat)}}


@functools.partial(jax.jit, static_argnums=0)
def gradients(model, variables, trainable, images):
  """(logits, gradients of a loss) with flat trainable parameters."""

  def loss(trainable):
    flat = {**trees.flatten(variables["params"]), **trainable}
    logits = model.apply(
      {**variables, "params": {"method": {}, **trees.unflatten(flat)}}, images
    )
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, LABELS
    ).mean(), logits

  (_, logits), grads = jax.value_and_grad(loss, has_aux=True)(trainable)
  return logits, grads


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def shown(model, variables, images, train=False):
  """(logits, intermediates)."""
  logits, found = model.apply(
    variables,
    images,
    train=train,
    rngs={"dropout": jax.random.key(3)},
    mutable="intermediates",
  )
  return logits, found["intermediates"]


def logits_of(model, variables):
  return shown(model, variables, images_of(model))[0]


def entering(i, model, variables, images=None, **options):
  """The tokens that enter block i."""
  images = images_of(model) if images is None else images
  return shown(model, variables, images, **options)[1][f"block_in_{i}"][0][0]


def method_gradients(model, variables):
  method = {
    path: leaf
    for path, leaf in trees.flatten(variables["params"]).items()
    if path.startswith("method/")
  }
  return {
    path.removeprefix("method/"): grad
    for path, grad in gradients(model, variables, method, images_of(model))[
      1
    ].items()
  }


def test_every_method_is_tested():
  assert OPTIONS.keys() == registry.METHODS.keys()


@pytest.mark.parametrize("kind,name", CASES)
def test_a_method(kind, name):
  model, variables = built(name, kind)
  trainable, _ = trees.split(variables["params"], model.method.trainable)
  own = {
    path: leaf for path, leaf in trainable.items() if path.startswith("method/")
  }
  if name in COUNTS:
    assert trees.count(own) == COUNTS[name][kind == "swin"]
  backbone = {
    path.split("/")[1] for path in trainable if path.startswith("backbone/")
  }
  assert backbone == (
    {*variables["params"]["backbone"]}
    if name == "full"
    else {"embedding"}
    if name == "below"
    else set()
  )

  images = images_of(model)
  logits, grads = gradients(model, variables, trainable, images)
  largest = max(float(jnp.abs(grad).max()) for grad in grads.values())
  for path, grad in grads.items():
    if not path.endswith("key/bias"):  # which attention does not see
      assert jnp.abs(grad).max() > 1e-6 * largest, path

  others = np.concatenate([PIXELS[:1], 255 - PIXELS[1:]])
  among_others, _ = gradients(
    model, variables, trainable, images_of(model, others)
  )
  np.testing.assert_allclose(among_others[0], logits[0], atol=1e-6)
  assert jnp.abs(among_others[1:] - logits[1:]).max() > 1e-4

  for path, leaf in own.items():
    param, axis = PROMPTS.get(name, ("", 0))
    if path.split("/")[1].startswith(param or "-"):
      permuted, _ = gradients(
        model, variables, {**trainable, path: np.roll(leaf, 1, axis)}, images
      )
      np.testing.assert_allclose(permuted, logits, atol=1e-5)


def test_below_refuses_a_norm_after_the_embedding():
  with pytest.raises(ValueError, match="method 'below' .* a norm; use"):
    built("below", "swin")


@pytest.mark.parametrize("kind,name", CASES)
def test_a_step_with_remat(kind, name):
  """As without; the backbone's frozen leaves stay what they are."""
  model, variables = built(name, kind)
  trainable, frozen = trees.split(variables["params"], model.method.trainable)
  _, grads = gradients(model, variables, trainable, images_of(model))
  tx = optax.sgd(0.1)
  step = step_lib.make_train_step(
    model.clone(remat=True),
    tx,
    problem=Classification(model.num_classes),
    preprocess=Preprocess(model.method.input_size, "none"),
    augment="none",
  )
  copy = lambda flat: {path: jnp.array(leaf) for path, leaf in flat.items()}
  given = copy(frozen)
  statistics = {
    key: value for key, value in variables.items() if key != "params"
  }
  state, metrics = step(
    step_lib.TrainState(
      jnp.int32(0),
      copy(trainable),
      tx.init(trainable),
      statistics,
      jax.random.key(0),
    ),
    given,
    {"image": PIXELS, "label": LABELS, "mask": np.ones(4, np.float32)},
  )
  assert np.isfinite(metrics["loss"])
  for path, leaf in frozen.items():
    np.testing.assert_array_equal(given[path], leaf)
  assert state.trainable.keys() == trainable.keys()
  for path, leaf in trainable.items():
    if name == "pgn":  # its batch normalisation is in training mode
      assert name in path or not np.array_equal(state.trainable[path], leaf)
    else:
      np.testing.assert_allclose(
        state.trainable[path], leaf - 0.1 * grads[path], atol=1e-5, err_msg=path
      )


BATCH = {
  "image": PIXELS,
  "label": LABELS,
  "mask": np.array([1, 1, 1, 0], np.float32),
}


def start(model, variables, seed=0):
  """(`train_step` but for the shards, state, frozen)."""
  trainable, frozen = trees.split(variables["params"], model.method.trainable)
  tx = optax.sgd(0.1)
  make_step = functools.partial(
    step_lib.train_step,
    model,
    tx,
    problem=Classification(model.num_classes),
    preprocess=Preprocess(model.method.input_size, "none"),
    augment="flip_crop",
  )
  return (
    make_step,
    step_lib.TrainState(
      jnp.int32(0),
      trainable,
      tx.init(trainable),
      {key: value for key, value in variables.items() if key != "params"},
      jax.random.key(seed),
    ),
    frozen,
  )


def assert_same(ours, theirs):
  """(state, metrics) after a step."""
  (state, metrics), (want, want_metrics) = ours, theirs
  for values, wanted in (
    (state.trainable, want.trainable),
    (state.collections, want.collections),
    (metrics, want_metrics),
  ):
    values, wanted = map(trees.flatten, (values, wanted))
    assert values.keys() == wanted.keys()
    for path, leaf in wanted.items():
      np.testing.assert_allclose(
        values[path], leaf, rtol=1e-5, atol=1e-5, err_msg=path
      )


def assert_same_in_shards(model, variables):
  """Two shards, one of which has fewer images, do what the whole does."""
  make_step, state, frozen = start(model, variables)
  assert_same(
    *(jax.jit(make_step(shards=n))(state, frozen, BATCH) for n in (2, 1))
  )


@pytest.mark.parametrize(
  "kind,name", [case for case in CASES if case[0] != "mae"]
)
def test_a_step_in_shards(kind, name):
  assert_same_in_shards(*built(name, kind))


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize(
  "method",
  [
    VPT(VIT.spec, 3, dropout=0.4),
    VAPT(
      VIT.spec, 3, hidden=4, dropout=0.3, dropout_channel=0.3, dropout_mlp=0.3
    ),
    Gated(VIT.spec, 3, hard=True, dropout=0.3),
  ],
  ids=lambda x: type(x).__name__,
)
def test_shards_draw_what_the_whole_does(method, remat):
  assert_same_in_shards(*make(method, remat=remat, hidden_layers=1))


@pytest.mark.parametrize("name", ["vpt", "pgn"])
def test_a_group_of_runs_in_shards(name):
  """Runs that train together have draws, statistics, gradients of their own."""
  model, variables = built(name, "vit")
  if name == "vpt":
    model = model.clone(method=model.method.clone(dropout=0.4))
  runs = []
  for seed in (1, 2):
    params = jax.tree.map(lambda x: x * seed, variables["params"]["method"])
    make_step, state, frozen = start(
      model,
      {**variables, "params": {**variables["params"], "method": params}},
      seed,
    )
    runs.append(state)
  together = jax.jit(jax.vmap(make_step(shards=2), in_axes=(0, None, None)))(
    jax.tree.map(lambda *x: jnp.stack(x), *runs), frozen, BATCH
  )
  for i, state in enumerate(runs):
    assert_same(
      jax.tree.map(lambda x: x[i], together),
      jax.jit(make_step(shards=1))(state, frozen, BATCH),
    )


# Gated Prompt Tuning.


def gated(**options):
  return Gated(DEEPER.spec, 3, **options)


def test_gates_between_shallow_prompts_and_the_same_in_each_block():
  """Open: VPT-shallow. Closed: VPT-deep with one set of prompts for all."""
  model, variables = make(gated(learn_temperature=False), DEEPER)
  prompt = variables["params"]["method"]["prompt"]
  for logit, other in (
    (100.0, VPT(DEEPER.spec, 3, deep=False)),
    (-100.0, VPT(DEEPER.spec, 3, shared=True)),
  ):
    ours = changed(variables, "gate_logit", lambda x: 0 * x + logit)
    theirs = {"params": {**variables["params"], "method": {"prompt": prompt}}}
    np.testing.assert_allclose(
      logits_of(model, ours),
      logits_of(model.clone(method=other), theirs),
      atol=1e-5,
    )


def test_a_gate_mixes_what_goes_in_and_out():
  model, variables = make(gated(learn_temperature=False), DEEPER)
  closed, half, opened = (
    entering(
      1, model, changed(variables, "gate_logit", lambda x: 0 * x + logit)
    ).prompt
    for logit in (-100.0, 0.0, 100.0)
  )
  np.testing.assert_allclose(half, (closed + opened) / 2, atol=1e-5)
  assert jnp.abs(closed - opened).max() > 0.1


def test_hard_gates_are_0_or_1():
  model, variables = make(
    gated(hard=True, dropout=0.0, learn_temperature=False), DEEPER
  )
  images = jnp.concatenate([images_of(model)] * 16)
  prompts = lambda logit, **options: (
    entering(
      1,
      model,
      changed(variables, "gate_logit", lambda x: 0 * x + logit),
      images,
      **options,
    ).prompt
  )
  closed, opened = prompts(-0.1), prompts(0.1)
  np.testing.assert_array_equal(closed, prompts(-100.0))
  np.testing.assert_array_equal(opened, prompts(100.0))
  drawn = prompts(1.0, train=True)
  out = (drawn == opened).all(axis=(1, 2))
  np.testing.assert_array_equal(
    drawn, jnp.where(out[:, None, None], opened, closed)
  )
  assert 0.5 < out.mean() < 0.95  # sigmoid(1) is 0.73

  @jax.jit
  def grad(params):
    return jax.grad(
      lambda params: model.apply(
        {"params": params},
        images_of(model),
        train=True,
        rngs={"dropout": jax.random.key(3)},
      )[0].sum()
    )(params)

  assert (grad(variables["params"])["method"]["gate_logit"] != 0).all()


def test_temperatures_are_clipped_and_their_gradients_are_not():
  method = gated(temperature_min=0.5, temperature_max=2.0)
  model, variables = make(method, DEEPER)
  wild, tame = (
    changed(variables, "temperature", lambda x: np.float32(values))
    for values in ([0.1, 1e9, 1.5], [0.5, 2.0, 1.5])
  )
  np.testing.assert_allclose(
    logits_of(model, wild), logits_of(model, tame), atol=1e-6
  )
  grad = lambda v: method_gradients(model, v)["temperature"]
  np.testing.assert_allclose(grad(wild), grad(tame), rtol=1e-4)
  assert (grad(wild) != 0).all()
  params = wild["params"]["method"]
  clipped = method.constrain(params)
  np.testing.assert_array_equal(clipped["temperature"], [0.5, 2.0, 1.5])
  assert clipped["prompt"] is params["prompt"]
  rest = {"prompt": params["prompt"]}  # temperatures are not trained
  assert method.constrain(rest) is rest


def test_a_step_constrains():
  model, variables = make(
    gated(temperature_max=1.01, temperature_min=0.99), DEEPER
  )
  trainable, frozen = trees.split(variables["params"], r"(method|head)/.*")
  tx = optax.sgd(1.0)
  step = step_lib.make_train_step(
    model,
    tx,
    problem=Classification(model.num_classes),
    preprocess=Preprocess(model.method.input_size, "none"),
    augment="none",
  )
  state, _ = step(
    step_lib.TrainState(
      jnp.int32(0), trainable, tx.init(trainable), {}, jax.random.key(0)
    ),
    frozen,
    {"image": PIXELS, "label": LABELS, "mask": np.ones(4, np.float32)},
  )
  after = state.trainable["method/temperature"]
  assert ((after >= 0.99) & (after <= 1.01)).all()


def test_a_temperature_divides_the_queries():
  model, variables = make(
    gated(gates=False, temperature_init=0.7, learn_temperature=False), DEEPER
  )
  shallow = model.clone(method=VPT(DEEPER.spec, 3, deep=False))
  flat = {
    path: leaf / 0.7 if "/query/" in path else leaf
    for path, leaf in trees.flatten(variables["params"]).items()
  }
  np.testing.assert_allclose(
    logits_of(model, variables),
    logits_of(shallow, {"params": trees.unflatten(flat)}),
    atol=1e-5,
  )


def test_a_gate_after_the_last_block():
  """Harmless where no prompt is read, at work where they are."""
  for kind, used in (("vit", False), ("mae", True)):
    model, variables = make(Gated(VIT.spec, 3, num_gates=2), BACKBONES[kind])
    a, b = (
      logits_of(
        model,
        changed(
          variables, "gate_logit", lambda x: np.append(x[:1], np.float32(last))
        ),
      )
      for last in (-5, 5)
    )
    assert (jnp.abs(a - b).max() > 1e-4) == used


def test_gates_start_closed():
  model = Model(DEEPER, gated(gate_init=5.0), 3)
  method = model_lib.init(model, jax.random.key(0), ["method"])["method"]
  np.testing.assert_allclose(
    nn.sigmoid(method["gate_logit"]), [0.0067] * 2, rtol=2e-3
  )
  np.testing.assert_array_equal(method["temperature"], np.ones(3))


@pytest.mark.parametrize(
  "options,present",
  [
    (dict(gates=False), {"prompt", "temperature"}),
    (dict(learn_temperature=False), {"prompt", "gate_logit"}),
    (dict(gates=False, learn_temperature=False), {"prompt"}),
  ],
)
def test_what_is_not_there_has_no_parameters(options, present):
  _, variables = make(Gated(VIT.spec, **options))
  assert variables["params"]["method"].keys() == present


def test_selection_ratio():
  gate_logit = jnp.array([0.3, -1.2, 2.0, -4.0])
  # What goes into the last block, if block l's prompts are the unit vector e_l.
  prompt = np.eye(5)[0]
  for i, g in enumerate(nn.sigmoid(gate_logit), 1):
    prompt = g * np.eye(5)[i] + (1 - g) * prompt
  np.testing.assert_allclose(
    jnp.exp(log_weights(gate_logit)), prompt, rtol=1e-5
  )
  np.testing.assert_allclose(prompt.sum(), 1, rtol=1e-6)
  ratio = selection_ratio(gate_logit)
  np.testing.assert_allclose(ratio, prompt[1:] / prompt[1:].sum(), rtol=1e-5)
  # All but closed: what little comes out is shared.
  np.testing.assert_allclose(
    selection_ratio(jnp.full(3, -200.0)), np.ones(3) / 3, rtol=1e-4
  )
  np.testing.assert_allclose(
    selection_ratio(jnp.array([9.0, 80.0, -90.0])), [0, 1, 0], atol=1e-6
  )


# Inside a block.


@pytest.mark.parametrize(
  "kind,cls,options",
  [
    ("vit", Adapter, {}),
    ("vit", Adapter, dict(initial="published")),
    ("vit", LoRA, dict(layers=("query", "key", "value"))),
    ("vit", Border, dict(init_std=0.0)),
    ("swin", Adapter, {}),
    ("swin", LoRA, {}),
  ],
)
def test_starts_as_the_linear_probe(kind, cls, options):
  backbone = BACKBONES[kind]
  model, variables = make(cls(backbone.spec, **options), backbone)
  fresh = model_lib.init(model, jax.random.key(0), ["method"])
  variables = {"params": {**variables["params"], **fresh}}
  probe = {"params": {**variables["params"], "method": {}}}
  np.testing.assert_array_equal(
    logits_of(model, variables),
    logits_of(model.clone(method=Method(backbone.spec)), probe),
  )


def test_what_an_adapter_learns_from():
  """Its published start is a dead end but for one bias."""
  for initial, alive in (
    ("published", {"up/bias"}),
    ("near_identity", {"up/bias", "up/kernel"}),
  ):
    model, variables = make(Adapter(VIT.spec, initial=initial))
    fresh = model_lib.init(model, jax.random.key(0), ["method"])["method"]
    grads = method_gradients(
      model, {"params": {**variables["params"], "method": fresh}}
    )
    found = {
      path.partition("/")[2] for path, grad in grads.items() if grad.any()
    }
    assert found == alive


def test_lora_is_a_change_of_the_weights():
  model, variables = make(
    LoRA(VIT.spec, 2, alpha=6.0, layers=("query", "key", "value"))
  )
  flat = trees.flatten(variables["params"])
  merged = {}
  for path, leaf in flat.items():
    layer = path.split("/")[-2]
    if (
      path.startswith("backbone/")
      and path.endswith("kernel")
      and (layer in ("query", "key", "value"))
    ):
      i = path.partition("encoderblock_")[2][0]
      down, up = (
        flat[f"method/lora_{layer}_{i}/{part}/kernel"]
        for part in ("down", "up")
      )
      leaf = leaf + 3.0 * (down @ up).reshape(leaf.shape)
    merged[path] = leaf
  probe = {
    path: leaf
    for path, leaf in merged.items()
    if not path.startswith("method/")
  }
  np.testing.assert_allclose(
    logits_of(model, variables),
    logits_of(
      model.clone(method=Method(VIT.spec)), {"params": trees.unflatten(probe)}
    ),
    atol=2e-5,
  )


# Pixels and tokens.


def test_normalised_as_the_images_are():
  assert views.NORMALIZE["imagenet"] == pixel.IMAGENET
  image = RNG.random((2, 2, 3)).astype(np.float32)
  np.testing.assert_allclose(
    pixel.normalised(image),
    views.prepare(255 * image[None], (2, 2), "imagenet")[0],
    rtol=1e-5,
  )


def test_a_frame():
  image = np.arange(2 * 2 * 3 * 3.0).reshape(2, 2, 3, 3)
  rows, columns = np.ones((2, 1, 5, 3)), np.ones((2, 2, 1, 3))
  rows[1], columns[1] = -1, -2
  out = pixel.framed(image, rows, columns)
  np.testing.assert_array_equal(out[:, 1:-1, 1:-1], image)
  assert (out[:, 0] == 1).all() and (out[:, -1] == -1).all()
  assert (out[:, 1:-1, 0] == 1).all() and (out[:, 1:-1, -1] == -2).all()


def test_pad_asks_for_smaller_images():
  model, variables = make(Pad(VIT.spec, 2))
  assert model.method.input_size == (4, 4)
  method = variables["params"]["method"]
  assert method["left_right"].shape == (2, 4, 2, 3)
  fresh = model_lib.init(model, jax.random.key(0), ["method"])["method"][
    "top_bottom"
  ]
  assert fresh.min() >= 0 and fresh.max() <= 1
  assert jnp.isfinite(logits_of(model, variables)).all()


def test_the_published_border():
  spec = dataclasses.replace(VIT.spec, image_size=(224, 224))
  shapes = jax.eval_shape(
    lambda: Border(spec).init(
      jax.random.key(0),
      jnp.zeros((1, 224, 224, 3)),
      train=False,
      method="image",
    )
  )
  assert trees.count(trees.flatten(shapes["params"])) == 69840


def test_below_is_a_wider_embedding():
  model, variables = make(Below(VIT.spec, 2))
  params = variables["params"]
  images = images_of(model)
  patch = entering(0, model, variables).patch
  method, backbone = params["method"], params["backbone"]
  wide = jnp.concatenate(
    [images, jnp.broadcast_to(method["channels"], (4, 8, 8, 2))], axis=-1
  )
  kernel = np.concatenate(
    [backbone["embedding"]["kernel"], method["embedding"]["kernel"]], axis=2
  )
  want = nn.Conv(24, (2, 2), strides=(2, 2)).apply(
    {"params": {"kernel": kernel, "bias": backbone["embedding"]["bias"]}}, wide
  )
  np.testing.assert_allclose(
    patch, want.reshape(4, 16, 24) + backbone["pos_embedding"], atol=1e-5
  )


def test_added_prompts():
  for single in (False, True):
    method = Add(VIT.spec, single=single, dropout=0.5)
    model, variables = make(method)
    prompt = variables["params"]["method"]["prompt"]
    assert prompt.shape == (1, 1 if single else 17, 24)
    none = changed(variables, "prompt", lambda x: 0 * x)
    before = entering(0, model, none).x
    np.testing.assert_allclose(
      entering(0, model, variables).x - before,
      jnp.broadcast_to(prompt, (4, 17, 24)),
      atol=1e-6,
    )
    added = entering(0, model, variables, train=True).x - before
    kept = jnp.abs(added) > 1e-6
    assert 0.3 < kept.mean() < 0.7 and (kept[0] != kept[1]).any()
    assert (kept == kept[:, :1]).all() == single
    np.testing.assert_allclose(added, jnp.where(kept, 2 * prompt, 0), atol=1e-5)


def test_pixel_prompts_are_embedded_as_patches():
  for variant in ("plain", "gaussian", "imgnettransform"):
    model, variables = make(PrependPixel(VIT.spec, 3, variant))
    prompt = entering(0, model, variables).prompt
    pixels = variables["params"]["method"]["pixels"]
    if variant == "imgnettransform":
      pixels = pixel.normalised(pixels)
    embedding = variables["params"]["backbone"]["embedding"]
    want = np.einsum("phwc,hwcd->pd", pixels, embedding["kernel"])
    np.testing.assert_allclose(
      prompt, jnp.broadcast_to(want + embedding["bias"], (4, 3, 24)), atol=1e-5
    )
    start = model_lib.init(model, jax.random.key(0), ["method"])["method"][
      "pixels"
    ]
    assert (start.min() < 0) == (variant != "imgnettransform")


@pytest.mark.parametrize(
  "method,message",
  [
    (Gated(VIT.spec, num_gates=3), "num_gates=3, the backbone has 2 blocks"),
    (Gated(VIT.spec, num_tokens=0), "gated.num_tokens=0; expected at least 1"),
    (Gated(VIT.spec, temperature_init=20.0), "temperature_init=20.0, temp"),
    (Adapter(VIT.spec, reduction=25), "leaves no hidden unit.* width 24"),
    (Adapter(VIT.spec, initial="zero"), "adapter.initial 'zero'; known: near"),
    (LoRA(VIT.spec, layers=("mlp",)), "layers=.*mlp.*; expected some of query"),
    (LoRA(VIT.spec, rank=0), "lora.rank=0"),
    (Add(VIT.spec, dropout=1.0), "add.dropout=1.0"),
    (Pad(VIT.spec, 4), r"pad.width=4 .*\(8, 8\) images; expected 1 to 3"),
    (Border(VIT.spec, 4), "border.width=4 .* expected 1 to 3, or 0"),
    (Below(VIT.spec, 0), "below.num_channels=0"),
    (Below(dataclasses.replace(VIT.spec, stem_norm=True)), "a norm; use"),
    (PrependPixel(VIT.spec, variant="noise"), "pixel.variant 'noise'; known"),
  ],
)
def test_options_that_do_not_fit(method, message):
  with pytest.raises(ValueError, match=message):
    model_lib.init(Model(VIT, method, 3), jax.random.key(0))


# Configs.


ARGS = (
  [(gated_vtab, arg) for arg in ("", "eurosat", "mocov3,sun397")]
  + [
    (baselines_vtab, name + rest)
    for name in baselines_vtab.BASELINES
    for rest in ("", ",eurosat")
  ]
  + [(eurosat_ti16, name) for name in eurosat_ti16.METHODS]
)


@pytest.mark.parametrize(
  "module,arg", ARGS, ids=lambda x: getattr(x, "__name__", x or "embedded")
)
def test_a_config(module, arg):
  """All of it is used: options, trainable parameters, policies."""
  config = config_lib.resolve(module.get_config(arg))
  model = model_lib.build(config, 10)
  image = jnp.zeros((1, *model.method.input_size, 3))
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), image))[
    "params"
  ]
  trainable, frozen = trees.split(params, config.trainable)
  assert (
    len(optim.epoch_rates(config.optim, config.batch_size, config.epochs))
    == config.epochs
  )
  optim.from_config(
    config.optim, lambda step: 0.1, 0.1, trainable, [*trainable, *frozen]
  )
  assert config.task == (
    "eurosat"
    if module is eurosat_ti16
    else arg.rpartition(",")[2]
    if "," in arg or (module is gated_vtab and arg)
    else "digits"
  )
  if module is baselines_vtab and arg.endswith(",eurosat"):
    own = {
      "adapter": 12 * (2 * 768 * 96 + 96 + 768),
      "lora": 12 * 2 * 2 * 768 * 8,
      "bias": 12 * (2 * 768 + 4 * 768 + 3072 + 768) + 2 * 768,
      "mlp3": 2 * (768 * 768 + 3 * 768),
      "add": 12 * 197 * 768,
      "pad": 2 * 8 * 240 * 3 + 2 * 224 * 8 * 3,
      "border": 69840,
      **{f"partial{k}": k * 7087872 + 2 * 768 for k in (1, 2, 4)},
    }
    name = arg.partition(",")[0]
    if name in own:
      assert trees.count(trainable) == own[name] + 769 * 10


def test_every_task_of_the_paper_has_its_row():
  assert (
    gated_vtab.MAE.keys()
    == gated_vtab.MOCOV3.keys()
    == {
      name
      for name, task in tasks.TASKS.items()
      if task.suite in ("vtab", "fgvc")
    }
  )
  config = gated_vtab.get_config("mocov3,oxford_iiit_pet")
  assert (
    config.backbone.name,
    config.batch_size,
    config.gated.num_tokens,
    config.optim.lr,
    config.gated.gate_init,
  ) == ("mocov3_b16_pretrain", 64, 100, 1.0, 1.0)
  assert gated_vtab.get_config("eurosat").backbone.norm == "after"


def test_words_that_no_config_knows():
  with pytest.raises(ValueError, match="unknown backbone 'dino' .* mae, moco"):
    gated_vtab.get_config("dino,eurosat")
  with pytest.raises(ValueError, match="unknown baseline 'lorra'.* adapter, l"):
    baselines_vtab.get_config("lorra,eurosat")


def test_every_option_has_its_field_and_default():
  """`configs/common.py` shows what a method can be told."""
  config = common.get_config()
  for name, cls in registry.METHODS.items():
    fields = {field.name for field in dataclasses.fields(cls)} - {
      "spec",
      "parent",
      "name",
    }
    assert {*config.get(name, {})} == fields, name
