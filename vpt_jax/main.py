"""Command line: `python -m vpt_jax.main --config=FILE[:TASK]`."""

from collections.abc import Sequence
import logging
import os
from pathlib import Path
import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

USAGE = """usage: python -m vpt_jax.main --config=FILE[:TASK] [--workdir=DIR]
                              [--config.FIELD=VALUE ...]

  --config=configs/vapt_vtab.py            the embedded data and backbone
  --config=configs/vapt_vtab.py:eurosat    a VTAB-1k task, ViT-B/16 IN-21k
  --config.optim.lr=0.5                    overrides one field; all of them are
                                           in configs/common.py"""

EMBEDDED_NOTE = """no task named: the embedded data (scikit-learn's digits) and \
the embedded backbone; name a real one as in --config=%s:eurosat (with \
ViT-B/16 IN-21k)"""


def parse(argv: Sequence[str]) -> tuple[ConfigDict, str, str]:
  """Command line -> (config, file of the config, workdir or "").

  Raises:
    ValueError: an argument that can't be used, with what to do.
  """
  values = flags.FlagValues()
  path = next((arg.split("=", 1)[1] for arg in argv
               if arg.lstrip("-").startswith("config=")), "")
  if not path:
    raise ValueError(f"no --config given\n{USAGE}")
  file = path.split(":")[0]
  if not Path(file).is_file():
    raise ValueError(f"--config: no file {file!r}; run from the folder that "
                     "holds configs/")
  # Config files import `configs.common`.
  sys.path.insert(0, str(Path(file).absolute().parent.parent))
  config_flags.DEFINE_config_file("config", flag_values=values)
  flags.DEFINE_string("workdir", "", "where the run is kept", values)
  try:
    rest = values(argv)
  except (flags.Error, AttributeError, KeyError, TypeError) as error:
    raise ValueError(f"{error}; fields and defaults are in configs/common.py"
                     ) from None
  if len(rest) > 1:
    raise ValueError(f"unexpected argument {rest[1]!r}\n{USAGE}")
  return values.config, file, values.workdir


def main(argv: Sequence[str]) -> int:
  """Runs; returns the exit status. Errors of the user are told in a line."""
  if "--help" in argv or "-h" in argv:
    sys.stdout.write(USAGE + "\n")
    return 0
  try:
    config, file, workdir = parse(argv)
    # Flags first: a typo should not wait for JAX.
    from vpt_jax import config as configs, report, train  # pylint: disable=g-import-not-at-top
    handler = logging.StreamHandler(sys.stdout)
    report.log.addHandler(handler)
    report.log.setLevel(logging.INFO)
    report.log.propagate = False  # absl would print each line again
    config = configs.resolve(config)
    if config.backbone.name == "vit_mini4_cifar10":
      report.log.info(EMBEDDED_NOTE, file)
    workdir = workdir or os.path.join(
        "runs", f"{config.task}-{config.method}-{configs.digest(config)}")
    report.log.info("workdir %s", workdir)
    result = train.run(config, workdir)
    report.log.info("%s\n%s", report.result_text(result),
                    f"result and adapter in {workdir}")
  except ValueError as error:
    sys.stderr.write(f"error: {error}\n")
    return 1
  except KeyboardInterrupt:
    sys.stderr.write("interrupted; the same command goes on\n")
    return 130
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
