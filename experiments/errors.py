"""Errors that the user can mend, printed in one message, without a traceback.

A traceback stays what it should be: the sign of a fault in this program.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
  """What is wrong and what to do about it; `experiments.main` prints it."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
  """Makes the error for an unknown name, with names that are near.

  Args:
    kind: What the name stands for, such as `'optimizer'`.
    name: The unknown name.
    known: The names that would have been right.

  Returns:
    The error, to be raised.
  """
  known = sorted(known)
  near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
  if near:
    hint = "did you mean " + " or ".join(map(repr, near)) + "?"
  else:
    hint = "there are: " + (", ".join(known) or "none")
  return UserError(f"no {kind} is called {name!r}; {hint}")


def check_known(kind: str, name: str, known: Iterable[str]) -> None:
  """Raises the error of `unknown`, with its arguments, if a name is not known.

  Raises:
    UserError: If it is not.
  """
  known = list(known)
  if name not in known:
    raise unknown(kind, name, known)
