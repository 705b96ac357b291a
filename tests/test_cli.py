"""The command line: what it says first, and when something is wrong."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from configs import common
from vpt_jax import config as config_lib
from vpt_jax import main
from vpt_jax.config.__main__ import main as list_fields
from vpt_jax.utils import trees

VTAB = "--config=configs/vapt_vtab.py"


def run(capsys, *args):
  """(status, stdout, stderr) of the command."""
  status = main.main(["main", *args])
  captured = capsys.readouterr()
  main.log.handlers.clear()
  main.log.propagate = True
  return status, captured.out, captured.err


@pytest.mark.parametrize(
  "args,message",
  [
    ([], "error: no --config given\nusage: python -m vpt_jax.main --config="),
    (["--config=configs/nope.py"], "no file 'configs/nope.py'"),
    (
      [f"{VTAB}:eurosatt"],
      "error: unknown task 'eurosatt'; did you mean 'eurosat'? known: ",
    ),
    (
      [VTAB, "--config.optim.lrr=1"],
      "error: unknown config field 'optim.lrr'; did you mean 'optim.lr'?",
    ),
    ([VTAB, "--config.vapt.kernal=3"], "unknown config field 'vapt.kernal'"),
    (
      [VTAB, "--config.method=vpat"],
      "error: unknown method 'vpat'; did you mean 'vapt'? known: ",
    ),
    ([VTAB, "--config.epochs=ten"], "--config.epochs=ten"),
    ([VTAB, "--config.epochs=-1"], "config.epochs=-1; expected at least 0"),
    ([VTAB, "--config.data.normalize=imgnet"], "did you mean 'imagenet'?"),
    ([VTAB, "--config.optim.warmup_epochs=99"], "warmup_epochs=99"),
    ([VTAB, "--confg=1"], "Unknown command line flag 'confg'"),
    ([VTAB, "stray"], "unexpected argument 'stray'"),
    (
      [f"{VTAB}:dtd", "--config.backbone.name=vit_b17"],
      "unknown backbone 'vit_b17'; did you mean 'vit_b1",
    ),
    ([VTAB, "--config.image_size=30"], "image_size=30 is not a multiple"),
    ([VTAB, "--config.pool=clss"], "unknown pool 'clss'; did you mean 'cls'?"),
    (
      [VTAB, "--config.trainable=promt/.*"],
      "config.trainable=r'promt/.*' matches no parameter; top-level names are "
      "backbone, method, head",
    ),
    ([VTAB, "--config.optim.name=sdg"], "did you mean 'sgd'?"),
    ([VTAB, "--config.optim.lr=-1"], "config.optim.lr=-1.0; expected at least"),
    ([VTAB, "--config.optim.lr", "-1"], "config.optim.lr=-1.0; expected at"),
    ([VTAB, "--config.optim.lr=nan"], "config.optim.lr=nan; expected a finite"),
    ([VTAB, "--config.optim.lr", "inf"], "config.optim.lr=inf; expected a fin"),
    ([VTAB, "--config.seed=-1"], "config.seed=-1; expected 0 to 4294967295"),
    ([VTAB, "--config.head_init", "zero"], "did you mean 'zeros'?"),
    ([VTAB, "--config.problem=clasification"], "mean 'classification'?"),
    ([VTAB, "--config.optim.lrr", "1"], "did you mean 'optim.lr'?"),
    ([VTAB, "--config.optim.lr"], "--config.optim.lr has no value; expected"),
    ([VTAB, "--config.optim=1"], "unknown config field 'optim'; did you mean"),
    ([VTAB, "--noconfig.compute.remta"], "did you mean 'compute.remat'?"),
    ([VTAB, "--config.compute.remat=maybe"], "Non-boolean argument"),
    ([VTAB, "--config.sweep.seeds=(1,"], "error: flag --config.sweep.seeds=(1"),
    ([VTAB, "--config.vapt.num_tokens=-3"], "vapt.num_tokens=-3; expected"),
    ([VTAB, "--config.mode=sweep", '--config.sweep.seeds=("a",)'], "integers"),
    ([VTAB, "--config=configs/vpt_vtab.py"], "--config is given 2 times"),
    (["--config"], "error: no --config given"),
    (["--config=configs/vapt_vtab.p"], "did you mean 'vapt_vtab.py'?"),
    (["--config=elsewhere/vapt_vtab.py"], "no file 'elsewhere/vapt_vtab.py'"),
    (["--config=setup.cfg"], "setup.cfg is not a Python file"),
    (["--config=configs/__init__.py"], "is not a config file"),
    (["--config=configs/pretrain_mini.py:x"], "takes no argument"),
    ([VTAB, "--config.vapt.kernel_size=0"], "vapt.kernel_size=0; expected"),
    ([VTAB, "--config.vapt.num_tokens=-1"], "vapt.num_tokens=-1; expected"),
    ([VTAB, "--config.vapt.dropout=1.5"], "vapt.dropout=1.5; expected 0 <="),
    ([VTAB, "--config.optim.policies=foo"], "expected pairs (regex,"),
  ],
)
def test_errors_say_what_to_do(capsys, tmp_path, args, message):
  if args and VTAB in args[0]:
    args = [
      *args,
      f"--workdir={tmp_path / 'run'}",
      f"--config.data.dir={tmp_path}",
    ]
    if args[0] == VTAB and not any("backbone" in arg for arg in args):
      args += ["--config.backbone.checkpoint=random"]
  status, _, err = run(capsys, *args)
  assert status == 1
  assert message in err
  assert "Traceback" not in err
  # Nothing is claimed by a run that never started.
  assert not (tmp_path / "run" / "config.json").exists()


def test_a_missing_task_says_where_it_was_looked_for(capsys, tmp_path):
  status, _, err = run(
    capsys,
    f"{VTAB}:eurosat",
    f"--workdir={tmp_path}",
    f"--config.data.dir={tmp_path}",
  )
  assert status == 1
  assert f"pack: {tmp_path}/vtab-1k/eurosat\n" in err
  assert f"tfds: {tmp_path}/eurosat/rgb\n" in err
  assert "config.data.dir" in err and "download_and_prepare" in err


def test_out_of_memory_is_said(capsys):
  """As XLA says it, not as a lost process."""
  big = jax.jit(lambda: jnp.zeros(2**50, jnp.float32))
  assert main.exit_status(lambda: int(big()[0])) == 1
  err = capsys.readouterr().err
  assert "error: out of memory" in err and "config.batch_size" in err
  assert "RESOURCE_EXHAUSTED" in err and "lost another" not in err


def parse(*args):
  return config_lib.parse(["main", *args])


def test_values_may_follow_after_a_space():
  command = parse(
    *("--config", "configs/vapt_vtab.py:dtd", "--config.optim.lr", "0.25"),
    *("--workdir", "here", "--config.sweep.seeds", "(1, 2)"),
    *("--config.compute.remat", "--noconfig.optim.scale_lr", "--shard", "2/3"),
    *("--config.data.train_split", "train", "-config.seed", "3"),
  )
  config = command.config
  assert (command.path, command.workdir) == ("configs/vapt_vtab.py:dtd", "here")
  assert command.shard == (2, 3)
  assert (config.task, config.optim.lr, config.seed) == ("dtd", 0.25, 3)
  assert config.sweep.seeds == (1, 2)
  assert config.compute.remat and not config.optim.scale_lr
  assert config.data.train_split == "train"
  assert parse(VTAB, "--config.compute.remat", "False").config == (
    parse(VTAB).config
  )


def test_a_config_file_anywhere_finds_what_it_imports(tmp_path):
  """Config files of the package, and modules beside it."""
  (tmp_path / "beside_it.py").write_text("EPOCHS = 7\n")
  path = tmp_path / "mine.py"
  path.write_text(
    "import beside_it\n"
    "from configs import common\n"
    "def get_config(epochs=''):\n"
    "  config = common.get_config()\n"
    "  config.epochs = int(epochs or beside_it.EPOCHS)\n"
    "  return config\n"
  )
  assert parse(f"--config={path}").config.epochs == 7
  assert parse("--config", f"{path}:8").config.epochs == 8
  path.write_text("def get_config():\n  return {}\n")
  with pytest.raises(ValueError, match=r"returns dict; expected a ConfigDict"):
    parse(f"--config={path}")


def test_the_list_of_fields(capsys):
  assert list_fields([]) == 0
  out = capsys.readouterr().out
  known = trees.flatten(common.get_config().to_dict())
  for name in known:
    assert f"\nconfig.{name.replace('/', '.')} = " in out
  assert list_fields(["optim", "vapt"]) == 0
  out = capsys.readouterr().out
  assert "config.optim.lr = 1.0\n    Learning rate for a batch" in out
  assert "config.vapt.num_tokens = 10\n" in out and "config.seed" not in out
  assert list_fields(["optm"]) == 1
  assert "did you mean 'optim'?" in capsys.readouterr().err


@pytest.mark.parametrize("value,kept", [(None, 1), ("1", 1), ("0", 0)])
def test_memory_settings_are_an_option(monkeypatch, value, kept):
  calls = []
  monkeypatch.setattr(main.malloc, "keep", lambda: calls.append("keep"))
  monkeypatch.setattr(main.program_cache, "enable", lambda: None)
  monkeypatch.setattr(main.signals, "listen", lambda: 0)
  monkeypatch.delenv("VPT_JAX_KEEP_MEMORY", raising=False)
  if value is not None:
    monkeypatch.setenv("VPT_JAX_KEEP_MEMORY", value)
  main.start_process()
  assert len(calls) == kept


def test_help(capsys):
  status, out, _ = run(capsys, "--help")
  assert status == 0 and "configs/vapt_vtab.py:eurosat" in out


def test_the_default_says_what_it_takes_in_its_first_line(capsys, tmp_path):
  status, out, err = run(
    capsys,
    VTAB,
    f"--workdir={tmp_path}",
    "--config.image_size=8",
    "--config.epochs=1",
    "--config.optim.warmup_epochs=0",
  )
  assert status == 0, err
  first = out.splitlines()[0]
  assert "no task named" in first and "embedded" in first
  assert "--config=configs/vapt_vtab.py:eurosat" in first
  assert "ViT-B/16 IN-21k" in first
  assert "digits test: top-1" in out
  status, out, _ = run(
    capsys,
    VTAB,
    f"--workdir={tmp_path}",
    "--config.image_size=8",
    "--config.epochs=1",
    "--config.optim.warmup_epochs=0",
  )
  assert status == 0 and "is finished" in out


def test_own_images_on_a_backbone_that_is_named(capsys, tmp_path):
  """What is said of the backbone is true: embedded, or another one's name."""
  photos = tmp_path / "photos"
  for options, said in (
    ((), "the embedded backbone vit_mini4_cifar10; a real one"),
    (("--config.backbone.name=vit_ti16",), "and the backbone vit_ti16\n"),
    (
      (f"--config.backbone.checkpoint={tmp_path}/no.npz",),
      "and the backbone vit_mini4_cifar10\n",
    ),
  ):
    _, out, _ = run(
      capsys,
      VTAB,
      f"--workdir={tmp_path}/run",
      f"--config.data.source={photos}",
      "--config.epochs=-1",  # so that nothing is trained
      *options,
    )
    assert said in out


@pytest.mark.parametrize("name", ["../../evil", "/etc", "a b", "..", "x" * 300])
def test_the_default_folder_of_a_run_is_below_runs(name):
  """A task's name is any text: it names one folder, wherever it points."""
  config = config_lib.load_config("configs/linear_vtab.py")
  folder = Path(main.default_workdir(name, config))
  assert folder.parent == Path("runs")
  assert folder.name not in (".", "..")
  assert len(folder.name) < 120
