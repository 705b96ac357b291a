"""Commands that are killed at random moments end as undisturbed ones do."""

from pathlib import Path
import re
import subprocess
import sys

ROOT = Path(__file__).resolve().parents[1]

# In a process of its own, as `kills` sets the environment for JAX.
FAULTY = """
import pathlib, sys, time
from tests import kills

def forgets(folder):
  folder.mkdir(exist_ok=True)
  attempts = folder / "attempts"
  count = len(attempts.read_text()) if attempts.exists() else 0
  attempts.write_text("x" * (count + 1))
  time.sleep(0.3)
  return 0

def fails(folder):
  try:
    return forgets(folder)
  except KeyboardInterrupt:
    return 1

def leaves(folder):
  folder.mkdir(exist_ok=True)
  part = folder / ".a.vpt_jax-part"
  if not part.exists():
    part.touch()
    time.sleep(0.3)
    part.unlink()
  return 0

root = pathlib.Path(sys.argv[1])
kinds = {"forgets": forgets, "fails": fails, "leaves": leaves}
made = {}
for name, run in kinds.items():
  made[name] = kills.undisturbed(name, kills.Kind(run), root)
killing = kills.Killing(made, root, 0)
killing.run(6)
for name in kinds:
  faults = [x for x in killing.faults if x.startswith(name)]
  print(name, *{x.split("; kills")[0] for x in faults}, sep=" | ")
"""


def run(*arguments):
  return subprocess.run(
    [sys.executable, *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=400,
    check=False,
  )


def test_faults_are_found(tmp_path):
  """Files that differ or are left over; another status than the signal's."""
  done = run("-c", FAULTY, str(tmp_path))
  assert done.returncode == 0, done.stderr
  forgets, fails, leaves = done.stdout.splitlines()[-3:]
  assert "differs: attempts" in forgets
  assert "status 1 after 2" in fails
  assert "differs: .a.vpt_jax-part" in leaves


def test_kills_at_random_moments_change_nothing():
  """Of training, data preparation and downloads, for a few seconds.

  Every file ends with the same bytes, no part is left, and each attempt ends
  with the status of its signal, without a traceback.
  """
  kinds = ("train", "preparation", "download")  # others have tests of their own
  done = run("-m", "tests.kills", "--seconds", "10", "--kinds", *kinds)
  assert done.returncode == 0, done.stdout + done.stderr
  counts = re.search(r"(\d+) kills, (\d+) runs finished, 0 faults", done.stdout)
  assert int(counts[1]) >= 5 and int(counts[2]) >= 2
