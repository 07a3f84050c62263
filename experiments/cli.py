"""Runs a command: parses its flags, prints its errors without a traceback."""

import re
import sys
from collections.abc import Callable

from absl import app, flags, logging

from experiments.errors import UserError

_CHANGE = re.compile(r"--?(no)?config\.([^=]+)(=(.*))?", re.S)
_HELP = {"-h", "-help", "--help", "--helpshort", "--helpfull"}


def run(
  main: Callable[..., None],
  define_flags: Callable[[], None] = lambda: None,
  *,
  describe: Callable[..., str] | None = None,
) -> None:
  """Runs a command and ends the process.

  Args:
    main: What it does; it reads `flags.FLAGS`.
    define_flags: Defines flags; not on import where several commands have
      flags of one name.
    describe: Of a command that takes `--config.key=value`: what `--help` says
      besides flags, from that of `--config` or None, and the changes as `split`
      finds them. `main` is then called with the changes too.
  """
  argv, given = sys.argv, ()

  def checked(rest: list[str]) -> None:
    if len(rest) > 1:
      raise UserError(f"unknown arguments: {' '.join(rest[1:])}")
    logging.set_verbosity(logging.WARNING)  # Orbax logs much
    main(*given)

  try:
    define_flags()
    if describe:
      argv, changes = split(argv)
      given = (changes,)
      if _HELP & set(argv):
        doc = sys.modules["__main__"].__doc__.strip()
        flags_help = flags.FLAGS.main_module_help()
        print(doc, flags_help, describe(_config_of(argv), changes), sep="\n\n")
        return
    app.run(checked, argv)
  except UserError as error:
    print(f"Error: {error}", file=sys.stderr)
    sys.exit(getattr(error, "exit_code", 1))
  except KeyboardInterrupt:  # before training, when nothing needs saving
    sys.exit("Interrupted")


def split(argv: list[str]) -> tuple[list[str], tuple[tuple[str, str], ...]]:
  """Takes changes of the config out of a command line.

  Args:
    argv: The command line: `--config.key=value`, `--config.key value`, and
      `--config.key` or `--noconfig.key` of what is true or false.

  Returns:
    The rest, and dotted keys with the text of their values.

  Example:
    >>> split(["main", "--config=a.py", "--config.steps=3", "--noconfig.save"])
    (['main', '--config=a.py'], (('steps', '3'), ('save', 'false')))
  """
  rest, changes, words = [], {}, list(argv)
  while words:
    word = words.pop(0)
    found = _CHANGE.fullmatch(word)
    if not found:
      rest.append(word)
      continue
    denied, key, equals, value = found.groups()
    if not equals:
      value = "false" if denied else "true"
      follows = words and re.fullmatch(r"[^-].*|-[\d.].*", words[0], re.S)
      if follows and not denied:
        value = words.pop(0)
    changes[key] = value
  return rest, tuple(changes.items())


def _config_of(argv: list[str]) -> str | None:
  """Finds the value of `--config` in a command line that may lack flags."""
  for word, following in zip(argv, [*argv[1:], None], strict=True):
    name, equals, value = word.lstrip("-").partition("=")
    if word.startswith("-") and name == "config":
      return value if equals else following
  return None
