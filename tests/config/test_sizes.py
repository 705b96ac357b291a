"""A size that cannot work is refused early, with the nearest that does."""

import re

import jax.numpy as jnp
import pytest

from configs import common
from vpt_jax import config as configs
from vpt_jax.backbones import factory
from vpt_jax.data.transforms import views
from vpt_jax.methods.pixel import Border, Pad
from vpt_jax.methods.vapt import VAPT
from vpt_jax.nn.tokens import Spec

SPEC = Spec((8, 8), 4, widths=(32,) * 2, grids=((2, 2),) * 2)


@pytest.mark.parametrize(
  "field,value,expected",
  [
    ("image_size", 10**6, "1 to 8192"),
    ("image_size", 0, "1 to 8192"),
    ("image_size", -224, "1 to 8192"),
    ("batch_size", 0, "1 to 65536"),
    ("batch_size", 10**7, "1 to 65536"),
  ],
)
def test_absurd_sizes_are_a_sentence(field, value, expected):
  """Before data are read, and before any memory is asked for."""
  config = common.embedded(common.get_config())
  config[field] = value
  match = rf"config.{field}={value}; expected {expected}"
  with pytest.raises(ValueError, match=match):
    configs.resolve(config)
  config.mode = "sweep"
  with pytest.raises(ValueError, match=match):
    configs.check_values(config)


def nearest_of(error):
  """The sizes that an error names: [8] or [(8, 8), (16, 8)]."""
  text = re.search("nearest[^:]*: (.*)", str(error.value))[1]
  pairs = re.findall(r"\((\d+), (\d+)\)", text)
  if pairs:
    return [tuple(map(int, pair)) for pair in pairs]
  return [int(number) for number in re.findall(r"\d+", text)]


@pytest.mark.parametrize(
  "name,size",
  [
    ("vit_b16", (225, 225)),
    ("vit_b16", (7, 7)),
    ("vit_b16", (224, 230)),
    ("clip_l14", (256, 256)),
    ("swin_t", (225, 225)),
    ("swin_b_in21k_384", (224, 224)),
    ("swin_t", (112, 224)),
    ("swin_t", (448, 96)),
  ],
)
def test_images_that_a_backbone_cannot_tile(name, size):
  """Patches, windows and the last grid alike: what is named works."""
  entry = factory.get(name)
  with pytest.raises(ValueError, match="nearest") as error:
    factory.make(name, entry, size)
  for nearest in nearest_of(error):
    if isinstance(nearest, int):
      nearest = tuple(
        side if entry_fits(entry, name, side) else nearest for side in size
      )
    assert factory.make(name, entry, nearest).image_size == nearest


def entry_fits(entry, name, side):
  try:
    factory.make(name, entry, (side, side))
  except ValueError:
    return False
  return True


@pytest.mark.parametrize("width", [0, -3, 4, 100])
def test_frames(width):
  for method in (Pad(SPEC, width), Border(SPEC, width or -1)):
    with pytest.raises(ValueError, match="nearest") as error:
      method.check()
    (nearest,) = nearest_of(error)
    type(method)(SPEC, nearest).check()


def test_kernels():
  with pytest.raises(ValueError, match="kernel_size=5 .*nearest") as error:
    VAPT(SPEC, 3, kernel_size=5, padding=1).check()
  (nearest,) = nearest_of(error)
  VAPT(SPEC, 3, kernel_size=nearest, padding=1).check()


def test_crops():
  rows = jnp.zeros((20, 10, 3), jnp.uint8)
  with pytest.raises(ValueError, match="side 12 .* side 10.*nearest.*: 10"):
    views.crop_at(
      rows,
      jnp.zeros(1, int),
      jnp.full(1, 20),
      jnp.ones(1, bool),
      jnp.zeros((1, 2)),
      12,
    )
