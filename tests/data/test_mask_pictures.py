"""Label maps are drawn so that they can be read back, and told apart."""

import io

import numpy as np
from PIL import Image
import pytest

from vpt_jax.data import mask_classes, mask_pictures
from vpt_jax.data.sources import mask_layouts, masks

PALETTE = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
LABELS = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)
IMAGE = np.full((2, 3, 3), 100, np.uint8)


@pytest.mark.parametrize("count", [3, 150, 255])
def test_a_png_keeps_every_label(count):
  labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
  labels[(labels >= count) & (labels < 255)] = 0
  palette = mask_classes.default_palette(count)
  data = mask_pictures.palette_png(labels, palette)
  read = masks.decode_mask(data, "a.png", masks.Meaning(thin=True))
  np.testing.assert_array_equal(read, labels)
  image = Image.open(io.BytesIO(data))
  assert image.mode == "P"
  shown = np.asarray(image.convert("RGB"))
  np.testing.assert_array_equal(shown[0, 2], palette[2])
  np.testing.assert_array_equal(shown[15, 15], (224, 224, 192))


def test_an_overlay_mixes_colours_and_leaves_ignored_pixels():
  shown = mask_pictures.overlay(IMAGE, LABELS, PALETTE)
  np.testing.assert_array_equal(shown[1, 2], IMAGE[1, 2])
  red = np.round(0.45 * 100 + 0.55 * np.array([255, 0, 0]))
  np.testing.assert_array_equal(shown[0, 0], red)
  # Without a palette, as Pascal VOC numbers its colours.
  np.testing.assert_array_equal(
    mask_pictures.overlay(IMAGE, LABELS, ()),
    mask_pictures.overlay(IMAGE, LABELS, mask_classes.voc_palette(3)),
  )


def test_a_panel_is_image_labels_and_prediction():
  prediction = np.zeros_like(LABELS)
  shown = mask_pictures.panel(IMAGE, LABELS, prediction, PALETTE)
  step = 3 + mask_pictures.GAP
  assert shown.shape == (2, 2 * step + 3, 3)
  np.testing.assert_array_equal(shown[:, :3], IMAGE)
  labelled = mask_pictures.overlay(IMAGE, LABELS, PALETTE)
  np.testing.assert_array_equal(shown[:, step : step + 3], labelled)
  predicted = mask_pictures.overlay(IMAGE, prediction, PALETTE)
  np.testing.assert_array_equal(shown[:, 2 * step :], predicted)


@pytest.mark.parametrize(
  ("labels", "palette", "words"),
  [
    (LABELS + np.uint8(1), PALETTE, "label 3 has no colour: the palette has 3"),
    (LABELS.astype(int), PALETTE, "labels must be uint8"),
    (LABELS, PALETTE * 86, "a palette of 258 colours"),
  ],
)
def test_labels_without_a_colour_are_refused(labels, palette, words):
  with pytest.raises(ValueError, match=words):
    mask_pictures.palette_png(labels, palette)


def test_published_classes_have_names_and_colours():
  """As many as the labels, and those that papers know by number."""
  for name, layout in mask_layouts.LAYOUTS.items():
    classes = mask_classes.published(name)
    count = layout.meaning.num_classes
    assert len(classes.names) == len(classes.palette) == count
    assert len(set(classes.names)) == count
    assert all(word == word.strip() != "" for word in classes.names)
  ade = mask_classes.published("ade20k")
  assert (ade.names[0], ade.names[44]) == ("wall", "chest of drawers")
  assert (ade.names[149], ade.palette[149]) == ("flag", (92, 0, 255))
  voc = mask_classes.published("voc2012")
  assert (voc.names[15], voc.palette[15]) == ("person", (192, 128, 128))
  assert mask_classes.voc_palette(256)[255] == (224, 224, 192)
  without, context = (
    mask_classes.published(f"pascal_context{count}") for count in (59, 60)
  )
  assert context.names[0] == "background"
  assert (without.names, without.palette) == (
    context.names[1:],
    context.palette[1:],
  )
  street = mask_classes.published("cityscapes")
  assert (street.names[18], street.palette[0]) == ("bicycle", (128, 64, 128))


def test_default_colours_differ():
  palette = mask_classes.default_palette(255)
  assert len(set(palette)) == 255
  first = np.array(palette[:16], int)
  apart = np.abs(first[:, None] - first).sum(-1) + 999 * np.eye(16, dtype=int)
  assert apart.min() > 60
  names = ("cat", "Background")
  assert mask_classes.default_palette(2, names)[1] == (0, 0, 0)
