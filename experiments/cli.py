"""Runs a command: parses its flags, prints its errors without a traceback."""

import sys
from collections.abc import Callable

from absl import app, logging

from experiments.errors import UserError


def run(
  main: Callable[[], None],
  define_flags: Callable[[], None] = lambda: None,
  *,
  parse: Callable[[list[str]], list[str]] = app.parse_flags_with_usage,
) -> None:
  """Runs a command and ends the process.

  Args:
    main: What it does; it reads `flags.FLAGS`.
    define_flags: Defines flags; not on import where several commands have
      flags of one name.
    parse: Parses the command line.
  """

  def checked(argv: list[str]) -> None:
    if len(argv) > 1:
      raise UserError(f"unknown arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)  # Orbax logs much
    main()

  try:
    define_flags()
    app.run(checked, flags_parser=parse)
  except UserError as error:
    print(f"Error: {error}", file=sys.stderr)
    sys.exit(getattr(error, "exit_code", 1))
  except KeyboardInterrupt:  # before training, when nothing needs saving
    sys.exit("Interrupted")
