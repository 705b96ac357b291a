"""Says what became of a mutated file, and which of that is a fault."""

from collections.abc import Callable
import dataclasses
import traceback

# Outcomes of a case.
REFUSED = "refused"  # with an error that names the file
SAME = "same"  # read, and what it holds is what it held before
OTHER = "other"  # read, holds something else, and nothing could have told
CHANGED = "changed"  # the same, although a checksum could have told
TRACEBACK = "traceback"  # an exception that no command shows as a sentence
NAMELESS = "nameless"  # an error that does not name the file
HANG = "hang"  # longer than LONGEST
MEMORY = "memory"  # more than MOST
DEATH = "death"  # the process ended

FAULTS = (CHANGED, TRACEBACK, NAMELESS, HANG, MEMORY, DEATH)
ALL = (REFUSED, SAME, OTHER, *FAULTS)

LONGEST = 10.0  # seconds
MOST = 2**31  # bytes of memory, of the whole process


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of a case.

  Attributes:
    kind: of the above.
    text: the error or the traceback, for people.
  """

  kind: str
  text: str = ""


def judge(
  read: Callable[[], bool], name: str, is_sealed: bool = False
) -> Outcome:
  """Returns what reading a mutated file leads to.

  Args:
    read: reads it; returns whether it holds what the sound file holds.
    name: of the file, which an error has to name; "" where the reader does not
      know it.
    is_sealed: the file has checksums, and the change was not made below them.
  """
  try:
    is_same = read()
  # What `command_line.exit_status` shows as `error: ...`.
  except (ValueError, OSError) as error:
    text = f"{type(error).__name__}: {error}"
    if _is_sentence(error, name):
      return Outcome(REFUSED, text)
    return Outcome(NAMELESS, traceback.format_exc())
  except Exception:  # any other is a fault
    return Outcome(TRACEBACK, traceback.format_exc())
  if is_same:
    return Outcome(SAME)
  return Outcome(CHANGED if is_sealed else OTHER)


def _is_sentence(error: Exception, name: str) -> bool:
  """Returns whether a user learns from an error which file is meant.

  Errors of libraries that are a ValueError by inheritance (JSONDecodeError,
  UnicodeDecodeError) were written for programmers.
  """
  is_own = type(error) is ValueError or isinstance(error, OSError)
  is_own = is_own or type(error).__module__.startswith("vpt_jax")
  return is_own and name in str(error)
