"""Runs the side of vpt_jax: the model and the step of a training run."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import importlib.metadata
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vpt_jax import model as model_lib
from vpt_jax.bench import dense_cases, jax_models, worker
from vpt_jax.condensation import prompt_scores
from vpt_jax.data.transforms import views
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.nn import cost
from vpt_jax.training import optim
from vpt_jax.training import step as step_lib
from vpt_jax.utils import trees

# As in `pytorch_side.py`.
RATE = 0.01
DECAY = 1e-3

NORMALIZE = "imagenet"
# Backward passes per batch: one for each image, or one.
SCORES = ("elementwise_sample_abs", "elementwise_abs")

# Which leaves are what.
BACKBONE = ("backbone/",)
TRAINED = ("method/", "head/")
STATISTICS = ("batch_stats/",)


def _starting_with(arrays: trees.Flat, prefixes: tuple[str, ...]) -> trees.Flat:
  return {
    path: leaf for path, leaf in arrays.items() if path.startswith(prefixes)
  }


@dataclasses.dataclass(frozen=True)
class Step:
  """A compiled training step and its arguments.

  Attributes:
    program: (state, frozen, batch) -> (state, metrics), compiled; the state is
      donated.
    state: the first one.
    frozen: parameters.
    batch: image, label and mask.
  """

  program: Any
  state: step_lib.TrainState
  frozen: trees.Flat
  batch: dict[str, jax.Array]


class JaxSide:
  """The model of vpt_jax on a case's values; see `worker.Side`."""

  def __init__(self, case: dict[str, Any]):
    """Makes a model whose values are read when they are first needed.

    Args:
      case: see `measure.Case`, with `file`.
    """
    self.case = case
    self.config = jax_models.config_of(case)
    self.model = jax_models.model_of(case)
    self.problem = jax_models.problem_of(case)
    self._gflops: dict[str, float] = {}
    self.commands: Mapping[str, worker.Command] = {
      "export": self.export,
      "logits": self.logits,
      "forward": self.forward,
      "train": self.train,
      "facts": self.facts,
      "memory": self.memory,
      "matmul": self.matmul,
      "score": self.score,
    }

  def export(self, count: int) -> dict[str, Any]:
    """Writes the case's weights, images and labels for both sides."""
    del count
    shapes = {path: leaf.shape for path, leaf in self._leaves().items()}
    weights = jax_models.random_values(shapes, self.case["seed"])
    rng = np.random.default_rng(self.case["seed"])
    batch = self.case["batch"]
    height, width = self.model.method.input_size
    classes = self.case["classes"]
    image = rng.integers(0, 256, (batch, height, width, 3), np.uint8)
    if self.is_dense:
      label = dense_cases.labels(self.case, (height, width), rng)
    else:
      label = rng.integers(0, classes, batch, np.int32)
    mean, std = np.asarray(views.NORMALIZE[NORMALIZE], np.float32)
    np.savez(
      self.case["file"],
      image=image,
      pixels=(image.astype(np.float32) / 255 - mean) / std,
      label=label,
      **weights,
    )
    return {}

  @property
  def is_dense(self) -> bool:
    """Whether it is a case of segmentation."""
    return self.model.dense is not None

  def _leaves(self) -> trees.Flat:
    """Returns the shapes of all leaves of the model, flat."""

    def initial() -> dict[str, Any]:
      params = model_lib.init(self.model, jax.random.key(0))
      return params | model_lib.collections(self.model, jax.random.key(0))

    return trees.flatten(jax.eval_shape(initial))

  @functools.cached_property
  def arrays(self) -> trees.Flat:
    """The exported ones, on the device, the frozen ones as they are stored."""
    with np.load(self.case["file"], allow_pickle=False) as file:
      arrays = dict(file)
    frozen = _starting_with(arrays, BACKBONE)
    return jax.device_put(arrays | model_lib.store(frozen, self.config))

  def _part(self, prefixes: tuple[str, ...]) -> trees.Flat:
    return _starting_with(self.arrays, prefixes)

  @property
  def variables(self) -> dict[str, Any]:
    """What the model is applied to."""
    params = trees.unflatten(self._part(BACKBONE + TRAINED))
    return {"params": params, **trees.unflatten(self._part(STATISTICS))}

  def _compiled(
    self,
    name: str,
    jitted: Callable[[model_lib.Model], Any],
    args: tuple[Any, ...],
  ) -> Any:
    """Returns a compiled program, and notes the FLOPs of its products.

    Args:
      name: of the command that it is for.
      jitted: returns the program of a model, jitted.
      args: of the program.
    """
    # Of attention written out: a fused one is nothing that can be counted.
    plain = jax_models.model_of({**self.case, "attention": "ours"})
    multiply_adds = cost.counted(jitted(plain), *args)
    self._gflops[name] = 2 * multiply_adds / self.case["batch"] / 1e9
    return jitted(self.model).lower(*args).compile()

  @functools.cached_property
  def _run_forward(self) -> Callable[[], jax.Array]:
    """Starts a forward pass of all images; returns the logits."""
    args = (self.variables, self.arrays["pixels"])

    def jitted(model: model_lib.Model) -> Any:
      return jax.jit(model.apply)

    program = self._compiled("forward", jitted, args)
    return functools.partial(program, *args)

  @functools.cached_property
  def step(self) -> Step:
    """The training step."""
    # Copies, as the step's state is donated.
    trainable = jax.tree.map(jnp.copy, self._part(TRAINED))
    statistics = jax.tree.map(jnp.copy, self._part(STATISTICS))
    frozen = self._part(BACKBONE)
    tx = optim.from_config(
      self.config.optim,
      lambda step: RATE,
      DECAY,
      trainable,
      [*trainable, *frozen],
    )
    state = step_lib.TrainState(
      jnp.int32(0),
      trainable,
      tx.init(trainable),
      trees.unflatten(statistics),
      jax.random.PRNGKey(self.case["seed"]),
    )
    batch = {
      "image": self.arrays["image"],
      "label": self.arrays["label"],
      "mask": jnp.ones(self.case["batch"]),
    }

    def jitted(model: model_lib.Model) -> Any:
      return step_lib.make_train_step(
        model,
        tx,
        problem=self.problem,
        preprocess=Preprocess(model.method.input_size, NORMALIZE),
        augment="none",
      )

    program = self._compiled("train", jitted, (state, frozen, batch))
    return Step(program, state, frozen, batch)

  @functools.cached_property
  def _run_step(self) -> Callable[[], dict[str, jax.Array]]:
    """Starts one more step each time; returns its metrics."""
    step = self.step
    state = step.state

    def run() -> dict[str, jax.Array]:
      nonlocal state
      state, metrics = step.program(state, step.frozen, step.batch)
      return metrics

    return run

  # What is cached is made within the timed part, so that the first time of a
  # command is with its compilation.

  def _timed_forward(self, count: int) -> tuple[float, jax.Array]:
    return worker.timed(
      lambda: self._run_forward(), jax.block_until_ready, count
    )

  def logits(self, count: int) -> dict[str, Any]:
    """Returns those of all images, without dropout, and the seconds.

    Of segmentation they are the main head's at some pixels.
    """
    seconds, logits = self._timed_forward(count)
    if self.is_dense:
      logits = dense_cases.sampled(_main(logits))
    return {
      "logits": np.asarray(logits, np.float32).tolist(),
      "seconds": seconds,
    }

  def forward(self, count: int) -> dict[str, Any]:
    """Returns the seconds of a forward pass."""
    seconds, _ = self._timed_forward(count)
    return {"seconds": seconds}

  def train(self, count: int) -> dict[str, Any]:
    """Returns the seconds of a training step, and the last one's loss."""
    seconds, metrics = worker.timed(
      lambda: self._run_step(), jax.block_until_ready, count
    )
    return {"seconds": seconds, "loss": float(metrics["loss"])}

  def facts(self, count: int) -> dict[str, Any]:
    """Returns device, versions, and FLOPs per image of what has run."""
    del count
    device = jax.devices()[0]
    return {
      "platform": device.platform,
      "device": device.device_kind,
      "gflops": self._gflops,
      "versions": {
        name: importlib.metadata.version(name)
        for name in ("jax", "jaxlib", "flax", "optax")
      },
    }

  def memory(self, count: int) -> dict[str, Any]:
    """Returns the most bytes: of the device, or on CPU of this process."""
    del count
    statistics = jax.devices()[0].memory_stats()
    if statistics:
      return {"bytes": statistics["peak_bytes_in_use"]}
    return {"bytes": worker.peak_memory()}

  def matmul(self, count: int) -> dict[str, Any]:
    """Returns GFLOP/s of n x n matrix products, n = `count`."""
    a = jnp.asarray(worker.matrix(count), self.case["dtype"])
    product = jax.jit(lambda a: a @ a)
    return worker.matmul(lambda: product(a), jax.block_until_ready, count)

  def score(self, count: int) -> dict[str, Any]:
    """Returns the seconds to score the prompts on `count` images.

    They are in whole batches. A first batch comes before them, and with it
    compilation.

    Raises:
      ValueError: prompts that cannot be condensed.
    """
    batch = {"image": self.arrays["pixels"], "label": self.arrays["label"]}
    batches = -(-count // self.case["batch"])
    times: list[float] = []

    def feed() -> Iterator[dict[str, jax.Array]]:
      for _ in range(1 + batches):
        # The next batch is asked for when the last one is done.
        times.append(time.perf_counter())
        yield batch

    found = {}
    for statistic in SCORES:
      times.clear()
      prompt_scores.scores(self.model, self.variables, feed(), [statistic])
      end = time.perf_counter()
      found[statistic] = {
        "first_batch": times[1] - times[0],
        "seconds": end - times[1],
      }
    return {"images": batches * self.case["batch"], "scores": found}


def _main(outputs: Any) -> jax.Array:
  """Returns the logits of the main head."""
  return outputs[0] if isinstance(outputs, tuple) else outputs


if __name__ == "__main__":
  worker.serve(JaxSide)
