"""What the papers look at: `python -m vpt_jax.analyze COMMAND ...`.

Every command draws a PNG, and writes the numbers behind it to a CSV beside it.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
import sys

from vpt_jax.analysis import (
  attention_maps,
  curves,
  feature_plane,
  figures,
  gradcam,
  prompt_importance,
  subject,
)
from vpt_jax.analysis.subject import Adapter, Images


def parser() -> argparse.ArgumentParser:
  """The commands and their arguments."""
  out = argparse.ArgumentParser(
    prog="python -m vpt_jax.analyze", description=__doc__.splitlines()[0]
  )
  commands = out.add_subparsers(dest="command", required=True)

  def add(
    name: str, what: str, first: str, many: bool = False
  ) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=what, description=what)
    command.add_argument(
      first,
      nargs="+" if many else None,
      metavar=first.upper(),
      help="adapter.npz of a run"
      if first == "adapter"
      else "of runs or of sweeps",
    )
    command.add_argument(
      "--to",
      default=f"{name}.png",
      metavar="FILE.png",
      help="what is written (default %(default)s)",
    )
    if first == "adapter":
      command.add_argument(
        "--backbone",
        default="",
        metavar="FILE",
        help="its checkpoint, if it is elsewhere now",
      )
      command.add_argument(
        "--data_dir",
        default="",
        metavar="DIR",
        help="of the data sets, if they are elsewhere now",
      )
    return command

  def add_images(command: argparse.ArgumentParser) -> None:
    command.add_argument("image", nargs="*", metavar="IMAGE")
    command.add_argument(
      "--test",
      type=_positive,
      metavar="N",
      help="the first N test images of the adapter's task",
    )

  command = add(
    "attention", "attention maps, with and without prompts", "adapter"
  )
  add_images(command)
  command.add_argument(
    "--blocks",
    type=_integers,
    default=(),
    metavar="I,J,...",
    help="from 0 (default: four)",
  )
  add(
    "gates",
    "whose outputs gated prompts are, and temperatures",
    "adapter",
    many=True,
  )
  command = add(
    "eigenvalues", "singular values of attention matrices", "adapter", many=True
  )
  command.add_argument("--images", type=_positive, default=64, metavar="N")
  command = add(
    "layers", "accuracy without the prompts of one block", "adapter"
  )
  command.add_argument(
    "--images",
    type=_positive,
    default=0,
    metavar="N",
    help="test images (default: all)",
  )
  command = add(
    "curve", "accuracy against a field of the config", "workdir", many=True
  )
  command.add_argument(
    "--field", required=True, help="such as vpt.num_tokens or data.train_share"
  )
  add(
    "condensation",
    "accuracy and cost against the share of prompts",
    "workdir",
    many=True,
  )
  command = add("embedding", "features in the plane", "adapter")
  command.add_argument(
    "--method", choices=feature_plane.METHODS, default="tsne"
  )
  command.add_argument("--images", type=_positive, default=1000, metavar="N")
  command.add_argument("--seed", type=int, default=0)
  command = add("gradcam", "which patches speak for a class", "adapter")
  add_images(command)
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
  return out


def _integers(text: str) -> tuple[int, ...]:
  return tuple(map(int, text.split(",")))


def _positive(text: str) -> int:
  number = int(text)
  if number < 1:
    raise argparse.ArgumentTypeError(f"{number}; expected at least 1")
  return number


def _open(args: argparse.Namespace, path: str) -> Adapter:
  return subject.read(path, args.backbone, args.data_dir)


def _images(args: argparse.Namespace, adapter: Adapter) -> Images:
  if bool(args.image) == (args.test is not None):
    raise ValueError(
      "expected files of images, or --test N; got "
      + ("both" if args.image else "neither")
    )
  if args.image:
    return subject.files(adapter, args.image)
  return subject.test(adapter, args.test)


def _attention(args: argparse.Namespace, to: Path) -> str:
  adapter = _open(args, args.adapter)
  return attention_maps.draw(adapter, _images(args, adapter), args.blocks, to)


def _gradcam(args: argparse.Namespace, to: Path) -> str:
  adapter = _open(args, args.adapter)
  return gradcam.draw(
    adapter, _images(args, adapter), args.block, args.label, to
  )


COMMANDS: dict[str, Callable[[argparse.Namespace, Path], str]] = {
  "attention": _attention,
  "gates": lambda args, to: prompt_importance.draw_gates(
    [_open(args, path) for path in args.adapter], to
  ),
  "eigenvalues": lambda args, to: attention_maps.eigenvalues(
    [_open(args, path) for path in args.adapter], args.images, to
  ),
  "layers": lambda args, to: prompt_importance.draw_layers(
    _open(args, args.adapter), args.images, to
  ),
  "curve": lambda args, to: curves.curve(args.workdir, args.field, to),
  "condensation": lambda args, to: curves.condensation(args.workdir, to),
  "embedding": lambda args, to: feature_plane.draw(
    _open(args, args.adapter), args.method, args.images, args.seed, to
  ),
  "gradcam": _gradcam,
}


def main(argv: Sequence[str]) -> int:
  """Runs a command; returns the exit status."""
  args = parser().parse_args(argv)
  try:
    to = figures.check(args.to)
    text = COMMANDS[args.command](args, to)
  except (ValueError, OSError) as error:
    sys.stderr.write(f"error: {error}\n")
    return 1
  sys.stdout.write(f"{text}\n{to} and {to.with_suffix('.csv')}\n")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
