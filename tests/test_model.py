"""The loop: context prompts, pooled rows, sites, dropout, gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.carried import CarriedModel
from vpt_jax import model as models
from vpt_jax.backbones.vit import ViT
from vpt_jax.methods.method import Method
from vpt_jax.methods.vapt import VAPT
from vpt_jax.methods.vpt import VPT
from vpt_jax.model import Model
from vpt_jax.nn.tokens import Reads, Tokens
from vpt_jax.utils import trees

VIT = ViT((16, 24), 4, 32, 3, 2, 64, gelu="exact")
IMAGES = np.random.default_rng(0).normal(size=(3, 16, 24, 3)).astype(np.float32)


def make(method, pool="cls", backbone=VIT, cls=Model):
  """A model and parameters of which none is zero: each path carries signal."""
  model = cls(backbone, method, 5, pool)
  shapes = jax.eval_shape(lambda: models.init(model, jax.random.key(0)))
  rng = np.random.default_rng(1)
  fill = lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), jnp.float32)
  params = trees.flatten(jax.tree.map(fill, shapes))
  params = {
    path: leaf + path.endswith("scale") for path, leaf in params.items()
  }
  return model, {"method": {}, **trees.unflatten(params)}


METHODS = {
  "linear": Method(VIT.spec),
  "shallow": VPT(VIT.spec, 4, deep=False),
  "deep": VPT(VIT.spec, 4),
  "partial": VPT(VIT.spec, 4, num_layers=2),
  "noexpand": VPT(VIT.spec, 4, num_layers=2, expand=False),
  "reverse": VPT(VIT.spec, 4, num_layers=2, reverse=True),
  "shared": VPT(VIT.spec, 4, shared=True, project=7),
  "vapt": VAPT(VIT.spec, 4),
  "vapt_own": VAPT(
    VIT.spec,
    4,
    static_layers=2,
    kernel_size=3,
    padding=1,
    per_channel=True,
    projector="own",
    activation="gelu",
    learnable_scale=True,
  ),
  "vapt_bare": VAPT(VIT.spec, 4, conv=False, projector="none"),
}


CASES = [(name, "cls") for name in METHODS] + [
  ("deep", "img"),
  ("deep", "prompt"),
  ("deep", "imgprompt"),
  ("shallow", "imgprompt"),
  ("partial", "prompt"),
  ("vapt", "imgprompt"),
]


@pytest.mark.parametrize("name,pool", CASES)
def test_context_prompts_equal_carried_prompts(name, pool):
  model, params = make(METHODS[name], pool)
  carried = CarriedModel(model.backbone, model.method, 5, pool)

  def loss(method_params, model):
    variables = {"params": {**params, "method": method_params}}
    logits = model.apply(variables, IMAGES)
    return jnp.sum(logits**2), logits

  ours, theirs = (
    jax.jit(jax.value_and_grad(lambda p, m=m: loss(p, m), has_aux=True))(
      params["method"]
    )
    for m in (model, carried)
  )
  np.testing.assert_allclose(ours[0][1], theirs[0][1], atol=2e-5)
  theirs = trees.flatten(theirs[1])
  # Some gradients are zero in theory: a constant added to a prompt is removed
  # by the block's LayerNorm.
  floor = 1e-6 * max(
    (float(jnp.abs(x).max()) for x in theirs.values()), default=0
  )
  for path, grad in trees.flatten(ours[1]).items():
    atol = max(floor, 1e-4 * float(jnp.abs(theirs[path]).max()))
    np.testing.assert_allclose(grad, theirs[path], atol=atol, err_msg=path)


@pytest.mark.parametrize("name", ["linear", "noexpand"])
def test_a_pool_of_prompts_needs_prompts(name):
  with pytest.raises(ValueError, match="pool='prompt' reads prompts"):
    make(METHODS[name], "prompt")


def test_the_last_block_computes_only_what_is_pooled():
  for pool, rows in (("cls", 1), ("img", 24), ("prompt", 4), ("imgprompt", 28)):
    model, params = make(METHODS["deep"], pool)
    _, sown = model.apply({"params": params}, IMAGES, mutable="intermediates")
    assert sown["intermediates"]["block_out"][0].x.shape == (3, rows, 32)


def test_norm_after_pooling():
  model, params = make(
    METHODS["shallow"], "imgprompt", VIT.clone(norm_order="after")
  )
  _, sown = model.apply({"params": params}, IMAGES, mutable="intermediates")
  out = sown["intermediates"]["block_out"][0].x
  pooled = sown["intermediates"]["pooled"][0]
  norm = params["backbone"]["Transformer"]["encoder_norm"]
  mean = out.mean(1)
  centred = mean - mean.mean(-1, keepdims=True)
  want = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(
    pooled, want * norm["scale"] + norm["bias"], atol=1e-5
  )


def test_batch_constant_context_is_computed_once():
  """FLOPs of keys and values of VPT-deep do not grow with the batch."""
  model, params = make(VPT(VIT.spec, 50))

  def flops(model, batch):
    image = jnp.zeros((batch, 16, 24, 3))
    f = jax.jit(lambda p, x: model.apply({"params": p}, x))
    return f.lower(params, image).compile().cost_analysis()["flops"]

  ours = flops(model, 8) - flops(model, 4)
  carried = CarriedModel(VIT, model.method, 5)
  theirs = flops(carried, 8) - flops(carried, 4)
  assert ours < 0.5 * theirs


def test_images_do_not_see_each_other():
  model, params = make(METHODS["vapt"])
  alone = model.apply({"params": params}, IMAGES[:1])
  batch = model.apply({"params": params}, IMAGES)
  np.testing.assert_allclose(alone[0], batch[0], atol=1e-5)


def test_prompt_dropout_is_per_image_and_scaled():
  method = VPT(VIT.spec, 400, dropout=0.5)
  model, params = make(method)
  _, sown = model.apply(
    {"params": params},
    IMAGES,
    train=True,
    rngs={"dropout": jax.random.key(1)},
    mutable="intermediates",
  )
  prompt = params["method"]["prompt"]
  for i in range(3):
    context = sown["intermediates"][f"block_in_{i}"][0][1]
    assert context.shape == (3, 400, 32)
    kept = context != 0
    assert 0.45 < kept.mean() < 0.55
    assert (kept[0] != kept[1]).any()
    np.testing.assert_allclose(
      context, jnp.where(kept, 2 * prompt[i], 0), rtol=1e-6
    )


def test_vapt_channel_dropout_drops_whole_channels():
  method = VAPT(VIT.spec, 4, projector="none", dropout_channel=0.5)
  model, params = make(method)
  params["method"]["generator_1"]["tokens"]["bias"] *= 0
  _, sown = model.apply(
    {"params": params},
    IMAGES,
    train=True,
    rngs={"dropout": jax.random.key(1)},
    mutable="intermediates",
  )
  prompt = sown["intermediates"]["block_in_1"][0][1]
  dropped = (prompt == 0).all(axis=1)
  assert 0.3 < dropped.mean() < 0.7
  np.testing.assert_array_equal((prompt == 0).any(axis=1), dropped)


def test_vapt_starts_with_zero_prompts():
  model = Model(VIT, METHODS["vapt"], 5)
  params = models.init(model, jax.random.key(0))
  _, sown = model.apply({"params": params}, IMAGES, mutable="intermediates")
  assert not sown["intermediates"]["block_in_1"][0][1].any()
  assert sown["intermediates"]["block_in_0"][0][1].any()


@pytest.mark.parametrize(
  "kwargs,message",
  [
    (dict(kernel_size=9), "kernel_size=9 is larger"),
    (dict(activation="tanh"), "unknown vapt.activation 'tanh'"),
    (dict(projector="mine"), "unknown vapt.projector 'mine'"),
    (dict(static_layers=4), "static_layers=4"),
  ],
)
def test_vapt_options_that_do_not_fit(kwargs, message):
  with pytest.raises(ValueError, match=message):
    models.init(Model(VIT, VAPT(VIT.spec, **kwargs), 5), jax.random.key(0))


def test_vpt_layers_that_do_not_fit():
  with pytest.raises(ValueError, match="num_layers=4, the backbone has 3"):
    models.init(Model(VIT, VPT(VIT.spec, num_layers=4), 5), jax.random.key(0))


def test_initial_values_are_the_published_ones():
  spec = VIT.spec
  params = models.init(Model(VIT, VPT(spec, 500), 1000), jax.random.key(0))
  bound = (6 / (3 * 16 + 32)) ** 0.5
  prompt = params["method"]["prompt"]
  assert 0.99 * bound < jnp.abs(prompt).max() <= bound
  np.testing.assert_allclose(prompt.std(), bound / 3**0.5, rtol=0.02)
  np.testing.assert_allclose(params["head"]["bias"], -np.log(99), rtol=1e-5)
  np.testing.assert_allclose(
    params["head"]["kernel"].std(), (2 / 1000) ** 0.5, rtol=0.02
  )


def test_bfloat16_is_close_and_keeps_float32_where_it_matters():
  model, params = make(METHODS["vapt"])
  half = model.clone(backbone=VIT.clone(dtype=jnp.bfloat16))
  a = model.apply({"params": params}, IMAGES)
  b = half.apply({"params": params}, IMAGES)
  assert b.dtype == jnp.float32
  assert 0 < jnp.abs(a - b).max() < 0.1 * jnp.abs(a).max()


def test_wrong_image_size():
  model, params = make(METHODS["linear"])
  with pytest.raises(ValueError, match="images are .16, 16., the backbone"):
    model.apply({"params": params}, IMAGES[:, :, :16])


class NoGrid(ViT):
  """A backbone whose tokens lie on no grid."""

  @property
  def spec(self):
    import dataclasses

    return dataclasses.replace(super().spec, grids=(None,) * self.depth)


def test_a_method_that_needs_a_grid(config, monkeypatch):
  monkeypatch.setattr(
    models.factory, "build", lambda *_: NoGrid((8, 8), 4, 32, 2, 2, 64)
  )
  config.method = "vapt"
  with pytest.raises(
    ValueError,
    match=(
      "method 'vapt' needs patch tokens on a grid, backbone 'vit_test' has "
      "none; use 'linear' or 'pad'"
    ),
  ):
    models.build(config, 10)


def test_tokens_views():
  x = jnp.arange(2 * 8 * 1.0).reshape(2, 8, 1)
  tokens = Tokens(x, num_cls=1, num_prompt=3, grid=(2, 2))
  np.testing.assert_array_equal(
    jnp.concatenate([tokens.cls, tokens.prompt, tokens.patch], 1), x
  )
  bare = tokens.with_prompt(None)
  assert (bare.num_prompt, bare.x.shape) == (0, (2, 5, 1))
  assert bare.with_prompt(None) is bare
  again = bare.with_prompt(tokens.prompt)
  np.testing.assert_array_equal(again.x, x)
  assert bare.with_prompt(jnp.zeros((1, 2, 1))).x.shape == (2, 7, 1)
  rows = tokens.rows("imgprompt")
  assert (rows.num_cls, rows.num_prompt, rows.x.shape[1]) == (0, 3, 7)


class PatchHead(nn.Module):
  """A dense layer on every patch of all blocks that are read."""

  @nn.compact
  def __call__(self, patches, train=False):
    return nn.Dense(5)(jnp.concatenate(patches, axis=-1))


class Segmenter(Model):
  """A model with a dense head."""

  def setup(self):
    self.head = PatchHead()


@pytest.mark.parametrize("backbone", [VIT, VIT.clone(norm_order="after")])
@pytest.mark.parametrize("name", ["linear", "deep", "shallow", "vapt"])
@pytest.mark.parametrize("blocks", [(2,), (0, 2), (1, 0)])
def test_a_head_reads_patches_of_blocks(name, blocks, backbone):
  """They are what a model that computes all rows has after these blocks."""
  method = METHODS[name]
  whole, params = make(method, "imgprompt", backbone)
  reads = Reads(blocks)
  model = Segmenter(backbone, method, 5, reads=reads)
  patches, sown = model.apply(
    {"params": params}, IMAGES, method="features", mutable="intermediates"
  )
  assert [patch.shape for patch in patches] == [(3, 24, 32)] * len(blocks)
  assert {patch.dtype for patch in patches} == {jnp.dtype("float32")}
  # The last block that is read computes its patches only; none runs after it.
  out = sown["intermediates"]["block_out"][0]
  assert (out.num_cls, out.num_prompt, out.x.shape[1]) == (0, 0, 24)
  ran = [key for key in sown["intermediates"] if key.startswith("block_in_")]
  assert len(ran) == max(blocks) + 1

  _, sown = whole.apply({"params": params}, IMAGES, mutable="intermediates")
  sown = sown["intermediates"]
  for i, patch in zip(blocks, patches, strict=True):
    if i < 2:
      want = sown[f"block_in_{i + 1}"][0][0].patch
    else:
      want = sown["block_out"][0].patch
      if backbone.norm_order == "before":
        want = whole.backbone.apply(
          {"params": params["backbone"]}, want, method="norm"
        )
    np.testing.assert_allclose(patch, want, atol=1e-5)


@pytest.mark.parametrize("norm_order", ["before", "after"])
def test_a_head_with_its_own_norm_reads_patches_without_the_backbones(
  norm_order,
):
  """Only the last block's patches differ, by the backbone's norm."""
  backbone = VIT.clone(norm_order=norm_order)
  reads = Reads((0, 2), final_norm=False)
  model = Segmenter(backbone, METHODS["deep"], 5, reads=reads)
  normed = model.clone(reads=Reads((0, 2)))
  params = models.init(model, jax.random.key(0))
  first, last = model.apply({"params": params}, IMAGES, method="features")
  same, other = normed.apply({"params": params}, IMAGES, method="features")
  np.testing.assert_array_equal(first, same)
  if norm_order == "before":
    last = backbone.apply({"params": params["backbone"]}, last, method="norm")
  np.testing.assert_allclose(last, other, atol=1e-6)


def test_a_head_of_patches_has_all_parameters_of_the_backbone():
  whole, _ = make(METHODS["deep"])
  model = Segmenter(VIT, METHODS["deep"], 5, reads=Reads((0,)))
  params = models.init(model, jax.random.key(0))
  want = models.init(whole, jax.random.key(0))
  for part in ("backbone", "method"):
    assert trees.flatten(params[part]).keys() == (
      trees.flatten(want[part]).keys()
    )
  outputs = model.apply({"params": params}, IMAGES)
  assert outputs.shape == (3, 24, 5)


def test_bfloat16_patches_are_float32():
  backbone = VIT.clone(dtype=jnp.bfloat16)
  model = Segmenter(backbone, METHODS["deep"], 5, reads=Reads((0, 2)))
  params = models.init(model, jax.random.key(0))
  patches = model.apply({"params": params}, IMAGES, method="features")
  assert {patch.dtype for patch in patches} == {jnp.dtype("float32")}


def test_a_block_that_is_read_and_is_not_there():
  model = Segmenter(VIT, METHODS["linear"], 5, reads=Reads((1, 3)))
  with pytest.raises(
    ValueError, match="the head reads block 3; this backbone has blocks 0 to 2"
  ):
    models.init(model, jax.random.key(0))
