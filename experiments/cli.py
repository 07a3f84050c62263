"""What all commands do around their work: flags, and errors for people."""

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
    main: Its work, which reads `flags.FLAGS`.
    define_flags: Defines flags; not on import where several commands have
      flags of one name.
    parse: Parses the command line.
  """

  def checked(argv):
    if len(argv) > 1:
      raise UserError(f"unknown arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)  # Orbax tells a lot
    main()

  try:
    define_flags()
    app.run(checked, flags_parser=parse)
  except UserError as error:
    print(f"Error: {error}", file=sys.stderr)
    sys.exit(getattr(error, "exit_code", 1))
  except KeyboardInterrupt:  # before training, when nothing needs saving
    sys.exit("Interrupted")
