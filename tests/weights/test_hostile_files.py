"""No checkpoint file can run code, hang, crash or take all memory."""

import io
import itertools
import operator
import os
import pickle
import socket
import struct
import tracemalloc

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from tests.weight_files import (
  Call,
  EMPTY,
  FILES,
  instance,
  MIB,
  Name,
  NESTED,
  npy,
  NUMBERS,
  packed,
  PARTS,
  pickled,
  program,
  Raw,
  Ref,
  refused,
  tensor,
  torch_legacy,
  torch_zip,
  zipped,
)
from vpt_jax.backbones.vit import ViT
from vpt_jax.nn import cost
from vpt_jax.weights import file_formats, load, pytorch_files


def fuzz(examples, *args, **kwargs):
  """Tries that many examples, the same ones each time."""
  settings = hypothesis.settings(
    max_examples=examples, derandomize=True, deadline=None, database=None
  )
  return lambda test: settings(hypothesis.given(*args, **kwargs)(test))


@pytest.fixture(name="file", scope="module")
def file_fixture(tmp_path_factory):
  return tmp_path_factory.mktemp("hostile") / "checkpoint"


class Evil:
  """What a real pickler makes of an object that runs something."""

  def __init__(self, command):
    self.command = command

  def __reduce__(self):
    return os.system, (self.command,)


def test_code_never_runs(file, tmp_path):
  marker = tmp_path / "marker"
  command = f"touch {marker}"
  call = Call("os.system", (command,))
  works = [
    call,
    Call("posix.system", (command,)),
    Call("builtins.exec", (f"open({str(marker)!r}, 'w')",)),
    Call("__builtin__.eval", (f"open({str(marker)!r}, 'w')",)),
    Raw(b"(" + program(command) + b"ios\nsystem\n"),  # INST
    Raw(b"(" + program(Name("os.system")) + program(command) + b"o"),  # OBJ
    Raw(pickle.dumps(Evil(command), 2)[2:-1]),
    Raw(pickle.dumps(Evil(command), 4)[2:-1]),  # STACK_GLOBAL
    {call: 1},
    instance("argparse.Namespace", {"a": call}),
  ]
  for evil in works:  # So that what follows means something.
    pickle.loads(pickled(evil))  # noqa: S301 (it is meant to run here)
    marker.unlink()
  others = [
    Call("nt.system", (command,)),
    Call("os.system", (command,), b"\x81"),
    Call("torch.storage._load_from_bytes", (pickled(call),)),
    Call("torch._utils._rebuild_parameter", (call, True, EMPTY)),
    Call("collections.OrderedDict", ([("a", call)],)),
    Ref((call,)),
    Ref(("storage", Name("os.system"), "0", "cpu", 1)),
    Raw(program(Name("os.system")) + program({"a": 1}) + b"b"),
    Raw(
      program(
        instance("argparse.Namespace", {"__setstate__": Name("os.system")})
      )
      + program(call)
      + b"b"
    ),
    Raw(program(Name("os.system")) + program((command,)) + b"\x81"),
    instance("some.Model", {"weight": 1}),
  ]
  for evil, write in itertools.product(
    works + others, (torch_zip, torch_legacy)
  ):
    parts = PARTS | {"data.pkl": pickled({"model": NESTED, "x": evil})}
    refused(
      file,
      write(parts),
      "asks to run|which torch does not write|"
      "numbers of unknown kind os.system|an object that it did not make",
    )
    assert not marker.exists()
  refused(
    file,
    torch_zip({"data.pkl": pickled(call)}),
    "it asks to run os.system, which a file of weights has no reason to",
  )


def test_zip_bombs(file):
  zeros = bytes(70 * MIB)
  refused(file, packed({"a/data.pkl": pickled({}), "a/data/0": zeros}), "bomb")
  small, large, actual = (
    struct.pack("<I", size) for size in (100, 2**29, len(zeros))
  )
  bomb = packed({"a.npy": npy(NUMBERS) + zeros[: -len(npy(NUMBERS))]})
  refused(file, bomb.replace(actual, large), "zip bomb")
  # Declared as small: no more than that is unpacked.
  refused(file, bomb.replace(actual, small), "Bad CRC-32")
  many = b"".join(zipped({"a.npy": zeros[:MIB]}).partition(b"PK\x01\x02")[1:])
  entry, end = many[: many.index(b"PK\x05\x06")], zipped({})
  entries = entry * 100
  refused(
    file,
    zipped({"a.npy": zeros[:MIB]})[: -len(entry) - 22]
    + entries
    + end[:8]
    + struct.pack("<HHII", 100, 100, len(entries), MIB + 35)
    + b"\0\0",
    "overlap",
  )


def header(shape, kind="<f4") -> bytes:
  """A .npy file with 48 bytes behind any header."""
  buffer = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    buffer, {"descr": kind, "fortran_order": False, "shape": shape}
  )
  return buffer.getvalue() + NUMBERS.tobytes()


@pytest.mark.parametrize(
  "shape,kind",
  [
    ((10**12,), "<f4"),
    ((9**18,), "<f4"),
    ((2**62, 4), "<f4"),
    ((-1,), "<f4"),
    ((0, -1), "<f4"),
    ((10**12,), "<U0"),
    ((12,), "<f8"),
    ((1,), "<U12345678"),
  ],
)
def test_declared_shapes_of_npy(shape, kind, file):
  refused(file, zipped({"a.npy": header(shape, kind)}), "holds 48 bytes, not")


@pytest.mark.parametrize(
  "value,match",
  [
    (tensor("0", 12, (10**12,), (0,)), "would take 40000000000"),
    ([tensor("0", 12, (10**6,), (0,))] * 20, "but it holds only"),
    (tensor("0", 2**60, (2**60,), (1,)), "would take|storages is damaged"),
    (tensor("0", 2**60, (1,), (1,)), "are cut short|storages is damaged"),
    (tensor("0", 12, (2,) * 40, (0,) * 40), "of a tensor is damaged"),
    ({"a": Raw(b"(" * 10**4 + b"t" * 10**4)}, "contain each other"),
    (Raw(b"}q\x01" + program("a") + b"h\x01s"), "contain each other"),
    # 2^60 lists, each twice in the next.
    (
      Raw(
        b"]q\x01"
        + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(1, 60))
      ),
      "contain each other",
    ),
    # The same, where names have no letters.
    (Raw(b"}q\x01X\0\0\0\0h\x01s"), "contain each other"),
    (
      Raw(
        b"]("
        + program(tensor("1", 1, (), ()))
        + b"q\x01"
        + b"h\x01" * 2**18
        + b"e"
      ),
      "too many",
    ),
    ({"x" * 2**23: {}}, "too many"),
  ],
)
def test_greedy_pickles(value, match, file):
  parts = PARTS | {"data.pkl": pickled([NESTED, value])}
  for content in torch_zip(parts), torch_legacy(parts):
    refused(file, content, match, 5 * len(content) + 64 * MIB)


def test_long_pickles(file):
  refused(
    file,
    torch_zip({"data.pkl": pickled([None] * 2**20)}),
    "its pickle is unreasonably long",
    64 * MIB,
  )


def test_deep_keys_are_not_hashed(file):
  deep = Raw(b"(" * 10**5 + b"t" * 10**5)
  file.write_bytes(torch_zip({"data.pkl": pickled({deep: 1})}))
  assert not file_formats.read(file)


def settled(file, content: bytes):
  """Arrays or ValueError, and no large allocation."""
  file.write_bytes(content)
  tracemalloc.start()
  try:
    file_formats.read(file)
  except ValueError:
    pass
  finally:
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
  assert peak < 80 * MIB


@pytest.mark.filterwarnings("ignore:invalid escape:DeprecationWarning")
@pytest.mark.parametrize("kind", FILES)
@fuzz(200, data=st.data())
def test_damage(kind, data, file):
  """Bytes changed, inserted or left out, in the file or a part of it."""
  parts, join = FILES[kind]
  part = data.draw(st.sampled_from([None, *parts]))
  content = bytearray(parts[part] if part else join(parts))
  for _ in range(data.draw(st.integers(1, 3))):
    start = data.draw(st.integers(0, len(content)))
    length = data.draw(st.sampled_from([0, 1, 1, 1, 2, 8, len(content)]))
    content[start : start + length] = data.draw(
      st.binary(max_size=2 * min(length, 8) + 1)
    )
  settled(
    file, join(parts | {part: bytes(content)}) if part else bytes(content)
  )


CODES = [bytes([code]) for code in b"(tRbu]}sae\x81Q)N\x85\x86\x87."] + [
  b"q\x00",
  b"h\x00",
  *map(
    program,
    (
      EMPTY,
      "storage",
      tensor("0", 12, (12,), (1,)),
      Name("__torch__.Net"),
      Name("torch._utils._rebuild_tensor_v2"),
      Ref(("storage", Name("torch.IntStorage"), "0", "cpu", 12)),
    ),
  ),
]


@fuzz(
  400,
  codes=st.lists(
    st.sampled_from(CODES) | st.integers().map(program), max_size=30
  ),
)
def test_any_program(file, codes):
  settled(file, torch_zip(PARTS | {"data.pkl": b"".join(codes) + b"."}))


SOME = st.integers(-1, 5) | st.sampled_from([2**31, 2**63 - 1, 2**64, True])
SHAPE = st.lists(SOME, max_size=3).map(tuple)


@fuzz(400, shape=SHAPE, strides=SHAPE, offset=SOME, count=SOME | st.just(12))
def test_any_view(file, shape, strides, offset, count):
  """A view is what its definition says, or refused."""
  file.write_bytes(
    torch_zip(
      PARTS
      | {"data.pkl": pickled({"x": tensor("0", count, shape, strides, offset)})}
    )
  )
  try:
    got = pytorch_files.read(file)["x"]
  except ValueError:
    return
  assert len(shape) == len(strides) and got.shape == shape
  for index in itertools.product(*map(range, shape)) if got.size else ():
    assert (
      got[index]
      == NUMBERS[:count][offset + sum(map(operator.mul, index, strides))]
    )


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
@pytest.mark.parametrize("is_beside", [False, True])
def test_only_regular_files_are_opened(tmp_path, kind, is_beside):
  """A checkpoint, or the config beside it, that waits or never ends.

  A pipe without a writer keeps who opens it for ever, and so its checksum.
  """
  vit = ViT((8, 8), patch_size=4, width=8, depth=1, num_heads=1, mlp_dim=8)
  shapes = cost.shapes(vit)
  checkpoint = tmp_path / "model.npz"
  np.savez(checkpoint, **{name: np.ones(x.shape) for name, x in shapes.items()})
  strange = tmp_path / "config.json" if is_beside else checkpoint
  strange.unlink(missing_ok=True)
  with socket.socket(socket.AF_UNIX) as open_socket:
    if kind == "pipe":
      os.mkfifo(strange)
    elif kind == "device":
      strange.symlink_to("/dev/zero")
    else:
      open_socket.bind(str(strange))
    try:
      load.load(checkpoint, shapes, vit.spec)
    except (ValueError, OSError) as error:
      assert str(strange) in str(error)
    else:
      assert is_beside  # what is no file is no config
