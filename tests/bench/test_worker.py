"""Tests processes that answer."""

import numpy as np
import pytest

from vpt_jax.bench import worker

ECHO = """
import os, sys, threading, time
from vpt_jax.bench import worker

def spin(count):
  end = time.time() + 60
  def run():
    while time.time() < end:
      pass
  threading.Thread(target=run, daemon=True).start()
  return {}

def noise(count):
  print("noise")
  os.system("echo more noise")
  return {"count": count}

def grow(count):
  kept = bytearray(count)
  kept[::4096] = b"x" * len(kept[::4096])
  return {"bytes": worker.peak_memory()}

class Echo:
  def __init__(self, case):
    if "wrong" in case:
      raise ValueError(f"no such {case['wrong']}")
    self.commands = {
        "noise": noise, "spin": spin, "grow": grow,
        "memory": lambda count: {"bytes": worker.peak_memory()},
        "die": lambda count: (sys.stderr.write("so it ends\\n"),
                              sys.stderr.flush(), os._exit(3))}

worker.serve(Echo)
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
  """Starts a worker of the module above."""
  (tmp_path / "echo_side.py").write_text(ECHO)
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))
  return lambda case={}: worker.Worker("echo", "echo_side", case, {})


def test_a_worker_answers(start):
  kept = np.ones(50_000_000)  # 400 MB that are not the worker's
  with start() as echo:
    assert echo.ask("noise", 7) == {"count": 7}
    before = echo.ask("memory")["bytes"]
    after = echo.ask("grow", 200_000_000)["bytes"]
    assert 190e6 < after - before < 210e6
    assert before < 100e6 < kept.nbytes
    with pytest.raises(worker.Failed, match="echo, 'nothing': KeyError"):
      echo.ask("nothing")
    assert echo.ask("noise", 8) == {"count": 8}
    with pytest.raises(worker.Failed, match=r"status 3 at 'die'.*so it ends"):
      echo.ask("die")
  with (
    start({"wrong": "backbone"}) as echo,
    pytest.raises(worker.Failed, match="ValueError: no such backbone"),
  ):
    echo.ask("noise")


def test_a_busy_worker_is_seen(start):
  import time

  with start() as echo:
    echo.ask("noise")
    time.sleep(1.5)  # threads of NumPy's products spin for 0.05 s at first
    echo.ask("noise")
    assert echo.idle < 0.05
    echo.ask("spin")
    time.sleep(1)
    echo.ask("noise")
    assert echo.idle > 0.08  # of one core, on a machine that has other work
