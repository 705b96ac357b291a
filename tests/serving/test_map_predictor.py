"""An adapter of segmentation gives the label maps of its run's evaluation."""

import csv
import json

import numpy as np
from PIL import Image
import pytest

from tests.fuzz import mutations
from tests.serving import dense_run
from tests.serving.test_damaged_adapters import parts_of, write
import vpt_jax
from vpt_jax import config as configs
from vpt_jax.serving.map_predictor import MapPredictor
from vpt_jax.training import adapter_files
from vpt_jax.utils import files


@pytest.fixture(name="run", scope="module")
def run_fixture(tmp_path_factory):
  """The folder of scenes, of a run on them and of its predictor."""
  root = tmp_path_factory.mktemp("dense")
  dense_run.write_scenes(root / "data")
  vpt_jax.run(dense_run.dense_config(root / "data"), root / "run")
  return root


@pytest.fixture(name="predict", scope="module")
def predict_fixture(run):
  return vpt_jax.load_adapter(run / "run" / "adapter.npz")


def scenes_of(run):
  """Paths of the test images, in the order of predictions.csv."""
  with (run / "run" / "predictions.csv").open(newline="") as file:
    return [run / "data" / line["path"] for line in csv.DictReader(file)]


def evaluated_maps(run):
  """The label maps that the evaluation wrote, in that order."""
  folder = run / "run" / "predictions"
  stems = [path.stem.replace(" ", "_") for path in scenes_of(run)]
  return [np.asarray(Image.open(folder / f"{stem}.png")) for stem in stems]


def assert_same_maps(found, expected):
  assert len(found) == len(expected)
  for labels, want in zip(found, expected, strict=True):
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, want)


# The same as in evaluation.


def test_label_maps_are_those_of_the_evaluation(run, predict):
  """Bit for bit, from all that users may give, each at its own size."""
  expected = evaluated_maps(run)
  assert sorted(labels.shape for labels in expected) == sorted(dense_run.SIZES)
  assert 0 < np.mean([labels.mean() for labels in expected]) < 1
  paths = scenes_of(run)
  assert_same_maps(predict(paths), expected)
  assert_same_maps(predict([path.read_bytes() for path in paths]), expected)
  assert_same_maps(predict([Image.open(path) for path in paths]), expected)
  for path, want in zip(paths, expected, strict=True):
    assert_same_maps([predict(str(path))], [want])
  decode = predict.preprocess.decode
  upright = [decode(path.read_bytes()) for path in paths]
  assert_same_maps(predict(upright), expected)


def test_arrays_of_one_size_give_an_array(run, predict):
  (square,) = [
    path for path in scenes_of(run) if Image.open(path).size == (16, 16)
  ]
  image = np.asarray(Image.open(square))
  want = predict(square)
  stack = predict(np.stack([image, image[::-1]]))
  assert stack.shape == (2, 16, 16)
  np.testing.assert_array_equal(stack[0], want)
  grey = image[..., 0]
  repeated = predict(np.repeat(grey[..., None], 3, axis=-1))
  np.testing.assert_array_equal(predict(grey), repeated)
  np.testing.assert_array_equal(predict(grey[None], grey=True)[0], repeated)


def test_several_scales_score_as_the_run_says(run, predict):
  """The pixels that are right are those of `multi_scale` in result.json."""
  result = json.loads((run / "run" / "result.json").read_text())
  paths = scenes_of(run)
  maps = predict(paths, multi_scale=True)
  right = []
  for path, labels in zip(paths, maps, strict=True):
    mask = path.parent.parent / "masks" / path.name
    right.append((labels == np.asarray(Image.open(mask))).reshape(-1))
  found = 100 * np.concatenate(right).mean()
  assert found == pytest.approx(result["multi_scale"]["aacc"], abs=1e-9)
  single = np.concatenate([labels.reshape(-1) for labels in predict(paths)])
  several = np.concatenate([labels.reshape(-1) for labels in maps])
  assert (single != several).any()


def test_names_and_colours_travel_with_the_adapter(run, predict):
  assert predict.class_names == dense_run.NAMES
  _, meta = adapter_files.read_adapter(run / "run" / "adapter.npz")
  assert len(meta.palette) >= dense_run.CLASSES
  (path, *_) = (run / "run" / "predictions").glob("*.png")
  palette = Image.open(path).getpalette()
  assert predict.palette == [
    tuple(palette[3 * k : 3 * k + 3]) for k in range(len(predict.palette))
  ]


# The writer.


def test_save(run, predict, tmp_path):
  """Maps as evaluation writes them, shares of classes, overlays."""
  paths = scenes_of(run)
  written = predict.save(paths, tmp_path / "maps", overlays=True)
  names = [path.name.replace(" ", "_") for path in paths]
  assert written == [tmp_path / "maps" / name for name in names]
  for path, name in zip(written, names, strict=True):
    expected = run / "run" / "predictions" / name
    assert path.read_bytes() == expected.read_bytes()
    over = Image.open(tmp_path / "maps" / "overlays" / name)
    assert over.mode == "RGB" and over.size == Image.open(path).size
  with (tmp_path / "maps" / "shares.csv").open(newline="") as file:
    lines = list(csv.DictReader(file))
  assert [line["image"] for line in lines] == [str(path) for path in paths]
  assert [line["map"] for line in lines] == names
  for line, labels in zip(lines, evaluated_maps(run), strict=True):
    assert float(line["'=2+2"]) == pytest.approx(labels.mean(), abs=1e-6)
    assert float(line["ground"]) == pytest.approx(1 - labels.mean(), abs=1e-6)


def test_images_of_one_name_or_none_keep_apart(predict, tmp_path):
  image, _ = dense_run.scene(0, (8, 8))
  for folder in ("a", "b"):
    (tmp_path / folder).mkdir()
    Image.fromarray(image).save(tmp_path / folder / "x.png")
  same = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"]
  written = predict.save(same, tmp_path / "out")
  assert [path.name for path in written] == ["000000_x.png", "000001_x.png"]
  written = predict.save(np.stack([image, image]), tmp_path / "out")
  assert [path.name for path in written] == ["image_0.png", "image_1.png"]


def test_no_image_is_written_over(predict, tmp_path):
  """By a map or an overlay, by whatever path it is named."""
  image, _ = dense_run.scene(0, (8, 8))
  (tmp_path / "overlays").mkdir()
  (tmp_path / "link").symlink_to(tmp_path)
  for path in (tmp_path / "x.png", tmp_path / "overlays" / "x.png"):
    Image.fromarray(image).save(path)
    content = path.read_bytes()
    for given in (path, Image.open(path)):
      with pytest.raises(ValueError, match=r"x\.png would be written over"):
        predict.save(given, tmp_path / "link", overlays=True)
    assert path.read_bytes() == content
    path.unlink()


def test_a_write_that_fails_leaves_no_half_map(predict, tmp_path, monkeypatch):
  image, _ = dense_run.scene(0, (8, 8))
  predict.save([image], tmp_path)
  before = (tmp_path / "image_0.png").read_bytes()

  def full(*args, **options):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(files.os, "replace", full)
  with pytest.raises(OSError, match="No space"):
    predict.save([image[:, ::-1]], tmp_path)
  assert (tmp_path / "image_0.png").read_bytes() == before


# What is refused.


def test_what_no_label_map_can_be_of(predict, tmp_path):
  image, _ = dense_run.scene(0, (8, 8))
  (tmp_path / "page.png").write_bytes(b"<html>")
  for images, message in (
    (tmp_path / "page.png", "cannot read image .*page.png: .*HTML"),
    ([image, tmp_path / "none.png"], "cannot read image .*none.png"),
    (np.zeros((2, 8, 8), np.uint8), "say grey=True"),
    (image.astype(float), "images are float64"),
    ([], "^no images$"),
  ):
    with pytest.raises(ValueError, match=message):
      predict(images)
    with pytest.raises(ValueError, match=message):
      predict.save(images, tmp_path / "out")


def changed(run, path, **section):
  """The run's adapter with other values in its section segmentation."""
  meta, arrays = parts_of(run / "run" / "adapter.npz")
  meta["config"]["segmentation"].update(section)
  return write(path, meta, arrays)


def test_several_scales_need_a_form(run, tmp_path):
  path = changed(run, tmp_path / "x.npz", multi_scale="")
  predict = vpt_jax.load_adapter(path)
  image, _ = dense_run.scene(0, (8, 8))
  assert predict(image).shape == (8, 8)
  with pytest.raises(
    ValueError, match="multi_scale='setr'|=setr, scale or own"
  ):
    predict(image, multi_scale=True)


def test_images_are_not_made_huge_on_an_adapters_word(run, tmp_path):
  path = changed(run, tmp_path / "x.npz", test_scale=[10**6, 10**6])
  image, _ = dense_run.scene(0, (8, 8))
  with pytest.raises(ValueError, match="1000000 x 1000000 pixels, above"):
    vpt_jax.load_adapter(path)(image)


def _section(**values):
  return lambda meta: meta["config"]["segmentation"].update(values)


@pytest.mark.parametrize(
  "change,message",
  [
    (lambda meta: meta["config"].pop("segmentation"), "decoder is missing"),
    (
      lambda meta: meta["config"]["segmentation"].pop("stride"),
      "segmentation.stride is missing",
    ),
    (lambda meta: meta["config"].update(segmentation=3), "segmentation=3"),
    (_section(decoder="x"), "decoder 'x'; known: linear"),
    (_section(decoder="setr_pup"), "enlarges 16 times"),
    (_section(blocks=[7]), r"blocks=\(7,\)"),
    (_section(stride=17), "stride=17.*at most image_size=16"),
    (_section(test_factors=[]), r"test_factors=\(\).*one factor at least"),
    (_section(test_scale=[0, 5]), "test_scale"),
    (_section(average="most"), "average 'most'"),
    (_section(x=1), "unknown"),
    (lambda meta: meta.update(num_classes=3, palette=[]), "expected 3 texts"),
    (
      lambda meta: meta.update(
        num_classes=3, class_names=["a", "b", "c"], palette=[]
      ),
      "does not fit the model of its own config",
    ),
    (
      lambda meta: meta.update(num_classes=300, class_names=[], palette=[]),
      "255 is to be ignored",
    ),
    (lambda meta: meta.update(palette="x"), "'palette' is 'x'"),
    (lambda meta: meta.update(palette=[[0, 0, 0]]), "'palette'.*of 2 classes"),
    (
      lambda meta: meta.update(palette=[[0, 0, 256]] * 2),
      "'palette'.*0 to 255",
    ),
    (lambda meta: meta.update(palette=[[0, 0, True]] * 2), "'palette'"),
    (lambda meta: meta.update(palette=[[0, 0, 0]] * 256), "at most 255"),
    (
      lambda meta: meta["config"].update(problem="classification"),
      "does not fit the model of its own config",
    ),
    (lambda meta: meta["config"].update(problem="x"), "unknown problem 'x'"),
  ],
)
def test_what_is_wrong_is_said(run, tmp_path, change, message):
  meta, arrays = parts_of(run / "run" / "adapter.npz")
  change(meta)
  path = write(tmp_path / "changed.npz", meta, arrays)
  with pytest.raises(ValueError, match=f"{path}.*{message}"):
    vpt_jax.load_adapter(path)


@pytest.mark.parametrize(
  "section,message",
  [
    ({"stride": 17}, "stride=17; expected at most image_size=16"),
    ({"test": "whole", "stride": 17}, "stride=17"),
    ({"test_factors": ()}, r"test_factors=\(\); expected one factor at least"),
  ],
)
def test_views_that_no_test_could_have_are_refused_first(section, message):
  """Before a run has trained, when it would be too late."""
  config = dense_run.dense_config("scenes")
  config.segmentation.update(section)
  with pytest.raises(ValueError, match=message):
    configs.resolve(config)


def test_mutated_bytes_and_values(run, tmp_path):
  """120 of them: a predictor that gives label maps, or a ValueError."""
  rng = np.random.default_rng(0)
  sound = (run / "run" / "adapter.npz").read_bytes()
  meta, arrays = parts_of(run / "run" / "adapter.npz")
  image, _ = dense_run.scene(0, (8, 8))
  path = tmp_path / "mutated.npz"
  refused = 0
  for number in range(120):
    if number % 3 == 0:
      path.write_bytes(mutations.mutate_bytes(sound, rng))
    else:
      # Half of them in the section that other adapters do not have.
      changed_meta = json.loads(json.dumps(meta))
      part = changed_meta["config"] if number % 2 else changed_meta
      key = "segmentation" if number % 2 else "config"
      part[key] = json.loads(mutations.mutate_json(json.dumps(part[key]), rng))
      write(path, changed_meta, arrays)
    try:
      predict = vpt_jax.load_adapter(path)
    except ValueError as error:
      assert str(path) in str(error)
      refused += 1
      continue
    try:
      labels = predict(image)
    except ValueError:
      refused += 1
    else:
      assert isinstance(predict, MapPredictor) and labels.shape == (8, 8)
  assert refused > 60
