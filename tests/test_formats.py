"""Checkpoint files of every format are read whole, without running anything.

PyTorch's files are put together here from opcodes, so that most of this needs
no torch; where it is there, its own files are compared too.
"""

import argparse
import collections
import functools
import io
import itertools
import operator
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
from hypothesis import strategies as st
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from vpt_jax.backbones import formats, torchfile

GOLDEN = (Path(__file__).parents[2] / "shared" / "golden" / "checkpoints")
MAGIC = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
MIB = 2**20

fuzz = functools.partial(
    hypothesis.settings, derandomize=True, deadline=None, database=None,
    suppress_health_check=list(hypothesis.HealthCheck))


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
  """Opcodes that make a value."""
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
      return b"}(" + b"".join(map(program, itertools.chain(*value.items()))
                              ) + b"u"
    case list() | tuple():
      inside = b"(" + b"".join(map(program, value))
      return inside + b"t" if isinstance(value, tuple) else b"]" + inside + b"e"
  return pickle.dumps(value, 2)[2:-1]


def pickled(value) -> bytes:
  return b"\x80\x02" + program(value) + b"."


EMPTY = Call("collections.OrderedDict", ())


def tensor(key, count, shape, strides, offset=0, kind="Float", extra=()):
  storage = Ref(("storage", Name(f"torch.{kind}Storage"), key, "cuda:0", count,
                 *extra))
  return Call("torch._utils._rebuild_tensor_v2",
              (storage, offset, shape, strides, False, EMPTY))


def module(**state):
  return Call("__torch__.some.Net", (),
              Raw(b"\x81" + program({"training": True, **state}) + b"b"))


def zipped(parts, **kwargs) -> bytes:
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", **kwargs) as archive:
    for name, data in parts.items():
      archive.writestr(name, data)
  return buffer.getvalue()


def torch_zip(parts) -> bytes:
  """From `data.pkl`, `data/0`, ..."""
  return zipped({f"archive/{name}": data for name, data in parts.items()})


def torch_legacy(parts, width=4) -> bytes:
  keys = [name[5:] for name in parts if name.startswith("data/")]
  numbers = [parts[f"data/{key}"] for key in keys]
  return b"".join([*map(pickled, MAGIC), parts["data.pkl"], pickled(keys), *(
      struct.pack("<q", len(data) // width) + data for data in numbers)])


NUMBERS = np.arange(12, dtype=np.float32)
NESTED = {"model": {"a.w": tensor("0", 12, (2, 3), (3, 1), 2),
                    "a.t": tensor("0", 12, (3, 4), (1, 3)),
                    "b": Call("torch._utils._rebuild_parameter",
                              (tensor("1", 1, (), ()), True, EMPTY))},
          "args": Call("argparse.Namespace", (), Raw(
              b"\x81" + program({"lr": 0.1}) + b"b")),
          "lr": Call("numpy._core.multiarray.scalar",
                     (Call("numpy.dtype", ("f8", False, True)), "..")),
          "optimizer": {"state": {0: {"m": tensor("1", 1, (1,), (9,))}},
                        "param_groups": [{"betas": (0.9, 0.99), (1,): None}]},
          "shape": Call("torch.Size", ((1, 2),)), "dtype": Name("torch.half"),
          "epoch": 2**40}
WANT = {"model/a.w": NUMBERS[2:8].reshape(2, 3),
        "model/a.t": NUMBERS.reshape(4, 3).T,
        "model/b": np.float32(7), "optimizer/state/0/m": np.float32([7])}
PARTS = {"data.pkl": pickled(NESTED), "data/0": NUMBERS.tobytes(),
         "data/1": np.float32(7).tobytes()}
SCRIPT = {**PARTS, "constants.pkl": b"any", "data.pkl": pickled(module(
    visual=module(**{"in_proj": tensor("0", 12, (12,), (1,))}), size=3,
    scale=tensor("1", 1, (), ())))}


def npy(array) -> bytes:
  buffer = io.BytesIO()
  np.save(buffer, array)
  return buffer.getvalue()


# Format -> (parts, how to put them together).
FILES = {
    "npz": ({"a.npy": npy(NUMBERS), "b/c.npy": npy(np.int8([1, 2]))}, zipped),
    "npz, packed": ({"a.npy": npy(NUMBERS)}, functools.partial(
        zipped, compression=zipfile.ZIP_DEFLATED)),
    "safetensors": ({"all": safetensors.numpy.save(
        {"a": NUMBERS, "b": NUMBERS.astype(jnp.bfloat16)})},
                    lambda parts: parts["all"]),
    "torch zip": (PARTS, torch_zip),
    "torch legacy": (PARTS, torch_legacy),
    "TorchScript": (SCRIPT, torch_zip),
}


def equal(got, want, dtype=np.float32):
  assert list(got) == list(want)
  for name, array in want.items():
    assert got[name].dtype == dtype and got[name].shape == array.shape
    np.testing.assert_array_equal(got[name], array, err_msg=name)


@pytest.fixture(name="file", scope="module")
def file_fixture(tmp_path_factory):
  return tmp_path_factory.mktemp("formats") / "checkpoint"


def refused(file, content: bytes, match: str, limit=8 * MIB):
  """Refused, and without more memory than the file's size and `limit`."""
  file.write_bytes(content)
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match=match) as error:
      formats.read(file)
    assert tracemalloc.get_traced_memory()[1] < len(content) + limit
  finally:
    tracemalloc.stop()
  assert str(file) in str(error.value)
  assert "config.backbone.checkpoint" in str(error.value)


@pytest.mark.parametrize("write", [torch_zip, torch_legacy])
def test_torch(write, file):
  file.write_bytes(write(PARTS))
  equal(formats.read(file), WANT)


def test_torchscript_and_byte_order(file):
  want = {"visual.in_proj": NUMBERS, "scale": np.float32(7)}
  file.write_bytes(torch_zip(SCRIPT))
  equal(formats.read(file), want)
  swapped = {name: np.frombuffer(data, "f4").byteswap().tobytes()
             for name, data in SCRIPT.items() if name.startswith("data/")}
  file.write_bytes(torch_zip(SCRIPT | swapped | {"byteorder": b"big"}))
  equal(formats.read(file), want)
  refused(file, torch_zip(SCRIPT | {"byteorder": b"?"}), "byte order")


@pytest.mark.parametrize("kind,dtype", [
    ("Half", np.float16), ("BFloat16", jnp.bfloat16), ("Double", np.float64),
    ("Char", np.int8), ("Short", np.int16), ("Int", np.int32),
    ("Long", np.int64), ("Byte", np.uint8), ("Bool", np.bool_)])
def test_dtypes(kind, dtype, file):
  array = np.array([1, 0, 1, 1], dtype)
  parts = {"data.pkl": pickled({"x": tensor("0", 4, (2, 2), (1, 2), 0, kind)}),
           "data/0": array.tobytes()}
  for content in torch_zip(parts), torch_legacy(parts, array.itemsize):
    file.write_bytes(content)
    equal(torchfile.read(file), {"x": array.reshape(2, 2).T}, dtype)
  real = np.float32 if jnp.issubdtype(dtype, jnp.floating) else dtype
  equal(formats.read(file), {"x": array.reshape(2, 2).T}, real)
  np.savez(file.with_suffix(".npz"), x=array)
  equal(formats.read(file.with_suffix(".npz")), {"x": array}, real)
  file.write_bytes(safetensors.numpy.save({"x": array}))
  equal(formats.read(file), {"x": array}, real)


@pytest.mark.parametrize("writer", [ocp.StandardCheckpointer,
                                    ocp.PyTreeCheckpointer])
def test_orbax(writer, tmp_path):
  state = {"params": {"a": jnp.ones((2, 3), jnp.bfloat16), "b": [jnp.zeros(4)]},
           "step": 3}
  with writer() as checkpointer:
    checkpointer.save(tmp_path / "7" / "default", state)
  for path in tmp_path / "7", tmp_path / "7" / "default":
    got = formats.read(path)
    assert got.pop("step") == 3
    equal(got, {"params/a": np.ones((2, 3)), "params/b/0": np.zeros(4)})
  with pytest.raises(ValueError, match="not of one Orbax .* it holds 7. Exp"):
    formats.read(tmp_path)


@pytest.mark.parametrize("content,match", [
    (b"", "file is empty"), (b"\n<!DOCTYPE html>", "web page"),
    (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    (b"\x1f\x8b\x08", "gzip"), (b"x" * 257 + b"ustar", "tar archive"),
    (b'{"weight_map": {}}', "index"), (b"spam", "which begins with b'spam'"),
    (torch_zip(PARTS)[:-30], "truncated: the end of the zip archive is missing"),
    (torch_legacy(PARTS)[:-1], "truncated: "),
    (zipped({"a.txt": b"spam"}), "'a.txt' in the zip archive is no array"),
    (zipped({"a.npy": npy(np.array([{}], object))}), "holds Python objects"),
    (zipped({"a.npy": npy(NUMBERS).replace(b"(12,)", b"(1,) ")}), "holds 48 by"),
    (zipped({"a.npy": npy(NUMBERS)}, compression=zipfile.ZIP_LZMA), "compressed"),
    (zipped({"a/data.pkl": b"", "b/data.pkl": b""}), "2 files named data.pkl"),
    (pickle.dumps({"a": 1}, 2), "torch.save did not write"),
    (pickle.dumps({"a": 1}, 4), "pickled content is never loaded"),
    (safetensors.numpy.save({"a": NUMBERS})[:-1], "not fully covered")])
def test_no_checkpoint(content, match, file):
  refused(file, content, match)


def reduced(name, *args):
  class Evil:
    def __reduce__(self):
      return name, args
  return Evil()


def test_code_in_pickles_never_runs(file, tmp_path):
  marker = tmp_path / "marker"
  command = f"touch {marker}"
  call = Call("os.system", (command,))
  runs = [call, Call("posix.system", (command,)),
          Call("builtins.exec", (f"open({str(marker)!r}, 'w')",)),
          Raw(b"(" + program(command) + b"ios\nsystem\n"),
          Raw(b"(" + program(Name("os.system")) + program(command) + b"o"),
          Raw(pickle.dumps(reduced(__import__("os").system, command), 4)[2:-1]),
          {call: 1}, Call("collections.OrderedDict", ([("a", call)],)),
          Call("argparse.Namespace", (), Raw(b")\x81" + program({"a": call})))]
  for evil in runs[:7]:  # So that the test means something.
    pickle.loads(pickled(evil))
    marker.unlink()
  runs += [Call("nt.system", (command,)), Call("os.system", (command,), b"\x81"),
           Call("torch.storage._load_from_bytes", (pickled(call),)),
           Call("torch._utils._rebuild_parameter", (call, True, EMPTY)),
           Ref((call,)), Ref(("storage", Name("os.system"), "0", "cpu", 1)),
           Raw(program(Name("os.system")) + program({}) + b"b"),
           Call("argparse.Namespace", (), Raw(
               b"\x81" + program({"__setstate__": Name("os.system")}) + b"b" +
               program((call,)) + b"b")), Call("my.Model", (), b"\x81")]
  for evil, write in itertools.product(runs, (torch_zip, torch_legacy)):
    parts = PARTS | {"data.pkl": pickled({"model": NESTED, "x": evil})}
    refused(file, write(parts), "it asks to run (os|posix|nt)[.]system|cannot")
    assert not marker.exists()
  refused(file, torch_zip({"data.pkl": pickled(call)}), "to run os.system, wh")


def test_bombs(file):
  zeros = bytes(300 * MIB)
  packed = functools.partial(zipped, compression=zipfile.ZIP_DEFLATED)
  bomb = packed({"a.npy": zeros})
  refused(file, bomb, "zip bomb")
  refused(file, packed({"a/data.pkl": pickled({}), "a/data/0": zeros[:70 * MIB]}
                       ), "zip bomb")
  # Declared as small: no more than that is unpacked.
  small = bomb.replace(struct.pack("<I", len(zeros)), struct.pack("<I", 200))
  refused(file, small, "CRC|magic")
  for shape in (9**18,), (10**12,), (2**62, 4), (-1,), (0, -1):
    refused(file, zipped({"a.npy": header(shape)}), "holds 48 bytes")
  refused(file, zipped({"a.npy": header((12,), "<U0")}), "holds 48 bytes")

  def torch(value, match):
    parts = PARTS | {"data.pkl": pickled([NESTED, value])}
    for content in torch_zip(parts), torch_legacy(parts):
      refused(file, content, match, 64 * MIB)

  torch(tensor("0", 12, (10**12,), (0,)), "would take 40000000000")
  torch([tensor("0", 12, (10**6,), (0,))] * 20, "it holds only")
  torch(tensor("0", 2**60, (2**60,), (1,)), "cut short|storages is damaged")
  torch(tensor("0", 12, (2,) * 40, (0,) * 40), "tensor is damaged")
  itself = Raw(b"}q\x01" + program("a") + b"h\x01s")
  torch(itself, "contain each other")
  doubled = Raw(b"]q\x01" + b"".join(  # 2^60 lists, each twice in the next.
      b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(1, 60)))
  torch(doubled, "contain each other")
  deep = Raw(b"(" * 10**5 + b"t" * 10**5)
  torch({"a": deep}, "contain each other")
  file.write_bytes(torch_zip({"data.pkl": pickled({deep: 1})}))
  assert not formats.read(file)  # As a key it is never hashed.


def header(shape, kind="<f4") -> bytes:
  """A .npy file with 48 bytes behind any header."""
  buffer = io.BytesIO()
  np.lib.format.write_array_header_1_0(buffer, {
      "descr": kind, "fortran_order": False, "shape": shape})
  return buffer.getvalue() + NUMBERS.tobytes()


def settled(file, content: bytes):
  """Arrays or ValueError, and no large allocation."""
  file.write_bytes(content)
  tracemalloc.start()
  try:
    formats.read(file)
  except ValueError:
    pass
  finally:
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
  assert peak < 80 * MIB


@pytest.mark.parametrize("kind", FILES)
@fuzz(max_examples=150)
@hypothesis.given(data=st.data())
def test_damage(kind, data, file):
  """Bytes changed, inserted or left out, in the file or a part of it."""
  parts, join = FILES[kind]
  part = data.draw(st.sampled_from([None, *parts]))
  content = bytearray(parts[part] if part else join(parts))
  for _ in range(data.draw(st.integers(1, 3))):
    start = data.draw(st.integers(0, len(content)))
    length = data.draw(st.sampled_from([0, 1, 1, 1, 2, 8, len(content)]))
    content[start:start + length] = data.draw(
        st.binary(max_size=2 * length + 1))
  settled(file, join(parts | {part: bytes(content)}) if part
          else bytes(content))


@fuzz(max_examples=300)
@hypothesis.given(st.lists(st.one_of(
    st.sampled_from([bytes([code]) for code in b"(tRbu]}sae\x81Q)N\x85\x86\x87."
                     ] + [b"q\x00", b"h\x00", program(EMPTY), program("storage")]
                    + [program(tensor("0", 12, (12,), (1,))),
                       program(Name("torch._utils._rebuild_tensor_v2")),
                       program(Name("__torch__.Net")),
                       program(Ref(("storage", Name("torch.IntStorage"), "0",
                                    "cpu", 12)))]),
    st.integers().map(program)), max_size=30))
def test_any_program(file, codes):
  settled(file, torch_zip({"data.pkl": b"".join(codes) + b".",
                           "data/0": NUMBERS.tobytes()}))


SMALL = st.integers(-1, 5) | st.sampled_from([2**31, 2**63 - 1, 2**64, True])


@fuzz(max_examples=300)
@hypothesis.given(st.lists(SMALL, max_size=3), st.lists(SMALL, max_size=3),
                  SMALL, SMALL | st.just(12))
def test_any_view(file, shape, strides, offset, count):
  """A view is what its definition says, or refused."""
  file.write_bytes(torch_zip(PARTS | {"data.pkl": pickled(
      {"x": tensor("0", count, tuple(shape), tuple(strides), offset)})}))
  try:
    got = torchfile.read(file)["x"]
  except ValueError:
    return
  assert len(shape) == len(strides) and got.shape == tuple(shape)
  for index in itertools.product(*map(range, shape)) if got.size else ():
    assert got[index] == NUMBERS[:count][
        offset + sum(map(operator.mul, index, strides))]


# The real writers, where torch is there.


@pytest.fixture(name="torch", scope="module")
def torch_fixture():
  return pytest.importorskip("torch")


def flat(value, path=""):
  """{name: array} of what torch has loaded."""
  if hasattr(value, "detach"):
    value = value.detach()
    return {path: value.float().numpy() if value.is_floating_point()
            else value.numpy()}
  items = (value.items() if isinstance(value, dict) else
           enumerate(value) if isinstance(value, (list, tuple)) else ())
  return {name: array for key, inner in items for name, array in
          flat(inner, f"{path}/{key}" if path else str(key)).items()}


@pytest.mark.parametrize("is_zip", [True, False])
def test_files_of_torch(is_zip, torch, file):
  whole = torch.arange(24.0).reshape(2, 3, 4)
  net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
  optimizer = torch.optim.AdamW(net.parameters())
  net(torch.ones(4, 2)).sum().backward()
  optimizer.step()
  value = {
      "model": net.state_dict(), "half": net.half().state_dict(),
      "views": collections.OrderedDict(
          a=whole.permute(2, 0, 1)[1::2], b=whole[1], c=whole.to(torch.bfloat16),
          d=torch.ones(1).expand(3, 5), e=torch.empty(0, 3), f=whole > 3),
      "parameter": torch.nn.Parameter(torch.ones(2)),
      "optimizer": optimizer.state_dict(), "epoch": 3,
      "args": argparse.Namespace(lr=1e-3, path=Path("x"), size=torch.Size([1]),
                                 device=torch.device("cpu"), t=torch.float16),
      "best": np.float64(0.5), "seen": {1, 2}, "rng": np.zeros(2), "raw": b"x"}
  torch.save(value, file, _use_new_zipfile_serialization=is_zip)
  want = flat(value)
  got = formats.read(file)
  assert list(got) == list(want) and len(got) > 30
  for name, array in want.items():
    assert got[name].dtype == array.dtype
    np.testing.assert_array_equal(got[name], array, err_msg=name)
  torch.save(net, file, _use_new_zipfile_serialization=is_zip)
  refused(file, file.read_bytes(), "run torch.nn.*save its state_dict|referen")


@pytest.mark.parametrize("how", ["script", "trace"])
def test_files_of_torchscript(how, torch, file):
  net = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(2, 3)),
                            torch.nn.BatchNorm1d(3)).eval()
  scripted = (torch.jit.script(net) if how == "script" else
              torch.jit.trace(net, torch.ones(4, 2)))
  scripted.half().save(file)
  want = flat(dict(scripted.state_dict()))
  got = formats.read(file)
  assert got.keys() == want.keys()
  for name, array in want.items():
    np.testing.assert_array_equal(got[name], array, err_msg=name)


@pytest.mark.skipif(not GOLDEN.exists(), reason="needs the golden checkpoints")
def test_golden_checkpoints(torch):
  for path in GOLDEN.iterdir():
    want = flat(torch.load(path, weights_only=True))
    equal(formats.read(path), want) if all(
        array.dtype == np.float32 for array in want.values()) else None
