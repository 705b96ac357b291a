"""What a pickle of PyTorch describes, found without running it as one.

A pickle is a program that builds objects and calls functions by name. Here it
runs on a small stack machine that only makes dicts, lists and records of where
tensors lie: nothing that the file names is imported or called.
"""

import dataclasses
import pickletools
import re
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

_OPERATIONS = 2**20  # A large training state has a hundred thousand.
_DIMENSIONS = 32
_DTYPES = {
  f"torch.{name}Storage": np.dtype(dtype)
  for name, dtype in {
    "Half": np.float16,
    "BFloat16": jnp.bfloat16,
    "Float": np.float32,
    "Double": np.float64,
    "Char": np.int8,
    "Short": np.int16,
    "Int": np.int32,
    "Long": np.int64,
    "Byte": np.uint8,
    "Bool": np.bool_,
    "ComplexFloat": np.complex64,
    "ComplexDouble": np.complex128,
  }.items()
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


def run(program: BinaryIO) -> tuple[Any, dict[str, Storage]]:
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
  storages: dict[str, Storage] = {}
  stack: list[Any] = []
  outer: list[list[Any]] = []  # Stacks below the marks.
  memo: dict[int, Any] = {}
  for count, (opcode, arg, _) in enumerate(pickletools.genops(program)):
    if count >= _OPERATIONS:
      raise ValueError("its pickle is unreasonably long")
    match opcode.name:
      case "BINGET" | "LONG_BINGET":
        stack.append(memo[arg])
      case "BINPUT" | "LONG_BINPUT":
        memo[arg] = stack[-1]
      case (
        "BININT"
        | "BININT1"
        | "BININT2"
        | "LONG1"
        | "LONG4"
        | "BINFLOAT"
        | "BINUNICODE"
        | "BINSTRING"
        | "SHORT_BINSTRING"
      ):
        stack.append(arg)
      case name if name in _LITERALS:
        stack.append(_LITERALS[name])
      case "MARK":
        outer.append(stack)
        stack = []
      case "TUPLE":
        items, stack = stack, outer.pop()
        stack.append(tuple(items))
      case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
        stack[-int(name[-1]) :] = [tuple(stack[-int(name[-1]) :])]
      case "EMPTY_LIST":
        stack.append([])
      case "EMPTY_DICT":
        stack.append({})
      case "APPEND" | "APPENDS" | "SETITEM" | "SETITEMS" as name:
        if name.endswith("S"):
          items, stack = stack, outer.pop()
        else:
          first = -1 if name == "APPEND" else -2
          items, stack[first:] = stack[first:], []
        _add(stack[-1], items, list if name.startswith("A") else dict)
      case "GLOBAL":
        stack.append(Global(arg.replace(" ", ".", 1)))
      case "BINPERSID":
        storage = stack[-1] = _storage(stack[-1])
        storages[storage.key] = storage
      case "REDUCE" | "NEWOBJ":
        args = stack.pop()
        stack[-1] = _made(stack[-1], args)
      case "BUILD":
        state = stack.pop()
        if isinstance(stack[-1], Module):
          stack[-1].state = state
        elif not isinstance(stack[-1], dict):  # Of a dict it is decoration.
          raise ValueError("it changes an object that it did not make")
      case "STOP":
        return stack.pop(), storages
      case name if name != "PROTO":
        raise ValueError(
          f"its pickle holds the operation {name}, which torch "
          "does not write; pickled content is never loaded"
        )


def _add(target: Any, items: list[Any], kind: type) -> None:
  """Puts items, for a dict keys and values in turn, into a list or dict."""
  if not isinstance(target, kind):
    raise ValueError(f"it treats something else as a {kind.__name__}")
  if kind is list:
    target.extend(items)
    return
  for key, value in zip(items[::2], items[1::2], strict=True):
    # Others name no weights, and to hash a tuple may take all of the stack.
    if isinstance(key, (str, int)):
      target[str(key)] = value


def _made(function: Any, args: Any) -> Any:
  """Stands for the result of a call, or refuses it."""
  if not isinstance(function, Global) or not isinstance(args, tuple):
    raise ValueError("it calls something that has no name")
  match function.name:
    case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2":
      return _tensor(*args[:4])
    case (
      "torch._utils._rebuild_parameter"
      | "torch._utils._rebuild_parameter_with_state"
    ):
      return args[0]
    case "collections.OrderedDict" if len(args) < 2:
      made: dict[str, Any] = {}
      for pairs in args:  # Python 2 handed over [[key, value], ...].
        for key, value in pairs:
          _add(made, [key, value], dict)
        pairs.clear()  # Moved: copies of one list could blow up.
      return made
    case name if name.startswith("__torch__."):
      return Module()
    case name if _INERT.fullmatch(name):
      return {}
  raise ValueError(
    f"it asks to run {function.name[:200]}, which a file of weights has no "
    "reason to (to share a whole model, save its state_dict)"
  )


def _storage(reference: Any) -> Storage:
  """From ("storage", class, key, device, count), before 1.6 with a None."""
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
  """Checks that a tensor lies within its storage."""
  # Lengths first: the same long tuple could be handed over very often.
  if not (
    isinstance(storage, Storage)
    and isinstance(shape, tuple)
    and isinstance(strides, tuple)
    and len(shape) == len(strides) <= _DIMENSIONS
    and all(
      isinstance(number, int) and 0 <= number < 2**63
      for number in (offset, *shape, *strides)
    )
  ):
    raise ValueError("the description of a tensor is damaged")
  last = offset + sum(
    (length - 1) * stride for length, stride in zip(shape, strides)
  )
  if 0 not in shape and last >= storage.size:
    raise ValueError(
      f"a tensor of shape {shape} reaches beyond its storage of "
      f"{storage.size} numbers"
    )
  return Tensor(storage, offset, shape, strides)
