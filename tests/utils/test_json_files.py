"""Own JSON is checked before it is taken: a damaged file is named."""

import json
import os

import pytest

from vpt_jax.utils import json_files

FIELDS = {
  "name": json_files.TEXT,
  "count": json_files.POSITIVE,
  "rate": json_files.or_null(json_files.NUMBER),
  "backbone": json_files.BACKBONE,
}
SOUND = {
  "name": "a",
  "count": 1,
  "rate": None,
  "backbone": {"name": "b", "sha256": "c"},
  "more": [1],
}


def read(path):
  return json_files.read(path, FIELDS, "delete it")


def test_a_sound_file(tmp_path):
  path = tmp_path / "a.json"
  path.write_text(json.dumps(SOUND))
  assert read(path) == SOUND


@pytest.mark.parametrize(
  "text,message",
  [
    (b"", r"not JSON \(it is empty\)"),
    (b" \n", r"not JSON \(it is empty\)"),
    (json.dumps(SOUND).encode()[:-9], "not JSON"),
    (b"\x00" * 40, "not JSON"),
    (b"\xff\xfe{}", "not JSON"),
    (b'{"name": NaN}', r"not JSON \(NaN is no finite number"),
    (b"[" * 100_000, "nested too deep"),
    (b'{"count": ' + b"9" * 5000 + b"}", "not JSON"),
    (b"[1, 2]", r"expected an object {...}, found \[1, 2\]"),
    (b"null", "expected an object"),
  ],
)
def test_damaged_text(tmp_path, text, message):
  path = tmp_path / "a.json"
  path.write_bytes(text)
  with pytest.raises(ValueError, match=f"{path}: {message}.*; delete it"):
    read(path)


@pytest.mark.parametrize(
  "change,message",
  [
    ({"name": None}, "field 'name' is None, expected a text"),
    ({"count": True}, "'count' is True, expected a whole number of at least 1"),
    ({"count": 0}, "field 'count' is 0"),
    ({"count": 10**30}, "field 'count' is 10000"),
    ({"count": "1"}, "field 'count' is '1'"),
    ({"rate": 1e999}, "is no finite number"),
    ({"rate": []}, "'rate' is .*, expected a finite number or null"),
    ({"backbone": []}, "expected an object with name, sha256"),
    ({"backbone": {"name": "b"}}, "expected an object with name, sha256"),
  ],
)
def test_fields_of_another_kind(tmp_path, change, message):
  path = tmp_path / "a.json"
  path.write_text(json.dumps(SOUND | change))
  with pytest.raises(ValueError, match=f"{path}: .*{message}.*; delete it"):
    read(path)


@pytest.mark.parametrize("name", FIELDS)
def test_missing_fields(tmp_path, name):
  path = tmp_path / "a.json"
  path.write_text(json.dumps({k: v for k, v in SOUND.items() if k != name}))
  with pytest.raises(ValueError, match=f"{path}: field '{name}' is missing"):
    read(path)


def test_only_regular_files_of_a_bounded_size(tmp_path, monkeypatch):
  """A pipe would keep the reader waiting for ever."""
  pipe = tmp_path / "pipe"
  os.mkfifo(pipe)
  with pytest.raises(ValueError, match=f"{pipe} is a pipe"):
    read(pipe)
  with pytest.raises(ValueError, match=f"{tmp_path} is a folder"):
    read(tmp_path)
  path = tmp_path / "a.json"
  path.write_text(json.dumps(SOUND))
  monkeypatch.setattr(json_files, "MOST_BYTES", 10)
  with pytest.raises(ValueError, match=f"{path} has .* bytes"):
    read(path)
