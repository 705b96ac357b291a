"""Draws the analyses of the papers: `python -m vpt_jax.analyze COMMAND ...`.

Every command draws a PNG, and writes the numbers behind it to a CSV beside it.
"""

import argparse
from collections.abc import Callable, Sequence
import sys
from typing import Any

from vpt_jax.analysis import (
  attention_maps,
  attention_spectra,
  condensation_curves,
  curves,
  feature_plane,
  figures,
  gate_weights,
  gradcam,
  prompt_importance,
  subject,
)
from vpt_jax.analysis.subject import Adapter, Images
from vpt_jax.utils import command_line


def parser() -> argparse.ArgumentParser:
  """Returns the commands and their arguments."""
  out = argparse.ArgumentParser(
    prog="python -m vpt_jax.analyze", description=__doc__.splitlines()[0]
  )
  commands = out.add_subparsers(dest="command", required=True)
  _add_attention(commands)
  _add_gates(commands)
  _add_eigenvalues(commands)
  _add_layers(commands)
  _add_curve(commands)
  _add_condensation(commands)
  _add_embedding(commands)
  _add_gradcam(commands)
  return out


# Every function below adds one command; `draw` gets its arguments and returns
# the text for the terminal.


def _add_attention(commands: Any) -> None:
  def draw(args: argparse.Namespace) -> str:
    adapter = _read_adapter(args, args.adapter)
    images = _images(args, adapter)
    return attention_maps.draw(adapter, images, args.blocks, args.to)

  command = _add_command(
    commands, "attention", "attention maps, with and without prompts", draw
  )
  _add_adapters(command)
  _add_images(command)
  command.add_argument(
    "--blocks",
    type=_integers,
    default=(),
    metavar="I,J,...",
    help="from 0 (default: four)",
  )


def _add_gates(commands: Any) -> None:
  def draw(args: argparse.Namespace) -> str:
    # Of any problem, as gates are numbers of the method.
    return gate_weights.draw(_read_adapters(args, or_dense=True), args.to)

  command = _add_command(
    commands, "gates", "whose outputs gated prompts are, and temperatures", draw
  )
  _add_adapters(command, several=True)


def _add_eigenvalues(commands: Any) -> None:
  def draw(args: argparse.Namespace) -> str:
    return attention_spectra.draw(_read_adapters(args), args.images, args.to)

  command = _add_command(
    commands, "eigenvalues", "singular values of attention matrices", draw
  )
  _add_adapters(command, several=True)
  command.add_argument("--images", type=_positive, default=64, metavar="N")


def _add_layers(commands: Any) -> None:
  def draw(args: argparse.Namespace) -> str:
    adapter = _read_adapter(args, args.adapter)
    return prompt_importance.draw(adapter, args.images, args.to)

  command = _add_command(
    commands, "layers", "accuracy without the prompts of one block", draw
  )
  _add_adapters(command)
  command.add_argument(
    "--images",
    type=_positive,
    default=0,
    metavar="N",
    help="test images (default: all)",
  )


def _add_curve(commands: Any) -> None:
  def draw(args: argparse.Namespace) -> str:
    return curves.draw(args.workdir, args.field, args.to)

  command = _add_command(
    commands, "curve", "accuracy against a field of the config", draw
  )
  _add_workdirs(command)
  command.add_argument(
    "--field", required=True, help="such as vpt.num_tokens or data.train_share"
  )


def _add_condensation(commands: Any) -> None:
  def draw(args: argparse.Namespace) -> str:
    return condensation_curves.draw(args.workdir, args.to)

  command = _add_command(
    commands,
    "condensation",
    "accuracy and cost against the share of prompts",
    draw,
  )
  _add_workdirs(command)


def _add_embedding(commands: Any) -> None:
  def draw(args: argparse.Namespace) -> str:
    adapter = _read_adapter(args, args.adapter)
    return feature_plane.draw(
      adapter, args.method, args.images, args.seed, args.to
    )

  command = _add_command(commands, "embedding", "features in the plane", draw)
  _add_adapters(command)
  command.add_argument(
    "--method", choices=feature_plane.METHODS, default="tsne"
  )
  command.add_argument("--images", type=_positive, default=1000, metavar="N")
  command.add_argument("--seed", type=int, default=0)


def _add_gradcam(commands: Any) -> None:
  def draw(args: argparse.Namespace) -> str:
    adapter = _read_adapter(args, args.adapter)
    images = _images(args, adapter)
    return gradcam.draw(adapter, images, args.block, args.label, args.to)

  command = _add_command(
    commands, "gradcam", "which patches speak for a class", draw
  )
  _add_adapters(command)
  _add_images(command)
  command.add_argument(
    "--block",
    type=int,
    default=-2,
    metavar="I",
    help="whose patches (default %(default)s: the last "
    "whose patches reach the logits)",
  )
  command.add_argument(
    "--class",
    dest="label",
    default="",
    metavar="NAME|NUMBER",
    help="default: the predicted one",
  )


def _add_command(
  commands: Any,
  name: str,
  what: str,
  draw: Callable[[argparse.Namespace], str],
) -> argparse.ArgumentParser:
  """Returns a new command, with the argument that all commands have."""
  command = commands.add_parser(name, help=what, description=what)
  command.set_defaults(draw=draw)
  command.add_argument(
    "--to",
    default=f"{name}.png",
    metavar="FILE.png",
    help="what is written (default %(default)s)",
  )
  return command


def _add_adapters(
  command: argparse.ArgumentParser, several: bool = False
) -> None:
  command.add_argument(
    "adapter",
    nargs="+" if several else None,
    metavar="ADAPTER",
    help="adapter.npz of a run",
  )
  command.add_argument(
    "--backbone",
    default="",
    metavar="FILE",
    help="its checkpoint, a file or address, where this machine does not know "
    "it",
  )
  command.add_argument(
    "--data_dir",
    default="",
    metavar="DIR",
    help="of the data sets, if they are elsewhere now",
  )


def _add_workdirs(command: argparse.ArgumentParser) -> None:
  command.add_argument(
    "workdir", nargs="+", metavar="WORKDIR", help="of runs or of sweeps"
  )


def _add_images(command: argparse.ArgumentParser) -> None:
  command.add_argument("image", nargs="*", metavar="IMAGE")
  command.add_argument(
    "--test",
    type=_positive,
    metavar="N",
    help="the first N test images of the adapter's task",
  )


def _integers(text: str) -> tuple[int, ...]:
  return tuple(map(int, text.split(",")))


def _positive(text: str) -> int:
  number = int(text)
  if number < 1:
    raise argparse.ArgumentTypeError(f"{number}; expected at least 1")
  return number


def _read_adapter(
  args: argparse.Namespace, path: str, or_dense: bool = False
) -> Adapter:
  return subject.read(path, args.backbone, args.data_dir, or_dense)


def _read_adapters(
  args: argparse.Namespace, or_dense: bool = False
) -> list[Adapter]:
  return [_read_adapter(args, path, or_dense) for path in args.adapter]


def _images(args: argparse.Namespace, adapter: Adapter) -> Images:
  """Returns the images that the command line names."""
  named = bool(args.image)
  of_test = args.test is not None
  if named == of_test:
    raise ValueError(
      "expected files of images, or --test N; got "
      + ("both" if named else "neither")
    )
  if named:
    return subject.files(adapter, args.image)
  return subject.test(adapter, args.test)


def main(argv: Sequence[str]) -> int:
  """Runs a command; returns the exit status."""
  args = parser().parse_args(argv)

  def work() -> int:
    # Before anything is computed.
    args.to = figures.check(args.to)
    text = args.draw(args)
    sys.stdout.write(f"{text}\n{args.to} and {args.to.with_suffix('.csv')}\n")
    return 0

  return command_line.exit_status(work)


if __name__ == "__main__":
  command_line.program(lambda: main(sys.argv[1:]))
