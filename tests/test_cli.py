"""The command line: what it says first, and when something is wrong."""

import jax
import jax.numpy as jnp
import pytest

from vpt_jax import main

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
  assert main.told(lambda: int(big()[0])) == 1
  err = capsys.readouterr().err
  assert "error: out of memory" in err and "config.batch_size" in err
  assert "RESOURCE_EXHAUSTED" in err and "lost another" not in err


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
