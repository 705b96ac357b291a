"""The store of results: what killed and competing processes leave there."""

import json
import multiprocessing

import numpy as np
import pytest

from tests import report_records
from vpt_jax.training import records
from vpt_jax.training.records import Store


def record(number, **more):
  return {"id": f"{number:012x}", "top1": number / 3, **more}


def numbers(store):
  return [int(one["id"], 16) for one in store.read()]


@pytest.fixture
def store(tmp_path):
  return Store(tmp_path / "deep" / "run" / records.FILE)


def test_what_is_added_is_read_in_order(store):
  assert store.read() == []
  for number in (3, 1, 2):
    store.add(record(number))
  assert store.read() == [
    {"schema": 1, **record(number)} for number in (3, 1, 2)
  ]
  assert Store(str(store.path)).read() == store.read()
  assert len(store.path.read_text().splitlines()) == 3


def test_lines_are_only_appended(store):
  store.add(record(1))
  before = store.path.read_bytes()
  store.add(record(2))
  assert store.path.read_bytes().startswith(before)


def test_a_second_record_of_an_id_is_not_kept(store):
  store.add(record(1, seconds=1))
  store.add(record(2))
  before = store.path.read_bytes()
  store.add(record(1, seconds=2))
  assert store.path.read_bytes() == before


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_number_is_no_json(store, value):
  store.add(record(1))
  with pytest.raises(ValueError):
    store.add(record(2, loss=value))
  assert numbers(store) == [1]


def test_killed_at_any_byte(store):
  """What is torn is not read, and gone with the next record."""
  store.add(record(1))
  first = store.path.read_bytes()
  store.add(record(2, name="é"))
  whole = store.path.read_bytes()
  for length in range(len(whole)):
    store.path.write_bytes(whole[:length])
    kept = [1] if length >= len(first) else []
    assert numbers(store) == kept
    store.add(record(3))
    assert numbers(store) == [*kept, 3]
    assert store.path.read_bytes().startswith(first[: len(first) * len(kept)])
    for line in store.path.read_bytes().splitlines():
      json.loads(line)
  store.path.write_bytes(whole[:-1])  # all of it but the end of its line
  store.add(record(2))
  assert numbers(store) == [1, 2]


def test_a_long_torn_line(store):
  """Longer than what is written or read at once."""
  store.add(record(1))
  with store.path.open("ab") as file:
    file.write(b'{"schema": 1, "curve": [' + b"0.125, " * 100_000)
  store.add(record(2, curve=[0.5] * 100_000))
  assert numbers(store) == [1, 2]
  assert store.read()[1]["curve"] == [0.5] * 100_000


@pytest.mark.parametrize(
  "line,message",
  [
    (b'{"schema": 1, "id"', "not JSON .*; delete this line"),
    (b"\xff\xfe", "not JSON"),
    (b"", "not JSON"),
    (b"[1, 2]", "expected a record of schema 1"),
    (b'{"id": "a"}', "expected a record of schema 1"),
    (b'{"schema": 2, "id": "a"}', "expected a record of schema 1"),
  ],
)
def test_a_damaged_line_is_named(store, line, message):
  store.add(record(1))
  with store.path.open("ab") as file:
    file.write(line + b"\n")
  where = rf"{records.FILE}, line 2: {message}"
  with pytest.raises(ValueError, match=where):
    store.read()
  before = store.path.read_bytes()
  with pytest.raises(ValueError, match=where):
    store.add(record(2))
  assert store.path.read_bytes() == before
  with pytest.raises(ValueError, match=where):
    records.find([store.path.parent])


def append(path, first, barrier):
  barrier.wait()
  for number in range(first, first + 60):
    # Longer than a pipe, a page and Python's buffer.
    Store(path).add(record(number, curve=[number] * 5000))


def test_two_processes_at_once(store):
  """Both add 60 records, the same 20 among them."""
  context = multiprocessing.get_context("spawn")
  barrier = context.Barrier(2)
  both = [
    context.Process(target=append, args=(store.path, first, barrier))
    for first in (0, 40)
  ]
  for process in both:
    process.start()
  for process in both:
    process.join()
  assert [process.exitcode for process in both] == [0, 0]
  found = store.read()
  assert sorted(numbers(store)) == [*range(100)]
  assert all(one["curve"] == [int(one["id"], 16)] * 5000 for one in found)
  # Each one's are in its own order.
  for first in (0, 40):
    own = [
      number for number in numbers(store) if number in range(first, first + 60)
    ]
    shared = {*range(40, 60)}
    assert [n for n in own if n not in shared] == sorted({*own} - shared)


def test_find_takes_the_topmost_files(tmp_path):
  """Of a condensation, say, whose stages are runs in its folder."""
  for number, place in enumerate(
    (
      "a/condensed",
      "a/condensed/all",
      "a/condensed/half/deep",
      "a/plain",
      "b/sweep",
    )
  ):
    Store(tmp_path / place / records.FILE).add(record(number))
  ids = lambda *places: [
    int(one["id"], 16)
    for one in records.find([tmp_path / place for place in places])
  ]
  assert sorted(ids("")) == [0, 3, 4]
  assert sorted(ids("a")) == [0, 3]
  assert ids("a/condensed/all") == [1]
  assert ids("b", "a/plain") == [4, 3]
  assert ids("b/sweep/" + records.FILE, "b") == [4]  # each once
  with pytest.raises(ValueError, match=f"no {records.FILE} in or below .*nope"):
    ids("b", "nope")


def test_find_takes_the_first_of_an_id(tmp_path):
  for place, top1 in (("one", 1.0), ("two", 2.0)):
    Store(tmp_path / place / records.FILE).add({"id": "x", "top1": top1})
  found = records.find([tmp_path / "two", tmp_path / "one"])
  assert [one["top1"] for one in found] == [2.0]


def test_the_schema_is_what_the_module_says(store):
  """Made-up records, which tests of the report read, are of the schema of
  `RunRecord`, without a problem as those of old versions, and survive the
  file."""
  made = [
    report_records.record(),
    report_records.search()[0],
    report_records.record(status="diverged"),
  ]
  for one in made:
    one["id"] = report_records.record(seed=len(store.read()))["id"]
    store.add(one)
    typed = records.RunRecord.from_json(one)
    want = {**one, "problem": "classification"}
    del want["schema"]
    assert typed.to_json() == want
    assert records.RunRecord.from_json(typed.to_json()) == typed
  assert store.read() == made


@pytest.mark.parametrize("name", ["seed", "status", "top1", "curve"])
def test_a_record_with_a_missing_field_is_refused(name):
  line = report_records.record()
  del line[name]
  with pytest.raises(ValueError, match=f"has no {name}; expected"):
    records.RunRecord.from_json(line)


def test_a_diverged_run_has_no_outcome():
  line = report_records.record(status="diverged")
  assert records.RunRecord.from_json(line).outcome is None
