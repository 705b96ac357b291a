"""The fuzzer notices every fault that it is made to find."""

import time

import numpy as np
import pytest

from tests.fuzz import mutations, outcomes, runner
from tests.fuzz.outcomes import judge, Outcome

MOST = 700 * 2**20


class Planted:
  """A kind whose first cases are faults, one of each sort."""

  def make(self, folder):
    del folder

  def open(self, folder, scratch):
    del folder, scratch
    self._number = -1

  def run(self, rng) -> Outcome:
    del rng
    self._number += 1
    return judge(
      (raises_key_error, hides_the_name, changes, refuses, takes_memory, hangs)[
        self._number
      ],
      "a.npz",
      is_sealed=True,
    )


def raises_key_error():
  raise KeyError("type")


def hides_the_name():
  raise ValueError("Expecting value: line 1 column 1")


def changes():
  return False


def refuses():
  raise ValueError("a.npz is damaged")


def takes_memory():
  return bool(np.ones(MOST, np.uint8)[0])


def hangs():
  time.sleep(60)


def test_all_faults_are_found(tmp_path):
  counts, faults = runner.run(
    Planted, tmp_path, count=6, longest=4.0, most=MOST
  )
  assert counts == {
    outcomes.TRACEBACK: 1,
    outcomes.NAMELESS: 1,
    outcomes.CHANGED: 1,
    outcomes.REFUSED: 1,
    outcomes.MEMORY: 1,
    outcomes.HANG: 1,
  }
  assert [fault.number for fault in faults] == [0, 1, 2, 4, 5]


@pytest.mark.parametrize("number", range(20))
def test_a_case_can_be_made_again(number):
  data = bytes(range(256)) * 4
  changed = []
  for _ in range(2):
    changed.append(mutations.mutate_bytes(data, runner.random_numbers(number)))
  assert changed[0] == changed[1]
