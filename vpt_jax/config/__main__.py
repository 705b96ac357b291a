"""Lists the fields of configs: `python -m vpt_jax.config [SECTION ...]`."""

from collections.abc import Sequence
import inspect
import sys
import textwrap

from vpt_jax.config import sections
from vpt_jax.methods import registry as methods
from vpt_jax.utils import command_line, lookup


def main(arguments: Sequence[str]) -> int:
  """Prints the sections that are named, all of them without a name."""
  if {"-h", "--help"} & {*arguments}:
    sys.stdout.write(
      "usage: python -m vpt_jax.config [SECTION ...]\n\nLists the fields of "
      "configs with their defaults; of all sections, or of these.\n"
    )
    return 0
  return command_line.exit_status(lambda: show(arguments))


def show(names: Sequence[str]) -> int:
  """Prints sections; returns the exit status."""
  known = [*sections.SECTIONS, *methods.METHODS]
  for name in names:
    lookup.choose(name, known, "section")
  for name in names or ["", *known]:
    sys.stdout.write(describe(name) + "\n")
  return 0


def describe(section: str) -> str:
  """Returns the fields of a section as text."""
  if section in methods.METHODS:
    about = inspect.getdoc(methods.METHODS[section]) or ""
  elif section:
    about = inspect.getdoc(sections.SECTIONS[section]) or ""
  else:
    about = inspect.getdoc(sections.General) or ""
  prefix = f"config.{section}." if section else "config."
  lines = [f"# {line}".rstrip() for line in about.splitlines()]
  values = sections.default_values(section)
  for field in sections.fields_of(section):
    lines.append(f"{prefix}{field.name} = {values[field.name]!r}")
    if field.metadata.get("help"):
      lines.append(
        textwrap.fill(
          field.metadata["help"],
          width=80,
          initial_indent="    ",
          subsequent_indent="    ",
        )
      )
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  command_line.program(lambda: main(sys.argv[1:]))
