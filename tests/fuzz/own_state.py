"""Mutates what the project itself has written, and reads it back."""

import json
from pathlib import Path
import shutil
from typing import Any

import numpy as np

from tests import conftest
from tests.fuzz import mutations
from tests.fuzz.outcomes import judge, Outcome
from vpt_jax import config as config_lib
from vpt_jax import main
from vpt_jax.data import datasets
from vpt_jax.data.cache import prepared
from vpt_jax.data.cache.decoding import Layout
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.report import __main__ as report
from vpt_jax.training import experiment, metrics, records, run_folder
from vpt_jax.training.checkpoints import Checkpoints

# Registers the small backbones, in this process, too.
BACKBONE = "vit_test"
assert conftest.factory.BACKBONES[BACKBONE]

STEPS = (3, 6)  # of the saved states


def embedded_config() -> Any:
  """Returns the smallest run: the digits as 2 x 2 patches, a linear head."""
  config = config_lib.load_config("configs/linear_vtab.py")
  config.image_size = 8
  config.batch_size = 256
  config.backbone.name = BACKBONE
  config.backbone.checkpoint = "random"
  config.epochs = 2
  config.optim.warmup_epochs = 1
  return config


def make_run(folder: Path) -> None:
  """Trains the smallest run, into `run`."""
  main.run(embedded_config(), folder / "run")


class OwnState:
  """Checkpoints, prepared caches, and the files of a run."""

  def __init__(self):
    self._folder = Path()
    self._scratch = Path()
    self._states: dict[int, Any] = {}
    self._result: dict[str, Any] = {}
    self._cached: tuple[bytes, bytes, Any] = (b"", b"", ())

  def make(self, folder: Path) -> None:
    make_run(folder)
    checkpoints = Checkpoints(folder / "saved" / "checkpoints", keep=2)
    for step in STEPS:
      checkpoints.save(step, _state(step))
    checkpoints.close()
    examples = datasets.open_split("digits", "val")
    layout = Layout(Preprocess((8, 8), normalize="none"), train=False)
    made = prepared.prepare(examples, layout, folder / "caches")
    made.rename(folder / "cache")

  def open(self, folder: Path, scratch: Path) -> None:
    self._folder = folder
    self._scratch = scratch
    self._states = {step: _state(step) for step in STEPS}
    self._result = main.run(embedded_config(), folder / "run")
    self._cached = _content_of_cache(folder / "cache")

  def run(self, rng: np.random.Generator) -> Outcome:
    parts = (
      self._checkpoint,
      self._checkpoint,
      self._cache,
      self._finished_run,
      self._claimed_run,
      self._records,
    )
    return parts[rng.integers(len(parts))](rng)

  def _copy(self, name: str) -> Path:
    """Returns a fresh copy of one of the sound folders."""
    copied = self._scratch / name
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(self._folder / name, copied)
    return copied

  def _checkpoint(self, rng: np.random.Generator) -> Outcome:
    """A run resumes from one of its states, or it is told which is damaged."""
    workdir = self._copy("saved")
    folder = workdir / "checkpoints"
    damage(any_file(folder, rng), rng)

    def read() -> bool:
      checkpoints = Checkpoints(folder, keep=2)
      try:
        restored = checkpoints.restore(_state(0))
      finally:
        checkpoints.close()
      if restored is None:  # the run starts from the beginning
        return True
      step, got = restored
      return _same_state(got, self._states[step])

    return judge(read, str(folder), is_sealed=True)

  def _cache(self, rng: np.random.Generator) -> Outcome:
    path = self._copy("cache")
    damage(any_file(path, rng), rng)
    return judge(
      lambda: _content_of_cache(path) == self._cached, str(path), is_sealed=True
    )

  def _finished_run(self, rng: np.random.Generator) -> Outcome:
    workdir = self._copy("run")
    names = ("config.json", "data.json", "result.json")
    _damage_json(workdir / str(rng.choice(names)), rng)
    data = experiment.load_data(config_lib.resolve(embedded_config()))
    return judge(
      lambda: main.run(embedded_config(), workdir, data) == self._result,
      str(workdir),
    )

  def _claimed_run(self, rng: np.random.Generator) -> Outcome:
    """A run that is taken up again looks at these before it trains."""
    workdir = self._copy("run")
    names = ("config.json", "data.json", "backbone.json", metrics.FILE)
    _damage_json(workdir / str(rng.choice(names)), rng)
    config = config_lib.resolve(embedded_config())
    data = experiment.load_data(config)
    text = (self._folder / "run" / "backbone.json").read_text()
    backbone = json.loads(text)

    def read() -> bool:
      main.check_same_run(workdir, config, data)
      run_folder.claim(workdir, config, backbone, run_folder.fingerprint(data))
      metrics.Metrics(workdir, step=10**6).close()
      text = (workdir / metrics.FILE).read_bytes()
      return text == (self._folder / "run" / metrics.FILE).read_bytes()

    return judge(read, str(workdir))

  def _records(self, rng: np.random.Generator) -> Outcome:
    """Tables and a page are made from records."""
    workdir = self._copy("run")
    path = workdir / records.FILE
    sound = path.read_bytes()
    _damage_json(path, rng)

    def read() -> bool:
      report.write(records.find([workdir]), workdir / "report")
      return path.read_bytes() == sound

    # A record is named by its id where its file is not known any more.
    return judge(read, "record")


def _state(step: int) -> Any:
  """Returns a state as a run saves it: arrays of several shapes and types."""
  rng = np.random.default_rng(step)
  arrays = {
    "backbone/prompts": rng.normal(size=(2, 5, 7)).astype(np.float32),
    "head/bias": rng.normal(size=3).astype(np.float32),
  }
  return arrays, {"step": np.int32(step), "key": np.uint32([step, 1])}


def _same_state(got: Any, want: Any) -> bool:
  for part, wanted in zip(got, want, strict=True):
    for name, value in wanted.items():
      if np.asarray(part[name]).tobytes() != np.asarray(value).tobytes():
        return False
  return True


def _content_of_cache(path: Path) -> tuple[bytes, bytes, Any]:
  """Returns all that a training reads of a cache."""
  split = prepared.open_cache(path)
  images = split.images[:]
  return images.tobytes(), split.labels.tobytes(), list(split.names)


def any_file(folder: Path, rng: np.random.Generator) -> Path:
  found = sorted(path for path in folder.rglob("*") if path.is_file())
  return found[rng.integers(len(found))]


def damage(path: Path, rng: np.random.Generator) -> None:
  """Changes the bytes of a file, or deletes it, in place."""
  if rng.random() < 0.05:
    path.unlink()
    return
  path.write_bytes(mutations.mutate_bytes(path.read_bytes(), rng))


def _damage_json(path: Path, rng: np.random.Generator) -> None:
  """Changes a JSON text, or a line of one, in place: bytes or values."""
  if rng.random() < 0.5:
    damage(path, rng)
    return
  if path.suffix == ".json":
    path.write_text(mutations.mutate_json(path.read_text(), rng))
    return
  lines = path.read_text().splitlines()
  number = rng.integers(len(lines))
  lines[number] = mutations.mutate_json(lines[number], rng)
  path.write_text("\n".join(lines) + "\n")
