"""Every value of a config is checked, and old configs are still understood."""

import json

from ml_collections import ConfigDict
import pytest

from configs import common, vapt_vtab
from vpt_jax import config as config_lib
from vpt_jax.config import sections
from vpt_jax.methods import registry
from vpt_jax.training import optim, run_folder

NAN = float("nan")
INF = float("inf")


def changed(field, value, method=""):
  config = common.embedded(common.get_config())
  config.method = method or config.method
  section, _, name = field.rpartition(".")
  with config.unlocked(), config.ignore_type():
    (config[section] if section else config)[name] = value
  return config


@pytest.mark.parametrize(
  "field,value,message",
  [
    ("optim.lr", -1.0, "config.optim.lr=-1.0; expected at least 0"),
    ("optim.lr", NAN, "config.optim.lr=nan; expected a finite number"),
    ("optim.lr", INF, "config.optim.lr=inf; expected a finite number"),
    ("optim.lr", "1", "config.optim.lr='1'; expected a finite number"),
    ("optim.weight_decay", -0.1, "expected at least 0"),
    ("optim.momentum", 1.0, "expected at least 0, below 1"),
    ("optim.momentum", -0.1, "expected at least 0, below 1"),
    ("optim.name", "sgdd", "unknown optim.name 'sgdd'; did you mean 'sgd'?"),
    ("optim.schedule", "cosin", "did you mean 'cosine'?"),
    ("optim.scale_lr", 1, "config.optim.scale_lr=1; expected True or False"),
    ("optim.policies", ((".*",),), "expected pairs (regex,"),
    ("optim.policies", (("(", {}),), "expected a regular expression"),
    ("optim.policies", ((".*", {"lrr": 1.0}),), "did you mean 'lr'?"),
    ("optim.policies", ((".*", {"lr": NAN}),), "expected factors of"),
    ("optim.warmup_epochs", -1, "expected at least 0"),
    ("optim.warmup_epochs", 25, "expected 0 to epochs=24"),
    ("seed", -1, "config.seed=-1; expected 0 to 4294967295"),
    ("seed", 1.5, "config.seed=1.5; expected an integer"),
    ("seed", True, "config.seed=True; expected an integer"),
    ("batch_size", 0, "expected 1 to"),
    ("image_size", 0, "expected 1 to"),
    ("epochs", -1, "expected at least 0"),
    ("head", "zeroshot", "did you mean 'zero_shot'?"),
    ("head_init", "zero", "unknown head_init 'zero'; did you mean 'zeros'?"),
    ("head_layers", -1, "expected at least 0"),
    ("head_groups", (1, 2), "expected tuples of class numbers"),
    ("pool", "clss", "unknown pool 'clss'; did you mean 'cls'?"),
    ("trainable", "((", "expected a regular expression"),
    ("mode", "swep", "did you mean 'sweep'?"),
    ("problem", "clasification", "did you mean 'classification'?"),
    ("backbone.gelu", "tan", "did you mean 'tanh'?"),
    ("backbone.norm", "befor", "did you mean 'before'?"),
    ("backbone.frozen_dtype", "float16", "did you mean"),
    ("compute.dtype", "float16", "did you mean"),
    ("compute.ops", "fast", "known: auto, reference"),
    ("compute.attention", "our", "did you mean 'ours'?"),
    ("shard.strategy", "fsp", "did you mean 'fsdp'?"),
    ("shard.model", 0, "expected at least 1"),
    ("checkpoint.keep", 0, "expected at least 1"),
    ("checkpoint.every_epochs", 0, "expected at least 1"),
    ("data.device_gb", -1.0, "expected at least 0"),
    ("data.train_share", 0.0, "expected above 0, at most 1"),
    ("data.train_share", 1.5, "expected above 0, at most 1"),
    ("data.min_scale", 0.0, "expected above 0, at most 1"),
    ("data.seed", -1, "expected 0 to"),
    ("data.preprocess", "vtb", "did you mean 'vtab'?"),
    ("data.augment", "flipp", "did you mean 'flip'?"),
    ("data.normalize", "imgnet", "did you mean 'imagenet'?"),
    ("data.on_error", "ignore", "known: raise, skip"),
    ("data.test_split", "tset", "did you mean 'test'?"),
    ("data.source", "foldr:x", "did you mean 'folder'?"),
    ("data.source", "csv:", "expected csv:PATH, with a path"),
    ("condense.shares", (0.5, 1.5), "expected numbers between 0 and 1"),
    ("clip.templates", (1,), "expected texts"),
    ("vapt.num_tokens", -3, "vapt.num_tokens=-3; expected at least 1"),
    ("vapt.num_tokens", 1.5, "expected an integer"),
    ("vapt.dropout", NAN, "expected a finite number"),
    ("vapt.nmu_tokens", 3, "did you mean 'vapt.num_tokens'?"),
    ("optim.lrr", 1.0, "unknown config field 'optim.lrr'; did you mean"),
    ("sed", 1, "unknown config field 'sed'; did you mean 'seed'?"),
  ],
)
def test_a_value_that_no_run_could_use_is_refused(field, value, message):
  with pytest.raises(ValueError) as error:
    config_lib.resolve(changed(field, value))
  assert message in str(error.value)


@pytest.mark.parametrize(
  "field,value,message",
  [
    ("sweep.seeds", ("a",), "expected integers of at least 0"),
    ("sweep.seeds", (-1,), "expected integers of at least 0"),
    ("sweep.grid", (("optim.lr", 1.0),), "expected (field, (value, ...))"),
    ("sweep.grid", (("optim.lr", ()),), "expected (field, (value, ...))"),
    ("sweep.tasks", (1,), "expected texts"),
    ("sweep.per_task", {"dtd": ((1, 2),)}, "expected pairs (field, value)"),
    ("optim.lr", NAN, "expected a finite number"),
  ],
)
def test_a_sweep_s_values_are_checked(field, value, message):
  config = changed(field, value)
  config.mode = "sweep"
  with pytest.raises(ValueError) as error:
    config_lib.check_values(config)
  assert message in str(error.value)


@pytest.mark.parametrize("method", sorted(registry.BUILT_IN))
def test_every_method_checks_its_options_before_data_are_read(method):
  names = {field.name for field in registry.option_fields(registry.get(method))}
  counts = names & {"num_tokens", "rank", "reduction", "num_channels", "width"}
  for name in counts:
    with pytest.raises(ValueError, match=rf"{method}\.{name}=-3"):
      config_lib.resolve(changed(f"{method}.{name}", -3, method))


def test_the_names_that_the_optimizer_knows():
  assert set(sections.SCHEDULES) == {*optim.SCHEDULES, "poly"}
  assert set(sections.POLY_FORMS) == set(optim.POLY_FORMS)
  for name in sections.OPTIMIZERS:
    optim.make_optimizer(name, lambda step: 1.0, ["a"], weight_decay=0.0)


def test_every_field_has_a_help():
  for section in ("", *sections.SECTIONS):
    for field in sections.fields_of(section):
      assert len(field.metadata["help"]) > 8, (section, field.name)


def test_resolving_twice_changes_nothing():
  once = config_lib.resolve(vapt_vtab.get_config())
  assert config_lib.plain(config_lib.resolve(once)) == config_lib.plain(once)
  assert "vapt" in once and "vpt" not in once
  assert "sweep" not in once and "condense" not in once


# Of the release before the fields `problem` and `compute.ops`.
OLD_DIGESTS = {"": "dd917b847e91", "eurosat": "c3c527e901d8"}


@pytest.mark.parametrize("task", OLD_DIGESTS)
def test_runs_keep_the_names_that_they_had(task):
  config = config_lib.resolve(vapt_vtab.get_config(task))
  assert config_lib.digest(config, 12) == OLD_DIGESTS[task]
  config.compute.ops = "reference"
  assert config_lib.digest(config, 12) != OLD_DIGESTS[task]


def test_a_folder_of_an_older_run_resumes(tmp_path):
  config = config_lib.resolve(vapt_vtab.get_config())
  old = config_lib.plain(config)
  del old["problem"], old["compute"]["ops"]
  path = tmp_path / "config.json"
  path.write_text(json.dumps(old))
  run_folder.check_unchanged(path, config_lib.plain(config))

  completed = config_lib.resolve(ConfigDict(old))
  assert config_lib.plain(completed) == config_lib.plain(config)

  config.compute.ops = "reference"
  with pytest.raises(ValueError, match="compute.ops: 'auto' -> 'reference'"):
    run_folder.check_unchanged(path, config_lib.plain(config))
