"""Times two libraries in turn, after it has made sure that they agree.

The sides of the benchmark are `vpt_jax` and the variants of PyTorch. Each is a
process of its own, see `worker.py`.
"""

from collections.abc import Mapping, Sequence
import contextlib
import math
from pathlib import Path
import statistics
import tempfile
import time
from typing import Any, NotRequired, TypedDict

import numpy as np

from vpt_jax.bench.worker import Failed, Worker

JAX = "vpt_jax"  # the name of this repository's side
# What the processes of the two libraries run.
JAX_MODULE = "vpt_jax.bench.jax_side"
PYTORCH_MODULE = "vpt_jax.bench.pytorch_side"

METHODS = ("linear", "vpt_shallow", "vpt_deep", "vapt", "gated", "pgn")
# Of PyTorch: attention by explicit softmax; by scaled_dot_product_attention;
# that, compiled by torch.compile.
VARIANTS = ("eager", "sdpa", "compile")
TIMED = ("forward", "train")  # the commands of a side that are timed
ATTENTION = "ours"  # the default of `config.compute.attention`

# How far logits may be apart: a number; a share of the largest.
TOLERANCE = {"float32": (2e-4, 0.0), "bfloat16": (0.0, 0.05)}
SAMPLE = 0.2  # seconds that a sample takes at least, if 100 runs are enough
MOST_RUNS = 100  # of a sample
PAUSE = 0.02  # seconds between turns: threads that wait awake fall asleep
# Sides of the square matrices whose product gives the peak.
PEAK_SIZE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
TORCH_DEVICES = {"cpu": "cpu", "gpu": "cuda"}  # of JAX's platforms

# Of every worker. Products of float32 are float32; both share the memory.
_ENVIRONMENT = {
  "JAX_DEFAULT_MATMUL_PRECISION": "highest",
  "JAX_ENABLE_COMPILATION_CACHE": "false",
  "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}


class Case(TypedDict):
  """What is measured: a line of the tables, as both sides get it.

  `prompts` is per block, `dropout` the rate of all dropouts of the method
  while training, `segmentation` its head ("": classification), `file` where
  weights and images are exchanged; `attention` is for vpt_jax
  (`config.compute.attention`), `variant` and `device` are for PyTorch.
  """

  backbone: str
  image_size: int
  method: str
  prompts: int
  dtype: str
  batch: int
  dropout: float
  classes: int
  seed: int
  segmentation: NotRequired[str]
  attention: NotRequired[str]
  file: NotRequired[str]
  variant: NotRequired[str]
  device: NotRequired[str]


class Disagree(ValueError):
  """The sides compute different things: there is nothing to compare."""


def compare(
  expected: Sequence[Any], logits: Sequence[Any], dtype: str, name: str
) -> float:
  """Returns the largest difference of two sides' logits.

  Args:
    expected: of vpt_jax, [B, K], or [B, n, n, K] of segmentation.
    logits: of the other side, likewise.
    dtype: of the computation.
    name: of the other side.

  Raises:
    Disagree: it is above the tolerance, or not a number.
  """
  wanted = np.asarray(expected, float)
  found = np.asarray(logits, float)
  absolute, share = TOLERANCE[dtype]
  most = max(absolute, share * np.abs(wanted).max())
  difference = math.inf
  if wanted.shape == found.shape:
    difference = float(np.abs(wanted - found).max())
  if not difference <= most:  # true of NaN, too
    raise Disagree(
      f"logits of {JAX} and {name} differ by {difference:.2e} in {dtype}; "
      f"expected at most {most:.2e}. Times of different computations are not "
      "compared: one of the two is wrong"
    )
  return difference


def export(case: Case, folder: Path) -> Case:
  """Draws a case's weights and images and writes them to a folder.

  Returns:
    The case with the file's name.
  """
  case = {**case, "file": str(folder / "case.npz")}
  with Worker(JAX, JAX_MODULE, case, _environment(folder)) as worker:
    worker.ask("export")
  return case


def _environment(folder: Path, cache: Path | None = None) -> dict[str, str]:
  """Returns that of a worker; compiled programs are kept in `cache`, if any."""
  torch_cache = folder / "torch" if cache is None else cache
  out = {**_ENVIRONMENT, "TORCHINDUCTOR_CACHE_DIR": str(torch_cache)}
  if cache is not None:
    out["JAX_ENABLE_COMPILATION_CACHE"] = "true"
    out["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    out["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    out["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
  return out


class _Sides:
  """The sides of a case and what was found of each.

  Attributes:
    workers: those that are left, by name.
    found: of each side, see `row`; of one that failed, why.
  """

  def __init__(self) -> None:
    self.workers: dict[str, Worker] = {}
    self.found: dict[str, dict[str, Any]] = {}

  def add(self, worker: Worker) -> None:
    """Adds a side."""
    self.workers[worker.name] = worker
    self.found[worker.name] = {}

  def ask(
    self, name: str, command: str, count: int = 1
  ) -> dict[str, Any] | None:
    """Returns what a side answers; None if it fails, and it is left out.

    Raises:
      Failed: vpt_jax does: then there is nothing to compare with.
    """
    try:
      return self.workers[name].ask(command, count)
    except Failed as error:
      if name == JAX:
        raise
      self.workers.pop(name).close()
      self.found[name] = {"unavailable": str(error)}
      return None

  def check(self, dtype: str) -> None:
    """Compares all sides' logits with those of vpt_jax.

    Raises:
      Disagree: they differ.
    """
    answers: dict[str, dict[str, Any]] = {}
    for name in list(self.workers):
      answer = self.ask(name, "logits")
      if answer is not None:
        answers[name] = answer
    expected = answers[JAX]["logits"]
    for name, answer in answers.items():
      difference = compare(expected, answer["logits"], dtype, name)
      self.found[name] = {
        # The first forward pass gave the logits.
        "forward": {"first": answer["seconds"], "samples": []},
        "difference": difference,
      }

  def time(self, command: str, repeats: int) -> None:
    """Takes samples of all sides in turns, who begins changing."""
    for name in list(self.workers):
      self._warm_up(name, command)
    for repeat in range(repeats):
      names = list(self.workers)
      first = repeat % len(names)
      for name in names[first:] + names[:first]:
        time.sleep(PAUSE)
        timed = self.found[name][command]
        sample = self.ask(name, command, timed["runs"])
        if sample is not None:
          timed["samples"].append(sample["seconds"])
          busy = self.workers[name].busy / timed["runs"]
          timed["busy"].append(busy)
    for name in list(self.workers):
      memory = self.ask(name, "memory")
      if memory is not None:
        self.found[name][command]["memory"] = memory["bytes"]

  def _warm_up(self, name: str, command: str) -> None:
    """Runs a command until it is compiled, and sets the runs of a sample."""
    timed = self.found[name].setdefault(command, {"samples": []})
    timed["busy"] = []
    if "first" not in timed:
      first = self.ask(name, command)
      if first is None:
        return
      timed["first"] = first["seconds"]
    usual = self.ask(name, command)
    if usual is not None:
      timed["runs"] = min(MOST_RUNS, math.ceil(SAMPLE / usual["seconds"]))

  def describe(self, name: str, platform: str) -> None:
    """Asks a side for its facts and its peak."""
    found = self.found[name]
    found["idle"] = self.workers[name].idle
    facts = self.ask(name, "facts")
    if facts is None:
      return
    found.update(facts)
    peak = self.ask(name, "matmul", PEAK_SIZE[platform])
    if peak is not None:
      found["matmul"] = peak["gflops"]


def row(
  case: Case, repeats: int, variants: Sequence[str], folder: Path
) -> dict[str, Any]:
  """Measures one case.

  Args:
    case: without file, variant and device.
    repeats: samples of everything.
    variants: of PyTorch.
    folder: for what is exchanged.

  Returns:
    {case, platform, sides: {JAX or variant: {forward, train: {first, runs,
    samples, busy, memory}, difference, idle, matmul, gflops, device, versions},
    or {unavailable: why}}}: seconds (`busy`: of processors), bytes, GFLOPs per
    image, GFLOP/s.

  Raises:
    Disagree: the sides' logits are not the same.
    Failed: vpt_jax fails.
  """
  sides = _Sides()
  with contextlib.ExitStack() as stack:
    # Of this row alone: nothing is compiled there yet, either.
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
    exported = export(case, folder)
    environment = _environment(folder)

    def start(name: str, module: str, more: Mapping[str, str]) -> None:
      worker = Worker(name, module, {**exported, **more}, environment)
      stack.callback(worker.close)
      sides.add(worker)

    start(JAX, JAX_MODULE, {})
    platform = sides.workers[JAX].ask("facts")["platform"]
    for variant, options in _pytorch_sides(variants, platform).items():
      start(variant, PYTORCH_MODULE, options)
    sides.check(case["dtype"])
    for command in TIMED:
      sides.time(command, repeats)
    for name in list(sides.workers):
      sides.describe(name, platform)
  return {"case": dict(case), "platform": platform, "sides": sides.found}


def _pytorch_sides(
  variants: Sequence[str], platform: str
) -> dict[str, dict[str, str]]:
  """Returns {variant: its part of the case}; none where PyTorch cannot run."""
  if platform not in TORCH_DEVICES:
    return {}
  device = TORCH_DEVICES[platform]
  return {
    variant: {"variant": variant, "device": device} for variant in variants
  }


def start_up(
  case: Case, platform: str, variants: Sequence[str], folder: Path
) -> list[dict[str, Any]]:
  """Measures seconds from the start of a process to the end of its first step.

  Each side twice: without and with what the first process has compiled.

  Returns:
    [{case, side, cold, warm}], or with {unavailable: why} in place of times.
  """
  exported = export(case, folder)
  out = [{"case": dict(case), **_start_side(JAX, JAX_MODULE, exported, folder)}]
  for variant, options in _pytorch_sides(variants, platform).items():
    side_case = {**exported, **options}
    times = _start_side(variant, PYTORCH_MODULE, side_case, folder)
    out.append({"case": dict(case), **times})
  Path(exported["file"]).unlink()
  return out


def _start_side(
  name: str, module: str, case: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
  """Returns {side, cold, warm}, seconds; see `start_up`."""
  out: dict[str, Any] = {"side": name}
  environment = _environment(folder, folder / f"cache_{name}")
  for state in ("cold", "warm"):
    with Worker(name, module, case, environment) as worker:
      try:
        worker.ask("train")
      except Failed as error:
        out["unavailable"] = str(error)
        return out
      out[state] = time.perf_counter() - worker.started
  return out


def scoring(case: Case, images: int, folder: Path) -> dict[str, Any]:
  """Measures seconds to score a case's prompts.

  It is done by `vpt_jax.condensation.prompt_scores`.
  """
  exported = export(case, folder)
  with Worker(JAX, JAX_MODULE, exported, _environment(folder)) as worker:
    found = worker.ask("score", images)
  Path(exported["file"]).unlink()
  return {"case": dict(case), **found}


# Reading what `row` returns.


def median(
  side: Mapping[str, Any], command: str, what: str = "samples"
) -> float:
  """Returns the seconds of a forward pass or of a step.

  Args:
    side: see `row`.
    command: of `TIMED`.
    what: `samples`, or `busy` for seconds of processors.
  """
  return statistics.median(side[command][what])


def best(sides: Mapping[str, Mapping[str, Any]], command: str) -> str | None:
  """Returns PyTorch's fastest variant, or None."""
  times = {}
  for name, side in sides.items():
    if name != JAX and "unavailable" not in side:
      times[name] = median(side, command)
  return min(times, key=times.__getitem__, default=None)


def peak(rows: Sequence[Mapping[str, Any]], dtype: str) -> float:
  """Returns GFLOP/s: the most that either library reached in a product."""
  reached = []
  for line in rows:
    if line["case"]["dtype"] == dtype:
      reached += [
        side["matmul"] for side in line["sides"].values() if "matmul" in side
      ]
  return max(reached)
