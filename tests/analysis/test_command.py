"""Every command of the analyses on tiny runs."""

import csv
import functools
import io
import sys

import jax
import numpy as np
from PIL import Image
import pytest

from configs import common
from tests import conftest
from tests.analysis.tiny import record
from vpt_jax import config as configs
from vpt_jax import model as models
from vpt_jax.analysis import (
  command,
  subject,
)
from vpt_jax.serving import predictor
from vpt_jax.training import adapter_files
from vpt_jax.training import records as results
from vpt_jax.utils import trees

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module", autouse=True)
def read_once():
  """Half of the time of most commands is to make the same models again."""
  before = subject.read
  subject.read = functools.cache(before)
  yield
  subject.read = before


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
    adapter_files.save_adapter(
      folder / name / "adapter.npz",
      flat,
      adapter_files.AdapterMeta(
        backbone={"name": backbone, "sha256": "random"},
        config=configs.plain(config),
        num_classes=10,
        versions={},
      ),
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
        dict(
          share=s,
          prompts=5,
          per_set=[5],
          top1_as_is=60 * s,
          top1_tuned=70 * s,
          gmacs=1.0,
          milliseconds=1.0,
        )
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
