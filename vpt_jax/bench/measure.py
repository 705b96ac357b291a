"""Times two libraries in turn, after it has made sure that they agree."""

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

OURS, THEIRS = "vpt_jax.bench.jax_side", "vpt_jax.bench.pytorch_side"
METHODS = ("linear", "vpt_shallow", "vpt_deep", "vapt", "gated", "pgn")
# Of PyTorch: attention by explicit softmax; by scaled_dot_product_attention;
# that, compiled by torch.compile.
VARIANTS = ("eager", "sdpa", "compile")

# How far logits may be apart: a number; a share of the largest.
TOLERANCE = {"float32": (2e-4, 0.0), "bfloat16": (0.0, 0.05)}
SAMPLE = 0.2  # seconds that a sample takes at least, if 100 runs are enough
PAUSE = 0.02  # seconds between turns: threads that wait awake fall asleep
SIDE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}  # of the matrices of the peak
DEVICES = {"cpu": "cpu", "gpu": "cuda"}  # JAX's name -> torch's

# Of every worker. Products of float32 are float32; both share the memory.
_ENVIRON = {
  "JAX_DEFAULT_MATMUL_PRECISION": "highest",
  "JAX_ENABLE_COMPILATION_CACHE": "false",
  "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}


class Case(TypedDict):
  """What is measured: a line of the tables, as both sides get it.

  `prompts` is per block, `dropout` the rate of all dropouts of the method
  while training, `file` where weights and images are exchanged; `attention` is
  for us (`config.compute.attention`), `variant` and `device` are for PyTorch.
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
  attention: NotRequired[str]
  file: NotRequired[str]
  variant: NotRequired[str]
  device: NotRequired[str]


class Disagree(ValueError):
  """The sides compute different things: there is nothing to compare."""


def compare(
  ours: Sequence[Any], theirs: Sequence[Any], dtype: str, name: str
) -> float:
  """Largest difference of two sides' logits [B, K].

  Raises:
    Disagree: it is above the tolerance, or not a number.
  """
  ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
  absolute, share = TOLERANCE[dtype]
  most = max(absolute, share * np.abs(ours).max())
  difference = (
    float(np.abs(ours - theirs).max())
    if ours.shape == theirs.shape
    else math.inf
  )
  if not difference <= most:
    raise Disagree(
      f"logits of ours and {name} differ by {difference:.2e} in {dtype}; "
      f"expected at most {most:.2e}. Times of different computations are not "
      "compared: one of the two is wrong"
    )
  return difference


def export(case: Case, folder: Path) -> Case:
  """The case with its weights and images, drawn and written to `folder`."""
  case = {**case, "file": str(folder / "case.npz")}
  with Worker("ours", OURS, case, _environ(folder)) as worker:
    worker.ask("export")
  return case


def _environ(folder: Path, cache: Path | None = None) -> dict[str, str]:
  """Of a worker; compiled programs are kept in `cache`, if any."""
  out = {**_ENVIRON, "TORCHINDUCTOR_CACHE_DIR": str(cache or folder / "torch")}
  if cache:
    out |= {
      "JAX_ENABLE_COMPILATION_CACHE": "true",
      "JAX_COMPILATION_CACHE_DIR": str(cache),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
  return out


class _Sides:
  """Workers that are left, and why the others are not."""

  def __init__(self):
    self.workers: dict[str, Worker] = {}
    self.found: dict[str, dict[str, Any]] = {}

  def ask(
    self, name: str, command: str, count: int = 1
  ) -> dict[str, Any] | None:
    """What a side gives; None if it can't, which then leaves the row.

    Raises:
      Failed: ours can't.
    """
    try:
      return self.workers[name].ask(command, count)
    except Failed as error:
      if name == "ours":
        raise
      self.workers.pop(name).close()
      self.found[name] = {"unavailable": str(error)}
      return None

  def check(self, dtype: str) -> None:
    """Compares all sides' logits with ours.

    Raises:
      Disagree: they differ.
    """
    logits = {name: self.ask(name, "logits") for name in list(self.workers)}
    for name, found in logits.items():
      if found:
        self.found[name] = {
          "forward": {"first": found["seconds"], "samples": []},
          "difference": compare(
            logits["ours"]["logits"], found["logits"], dtype, name
          ),
        }

  def times(self, command: str, repeats: int) -> None:
    """Samples of all sides, each in its turn, who begins changing."""
    runs = {}
    for name in list(self.workers):
      found = self.found[name].setdefault(command, {"samples": []})
      # The first forward pass gave the logits.
      first = found if "first" in found else self.ask(name, command)
      again = first and self.ask(name, command)
      if again:
        found.setdefault("first", first.get("seconds"))
        runs[name] = min(100, math.ceil(SAMPLE / again["seconds"]))
        found["runs"] = runs[name]
    for repeat in range(repeats):
      names = list(self.workers)
      turn = repeat % len(names)
      for name in names[turn:] + names[:turn]:
        time.sleep(PAUSE)
        sample = self.ask(name, command, runs[name])
        if sample:
          self.found[name][command]["samples"].append(sample["seconds"])
    for name in list(self.workers):
      memory = self.ask(name, "memory")
      if memory:
        self.found[name][command]["memory"] = memory["bytes"]


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
    {case, platform, sides: {"ours" or variant: {forward, train: {first, runs,
    samples, memory}, difference, idle, matmul, gflops, device, versions}, or
    {unavailable: why}}}: seconds, bytes, GFLOPs per image, GFLOP/s.

  Raises:
    Disagree: the sides' logits are not the same.
    Failed: our side can't.
  """
  sides = _Sides()
  with contextlib.ExitStack() as stack:
    # Of this row alone: nor is anything compiled there yet.
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
    exported = export(case, folder)

    def start(name: str, module: str, more: Mapping[str, str]) -> None:
      sides.workers[name] = Worker(
        name, module, exported | more, _environ(folder)
      )
      stack.callback(sides.workers[name].close)
      sides.found[name] = {}

    start("ours", OURS, {})
    platform = sides.ask("ours", "facts")["platform"]
    for name in variants if platform in DEVICES else ():
      start(name, THEIRS, {"variant": name, "device": DEVICES[platform]})
    sides.check(case["dtype"])
    for command in ("forward", "train"):
      sides.times(command, repeats)
    for name in list(sides.workers):
      found = sides.found[name]
      found["idle"] = sides.workers[name].idle
      for key, value in (sides.ask(name, "facts") or {}).items():
        found[key] = value
      if name in sides.workers:
        peak = sides.ask(name, "matmul", SIDE[platform])
        found |= {"matmul": peak["gflops"]} if peak else {}
  return {"case": dict(case), "platform": platform, "sides": sides.found}


def start_up(
  case: Case, platform: str, variants: Sequence[str], folder: Path
) -> list[dict[str, Any]]:
  """Seconds from the start of a process to the end of its first step.

  Each side twice: without and with what the first process has compiled.

  Returns:
    [{side, cold, warm}], or with {unavailable: why} in place of times.
  """
  exported, out = export(case, folder), []
  for name in ("ours", *(variants if platform in DEVICES else ())):
    more = (
      {} if name == "ours" else {"variant": name, "device": DEVICES[platform]}
    )
    line = {"side": name}
    for state in ("cold", "warm"):
      with Worker(
        name,
        THEIRS if more else OURS,
        exported | more,
        _environ(folder, folder / f"cache_{name}"),
      ) as worker:
        try:
          worker.ask("train")
          line[state] = time.perf_counter() - worker.started
        except Failed as error:
          line["unavailable"] = str(error)
          break
    out.append({"case": dict(case), **line})
  Path(exported["file"]).unlink()
  return out


def scoring(case: Case, images: int, folder: Path) -> dict[str, Any]:
  """Seconds to score a case's prompts, by `vpt_jax.condensation.prompt_scores`."""
  exported = export(case, folder)
  with Worker("ours", OURS, exported, _environ(folder)) as worker:
    found = worker.ask("score", images)
  Path(exported["file"]).unlink()
  return {"case": dict(case), **found}


def median(side: Mapping[str, Any], command: str) -> float:
  """Seconds of a forward pass or a step."""
  return statistics.median(side[command]["samples"])


def best(sides: Mapping[str, Mapping[str, Any]], command: str) -> str | None:
  """PyTorch's fastest variant, or None."""
  there = [
    name
    for name in sides
    if name != "ours" and "unavailable" not in sides[name]
  ]
  return min(there, key=lambda name: median(sides[name], command), default=None)


def peak(rows: Sequence[Mapping[str, Any]], dtype: str) -> float:
  """GFLOP/s: the most that either library reached in a matrix product."""
  return max(
    side["matmul"]
    for line in rows
    if line["case"]["dtype"] == dtype
    for side in line["sides"].values()
    if "matmul" in side
  )
