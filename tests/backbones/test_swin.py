"""Swin with prompts, against its definition in slow loops over patches."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from tests.test_model import make
from vpt_jax import model as models
from vpt_jax.backbones import factory, swin
from vpt_jax.backbones.swin import Swin
from vpt_jax.methods.method import Method
from vpt_jax.methods.vapt import VAPT
from vpt_jax.methods.vpt import VPT
from vpt_jax.model import Model
from vpt_jax.nn import cost
from vpt_jax.nn.tokens import Tokens
from vpt_jax.utils import trees

# Patches on 8 x 16, then 4 x 8; the second stage has a single row of windows.
SWIN = Swin((16, 32), 16, (2, 1), (2, 4), window=4, patch_size=2, mlp_ratio=2.0)
IMAGES = np.random.default_rng(0).normal(size=(3, 16, 32, 3)).astype("f4")
METHODS = {
  "linear": Method(SWIN.spec),
  "shallow": VPT(SWIN.spec, 3, deep=False),
  "deep": VPT(SWIN.spec, 3),
  "partial": VPT(SWIN.spec, 3, num_layers=2),
  "reverse": VPT(SWIN.spec, 3, num_layers=1, reverse=True),
  "shared": VPT(SWIN.spec, 3, shared=True),
  "vapt": VAPT(SWIN.spec, 3),
  "vapt_own": VAPT(
    SWIN.spec,
    3,
    static_layers=2,
    projector="own",
    per_channel=True,
    kernel_size=3,
    learnable_scale=True,
  ),
}
# Compiling is all that takes time here.
OPTIONS = {
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": True,
}


def compiled(f):
  return jax.jit(f, compiler_options=OPTIONS)


# The definition, one image at a time.


def norm(x, params):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
  return x * params["scale"] + params["bias"]


def slow_block(params, patch, prompt, grid, heads, window, shift, temperature):
  """Patches [N, D] and prompts [P, D] -> what a block makes of them."""
  count, inner = len(prompt), params["MultiHeadDotProductAttention_0"]
  x = norm(np.concatenate([prompt, patch]), params["LayerNorm_0"])
  query, key, value = (
    np.einsum("td,dhk->htk", x, inner[name]["kernel"])
    + inner[name]["bias"][:, None]
    for name in ("query", "key", "value")
  )
  scale = np.sqrt(x.shape[1] // heads) * temperature

  # Where a patch lies on the grid, and on the grid that is rolled by `shift`.
  place = [divmod(n, grid[1]) for n in range(len(patch))]
  rolled = [
    tuple((i - shift) % size for i, size in zip(at, grid)) for at in place
  ]
  windows = {}
  for n, (row, column) in enumerate(rolled):
    windows.setdefault((row // window, column // window), []).append(n)

  mixed = np.zeros((len(windows), heads, *query.shape[1:]))
  for total, members in zip(mixed, windows.values()):
    seen = [*range(count), *(count + n for n in members)]
    logits = query[:, seen] @ key[:, seen].swapaxes(1, 2) / scale
    for a, n in enumerate(members, count):
      for b, m in enumerate(members, count):
        down, right = np.subtract(rolled[n], rolled[m])
        index = (down + window - 1) * (2 * window - 1) + right + window - 1
        logits[:, a, b] += inner["relative_position_bias"][index]
        if (down, right) != tuple(np.subtract(place[n], place[m])):
          logits[:, a, b] = -np.inf  # Neighbours by the roll alone.
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    total[:, seen] = weights @ value[:, seen]
  mixed = np.concatenate(
    [mixed[:, :, :count].mean(0), mixed[:, :, count:].sum(0)], axis=1
  )
  out = np.einsum("htk,hkd->td", mixed, inner["out"]["kernel"])
  x = np.concatenate([prompt, patch]) + out + inner["out"]["bias"]

  mlp = params["MlpBlock_0"]
  hidden = norm(x, params["LayerNorm_1"]) @ mlp["Dense_0"]["kernel"]
  hidden = hidden + mlp["Dense_0"]["bias"]
  hidden = hidden * (1 + scipy.special.erf(hidden / 2**0.5)) / 2
  x = x + hidden @ mlp["Dense_1"]["kernel"] + mlp["Dense_1"]["bias"]
  return x[count:], x[:count]


def random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
  "image_size,window,blocks,carried,context",
  [
    ((8, 32), 4, [(4, 0), (4, 0), (2, 0)], 0, 0),
    ((16, 32), 4, [(4, 0), (4, 2), (4, 0)], 2, 3),
    ((24, 12), 3, [(3, 0), (3, 1), (3, 0)], 2, 0),
    ((16, 16), 12, [(8, 0), (8, 0), (4, 0)], 0, 3),
  ],
)
def test_blocks_are_what_they_are_defined_as(
  image_size, window, blocks, carried, context
):
  """`blocks`: (window, shift); one window alone is not shifted."""
  backbone = SWIN.clone(image_size=image_size, window=window)
  model, params = make(Method(backbone.spec), "img", backbone)
  params = jax.tree.map(np.asarray, params["backbone"])
  for i, (side, shift) in enumerate(blocks):
    grid, width = backbone.spec.grids[i], backbone.spec.widths[i]
    patch = random(2, np.prod(grid), width, seed=i)
    prompt = random(1, carried + context, width, seed=i + 9)

    @compiled
    def run(patch, prompt, i=i, grid=grid):
      tokens = Tokens(patch, num_cls=0, grid=grid)
      tokens = tokens.with_prompt(prompt[:, :carried] if carried else None)
      out = model.backbone.apply(
        {"params": params},
        i,
        tokens,
        method="block",
        temperature=1.3,
        context=prompt[:, carried:] if context else None,
      )
      assert out.num_prompt == carried and out.grid == grid
      return out.patch, out.prompt

    got = [np.asarray(x) for x in run(patch, prompt)]
    block = params["Transformer"][f"encoderblock_{i}"]
    for image in range(2):
      rows, prompts = slow_block(
        block,
        patch[image],
        prompt[0],
        grid,
        backbone.num_heads[i // 2],
        side,
        shift,
        1.3,
      )
      np.testing.assert_allclose(got[0][image], rows, atol=2e-4)
      np.testing.assert_allclose(got[1][image], prompts[:carried], atol=2e-4)


@pytest.mark.parametrize("grid,window", [((4, 6), 2), ((6, 3), 3), ((4, 4), 4)])
def test_windows(grid, window):
  x = random(2, *grid, 5)
  want = [
    x[:, row : row + window, column : column + window].reshape(2, -1, 5)
    for row in range(0, grid[0], window)
    for column in range(0, grid[1], window)
  ]
  got = swin.to_windows(x, window)
  np.testing.assert_array_equal(got, np.stack(want, axis=1))
  np.testing.assert_array_equal(swin.from_windows(got, grid), x)


@pytest.mark.parametrize(
  "grid,window,shift",
  [((4, 8), 4, 2), ((6, 6), 3, 1), ((8, 4), 2, 1), ((14, 14), 7, 3)],
)
def test_shift_mask(grid, window, shift):
  """Places of a window whose patches were no neighbours before the roll."""
  rows, columns = np.indices(grid)
  rolled = [
    swin.to_windows(
      np.roll(x, (-shift, -shift), (0, 1))[None, :, :, None], window
    )[0, :, :, 0]
    for x in (rows, columns)
  ]
  mask = swin.shift_mask(grid, window, shift)
  assert set(np.unique(mask)) == {-100, 0}
  for w, a, b in np.ndindex(mask.shape):
    down, right = np.subtract(divmod(a, window), divmod(b, window))
    kept = all(
      x[w, a] - x[w, b] == step for x, step in zip(rolled, (down, right))
    )
    assert mask[w, a, b] == (0 if kept else -100)


def test_relative_positions():
  """One row of the table for each offset, the same as in the paper's code."""
  index = swin.relative_position(3)
  for a, b in np.ndindex(9, 9):
    down, right = np.subtract(divmod(a, 3), divmod(b, 3))
    assert index[a, b] == (down + 2) * 5 + right + 2
  assert set(index.ravel()) == set(range(25))


@pytest.mark.parametrize("prompts", [0, 3])
def test_merging(prompts):
  """Four neighbours, columns slower than rows; a prompt four times."""
  model, params = make(METHODS["linear"], "img", SWIN)
  merge = jax.tree.map(np.asarray, params["backbone"]["Transformer"]["merge_2"])
  patch, prompt = random(2, 8, 16, 16), random(2, prompts, 16, seed=1)
  tokens = Tokens(
    jnp.asarray(patch.reshape(2, 128, 16)), num_cls=0, grid=(8, 16)
  ).with_prompt(prompt if prompts else None)
  enter = lambda i: model.backbone.apply(
    {"params": params["backbone"]}, i, tokens, method="enter"
  )
  got = compiled(lambda: enter(2))()
  assert (got.grid, got.num_prompt, got.x.shape) == (
    (4, 8),
    prompts,
    (2, 32 + prompts, 32),
  )
  reduce = lambda x: norm(x, merge["norm"]) @ merge["reduction"]["kernel"]
  got_patch = np.asarray(got.patch)
  for row, column in np.ndindex(4, 8):
    four = np.concatenate(
      [
        patch[:, 2 * row, 2 * column],
        patch[:, 2 * row + 1, 2 * column],
        patch[:, 2 * row, 2 * column + 1],
        patch[:, 2 * row + 1, 2 * column + 1],
      ],
      axis=-1,
    )
    np.testing.assert_allclose(
      got_patch[:, 8 * row + column], reduce(four), atol=1e-5
    )
  np.testing.assert_allclose(got.prompt, reduce(np.tile(prompt, 4)), atol=1e-5)
  for i in (0, 1):
    assert enter(i) is tokens


@pytest.mark.parametrize("name", ["shallow", "deep", "vapt"])
def test_images_do_not_see_each_other(name):
  """Unlike in the published code, where prompts meet other images' windows."""
  model, params = make(METHODS[name], "imgprompt", SWIN)
  apply = compiled(model.apply)
  batch = np.asarray(apply({"params": params}, IMAGES))
  assert np.abs(batch[0] - batch[1]).max() > 0.1  # Else this shows nothing.
  np.testing.assert_allclose(
    apply({"params": params}, IMAGES[::-1]), batch[::-1], atol=1e-5
  )
  for image, logits in zip(IMAGES, batch):
    np.testing.assert_allclose(
      apply({"params": params}, image[None])[0], logits, atol=1e-5
    )


class Carried(Model):
  """Deep prompts as published: carried through a block, then dropped."""

  def features(self, image, *, train=False):
    backbone, method = self.backbone, self.method
    tokens = backbone.embed(image)
    for i in range(backbone.spec.depth):
      tokens = backbone.enter(i, tokens.with_prompt(None))
      tokens = method.before(i, tokens, train=train)
      tokens = tokens.with_prompt(method.context(i, tokens, train=train))
      tokens = backbone.block(i, tokens)
    rows = tokens.replace(x=backbone.norm(tokens.x)).rows(self.pool)
    return jnp.mean(rows.x, axis=1)


@pytest.mark.parametrize(
  "name,pool",
  [("deep", "imgprompt"), ("vapt", "imgprompt"), ("vapt_own", "img")],
)
def test_context_prompts_equal_carried_prompts(name, pool):
  model, params = make(METHODS[name], pool, SWIN)
  carried = Carried(SWIN, METHODS[name], 5, pool)
  got, want = (
    compiled(m.apply)({"params": params}, IMAGES) for m in (model, carried)
  )
  np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("name", ["shallow", "deep", "vapt"])
def test_gradients_reach_every_prompt(name):
  model, params = make(METHODS[name], "", SWIN)
  grads = compiled(
    jax.grad(
      lambda method: jnp.sum(
        model.apply({"params": params | {"method": method}}, IMAGES) ** 2
      )
    )
  )(params["method"])
  grads = trees.flatten(jax.tree.map(lambda x: np.abs(np.asarray(x)), grads))
  largest = max(grad.max() for grad in grads.values())
  for path, grad in grads.items():
    if path.startswith("prompt"):  # [blocks, prompts, D]
      assert (grad.max(axis=-1) > 1e-4 * largest).all(), path
    else:
      assert grad.max() > 1e-6 * largest, path


def generator(i, width, positions, kernel):
  return {
    f"generator_{i}/{name}": shape
    for name, shape in (
      ("norm/bias", (width,)),
      ("norm/scale", (width,)),
      ("kernel", kernel),
      ("tokens/bias", (3,)),
      ("tokens/kernel", (positions, 3)),
    )
  }


def projector(name, width, **more):
  return {
    f"project_{name}/down/kernel": (width, 8),
    f"project_{name}/up/kernel": (8, width),
  } | {f"project_{name}/{leaf}": shape for leaf, shape in more.items()}


PARAMETERS = {
  "linear": ({}, 0),
  "shallow": ({"prompt_0": (1, 3, 16)}, 48),
  "deep": ({"prompt_0": (2, 3, 16), "prompt_1": (1, 3, 32)}, 192),
  "partial": ({"prompt_0": (2, 3, 16)}, 96),
  "reverse": ({"prompt_1": (1, 3, 32)}, 96),
  "shared": ({"prompt_0": (1, 3, 16), "prompt_1": (1, 3, 32)}, 144),
  # Convolved without padding: 7 x 15, then 3 x 7 positions.
  "vapt": (
    {
      "prompt_0": (1, 3, 16),
      **generator(1, 16, 105, (2, 2, 1)),
      **generator(2, 32, 21, (2, 2, 1)),
      **projector("shared_0", 16),
      **projector("shared_1", 32),
    },
    1304,
  ),
  "vapt_own": (
    {
      "prompt_0": (2, 3, 16),
      **generator(2, 32, 12, (3, 3, 32)),
      **projector("2", 32, scale=(1,)),
    },
    1000,
  ),
}


@pytest.mark.parametrize("name", METHODS)
def test_parameters_of_every_stage(name):
  model = Model(SWIN, METHODS[name], 5)
  made = jax.eval_shape(lambda: models.init(model, jax.random.key(0)))
  shapes = {
    path: leaf.shape for path, leaf in trees.flatten(made["method"]).items()
  }
  assert (shapes, sum(map(np.prod, shapes.values()))) == PARAMETERS[name]


def test_the_first_stage_sets_the_range_of_all_prompts():
  method = VPT(SWIN.spec, 500)
  prompts = models.init(Model(SWIN, method, 5), jax.random.key(0), ["method"])[
    "method"
  ]
  bound = (6 / (3 * 2**2 + 16)) ** 0.5
  for prompt in prompts.values():
    assert 0.99 * bound < jnp.abs(prompt).max() <= bound
  with pytest.raises(ValueError, match="one width, .* widths .16, 32.; use v"):
    make(VPT(SWIN.spec, 3, project=4), "", SWIN)
  with pytest.raises(ValueError, match="backbone has none; use pool='img'"):
    make(METHODS["deep"], "cls", SWIN)


def test_bfloat16_is_close_and_keeps_float32_where_it_matters():
  model, params = make(METHODS["vapt"], "", SWIN)
  half = model.clone(backbone=SWIN.clone(dtype=jnp.bfloat16))
  a, b = (
    np.asarray(compiled(m.apply)({"params": params}, IMAGES))
    for m in (model, half)
  )
  assert b.dtype == jnp.float32
  assert 0 < np.abs(a - b).max() < 0.1 * np.abs(a).max()


SMALL = factory.Entry(
  dict(
    width=8,
    depths=(1, 1),
    num_heads=(1, 1),
    window=3,
    patch_size=2,
    mlp_ratio=1.0,
  ),
  Swin,
)


def runs(side):
  """Whether windows and merges come out even, by trying."""
  try:
    cost.shapes(Swin((side, side), **SMALL.arch))
  except (TypeError, ValueError, ZeroDivisionError):
    return False
  return side % 2 == 0


def test_sizes_of_images():
  """What does not fit is refused, with the nearest size that does."""
  good = [side for side in range(1, 49) if runs(side)]
  assert len(good) > 4
  for side in range(1, 41):
    if side in good:
      factory.make("small", SMALL, (side,) * 2)
      continue
    with pytest.raises(ValueError, match=f"image_size={side} ") as error:
      factory.make("small", SMALL, (side,) * 2)
    nearest = int(re.search(r"'small'.*nearest: (\d+)", str(error.value))[1])
    assert nearest in good
    assert abs(nearest - side) == min(abs(other - side) for other in good)


@pytest.mark.parametrize(
  "name,side,nearest",
  [("swin_t", 230, 224), ("swin_t", 384, 448), ("swin_b_in21k_384", 224, 192)],
)
def test_sizes_of_the_published_ones(name, side, nearest):
  entry = factory.get(name)
  with pytest.raises(ValueError, match=f"of {name!r}.*; nearest: {nearest}"):
    factory.make(name, entry, (side, side))
  spec = factory.make(name, entry, (nearest, nearest)).spec
  for grid in spec.grids:
    assert grid[0] % min(entry.arch["window"], grid[0]) == 0


def test_absolute_positions():
  """They are added to the embedded patches, whose norm is before them."""
  with_positions = SWIN.clone(absolute_positions=True)
  variables = compiled(
    lambda: SWIN.init(jax.random.key(0), IMAGES, method=SWIN.embed)
  )()
  params = dict(variables["params"])
  table = random(1, 8 * 16, 16)
  both = {"params": params | {"pos_embedding": table}}
  plain = SWIN.apply(variables, IMAGES, method=SWIN.embed)
  moved = with_positions.apply(both, IMAGES, method=with_positions.embed)
  np.testing.assert_allclose(moved.x, plain.x + table, atol=1e-6)
  shapes = cost.shapes(with_positions)
  assert shapes.keys() - cost.shapes(SWIN).keys() == {"pos_embedding"}
  assert shapes["pos_embedding"].shape == (1, 8 * 16, 16)
