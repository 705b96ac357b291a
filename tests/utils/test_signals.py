"""Signals end a process soon, with their status, and say what is saved."""

import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest

from vpt_jax.utils import command_line, signals

ROOT = Path(__file__).resolve().parents[2]

# As XLA does when it compiles: a call of C that takes minutes, lets other
# threads run and never looks at signals.
DEAF = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
# XLA itself, which hears on CPU, but goes on: the process hung at its exit.
COMPILES = """
  import jax, jax.numpy as jnp
  def deep(x):
    for _ in range(800):
      x = jnp.sin(x @ x)
    return x
  lowered = jax.jit(deep).lower(jnp.ones((64, 64)))
  print("compiles", flush=True)
  lowered.compile()
"""
SLEEPS = "time.sleep(60)"
PROGRAM = """
import hashlib, sys, time
from vpt_jax.utils import command_line, signals
def work():
  signals.listen()
  signals.tell_saved(lambda: {saved!r})
  print("started", flush=True)
  {work}
command_line.leave(command_line.exit_status(work))
"""
SAVED = "; saved: training up to epoch 3; the same command resumes\n"
NOTHING = "; nothing was saved yet, the same command begins again\n"


@pytest.fixture
def start():
  """A function that starts a process, which says when its work begins."""
  processes = []

  def begin(work, saved="training up to epoch 3", seconds="0.5"):
    process = subprocess.Popen(
      [sys.executable, "-c", PROGRAM.format(work=work, saved=saved)],
      cwd=ROOT,
      env={**os.environ, "PYTHONPATH": str(ROOT), signals.VARIABLE: seconds},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    processes.append(process)
    if work:
      assert process.stdout.readline() == "started\n", process.stderr.read()
      time.sleep(0.3)  # until it is in the call of C
    return process

  yield begin
  for process in processes:
    process.kill()
    process.communicate()


def ended(process, number):
  """What it wrote on stderr; it ends within seconds, with that status."""
  _, err = process.communicate(timeout=20)
  assert process.returncode == 128 + number, err
  assert "Traceback" not in err
  return err


@pytest.mark.parametrize("saved", ["training up to epoch 3", ""])
@pytest.mark.parametrize("work", [DEAF, SLEEPS], ids=["deaf", "sleeps"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_whatever_the_main_thread_does(
  start, number, work, saved
):
  """In a call of C the watcher does it: SIGTERM was unheard for minutes."""
  process = start(work, saved)
  process.send_signal(number)
  err = ended(process, number)
  assert err.lstrip() == signals.CAUSES[number] + (SAVED if saved else NOTHING)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_compilation(start, number, monkeypatch):
  monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "0")
  process = start(COMPILES.strip(), seconds="5")
  assert process.stdout.readline() == "compiles\n"
  time.sleep(0.5)
  process.send_signal(number)
  assert ended(process, number).endswith(signals.CAUSES[number] + SAVED)


def test_the_second_ctrl_c_ends_at_once(start):
  process = start(DEAF, seconds="600")
  process.send_signal(signal.SIGINT)
  time.sleep(2 * signals._SAME_SECONDS)
  assert process.poll() is None
  process.send_signal(signal.SIGINT)
  assert ended(process, signal.SIGINT).lstrip() == "interrupted" + SAVED


SAVES = """
  try:
    time.sleep(60)
  except signals.Preempted:
    with signals.saving():
      hashlib.pbkdf2_hmac('sha256', b'', b'', 4 * 10**6)
    print("saved")
    raise
"""
STEPS = """
  import signal
  signal.signal(signal.SIGTERM, lambda *_: None)
  for step in range(5):
    time.sleep({seconds})
    signals.step_done()
  print("saved")
  raise signals.Preempted
"""


@pytest.mark.parametrize(
  "work,wait",
  [
    (SAVES, 0),
    (STEPS.format(seconds=0.4), 0),
    (STEPS.format(seconds=0.8), 2),
  ],
  ids=["saves", "steps", "slow-steps"],
)
def test_what_saves_or_makes_steps_is_left_to_end_by_itself(start, work, wait):
  """It takes longer than the watcher waits for a sign of life.

  Also where a single step does, on a slow machine.
  """
  process = start(work.strip())
  time.sleep(wait)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=60)
  assert process.returncode == 143, err
  assert out == "saved\n" and err == "stopped by SIGTERM" + SAVED


LOST = {
  "collector": """
  import gc
  gc.callbacks.append(lambda *_: time.sleep(1))
  gc.collect()
  time.sleep(60)
""",
  "weak-reference": """
  import weakref
  class Thing: pass
  thing = Thing()
  reference = weakref.ref(thing, lambda _: time.sleep(1))
  del thing
  time.sleep(60)
""",
  "deletion": """
  class Thing:
    def __del__(self):
      time.sleep(1)
  Thing()
  time.sleep(60)
""",
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("where", LOST)
def test_a_signal_is_not_lost_in_callbacks(start, number, where):
  """Python drops what is raised in them: the command went on to its end."""
  process = start(LOST[where].strip(), seconds="600")
  process.send_signal(number)
  assert ended(process, number) == signals.CAUSES[number] + SAVED


@pytest.mark.parametrize("disk", ["time.sleep(100)", "1 / 0"])
def test_a_disk_that_hangs_or_is_damaged_does_not_keep_the_process(start, disk):
  process = start(f"signals.tell_saved(lambda: {disk}); {DEAF}")
  process.send_signal(signal.SIGTERM)
  err = ended(process, signal.SIGTERM)
  assert err.startswith("\nstopped by SIGTERM; the same command resumes")


def test_a_forked_child_hears_for_itself(start):
  """Its parent, which shares the socket, goes on."""
  work = """
  import os
  child = os.fork()
  if not child:
    time.sleep(60)
  time.sleep(0.2)
  os.kill(child, 15)
  os.waitpid(child, 0)
  time.sleep(1.5)
  return 7
"""
  process = start(work.strip())
  process.communicate(timeout=20)
  assert process.returncode == 7


@pytest.mark.parametrize("seconds", ["soon", "-1", "nan"])
def test_the_time_is_a_number(start, seconds):
  process = start("", seconds=seconds)
  _, err = process.communicate(timeout=20)
  assert process.returncode == 1
  assert err.startswith(f"error: {signals.VARIABLE}={seconds} in the environm")


@pytest.mark.parametrize("error", [KeyboardInterrupt, signals.Preempted])
@pytest.mark.parametrize("then", [None, OSError, ValueError, RuntimeError])
def test_it_is_the_signal_that_ends_a_command(error, then, capsys):
  """Also where the clean-up that it began has failed in its turn."""

  def work():
    try:
      raise error
    finally:
      if then is not None:
        raise then("clean-up")

  signals.tell_saved(lambda: "")
  status = command_line.exit_status(work)
  err = capsys.readouterr().err
  number = status - 128
  assert number == signals.number_of(error())
  assert err.endswith(signals.CAUSES[number] + NOTHING)
  assert ("error: clean-up" in err) == (then in (OSError, ValueError))


def test_errors_that_no_signal_began_are_none_of_a_signal():
  assert signals.number_of(ValueError()) is None
  error = ValueError()
  error.__context__ = OSError()
  error.__context__.__context__ = error
  assert signals.number_of(error) is None
