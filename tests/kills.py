"""Kills commands at random moments until they end, and compares what is left.

  python -m tests.kills --seconds 600
  python -m tests.kills --seconds 60 --kinds train download

Trains, sweeps, condenses, prepares images and downloads, each with the command
line that users have and tiny settings. A command gets SIGKILL, SIGTERM or
SIGINT at a random moment and is given again, until it has finished; then every
file that it left must have the bytes of an undisturbed run. Prints a table;
exits with 1 on any difference, on a status that is not that of the signal, and
when a process does not end.

Each attempt is a process, forked from one that has imported all but has not
started JAX: that saves three seconds of imports.
"""

import argparse
from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import http.server
import json
import os
from pathlib import Path
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from typing import Any, NoReturn

# Programs that a kill has left half are read by the next attempt, too; those of
# the tests shall not be. Before JAX and `conftest`, which sets them for tests.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp()
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np
import orbax.checkpoint  # noqa: F401, imported once for all attempts
from PIL import Image
import sklearn.datasets  # noqa: F401
import tensorboardX  # noqa: F401

from tests import conftest  # noqa: F401, the backbone vit_test
from vpt_jax import main
from vpt_jax.data import __main__ as data_command
from vpt_jax.utils import command_line, signals
from vpt_jax.weights import convert

# Attempts at the same time; each has more threads than one.
LANES = 2
# After so many kills a run is left alone, so that it ends.
MOST_KILLS = 20
# Seconds after a signal in which a process must end.
HANGS = 60.0
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# Before a command has begun SIGTERM has no handler.
STATUSES = {
  signal.SIGKILL: (-signal.SIGKILL,),
  signal.SIGTERM: (128 + signal.SIGTERM, -signal.SIGTERM),
  signal.SIGINT: (128 + signal.SIGINT,),
}

# What a clock gave.
TIMES = ("seconds", "images_per_second", "milliseconds")
# Folders whose bytes depend on the moment; what they restore is in the results.
IGNORED = ("checkpoints", "tensorboard")
UNFINISHED = ("vpt_jax-part", "orbax-checkpoint-tmp", ".part", ".old")

BACKBONE = "vit_mini4_cifar10.npz"  # of the package; what is downloaded
SMALL = (
  "--config.backbone.name=vit_test",
  "--config.backbone.checkpoint=random",
  "--config.image_size=8",
  "--config.optim.warmup_epochs=1",
  "--config.checkpoint.every_epochs=1",
)
Results = dict[str, bytes]


@dataclasses.dataclass(frozen=True)
class Kind:
  """A command that is killed.

  Attributes:
    run: runs it in a folder; returns its exit status, or exits.
    seconds: that it takes undisturbed; measured.
    want: what it leaves undisturbed.
  """

  run: Callable[[Path], int]
  seconds: float = 0.0
  want: Results = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Run:
  """A run that is killed until it finishes.

  Attributes:
    kind: its name.
    folder: of its own.
    child: process id of the attempt.
    started: when it was started.
    kill_at: when the attempt gets a signal; None: never.
    sent: the signal that it has got, and when; None: none.
    kills: the signals that have ended attempts.
  """

  kind: str
  folder: Path
  child: int = 0
  started: float = 0.0
  kill_at: float | None = None
  sent: tuple[signal.Signals, float] | None = None
  kills: list[signal.Signals] = dataclasses.field(default_factory=list)

  @property
  def log(self) -> Path:
    """What the latest attempt has written."""
    return self.folder.with_suffix(".log")


def train_command(*arguments: str) -> Callable[[Path], int]:
  """Returns what runs `python -m vpt_jax.main` in a folder."""

  def run(folder: Path) -> int:
    argv = ["main", *arguments, *SMALL, f"--workdir={folder}"]
    return main.exit_status(main.start_process) or main.main(argv)

  return run


def listened() -> int:
  """Begins as commands do; returns the exit status."""
  return command_line.exit_status(signals.listen)


def prepare_command(photos: Path) -> Callable[[Path], int]:
  """Returns what runs `python -m vpt_jax.data prepare`."""

  def run(folder: Path) -> int:
    return listened() or data_command.main(
      [
        "data",
        "prepare",
        f"--source=folder:{photos}",
        f"--cache={folder}",
        "--image_size=64",
        "--workers=2",
      ]
    )

  return run


def download_command(url: str) -> Callable[[Path], int]:
  """Returns what runs `python -m vpt_jax.backbones.convert URL`."""

  def run(folder: Path) -> int:
    os.environ["VPT_JAX_CACHE"] = str(folder)
    output = folder / "converted.npz"
    arguments = ["--to", str(output), "--backbone", "vit_mini4", "--no-verify"]
    return listened() or convert.main(["convert", url, *arguments])

  return run


def kinds(root: Path) -> dict[str, Kind]:
  """Returns all kinds of commands; makes their data, starts the server."""
  photos = root / "photos"
  write_photos(photos)
  scenes = root / "scenes"
  write_scenes(scenes)
  return {
    "train": Kind(
      train_command(
        "--config=configs/vapt_vtab.py",
        "--config.epochs=6",
        "--config.vapt.num_tokens=3",
        "--config.batch_size=96",
      )
    ),
    "segmentation": Kind(
      train_command(
        "--config=configs/vpt_vtab.py",
        "--config.problem=segmentation",
        f"--config.data.source=segfolder:{scenes}",
        "--config.data.train_split=train",
        "--config.epochs=6",
        "--config.steps_per_epoch=5",
        "--config.vpt.num_tokens=2",
        "--config.batch_size=8",
        "--config.segmentation.decoder=linear",
        "--config.segmentation.scale=(16, 8)",
        "--config.segmentation.test_scale=(16, 8)",
      )
    ),
    "sweep": Kind(
      train_command(
        "--config=configs/vpt_vtab.py",
        "--config.mode=sweep",
        "--config.epochs=3",
        "--config.vpt.num_tokens=2",
        "--config.sweep.grid=(('optim.lr', (0.1, 1.0)),)",
        "--config.sweep.seeds=(1, 2)",
        "--config.sweep.group=1",
      )
    ),
    "condensation": Kind(
      train_command(
        "--config=configs/condense_vtab.py",
        "--config.epochs=3",
        "--config.vpt.num_tokens=4",
        "--config.condense.shares=(0.25,)",
        "--config.condense.epochs=2",
        "--config.condense.oracle_images=50",
      )
    ),
    "preparation": Kind(prepare_command(photos)),
    "download": Kind(download_command(serve(root / "server.log"))),
  }


def write_photos(folder: Path) -> None:
  """Writes images of two classes, which are divided into parts by chance."""
  rng = np.random.default_rng(0)
  for name in ("cat", "dog"):
    (folder / name).mkdir(parents=True)
    for number in range(600):
      pixels = rng.integers(0, 256, (96, 80, 3), np.uint8)
      Image.fromarray(pixels).save(folder / name / f"{number}.png")


def write_scenes(folder: Path) -> None:
  """Writes images of noise with masks, of equal parts for train and test."""
  rng = np.random.default_rng(1)
  for part in ("train", "test"):
    for number in range(12):
      pixels = rng.integers(0, 256, (12, 10, 3), np.uint8)
      labels = (pixels[..., 0] > 128).astype(np.uint8)
      for name, array in (("images", pixels), ("masks", labels)):
        path = folder / part / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


class Slow(http.server.SimpleHTTPRequestHandler):
  """Serves one file slowly, and ranges of it."""

  protocol_version = "HTTP/1.0"
  content = b""

  def do_GET(self) -> None:
    """Answers a request, a piece every few milliseconds."""
    start = 0
    requested = self.headers.get("Range", "")
    if requested and self.headers.get("If-Range") == '"one"':
      start = int(requested.removeprefix("bytes=").removesuffix("-"))
    size = len(self.content)
    self.send_response(206 if start else 200)
    self.send_header("ETag", '"one"')
    self.send_header("Content-Length", str(size - start))
    if start:
      self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
    self.end_headers()
    piece = max(1, size // 50)
    for first in range(start, size, piece):
      self.wfile.write(self.content[first : min(first + piece, size)])
      time.sleep(0.01)

  def log_message(self, *_: Any) -> None:
    """Writes nothing."""


def serve(log: Path) -> str:
  """Starts a server of a backbone, on this machine; returns the address."""
  assets = Path(main.__file__).parent / "assets"
  Slow.content = (assets / BACKBONE).read_bytes()
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
  # A process, as a thread would not be forked well.
  _processes.append(forked(lambda: server.serve_forever() or 0, log))
  server.server_close()
  return f"http://127.0.0.1:{server.server_port}/{BACKBONE}"


# Those that still run at the end.
_processes: list[int] = []


def forked(work: Callable[[], int], log: Path) -> int:
  """Starts a process for some work; returns its id."""
  sys.stdout.flush()
  log.write_bytes(b"")
  # A signal before its `try` would let the child go on here.
  signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
  child = os.fork()
  if not child:
    _be_a_command(work, log)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
  return child


def _be_a_command(work: Callable[[], int], log: Path) -> NoReturn:
  """Does some work as a process that was started by itself does."""
  status: Any = 1
  try:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    handle = os.open(log, os.O_WRONLY)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    status = work()
  except SystemExit as end:
    status = end.code
  except KeyboardInterrupt:  # before the command has begun
    status = 128 + signal.SIGINT
  except BaseException:
    traceback.print_exc()
  with contextlib.suppress(BaseException):
    sys.stdout.flush()
    sys.stderr.flush()
  os._exit(status or 0)


def results(folder: Path) -> Results:
  """Returns the bytes of all files, without what a clock gave."""
  found = {}
  for path in sorted(folder.rglob("*")):
    name = str(path.relative_to(folder))
    if any(end in name for end in UNFINISHED):
      found[name] = b"unfinished"
    elif path.is_file() and not set(path.parts) & set(IGNORED):
      found[name] = _timeless(path)
  return found


def _timeless(path: Path) -> bytes:
  """Returns the bytes of a file; of JSON without times."""
  content = path.read_bytes()
  if path.suffix not in (".json", ".jsonl"):
    return content
  texts = [content] if path.suffix == ".json" else content.splitlines()
  values = [_without_times(json.loads(text)) for text in texts]
  return "\n".join(json.dumps(value) for value in values).encode()


def _without_times(value: Any) -> Any:
  if isinstance(value, list):
    return [_without_times(item) for item in value]
  if not isinstance(value, dict):
    return value
  kept = {}
  for name, item in value.items():
    if name not in TIMES:
      kept[name] = _without_times(item)
  return kept


def undisturbed(name: str, kind: Kind, root: Path) -> Kind:
  """Returns a kind with what it leaves, and how long it takes.

  Twice, as the first time programs are compiled.

  Raises:
    RuntimeError: it fails, or its results differ from run to run.
  """
  wants = []
  seconds = []
  for number in range(2):
    run = Run(name, root / f"{name}-whole-{number}")
    started = time.monotonic()
    run.child = forked(lambda run=run: kind.run(run.folder), run.log)
    _, status = os.waitpid(run.child, 0)
    seconds.append(time.monotonic() - started)
    if status:
      raise RuntimeError(f"{name} fails undisturbed:\n{run.log.read_text()}")
    wants.append(results(run.folder))
  if differing(*wants):
    raise RuntimeError(f"{name} differs undisturbed: {differing(*wants)}")
  return dataclasses.replace(kind, seconds=min(seconds), want=wants[0])


def differing(ours: Results, theirs: Results) -> list[str]:
  """Returns the names of files that are not the same in both."""
  names = sorted(ours.keys() | theirs.keys())
  return [name for name in names if ours.get(name) != theirs.get(name)]


class Killing:
  """Kills runs of all kinds until the time is over.

  Attributes:
    kinds: by name.
    kills: {kind: the signals that have ended attempts}.
    finished: {kind: how many runs}.
    faults: what was not as it should be.
  """

  def __init__(self, kinds: dict[str, Kind], root: Path, seed: int):
    """Begins with nothing; see `run`."""
    self.kinds = kinds
    self.kills: dict[str, list[signal.Signals]] = {name: [] for name in kinds}
    self.finished = dict.fromkeys(kinds, 0)
    self.faults: list[str] = []
    self._root = root
    self._random = random.Random(seed)
    self._begun = 0
    self._spent = dict.fromkeys(kinds, 0.0)
    self._end = 0.0

  def run(self, seconds: float) -> None:
    """Kills for some time; then lets what has begun finish."""
    self._end = time.monotonic() + seconds
    runs: list[Run] = []
    while runs or time.monotonic() < self._end:
      while len(runs) < LANES and time.monotonic() < self._end:
        runs.append(self._begin())
      for run in list(runs):
        if self._is_over(run):
          runs.remove(run)
      time.sleep(0.002)

  def _begin(self) -> Run:
    """Begins a run of the kind on which the least time was spent."""
    name = min(self._spent, key=lambda name: self._spent[name])
    self._begun += 1
    run = Run(name, self._root / f"{name}-{self._begun}")
    # At once, so that the other lane takes another kind.
    self._spent[name] += 0.1
    self._attempt(run)
    return run

  def _attempt(self, run: Run) -> None:
    kind = self.kinds[run.kind]
    run.sent = None
    run.kill_at = None
    if time.monotonic() < self._end and len(run.kills) < MOST_KILLS:
      # What attempts before have done is not done again, so that the end comes
      # into this time too.
      delay = self._random.uniform(0, 0.8 * kind.seconds)
      run.kill_at = time.monotonic() + delay
    run.started = time.monotonic()
    run.child = forked(lambda: kind.run(run.folder), run.log)

  def _is_over(self, run: Run) -> bool:
    """Looks after an attempt; returns whether the run is over."""
    now = time.monotonic()
    ended, status = os.waitpid(run.child, os.WNOHANG)
    if ended:
      self._spent[run.kind] += now - run.started
      return self._ended(run, os.waitstatus_to_exitcode(status))
    if run.sent is not None and now - run.sent[1] > HANGS:
      os.kill(run.child, signal.SIGKILL)
      os.waitpid(run.child, 0)
      return self._fault(run, f"did not end {HANGS:g} s after {run.sent[0]}")
    if run.sent is None and run.kill_at is not None and now > run.kill_at:
      number = self._random.choice(SIGNALS)
      os.kill(run.child, number)
      run.sent = (number, now)
    return False

  def _ended(self, run: Run, status: int) -> bool:
    """Takes note of an attempt that has ended; returns whether the run has."""
    number = run.sent[0] if run.sent else None
    if "Traceback" in run.log.read_text(errors="replace"):
      # Also "Exception ignored": the signal was lost.
      return self._fault(run, f"status {status}, a traceback after {number}")
    if status == 0:
      self.finished[run.kind] += 1
      wrong = differing(results(run.folder), self.kinds[run.kind].want)
      if wrong:
        return self._fault(run, f"differs: {', '.join(wrong)}")
      return True
    if number is None or status not in STATUSES[number]:
      return self._fault(run, f"status {status} after {number}")
    run.kills.append(number)
    self.kills[run.kind].append(number)
    self._attempt(run)
    return False

  def _fault(self, run: Run, what: str) -> bool:
    before = ", ".join(number.name for number in run.kills)
    text = run.log.read_text(errors="replace")[-3000:]
    self.faults.append(f"{run.kind}: {what}; kills before: {before}\n{text}")
    print(self.faults[-1], flush=True)
    return True

  def table(self) -> str:
    """Returns a line for each kind, and their sums."""
    names = [number.name for number in SIGNALS]
    lines = [f"{'kind':20}{'kills':>6}  {'  '.join(names)}  finished  faults"]
    for kind, kills in self.kills.items():
      counts = [kills.count(number) for number in SIGNALS]
      columns = "  ".join(
        f"{count:{len(name)}}"
        for name, count in zip(names, counts, strict=True)
      )
      faults = sum(fault.startswith(f"{kind}:") for fault in self.faults)
      lines.append(
        f"{kind:20}{len(kills):6}  {columns}  {self.finished[kind]:8}  "
        f"{faults:6}"
      )
    total = sum(len(kills) for kills in self.kills.values())
    lines.append(
      f"{total} kills, {sum(self.finished.values())} runs finished, "
      f"{len(self.faults)} faults"
    )
    return "\n".join(lines)


def command(argv: Sequence[str]) -> int:
  """Runs the command line; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--seconds", type=float, default=600.0)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--kinds", nargs="+", default=None)
  args = parser.parse_args(argv)
  root = Path(tempfile.mkdtemp(prefix="vpt_jax_kills_"))
  try:
    known = kinds(root)
    chosen = args.kinds or list(known)
    measured = {}
    for name in chosen:
      measured[name] = undisturbed(name, known[name], root)
      print(f"{name}: {measured[name].seconds:.1f} s undisturbed", flush=True)
    killing = Killing(measured, root, args.seed)
    killing.run(args.seconds)
  finally:
    for process in _processes:
      os.kill(process, signal.SIGKILL)
    shutil.rmtree(root)
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
  print(killing.table())
  return 1 if killing.faults else 0


if __name__ == "__main__":
  sys.exit(command(sys.argv[1:]))
