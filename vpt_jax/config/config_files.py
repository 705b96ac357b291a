"""Finds and reads config files: Python files with `get_config`."""

import importlib.util
import inspect
from pathlib import Path
import sys
import types

from ml_collections import ConfigDict

from vpt_jax.utils import lookup

_PACKAGE = Path(__file__).resolve().parents[1]


def load_config(path: str) -> ConfigDict:
  """Returns the config of FILE[:ARGUMENT], as on the command line.

  A file of the user's own goes first; else `configs/NAME.py` is one of those
  that come with this package, in whichever folder this is called.

  Args:
    path: for example "configs/vapt_vtab.py:eurosat"; what follows the colon is
      the argument of the file's `get_config`.

  Raises:
    ValueError: there is no such file, it has no `get_config`, or takes no such
      argument.
  """
  file_name, colon, argument = path.partition(":")
  file = find(file_name)
  prepare_imports(file)
  module = _run_file(file)
  get_config = getattr(module, "get_config", None)
  if not callable(get_config):
    raise ValueError(
      f"--config: {file} is not a config file: it has no function get_config"
    )
  arguments = (argument,) if colon else ()
  try:
    inspect.signature(get_config).bind(*arguments)
  except TypeError:
    takes = "takes no argument" if colon else "needs an argument, FILE:ARGUMENT"
    raise ValueError(f"--config={path}: {file} {takes}") from None
  config = get_config(*arguments)
  if not isinstance(config, ConfigDict):
    raise ValueError(
      f"--config={path}: get_config returns {type(config).__name__}; expected "
      "a ConfigDict, as common.get_config() returns"
    )
  return config


def find(file_name: str) -> Path:
  """Returns the path of a config file: the user's own, or one of the package.

  Raises:
    ValueError: there is neither.
  """
  own = Path(file_name).expanduser()
  if own.is_file():
    return own
  shipped = {path.name: path for path in shipped_folder().glob("[!_]*.py")}
  if own.parent not in (Path("configs"), Path()):
    raise ValueError(f"--config: no file {file_name!r}")
  if own.name not in shipped:
    try:
      lookup.choose(own.name, shipped.keys() - {"common.py"}, "config file")
    except ValueError as error:
      raise ValueError(
        f"--config: no file {file_name!r} here, and none of this name comes "
        f"with vpt_jax: {error}"
      ) from None
  return shipped[own.name]


def shipped_folder() -> Path:
  """Returns the folder of the config files that come with this package."""
  installed = _PACKAGE / "configs"
  # In a checkout they are beside the package.
  return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def prepare_imports(file: Path) -> None:
  """Lets a config file import `configs.NAME`, and modules beside it.

  `configs` is the folder of the user's own config files if there is one, and
  then that of the package. The package's folders do not get on `sys.path`:
  there are modules in it with the names of others'.
  """
  folder = file.resolve().parent
  shipped = shipped_folder().resolve()
  folders = [Path("configs").resolve(), folder.parent / "configs", shipped]
  package = sys.modules.get("configs")
  if package is None:
    package = types.ModuleType("configs", "Config files.")
    package.__path__ = []
    sys.modules["configs"] = package
  found = [str(path) for path in folders if path.is_dir()]
  # What other files found is still found, after what this one finds.
  package.__path__ = list(dict.fromkeys([*found, *package.__path__]))
  if folder != shipped:
    for path in (folder, folder.parent):
      if str(path) not in sys.path:
        sys.path.append(str(path))


def _run_file(file: Path) -> types.ModuleType:
  """Runs a config file; returns it as a module."""
  spec = importlib.util.spec_from_file_location("config_file", file)
  if spec is None or spec.loader is None:
    raise ValueError(f"--config: {file} is not a Python file; expected NAME.py")
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # where dataclasses look their module up
  spec.loader.exec_module(module)
  return module
