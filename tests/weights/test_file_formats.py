"""Checkpoint files of every format are read whole.

Most of this needs no torch; where it is there, its own files are compared too.
"""

import argparse
import collections
from pathlib import Path
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from tests.weight_files import (
  Call,
  FILES,
  npy,
  NUMBERS,
  PARTS,
  pickled,
  Raw,
  refused,
  SCRIPT,
  SCRIPT_WANT,
  tensor,
  torch_legacy,
  torch_zip,
  WANT,
  zipped,
)
from vpt_jax.weights import file_formats, pytorch_files

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "checkpoints"


def equal(got, want):
  assert list(got) == list(want)
  for name, array in want.items():
    assert got[name].dtype == array.dtype and got[name].shape == array.shape
    np.testing.assert_array_equal(got[name], array, err_msg=name)


@pytest.fixture(name="file")
def file_fixture(tmp_path):
  return tmp_path / "checkpoint"  # The name says nothing about the format.


@pytest.mark.parametrize(
  "kind,want",
  [
    ("npz", {"a": NUMBERS, "b/c": np.int8([1, 2])}),
    ("npz, packed", {"a": NUMBERS}),
    ("safetensors", {"a": NUMBERS, "b": NUMBERS}),
    ("torch zip", WANT),
    ("torch legacy", WANT),
    ("TorchScript", SCRIPT_WANT),
  ],
)
def test_formats(kind, want, file):
  parts, join = FILES[kind]
  file.write_bytes(join(parts))
  got = file_formats.read(str(file))
  equal(dict(sorted(got.items())), dict(sorted(want.items())))
  file.write_bytes(bytes(file.stat().st_size))  # They are not in the file.
  equal(dict(sorted(got.items())), dict(sorted(want.items())))


@pytest.mark.parametrize(
  "kind,dtype",
  [
    ("Half", np.float16),
    ("BFloat16", jnp.bfloat16),
    ("Double", np.float64),
    ("Char", np.int8),
    ("Short", np.int16),
    ("Int", np.int32),
    ("Long", np.int64),
    ("Byte", np.uint8),
    ("Bool", np.bool_),
  ],
)
def test_kinds_of_numbers(kind, dtype, file):
  array = np.array([[1, 0], [3, 1]], dtype)
  want = array.astype(
    np.float32 if jnp.issubdtype(dtype, jnp.floating) else dtype
  )
  parts = {
    "data.pkl": pickled({"x": tensor("0", 4, (2, 2), (2, 1), 0, kind)}),
    "data/0": array.tobytes(),
  }
  for content in torch_zip(parts), torch_legacy(parts, array.itemsize):
    file.write_bytes(content)
    equal(pytorch_files.read(file), {"x": array})
    equal(file_formats.read(file), {"x": want})
  file.write_bytes(safetensors.numpy.save({"x": array}))
  equal(file_formats.read(file), {"x": want})
  file.write_bytes(zipped({"x.npy": npy(array), "y.npy": npy(array.T)}))
  equal(file_formats.read(file), {"x": want, "y": want.T})


def test_other_byte_orders(file):
  swapped = {
    name: np.frombuffer(data, "f4").byteswap().tobytes()
    for name, data in SCRIPT.items()
    if name.startswith("data/")
  }
  file.write_bytes(torch_zip(SCRIPT | swapped | {"byteorder": b"big"}))
  equal(file_formats.read(file), SCRIPT_WANT)
  refused(file, torch_zip(SCRIPT | {"byteorder": b"?"}), "its byte order")
  array = np.arange(3)
  file.write_bytes(zipped({"x.npy": npy(array.astype(">i8"))}))
  equal(file_formats.read(file), {"x": array})


def test_python_2(file):
  pairs = [[Raw(b"U\x03a.w"), tensor("0", 12, (12,), (1,))]]
  file.write_bytes(
    torch_legacy(
      {
        "data.pkl": pickled(Call("collections.OrderedDict", (pairs,))),
        "data/0": NUMBERS.tobytes(),
      }
    )
  )
  equal(file_formats.read(file), {"a.w": NUMBERS})


@pytest.mark.parametrize(
  "writer", [ocp.StandardCheckpointer, ocp.PyTreeCheckpointer]
)
def test_orbax(writer, tmp_path):
  state = {
    "params": {"a": jnp.ones((2, 3), jnp.bfloat16), "b": [jnp.zeros(4)]},
    "step": np.int32(3),
  }
  with writer() as checkpointer:
    checkpointer.save(tmp_path / "7" / "default", state)
  for path in tmp_path / "7", tmp_path / "7" / "default":
    equal(
      file_formats.read(path),
      {
        "params/a": np.ones((2, 3), np.float32),
        "params/b/0": np.zeros(4, np.float32),
        "step": np.array(3, np.int32),
      },
    )
  with pytest.raises(ValueError, match="not of one Orbax .* it holds 7. Exp"):
    file_formats.read(tmp_path)


@pytest.mark.parametrize(
  "content,match",
  [
    (b"", "file is empty"),
    (b"\n<!DOCTYPE html>", "web page"),
    (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    (b"\x1f\x8b\x08", "gzip"),
    (b"x" * 257 + b"ustar", "tar archive"),
    (b'{"weight_map": {}}', "index"),
    (b"spam", "which begins with b'spam'"),
    (torch_zip(PARTS)[:-30], "truncated: the end of the zip archive is missin"),
    (torch_legacy(PARTS)[:-1], "truncated: "),
    (torch_zip({"data.pkl": PARTS["data.pkl"]}), "no item named 'archive/data"),
    (zipped({"a.txt": b"spam"}), "'a.txt' in the zip archive is no array"),
    (zipped({"a.npy": npy(np.array([{}], object))}), "holds Python objects"),
    (zipped({"a.npy": npy(NUMBERS)[:-1]}), "holds 47 bytes, not the 48 of flo"),
    (zipped({"a.npy": npy(NUMBERS)}, compression=zipfile.ZIP_LZMA), "unknown"),
    (zipped({"a/data.pkl": b"", "b/data.pkl": b""}), "2 files named data.pkl"),
    (pickle.dumps({"a": 1}, 2), "torch.save did not write"),
    (pickle.dumps({"a": 1}, 4), "operation FRAME, which torch does not write"),
    (FILES["safetensors"][0]["all"][:-1], "while deserializing"),
  ],
)
def test_no_checkpoint(content, match, file):
  refused(file, content, match)


def test_not_there(file):
  with pytest.raises(ValueError, match="No such file"):
    file_formats.read(file)


@pytest.mark.parametrize(
  "value,match",
  [
    ({"a": tensor("0", 12, (12,), (1,), 1)}, "reaches beyond its storage of 1"),
    ({"a": tensor("0", 13, (12,), (1,))}, "'a' are cut short"),
    ({"a": tensor("0", 12, (12,), (1, 1))}, "description of a tensor"),
    ({"a": tensor("0", 12, (12,), (-1,), 11)}, "description of a tensor"),
    ({"a": tensor("0", 12, (12,), (1,), 0, "Spam")}, "torch.SpamStorage"),
    (
      {"a": {"b": tensor("0", 12, (), ())}, "a/b": tensor("0", 12, (), ())},
      "two tensors of the same name",
    ),
  ],
)
def test_wrong_tensors(value, match, file):
  refused(file, torch_zip(PARTS | {"data.pkl": pickled(value)}), match)


# The real writers, where torch is there.


@pytest.fixture(name="torch", scope="module")
def torch_fixture():
  return pytest.importorskip("torch")


def flat(value, path=""):
  """{name: array} of what torch has loaded, floats as float32."""
  if hasattr(value, "detach"):
    value = value.detach()
    return {
      path: (value.float() if value.is_floating_point() else value).numpy()
    }
  items = (
    value.items()
    if isinstance(value, dict)
    else enumerate(value)
    if isinstance(value, (list, tuple))
    else ()
  )
  return {
    name: array
    for key, inner in items
    for name, array in flat(
      inner, f"{path}/{key}" if path else str(key)
    ).items()
  }


@pytest.mark.parametrize("is_zip", [True, False])
def test_files_of_torch(is_zip, torch, file):
  whole = torch.arange(24.0).reshape(2, 3, 4)
  net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
  optimizer = torch.optim.AdamW(net.parameters())
  net(torch.ones(4, 2)).sum().backward()
  optimizer.step()
  value = {
    "model": net.state_dict(),
    "half": net.half().state_dict(),
    "views": collections.OrderedDict(
      a=whole.permute(2, 0, 1)[1::2],
      b=whole[1],
      c=whole.bfloat16(),
      d=torch.ones(1).expand(3, 5),
      e=torch.empty(0, 3),
      f=whole > 3,
    ),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "optimizer": optimizer.state_dict(),
    "epoch": 3,
    "args": argparse.Namespace(
      lr=1e-3,
      path=Path("x"),
      size=torch.Size([1]),
      device=torch.device("cpu"),
      t=torch.float16,
    ),
    "best": np.float64(0.5),
    "seen": {1, 2},
    "rng": np.zeros(2),
    "raw": b"x",
  }
  torch.save(value, file, _use_new_zipfile_serialization=is_zip)
  want = flat(value)
  assert len(want) > 30
  equal(file_formats.read(file), want)
  torch.save(net, file, _use_new_zipfile_serialization=is_zip)
  refused(file, file.read_bytes(), "run torch.nn.* save its state_dict|referen")


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_files_of_torchscript(how, torch, file):
  net = torch.nn.Sequential(
    torch.nn.Sequential(torch.nn.Linear(2, 3)), torch.nn.BatchNorm1d(3)
  ).eval()
  scripted = (
    torch.jit.script(net)
    if how == "script"
    else torch.jit.trace(net, torch.ones(4, 2))
  )
  scripted.half().save(file)
  want = flat(dict(scripted.state_dict()))
  assert "0.0.weight" in want
  equal(
    dict(sorted(file_formats.read(file).items())), dict(sorted(want.items()))
  )


@pytest.mark.skipif(not GOLDEN.exists(), reason="needs the golden checkpoints")
def test_golden_checkpoints(torch):
  paths = list(GOLDEN.iterdir())
  assert len(paths) == 7
  for path in paths:
    equal(file_formats.read(path), flat(torch.load(path, weights_only=True)))
