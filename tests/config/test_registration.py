"""Methods and problems that live outside the package."""

import flax.linen as nn
import numpy as np
import pytest

from configs import common
import vpt_jax
from vpt_jax import config as config_lib
from vpt_jax import problems
from vpt_jax.methods import registry
from vpt_jax.methods.method import check_options, Method


class Shift(Method):
  """Adds a learned vector, times a factor, to all tokens of the first block."""

  factor: float = 1.0
  per_block: int = 1

  def check(self):
    check_options(self, "shift", at_least={"per_block": 1})

  def setup(self):
    self.shift = self.param(
      "shift", nn.initializers.normal(0.02), (self.spec.widths[0],)
    )

  def before(self, i, tokens, *, train):
    if i:
      return tokens
    return tokens.replace(x=tokens.x + self.factor * self.shift)


@pytest.fixture
def shift():
  vpt_jax.register_method("shift", Shift, {"factor": 2.0})
  yield
  del registry.METHODS["shift"]
  del registry.DEFAULTS["shift"]


def test_a_method_of_one_s_own_from_end_to_end(shift, config, tmp_path):
  assert common.get_config().shift.to_dict() == {"factor": 2.0, "per_block": 1}
  config.method = "shift"  # without its section: the defaults
  config.data.normalize = "half"
  result = vpt_jax.run(config, tmp_path)
  assert result["method"] == "shift"
  assert result["trainable_params"] == 32 + 32 * 10 + 10

  predict = vpt_jax.load_adapter(tmp_path / "adapter.npz")
  images = np.zeros((2, 8, 8, 3), np.uint8)
  np.testing.assert_allclose(predict(images).sum(axis=1), 1, rtol=1e-5)

  config.shift = {"factor": 1.0, "per_block": 0}
  with pytest.raises(ValueError, match=r"shift\.per_block=0"):
    vpt_jax.run(config, tmp_path / "other")
  config.shift = {"faktor": 1.0}
  with pytest.raises(ValueError, match=r"did you mean 'shift\.factor'\?"):
    vpt_jax.run(config, tmp_path / "other")


def test_a_config_file_registers_the_method_that_it_uses(tmp_path):
  (tmp_path / "my_shift.py").write_text(
    "import vpt_jax\n"
    "from tests.config.test_registration import Shift\n"
    "class Mine(Shift):\n"
    '  "As it is."\n'
    "vpt_jax.register_method('mine', Mine)\n"
  )
  (tmp_path / "my_config.py").write_text(
    "import my_shift\n"
    "from configs import common\n"
    "def get_config():\n"
    "  config = common.get_config()\n"
    "  config.method = 'mine'\n"
    "  return common.embedded(config)\n"
  )

  path = tmp_path / "my_config.py"
  try:
    command = config_lib.parse(
      ["main", f"--config={path}", "--config.mine.factor=3"]
    )
    resolved = config_lib.resolve(command.config)
    assert resolved.mine.to_dict() == {"factor": 3.0, "per_block": 1}
    assert "vapt" not in resolved
  finally:
    registry.METHODS.pop("mine", None)
    registry.DEFAULTS.pop("mine", None)


class WithoutDefault(Method):
  """Cannot be configured."""

  size: int


class Other(Method):
  """Not the method of the same name."""


@pytest.mark.parametrize(
  "name,cls,defaults,error,message",
  [
    ("vpt", Shift, None, ValueError, "'vpt' is taken by vpt_jax"),
    ("optim", Shift, None, ValueError, "'optim' is taken by vpt_jax"),
    ("seed", Shift, None, ValueError, "'seed' is taken by vpt_jax"),
    ("my-shift", Shift, None, ValueError, "expected one like `my_method`"),
    ("shift", Other, None, ValueError, "is taken by tests.config"),
    ("mine", Shift, {"faktor": 1.0}, ValueError, "did you mean 'factor'?"),
    ("mine", WithoutDefault, None, TypeError, "'size' of method 'mine' has no"),
    ("mine", dict, None, TypeError, "expected a subclass of"),
    ("mine", "Shift", None, TypeError, "expected a subclass of"),
  ],
)
def test_what_cannot_be_registered(shift, name, cls, defaults, error, message):
  before = dict(registry.METHODS)
  with pytest.raises(error) as raised:
    vpt_jax.register_method(name, cls, defaults)
  assert message in str(raised.value)
  assert before == registry.METHODS


def test_a_module_may_be_imported_again(shift):
  again = type("Shift", (Method,), {"__module__": Shift.__module__})
  vpt_jax.register_method("shift", again)
  assert registry.get("shift") is again


def test_problems(monkeypatch):
  monkeypatch.setattr(problems, "PROBLEMS", dict(problems.PROBLEMS))

  class Mine(problems.Classification):
    """As it is."""

  vpt_jax.register_problem("mine", Mine)
  assert problems.build("mine", 3) == Mine(3)
  with pytest.raises(ValueError, match="is taken by"):
    vpt_jax.register_problem("classification", Mine)
  with pytest.raises(TypeError, match="expected a subclass"):
    vpt_jax.register_problem("other", Method)


def test_the_public_names():
  assert set(vpt_jax.__all__) == {
    "Data",
    "from_arrays",
    "load_adapter",
    "load_config",
    "register_method",
    "register_problem",
    "run",
  }
  for name in vpt_jax.__all__:
    assert callable(getattr(vpt_jax, name)) and name in vpt_jax.__doc__
