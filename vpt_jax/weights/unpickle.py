"""Finds out what a pickle of PyTorch describes, without running it as one.

A pickle is a program that builds objects and calls functions by name. Here it
runs on a small stack machine that only makes dicts, lists and records of where
tensors lie: nothing that the file names is imported or called.
"""

from collections.abc import Callable
import dataclasses
import mmap
import pickletools
import re
from typing import Any, BinaryIO, cast

import jax.numpy as jnp
import numpy as np

_MOST_OPERATIONS = 2**20  # A large training state has a hundred thousand.
_MOST_DIMENSIONS = 32
_DTYPES = {
  "torch.HalfStorage": np.dtype(np.float16),
  "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
  "torch.FloatStorage": np.dtype(np.float32),
  "torch.DoubleStorage": np.dtype(np.float64),
  "torch.CharStorage": np.dtype(np.int8),
  "torch.ShortStorage": np.dtype(np.int16),
  "torch.IntStorage": np.dtype(np.int32),
  "torch.LongStorage": np.dtype(np.int64),
  "torch.ByteStorage": np.dtype(np.uint8),
  "torch.BoolStorage": np.dtype(np.bool_),
  "torch.ComplexFloatStorage": np.dtype(np.complex64),
  "torch.ComplexDoubleStorage": np.dtype(np.complex128),
}
_LITERALS = {
  "NONE": None,
  "NEWTRUE": True,
  "NEWFALSE": False,
  "EMPTY_TUPLE": (),
}
# Settings and counters that lie beside the weights; each becomes an empty dict.
_INERT = re.compile(
  r"argparse\.Namespace|types\.SimpleNamespace|pathlib\.\w*Path|"
  r"torch\.(Size|device)|torch\.jit\._pickle\.\w+|datetime\.\w+|"
  r"numpy\.(dtype|ndarray|_?core\.multiarray\.(scalar|_reconstruct))|"
  r"_codecs\.encode|collections\.(Counter|defaultdict)|"
  r"(__builtin__|builtins)\.(set|frozenset|bytes|bytearray|complex|slice)|"
  r"(yacs|omegaconf|easydict|addict|ml_collections)\.[\w.]+"
)


@dataclasses.dataclass(frozen=True)
class Global:
  """A name of a class or function; what it stands for stays unknown."""

  name: str


@dataclasses.dataclass(frozen=True)
class Storage:
  """`size` numbers in a row, which several tensors may share."""

  dtype: np.dtype
  key: str
  size: int


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where a tensor lies in its storage, in numbers, not bytes."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


@dataclasses.dataclass
class Module:
  """An object of TorchScript. The state is shared: a copy could blow up."""

  state: Any = None


def run(program: BinaryIO | mmap.mmap) -> tuple[Any, dict[str, Storage]]:
  """Runs the pickle at a file's position, up to its end and no further.

  Args:
    program: file whose `read` allocates no more than there is, as those of
      `io.BytesIO` and `mmap.mmap` do.

  Returns:
    What it describes, of dicts, lists, tuples, `Tensor`, `Module` and plain
    values, which may contain each other or themselves; and all storages by key,
    also those of no tensor in it.

  Raises:
    ValueError, LookupError, TypeError: it is damaged, or asks for anything but
      the tensors and settings of a checkpoint.
  """
  machine = _Machine()
  # It calls `read`, `readline` and `tell`, which maps have as well.
  operations = pickletools.genops(cast(BinaryIO, program))
  for count, (opcode, argument, _) in enumerate(operations):
    if count >= _MOST_OPERATIONS:
      raise ValueError("its pickle is unreasonably long")
    if opcode.name == "STOP":
      return machine.stack.pop(), machine.storages
    machine.step(opcode.name, argument)
  raise ValueError("its pickle has no end")


class _Machine:
  """The stack machine; its operations are `pickletools`' by their names.

  Attributes:
    stack: values above the last mark.
    storages: all that the program has named, by key.
  """

  def __init__(self) -> None:
    self.stack: list[Any] = []
    self.storages: dict[str, Storage] = {}
    self._outer: list[list[Any]] = []  # Stacks below the marks.
    self._memo: dict[int, Any] = {}

  def step(self, name: str, argument: Any) -> None:
    """Does one operation.

    Raises:
      ValueError: torch writes no such operation, or not like this.
    """
    if name == "PROTO":
      return
    if name in _LITERALS:
      self.stack.append(_LITERALS[name])
      return
    operation = _OPERATIONS.get(name)
    if operation is None:
      raise ValueError(
        f"its pickle holds the operation {name}, which torch "
        "does not write; pickled content is never loaded"
      )
    operation(self, argument)

  def push(self, value: Any) -> None:
    """Pushes the operation's own argument."""
    self.stack.append(value)

  def get(self, key: int) -> None:
    """Pushes a value that was kept before."""
    self.stack.append(self._memo[key])

  def put(self, key: int) -> None:
    """Keeps the value on top of the stack."""
    self._memo[key] = self.stack[-1]

  def mark(self, _: Any) -> None:
    """Begins a stack of its own for the items of a container."""
    self._outer.append(self.stack)
    self.stack = []

  def _since_mark(self) -> list[Any]:
    """Returns the items since the last mark, and goes back below it."""
    items = self.stack
    self.stack = self._outer.pop()
    return items

  def _take(self, count: int) -> list[Any]:
    """Returns the last values, removed from the stack."""
    values = self.stack[-count:]
    self.stack[-count:] = []
    return values

  def tuple_since_mark(self, _: Any) -> None:
    """Makes a tuple of the items since the mark."""
    items = self._since_mark()
    self.stack.append(tuple(items))

  def tuple_1(self, _: Any) -> None:
    """Makes a tuple of the last value."""
    self.stack.append(tuple(self._take(1)))

  def tuple_2(self, _: Any) -> None:
    """Makes a tuple of the last two values."""
    self.stack.append(tuple(self._take(2)))

  def tuple_3(self, _: Any) -> None:
    """Makes a tuple of the last three values."""
    self.stack.append(tuple(self._take(3)))

  def empty_list(self, _: Any) -> None:
    """Pushes a new list."""
    self.stack.append([])

  def empty_dict(self, _: Any) -> None:
    """Pushes a new dict."""
    self.stack.append({})

  def append(self, _: Any) -> None:
    """Puts the last value into the list below it."""
    items = self._take(1)
    _extend_list(self.stack[-1], items)

  def appends(self, _: Any) -> None:
    """Puts the items since the mark into the list below it."""
    items = self._since_mark()
    _extend_list(self.stack[-1], items)

  def set_item(self, _: Any) -> None:
    """Puts the last two values, key and value, into the dict below them."""
    items = self._take(2)
    _extend_dict(self.stack[-1], items)

  def set_items(self, _: Any) -> None:
    """Puts keys and values since the mark into the dict below it."""
    items = self._since_mark()
    _extend_dict(self.stack[-1], items)

  def name(self, argument: str) -> None:
    """Pushes the name of a class or function, `MODULE NAME` in the file."""
    self.stack.append(Global(argument.replace(" ", ".", 1)))

  def persistent_id(self, _: Any) -> None:
    """Replaces a reference to a storage by the storage."""
    storage = _storage(self.stack[-1])
    self.stack[-1] = storage
    self.storages[storage.key] = storage

  def call(self, _: Any) -> None:
    """Replaces a function and its arguments by what stands for the result."""
    arguments = self.stack.pop()
    self.stack[-1] = _made(self.stack[-1], arguments)

  def build(self, _: Any) -> None:
    """Gives an object its state; a dict's is decoration."""
    state = self.stack.pop()
    target = self.stack[-1]
    if isinstance(target, Module):
      target.state = state
    elif not isinstance(target, dict):
      raise ValueError("it changes an object that it did not make")


_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
  "BINGET": _Machine.get,
  "LONG_BINGET": _Machine.get,
  "BINPUT": _Machine.put,
  "LONG_BINPUT": _Machine.put,
  "BININT": _Machine.push,
  "BININT1": _Machine.push,
  "BININT2": _Machine.push,
  "LONG1": _Machine.push,
  "LONG4": _Machine.push,
  "BINFLOAT": _Machine.push,
  "BINUNICODE": _Machine.push,
  "BINSTRING": _Machine.push,
  "SHORT_BINSTRING": _Machine.push,
  "MARK": _Machine.mark,
  "TUPLE": _Machine.tuple_since_mark,
  "TUPLE1": _Machine.tuple_1,
  "TUPLE2": _Machine.tuple_2,
  "TUPLE3": _Machine.tuple_3,
  "EMPTY_LIST": _Machine.empty_list,
  "EMPTY_DICT": _Machine.empty_dict,
  "APPEND": _Machine.append,
  "APPENDS": _Machine.appends,
  "SETITEM": _Machine.set_item,
  "SETITEMS": _Machine.set_items,
  "GLOBAL": _Machine.name,
  "BINPERSID": _Machine.persistent_id,
  "REDUCE": _Machine.call,
  "NEWOBJ": _Machine.call,
  "BUILD": _Machine.build,
}


def _extend_list(target: Any, items: list[Any]) -> None:
  """Puts items into a list."""
  if not isinstance(target, list):
    raise ValueError("it treats something else as a list")
  target.extend(items)


def _extend_dict(target: Any, items: list[Any]) -> None:
  """Puts keys and values, which take turns, into a dict."""
  if not isinstance(target, dict):
    raise ValueError("it treats something else as a dict")
  for key, value in zip(items[::2], items[1::2], strict=True):
    # Others name no weights, and to hash a tuple may take all of the stack.
    if isinstance(key, (str, int)):
      target[str(key)] = value


def _made(function: Any, arguments: Any) -> Any:
  """Returns what stands for the result of a call, or refuses it."""
  if not isinstance(function, Global) or not isinstance(arguments, tuple):
    raise ValueError("it calls something that has no name")
  name = function.name
  if name in (
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
  ):
    return _tensor(*arguments[:4])
  if name in (
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
  ):
    return arguments[0]
  if name == "collections.OrderedDict" and len(arguments) < 2:
    return _ordered_dict(*arguments)
  if name.startswith("__torch__."):
    return Module()
  if _INERT.fullmatch(name):
    return {}
  raise ValueError(
    f"it asks to run {name[:200]}, which a file of weights has no "
    "reason to (to share a whole model, save its state_dict)"
  )


def _ordered_dict(pairs: Any = ()) -> dict[str, Any]:
  """Returns a dict; Python 2 handed over [[key, value], ...]."""
  made: dict[str, Any] = {}
  for key, value in pairs:
    _extend_dict(made, [key, value])
  if pairs:
    pairs.clear()  # Moved: copies of one list could blow up.
  return made


def _storage(reference: Any) -> Storage:
  """Returns the storage that a reference names.

  Args:
    reference: ("storage", class, key, device, count), before 1.6 with a None.
  """
  if isinstance(reference, tuple) and len(reference) in (5, 6):
    match reference:
      case ("storage", Global(name), str(key), _, int(size), *_) if (
        size >= 0 and reference[5:] in ((), (None,))
      ):
        if name not in _DTYPES:
          raise ValueError(f"it holds numbers of unknown kind {name[:200]}")
        return Storage(_DTYPES[name], key, size)
  raise ValueError("a reference to a storage is damaged")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
  """Returns a tensor, checked to lie within its storage."""
  # Lengths first: the same long tuple could be handed over very often.
  is_sound = (
    isinstance(storage, Storage)
    and isinstance(shape, tuple)
    and isinstance(strides, tuple)
    and len(shape) == len(strides) <= _MOST_DIMENSIONS
    and all(_is_size(number) for number in (offset, *shape, *strides))
  )
  if not is_sound:
    raise ValueError("the description of a tensor is damaged")
  last = offset
  for length, stride in zip(shape, strides, strict=True):
    last += (length - 1) * stride
  if 0 not in shape and last >= storage.size:
    raise ValueError(
      f"a tensor of shape {shape} reaches beyond its storage of "
      f"{storage.size} numbers"
    )
  return Tensor(storage, offset, shape, strides)


def _is_size(number: Any) -> bool:
  """Returns whether this is an int that a length or place may be."""
  return isinstance(number, int) and 0 <= number < 2**63
