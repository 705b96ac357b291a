"""An adapter is a stranger's file: it neither leads anywhere nor tells paths.

Without the user's word its backbone is read from the model zoo's addresses,
from the cache, and from files that runs on this machine used.
"""

import json
import shutil

import jax
import numpy as np
import pytest

import vpt_jax
from vpt_jax import config as configs
from vpt_jax import model as models
from vpt_jax.analysis import subject
from vpt_jax.training import adapter_files
from vpt_jax.utils import trees
from vpt_jax.weights import download, known_files, load


@pytest.fixture(name="run", scope="module")
def run_fixture(tmp_path_factory):
  """The folder of a run on a local checkpoint, with a cache of its own."""
  from tests.conftest import small_config

  root = tmp_path_factory.mktemp("home")
  config = small_config()
  model = models.build(configs.resolve(config), 10)
  params = models.init(model, jax.random.key(7), ["backbone"])
  load.save(root / "vit.npz", trees.flatten(params["backbone"]), np.float32)
  config.backbone.checkpoint = str(root / "vit.npz")
  config.method = "linear"
  config.epochs = 1
  config.optim.warmup_epochs = 0
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("VPT_JAX_CACHE", str(root / "cache"))
    vpt_jax.run(config, root / "run")
  return root


@pytest.fixture(name="cache")
def cache_fixture(tmp_path, monkeypatch):
  """An empty cache: another machine."""
  monkeypatch.setenv("VPT_JAX_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


def changed(run, path, checkpoint):
  """The run's adapter with another `backbone.checkpoint`."""
  arrays, meta = adapter_files.read_adapter(run / "run" / "adapter.npz")
  meta.config["backbone"]["checkpoint"] = checkpoint
  adapter_files.save_adapter(path, arrays, meta)
  return path


IMAGE = np.zeros((8, 8, 3), np.uint8)


def test_no_path_of_this_machine_is_in_what_is_passed_on(run):
  """Adapter, result and predictions: of a path the last part alone."""
  for file in ("adapter.npz", "result.json", "predictions.csv"):
    content = (run / "run" / file).read_bytes()
    assert str(run).encode() not in content, file
  _, meta = adapter_files.read_adapter(run / "run" / "adapter.npz")
  assert meta.config["backbone"]["checkpoint"] == "vit.npz"


@pytest.mark.parametrize(
  "text,public",
  [
    ("/home/me/vit.npz", "vit.npz"),
    ("~/vit.npz", "vit.npz"),
    ("folder:/home/me/photos/", "folder:photos"),
    ("C:\\Users\\me\\vit.npz", "vit.npz"),
    ("csv:D:/me/table.csv", "csv:table.csv"),
    ("https://me:secret@host/a/vit.npz", "https://host/a/vit.npz"),
    ("gs://bucket/a/vit.npz", "gs://bucket/a/vit.npz"),
    ("data", "data"),
    (".*/bias", ".*/bias"),
    ("a photo of a {}.", "a photo of a {}."),
  ],
)
def test_of_a_path_the_last_part_is_left(config, text, public):
  config.backbone.checkpoint = text
  config.clip.class_names = (text,)
  values = configs.public(config)
  assert values["backbone"]["checkpoint"] == public
  assert values["clip"]["class_names"] == [public]
  assert config.backbone.checkpoint == text


def test_this_machine_knows_the_checkpoint_of_its_runs(run, monkeypatch):
  monkeypatch.setenv("VPT_JAX_CACHE", str(run / "cache"))
  assert vpt_jax.load_adapter(run / "run" / "adapter.npz")(IMAGE).shape == (10,)
  (note,) = (run / "cache" / "known").iterdir()
  assert json.loads(note.read_text()) == {"path": str(run / "vit.npz")}


def test_another_machine_asks_once(run, cache):
  adapter = run / "run" / "adapter.npz"
  match = r"a file 'vit.npz' \(sha256 .*backbone=FILE.*--backbone=FILE"
  with pytest.raises(ValueError, match=match):
    vpt_jax.load_adapter(adapter)
  with pytest.raises(ValueError, match=match):
    subject.read(str(adapter))
  word = vpt_jax.load_adapter(adapter, backbone=str(run / "vit.npz"))
  again = vpt_jax.load_adapter(adapter)  # It is known from now on.
  np.testing.assert_array_equal(word(IMAGE), again(IMAGE))
  assert subject.read(str(adapter)).config.backbone.name == "vit_test"


@pytest.mark.parametrize(
  "checkpoint",
  [
    "/etc/passwd",
    "../secret.npz",
    "vit.npz",
    "https://evil.example/x.npz",
    "http://169.254.169.254/latest/meta-data",
    "gs://bucket/x.npz",
    "file:///etc/passwd",
  ],
)
def test_an_adapter_leads_nowhere(
  run, cache, tmp_path, monkeypatch, checkpoint
):
  """Neither a path nor an address of its own is opened."""

  def never(*arguments, **options):
    raise AssertionError(f"{arguments} was opened")

  monkeypatch.setattr(download, "fetch", never)
  monkeypatch.setattr(load, "load", never)
  adapter = changed(run, tmp_path / "adapter.npz", checkpoint)
  with pytest.raises(ValueError, match="the adapter's word|unknown scheme"):
    vpt_jax.load_adapter(adapter)


def test_what_was_fetched_before_is_read(run, cache, tmp_path):
  url = "https://host.example/vit.npz"
  path = download.location(url)
  path.parent.mkdir(parents=True)
  shutil.copy(run / "vit.npz", path)
  adapter = changed(run, tmp_path / "adapter.npz", url)
  assert vpt_jax.load_adapter(adapter)(IMAGE).shape == (10,)


def test_analyses_look_for_no_images_on_an_adapters_word(run, cache, tmp_path):
  """Neither its folders are read nor its cache is written to."""
  arrays, meta = adapter_files.read_adapter(run / "run" / "adapter.npz")
  evil = str(tmp_path / "evil")
  meta.config["data"] |= {
    "source": f"folder:{evil}",
    "cache": evil,
    "dir": evil,
  }
  path = tmp_path / "x" / "adapter.npz"
  adapter_files.save_adapter(path, arrays, meta)
  adapter = subject.read(str(path), backbone=str(run / "vit.npz"))
  assert evil not in (adapter.config.data.cache, adapter.config.data.dir)
  with pytest.raises(ValueError, match="not looked for on its word alone"):
    subject.test(adapter, 1)
  own = subject.read(str(run / "run" / "adapter.npz"), str(run / "vit.npz"))
  assert own.has_images and len(subject.test(own, 2).names) == 2


def test_a_note_of_a_file_that_is_gone_or_damaged_is_none(cache, tmp_path):
  sha256 = "0" * 64
  known_files.remember(tmp_path / "gone.npz", sha256)
  assert known_files.find(sha256) == ""
  (tmp_path / "gone.npz").write_bytes(b"")
  assert known_files.find(sha256) == str(tmp_path / "gone.npz")
  for content in ("", "[]", "{}", '{"path": 3}', "{"):
    (cache / "known" / f"{sha256}.json").write_text(content)
    assert known_files.find(sha256) == ""
  assert known_files.find("../../x") == known_files.find("random") == ""


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_an_adapter_with_broken_numbers_is_refused(run, tmp_path, number):
  """As a backbone's checkpoint is."""
  arrays, meta = adapter_files.read_adapter(run / "run" / "adapter.npz")
  broken = arrays["head/bias"].copy()
  broken[3] = number
  adapter_files.save_adapter(
    tmp_path / "x.npz", arrays | {"head/bias": broken}, meta
  )
  with pytest.raises(ValueError, match="x.npz holds NaN .* in head/bias"):
    adapter_files.read_adapter(tmp_path / "x.npz")
