"""The house rules that can be read off the source: who imports whom, and style.

`faults` names what breaks a rule in one module; the last test shows that it
sees each kind of breach.
"""

import ast
from pathlib import Path
import re

import pytest

from vpt_jax.utils import trees

ROOT = Path(__file__).resolve().parents[1]


def name_of(path):
  """vpt_jax/data/tasks.py -> vpt_jax.data.tasks; a package has its own name."""
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
  name_of(path): path
  for folder in ("vpt_jax", "configs")
  for path in sorted((ROOT / folder).rglob("*.py"))
}

# Ordered (module, what of ours it may import), regular expressions that match
# all of the name. A module without rule is an error: say where it belongs.
DATA = r"vpt_jax\.data\.\w+"
BASE = (
  r"vpt_jax\.(tree|files|hosts|optim|shard|checkpoint|logs|results)|" + DATA
)
RULES = (
  # The package's names are imported on first use, hence not statically.
  (r"vpt_jax", r"nothing"),
  (r"vpt_jax\.(tree|tokens|files|memory|spmd)", r"nothing"),
  (r"vpt_jax\.layers", r"vpt_jax\.spmd"),
  (
    r"vpt_jax\.backbones(\..*)?",
    r"vpt_jax\.(tree|tokens|layers|backbones\.\w+)",
  ),
  (
    r"vpt_jax\.methods(\..*)?",
    r"vpt_jax\.(tree|tokens|layers|spmd|methods\.\w+)",
  ),
  (r"vpt_jax\.heads", r"vpt_jax\.(tree|backbones\.\w+)"),
  (
    r"vpt_jax\.model",
    r"vpt_jax\.(tree|tokens|layers|heads|backbones\.\w+|methods\.\w+)",
  ),
  # Batches are laid out over the devices.
  (r"vpt_jax\.data\.pipeline", rf"vpt_jax\.(tree|files|shard)|{DATA}"),
  (r"vpt_jax\.data(\..*)?", rf"vpt_jax\.(tree|files)|{DATA}"),
  (r"vpt_jax\.checkpoint", r"vpt_jax\.(tree|files|hosts)"),
  (r"vpt_jax\.(logs|results)", r"vpt_jax\.(tree|files)"),
  (r"vpt_jax\.report(\..*)?", r"vpt_jax\.(tree|files|results|report(\.\w+)?)"),
  (
    r"vpt_jax\.analyze(\..*)?",
    rf"{BASE}|vpt_jax\.(model|evaluate|tokens|scores|job|config|"
    r"methods\.gated|analyze(\.\w+)?)",
  ),
  # Our side of the benchmark; the others know nothing of JAX.
  (
    r"vpt_jax\.bench\.ours",
    rf"{BASE}|vpt_jax\.(model|train|scores|backbones\.cost|bench\.worker)",
  ),
  (
    r"vpt_jax\.bench\.plan",
    r"vpt_jax\.(tree|model|backbones\.cost|bench\.\w+)",
  ),
  (
    r"vpt_jax\.bench(\..*)?",
    r"vpt_jax\.(tree|files|memory|analyze\.figures|bench(\.\w+)?)",
  ),
  (r"vpt_jax\.hosts", r"nothing"),
  (r"vpt_jax\.(optim|shard)", r"vpt_jax\.tree"),
  (r"vpt_jax\.train", rf"{BASE}|vpt_jax\.(model|spmd)"),
  (r"vpt_jax\.(evaluate|scores)", rf"{BASE}|vpt_jax\.model"),
  (r"vpt_jax\.job", rf"{BASE}|vpt_jax\.(model|train|evaluate|config)"),
  (r"vpt_jax\.searches", r"nothing"),
  (
    r"vpt_jax\.(group|sweep)",
    rf"{BASE}|vpt_jax\.(model|train|evaluate|config|job|group|searches)",
  ),
  (r"vpt_jax\.condense", rf"{BASE}|vpt_jax\.(model|scores|config)"),
  # A backbone with the pixels of another method's prompts.
  (r"vpt_jax\.inversion", rf"{BASE}|vpt_jax\.(model|evaluate|methods\.pgn)"),
  # Reads the registries for the names that a config may use.
  (
    r"vpt_jax\.config",
    rf"vpt_jax\.((backbones|methods)\.registry|optim|shard|tree)|{DATA}",
  ),
  (
    r"vpt_jax\.main",
    rf"vpt_jax\.(?!backbones|methods|heads)\w+|{DATA}|"
    r"vpt_jax\.(backbones|methods)\.registry|vpt_jax\.report\.tables",
  ),
  # A sweep is one of several configs.
  (r"configs\.sweep_\w+", r"configs\.\w+"),
  (r"configs(\..*)?", r"configs\.common"),
)
FLAX = r"vpt_jax\.(tokens|layers|model|backbones\..*|methods\..*)"
BOTH = {"vpt_jax.model", "vpt_jax.main", "vpt_jax.config"}
PICKLES = {
  "pickle",
  "cPickle",
  "_pickle",
  "dill",
  "cloudpickle",
  "joblib",
  "shelve",
  "marshal",
}


def imports(module, code, is_package=False):
  """Dotted names that a module imports, wherever in it."""
  for node in ast.walk(code):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        parts = module.split(".")
        parts = parts[: len(parts) + is_package - node.level]
        base = ".".join([*parts, *filter(None, [base])])
      yield from (f"{base}.{alias.name}" for alias in node.names)


def resolved(name):
  """The module of ours that an imported name is in, or is."""
  while name not in FILES and "." in name:
    name = name.rpartition(".")[0]
  return name


def faults(module, source, is_package=False):
  """What breaks a rule, one line each."""
  code = ast.parse(source)
  names = sorted(set(imports(module, code, is_package)))
  roots = {name.split(".")[0] for name in names}
  ours = {
    resolved(name)
    for name in names
    if name.split(".")[0] in ("vpt_jax", "configs", "tests")
  }
  allowed = next(
    rule for pattern, rule in RULES if re.fullmatch(pattern, module)
  )
  out = [
    f"imports {name}"
    for name in sorted(ours)
    if not re.fullmatch(allowed, name)
  ]
  parts = {
    part
    for part in ("backbones", "methods")
    if any(name.startswith(f"vpt_jax.{part}") for name in ours)
  }
  if len(parts) == 2 and module not in BOTH:
    out.append("imports backbones and methods")
  if module.startswith("configs"):
    out += [
      f"imports {name}"
      for name in names
      if name.split(".")[0] not in ("ml_collections", "configs")
    ]

  # The training state is a pytree by flax.struct; nothing else of flax.
  flax = (
    r"flax\..*"
    if re.fullmatch(FLAX, module)
    else r"flax\.struct(\..*)?"
    if module == "vpt_jax.training.loop"
    else "nothing"
  )
  out += [
    f"imports {name}"
    for name in names
    if name.split(".")[0] == "flax" and not re.fullmatch(flax, name)
  ]
  # `convert` verifies a conversion with PyTorch, where that is installed;
  # tensorflow-datasets reads without TensorFlow; the benchmark has a side in
  # PyTorch.
  no_tensorflow = "tensorflow(_.*)?"
  peers = {
    "vpt_jax.backbones.convert": no_tensorflow,
    "vpt_jax.bench.pytorch_models": no_tensorflow,
    "vpt_jax.bench.pytorch_methods": no_tensorflow,
    "vpt_jax.bench.pytorch_side": no_tensorflow,
    "vpt_jax.data.sources.tfds": "torch(vision)?|tensorflow|timm",
  }.get(module, "(torch|tensorflow)(_.*|vision)?|timm")
  out += [
    f"imports {root}"
    for root in sorted(roots)
    if root in PICKLES or re.fullmatch(peers, root)
  ]

  for node in ast.walk(code):
    match node:
      case ast.Name(id="print"):
        out.append("print")
      case ast.Assert():
        out.append("assert")
      case ast.ExceptHandler(type=None):
        out.append("bare except")
      case ast.keyword(arg="allow_pickle", value=value) if not (
        isinstance(value, ast.Constant) and value.value is False
      ):
        out.append("allow_pickle")
      # Would be invisible here; the package's own is lazy for a cheap import.
      case (
        ast.Name(id="__import__")
        | ast.Attribute(attr="import_module")
        | ast.alias(name="import_module")
      ) if module != "vpt_jax":
        out.append("dynamic import")

  # An empty __init__.py only marks a package: it has nothing to say.
  if not ast.get_docstring(code) and not (is_package and not source.strip()):
    out.append("no docstring")
  lines = source.splitlines()
  if len(lines) > 300:
    out.append(f"{len(lines)} lines, above 300")
  out += [
    f"line {number}: {len(line)} columns, above 80"
    for number, line in enumerate(lines, 1)
    if len(line) > 80
  ]
  return out


@pytest.mark.parametrize("module", FILES)
def test_the_house_rules(module):
  path = FILES[module]
  assert (
    faults(module, path.read_text(encoding="utf-8"), path.name == "__init__.py")
    == []
  )


def test_every_module_has_a_rule_and_every_rule_a_module():
  assert {
    "vpt_jax",
    "vpt_jax.model",
    "vpt_jax.data.pipeline",
    "vpt_jax.methods.vpt",
    "configs.common",
  } <= FILES.keys()
  trees.match(FILES, RULES, "RULES")


@pytest.mark.parametrize(
  "module,source,fault",
  [
    (
      "vpt_jax.utils.trees",
      "from vpt_jax import tokens",
      "imports vpt_jax.nn.tokens",
    ),
    (
      "vpt_jax.nn.tokens",
      "import vpt_jax.utils.trees as t",
      "imports vpt_jax.utils.trees",
    ),
    ("vpt_jax.nn.tokens", "import vpt_jax", "imports vpt_jax"),
    (
      "vpt_jax.methods.new",
      "from vpt_jax.backbones.vit import ViT",
      "imports vpt_jax.backbones.vit",
    ),
    (
      "vpt_jax.methods.new",
      "def f():\n  from vpt_jax.backbones import vit",
      "imports vpt_jax.backbones.vit",
    ),
    (
      "vpt_jax.methods.new",
      "from ..backbones import vit",
      "imports vpt_jax.backbones.vit",
    ),
    (
      "vpt_jax.methods.new",
      "from vpt_jax import model",
      "imports vpt_jax.model",
    ),
    ("vpt_jax.methods.new", "from vpt_jax import *", "imports vpt_jax"),
    (
      "vpt_jax.backbones.new",
      "from vpt_jax.methods import base",
      "imports vpt_jax.methods.method",
    ),
    (
      "vpt_jax.data.tasks",
      "from vpt_jax import shard",
      "imports vpt_jax.distributed.sharding",
    ),
    (
      "vpt_jax.data.pipeline",
      "from vpt_jax import optim",
      "imports vpt_jax.training.optim",
    ),
    (
      "vpt_jax.training.checkpoints",
      "from vpt_jax import logs",
      "imports vpt_jax.training.metrics",
    ),
    (
      "vpt_jax.training.optim",
      "from vpt_jax.data import tasks",
      "imports vpt_jax.data.tasks",
    ),
    (
      "vpt_jax.training.loop",
      "from vpt_jax.methods import registry",
      "imports vpt_jax.methods.registry",
    ),
    ("vpt_jax.training.loop", "from flax import linen", "imports flax.linen"),
    (
      "vpt_jax.training.loop",
      "from vpt_jax import main",
      "imports vpt_jax.main",
    ),
    (
      "vpt_jax.training.evaluation",
      "from vpt_jax.methods import vpt\nfrom vpt_jax.backbones import vit",
      "imports backbones and methods",
    ),
    (
      "vpt_jax.main",
      "from vpt_jax.methods import vapt",
      "imports vpt_jax.methods.vapt",
    ),
    ("vpt_jax.main", "import configs.common", "imports configs.common"),
    ("vpt_jax.main", "from tests import conftest", "imports tests"),
    ("vpt_jax.training.optim", "import flax.struct", "imports flax.struct"),
    ("vpt_jax.bench.measure", "import torch", "imports torch"),
    (
      "vpt_jax.bench.pytorch_side",
      "from vpt_jax import model",
      "imports vpt_jax.model",
    ),
    ("configs.new", "import numpy as np", "imports numpy"),
    ("configs.new", "from configs import vpt_vtab", "imports configs.vpt_vtab"),
    ("configs.new", "from vpt_jax import tree", "imports vpt_jax.utils.trees"),
    ("vpt_jax.main", "import torch.nn", "imports torch"),
    ("vpt_jax.main", "from torchvision import io", "imports torchvision"),
    (
      "vpt_jax.main",
      "import tensorflow_datasets",
      "imports tensorflow_datasets",
    ),
    ("vpt_jax.main", "try:\n  import pickle\nexcept E:\n  x", "imports pickle"),
    (
      "vpt_jax.main",
      "import importlib\nimportlib.import_module('x')",
      "dynamic import",
    ),
    ("vpt_jax.main", "f(key=print)", "print"),
    ("vpt_jax.main", "assert x, y", "assert"),
    ("vpt_jax.main", "try:\n  x\nexcept:\n  y", "bare except"),
    ("vpt_jax.main", "np.load(f, allow_pickle=True)", "allow_pickle"),
    ("vpt_jax.main", "\n" * 300 + "x = 1", "301 lines, above 300"),
    ("vpt_jax.main", f"x = '{'y' * 75}'", "line 1: 81 columns, above 80"),
    ("vpt_jax.main", "# Only a comment.", "no docstring"),
  ],
)
def test_each_kind_of_breach_is_seen(module, source, fault):
  assert fault in faults(module, source)
  assert fault not in faults(module, '"""A docstring."""\n')


def test_what_the_rules_allow():
  good = '"""A docstring."""\n'
  for module, source in (
    (
      "vpt_jax.training.loop",
      "import flax.struct\nfrom vpt_jax import model, optim",
    ),
    (
      "vpt_jax.model",
      "import flax.linen as nn\nfrom vpt_jax.methods import "
      "registry\nfrom vpt_jax.backbones import load",
    ),
    (
      "vpt_jax.main",
      "import tensorboardX\nfrom vpt_jax import config\n"
      "from vpt_jax.data import tasks\nfrom vpt_jax.methods import registry",
    ),
    ("vpt_jax.bench.pytorch_models", "import torch\nfrom timm.models import x"),
    ("vpt_jax.main", "\n" * 298 + f"x = '{'y' * 74}'"),
    ("vpt_jax.main", "np.load(f, allow_pickle=False)\nself.print_all()"),
    (
      "configs.new",
      "from ml_collections import ConfigDict\nfrom configs import common",
    ),
  ):
    assert faults(module, good + source) == []
  assert faults("vpt_jax.data", "", is_package=True) == []
