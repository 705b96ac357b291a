"""Tests the suites and their means."""

import pytest

from tests import report_records as made
from vpt_jax.data import tasks
from vpt_jax.report import (
  suites,
)


def test_suites_are_those_of_the_tasks():
  for suite in suites.SUITES:
    assert set(suite.tasks) == {
      name for name, task in tasks.TASKS.items() if task.suite == suite.name
    }
  for group, labels in suites.VTAB.items():
    assert set(labels) == {
      name for name, task in tasks.TASKS.items() if task.group == group.lower()
    }
  assert [len(group) for group in suites.VTAB.values()] == [7, 4, 8]
  assert len(made.column("vtab_19").tasks) == 19
  assert [len(part) for part in made.column("vtab_3").parts] == [7, 4, 8]


def test_the_two_means_of_vtab():
  scores = dict.fromkeys(made.NATURAL, 90.0)
  scores |= dict.fromkeys(suites.VTAB["Specialized"], 60.0)
  assert made.column("vtab_19").mean(scores) is None
  scores |= dict.fromkeys(suites.VTAB["Structured"], 30.0)
  # (7 * 90 + 4 * 60 + 8 * 30) / 19 and (90 + 60 + 30) / 3
  assert made.column("vtab_19").mean(scores) == pytest.approx(1110 / 19)
  assert made.column("vtab_3").mean(scores) == pytest.approx(60.0)
