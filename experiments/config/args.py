"""The argument of a config file: `--config=configs/FILE.py:WORD,WORD`."""

import types
from collections.abc import Iterable, Mapping

from experiments.errors import UserError, check_known

SMOKE = "smoke"


def parse(arg: str, **choices: Iterable[str]) -> types.SimpleNamespace:
  """Reads the words of a config file's argument.

  Args:
    arg: Words with commas between, in any order; "" for none.
    **choices: What the words may choose, by name: the words for it, the default
      first. A mapping says what each word stands for.

  Returns:
    A namespace: under the name of each choice its word, or what a mapping says
    that it stands for; and `smoke`, whether the word "smoke" is among them.

  Raises:
    UserError: If a word is unknown, or two of them choose the same thing.

  Example:
    >>> words = parse("5x", net=("lenet", "conv"), times={"1x": 1, "5x": 5})
    >>> words.net, words.times, words.smoke
    ('lenet', 5, False)
  """
  words = [word for word in arg.split(",") if word]
  accepted = {SMOKE}.union(*choices.values())
  for word in words:
    check_known("argument of the config", word, accepted)
  chosen = {}
  for name, known in choices.items():
    found = list(dict.fromkeys(w for w in words if w in known))
    if len(found) > 1:
      raise UserError(
        f"the argument of the config is {arg!r}: {' and '.join(found)} both "
        f"choose its {name}; wanted one of them"
      )
    word = found[0] if found else next(iter(known))
    chosen[name] = known[word] if isinstance(known, Mapping) else word
  return types.SimpleNamespace(**chosen, smoke=SMOKE in words)
