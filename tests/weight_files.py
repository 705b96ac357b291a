"""Puts weight files together from parts, PyTorch's from opcodes without torch.

That leaves all freedom to make them wrong, or evil.
"""

import functools
import io
import itertools
import pickle
import struct
import tracemalloc
from typing import Any, NamedTuple
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from vpt_jax.weights import file_formats

MIB = 2**20
LEGACY = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})


class Name(str):
  """A class or function of that name."""


class Call(NamedTuple):
  """A call of a named function; `code` may be another operation than REDUCE."""

  name: str
  args: Any
  code: bytes = b"R"


class Ref(tuple):
  """A persistent id."""


class Raw(bytes):
  """Opcodes."""


def program(value) -> bytes:
  """Returns the opcodes that make a value."""
  match value:
    case Raw():
      return value
    case Name():
      return "c{}\n{}\n".format(*value.rsplit(".", 1)).encode()
    case Call(name, args, code):
      return program(Name(name)) + program(args) + code
    case Ref():
      return program(tuple(value)) + b"Q"
    case dict():
      items = itertools.chain(*value.items())
      return b"}(" + b"".join(map(program, items)) + b"u"
    case tuple():
      return b"(" + b"".join(map(program, value)) + b"t"
    case list():
      return b"](" + b"".join(map(program, value)) + b"e"
  return pickle.dumps(value, 2)[2:-1]


def pickled(value) -> bytes:
  """Returns a whole pickle of a value."""
  return b"\x80\x02" + program(value) + b"."


EMPTY = Call("collections.OrderedDict", ())


def tensor(key, count, shape, strides, offset=0, kind="Float"):
  """Returns the call that makes a tensor; its storage has `count` numbers."""
  storage = Ref(("storage", Name(f"torch.{kind}Storage"), key, "cuda:0", count))
  return Call(
    "torch._utils._rebuild_tensor_v2",
    (storage, offset, shape, strides, False, EMPTY),
  )


def instance(name, state):
  """An object that is made without arguments, then given a state."""
  return Call(name, (), Raw(b"\x81" + program(state) + b"b"))


def zipped(parts, **kwargs) -> bytes:
  """Returns a zip archive of {name: content}."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", **kwargs) as archive:
    for name, data in parts.items():
      archive.writestr(name, data)
  return buffer.getvalue()


packed = functools.partial(zipped, compression=zipfile.ZIP_DEFLATED)


def torch_zip(parts) -> bytes:
  """Returns a file since 1.6, from `data.pkl`, `data/0`, ..."""
  return zipped({f"archive/{name}": data for name, data in parts.items()})


def torch_legacy(parts, width=4) -> bytes:
  """Returns a file before 1.6 from the same; `width` is a number's bytes."""
  keys = [name[5:] for name in parts if name.startswith("data/")]
  numbers = [parts[f"data/{key}"] for key in keys]
  return b"".join(
    [
      *map(pickled, LEGACY),
      parts["data.pkl"],
      pickled(keys),
      *(struct.pack("<q", len(data) // width) + data for data in numbers),
    ]
  )


def npy(array) -> bytes:
  """Returns the content of a .npy file."""
  buffer = io.BytesIO()
  np.save(buffer, array)
  return buffer.getvalue()


NUMBERS = np.arange(12, dtype=np.float32)
SEVEN = np.array(7, np.float32)
NESTED = {
  "model": {
    "a.w": tensor("0", 12, (2, 3), (3, 1), 2),
    "a.t": tensor("0", 12, (3, 4), (1, 3)),
    "b": Call(
      "torch._utils._rebuild_parameter", (tensor("1", 1, (), ()), True, EMPTY)
    ),
  },
  "args": instance("argparse.Namespace", {"lr": 0.1}),
  "loss": Call(
    "numpy._core.multiarray.scalar",
    (Call("numpy.dtype", ("f8", False, True)), ".."),
  ),
  "optimizer": {
    "state": {0: {"m": tensor("1", 1, (1,), (9,))}},
    "param_groups": [{"betas": (0.9, 0.99), (1,): None}],
  },
  "size": Call("torch.Size", ((1, 2),)),
  "dtype": Name("torch.half"),
  "epoch": 2**40,
}
WANT = {
  "model/a.w": NUMBERS[2:8].reshape(2, 3),
  "model/a.t": NUMBERS.reshape(4, 3).T,
  "model/b": SEVEN,
  "optimizer/state/0/m": SEVEN.reshape(1),
}
PARTS = {
  "data.pkl": pickled(NESTED),
  "data/0": NUMBERS.tobytes(),
  "data/1": SEVEN.tobytes(),
}
SCRIPT_WANT = {"visual.in_proj": NUMBERS, "scale": SEVEN}
SCRIPT = PARTS | {
  "constants.pkl": b"any",
  "data.pkl": pickled(
    instance(
      "__torch__.clip.CLIP",
      {
        "training": True,
        "size": 3,
        "visual": instance(
          "__torch__.clip.ViT", {"in_proj": tensor("0", 12, (12,), (1,))}
        ),
        "scale": tensor("1", 1, (), ()),
      },
    )
  ),
}

# Format -> (parts, how to put them together).
FILES = {
  "npz": ({"a.npy": npy(NUMBERS), "b/c.npy": npy(np.int8([1, 2]))}, zipped),
  "npz, packed": ({"a.npy": npy(NUMBERS)}, packed),
  "safetensors": (
    {
      "all": safetensors.numpy.save(
        {"a": NUMBERS, "b": NUMBERS.astype(jnp.bfloat16)}
      )
    },
    lambda parts: parts["all"],
  ),
  "torch zip": (PARTS, torch_zip),
  "torch legacy": (PARTS, torch_legacy),
  "TorchScript": (SCRIPT, torch_zip),
}


def refused(file, content: bytes, match: str, limit=8 * MIB):
  """Checks that a file is refused, and that little memory is taken meanwhile.

  Args:
    file: path to write to.
    content: of the file.
    match: regular expression of the error.
    limit: bytes that may be taken beside the file's size.
  """
  file.write_bytes(content)
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match=match) as error:
      file_formats.read(file)
    assert tracemalloc.get_traced_memory()[1] < len(content) + limit
  finally:
    tracemalloc.stop()
  assert str(file) in str(error.value)
  assert "config.backbone.checkpoint" in str(error.value)
