"""What config files share: their argument, and the keywords of algorithms."""

from collections.abc import Collection
from typing import Any

from experiments import build
from experiments.errors import unknown


def parse(
  arg: str, *, algorithm: str = "rigl", variants: Collection[str] = ()
) -> tuple[str, str | None, bool]:
  """Reads a config's argument, words with commas between.

  Args:
    arg: What follows the colon in `--config=FILE.py:ARG`.
    algorithm: The algorithm if no word names one.
    variants: Other words that the config knows; one may be given.

  Returns:
    The algorithm, the variant or None, and whether `smoke` is among them.

  Raises:
    UserError: If a word is none of these.
  """
  variant, smoke = None, False
  for word in filter(None, arg.split(",")):
    if word == "smoke":
      smoke = True
    elif word in variants:
      variant = word
    elif word in build.ALGORITHMS:
      algorithm = word
    else:
      known = {"smoke", *variants, *build.ALGORITHMS}
      raise unknown("argument of the config", word, known)
  return algorithm, variant, smoke


def algorithm(
  name: str,
  *,
  sparsity: float,
  delta_t: int,
  t_end: Any,
  begin: Any,
  end: Any,
  prune_every: int,
  fraction: float = 0.3,
  distribution: str = "erdos_renyi_kernel",
) -> dict[str, Any]:
  """The part `algorithm` of a config, from the keywords of all of them.

  Args:
    name: The algorithm.
    sparsity: The share of zeros; of no use to `dense`.
    delta_t: Steps between mask updates of dynamic sparse training.
    t_end: Its step from which masks stay, or a reference to one.
    begin: First step that prunes, of `gmp`, or a reference.
    end: Last step that prunes, or a reference.
    prune_every: Steps between two of them.
    fraction: The share of active weights that moves at first.
    distribution: How weights are shared out among layers.

  Returns:
    The mapping.
  """
  if name == "dense":
    return {"name": name}
  config = {"name": name, "sparsity": sparsity, "distribution": distribution}
  if name == "gmp":
    config |= {"delta_t": prune_every, "begin": begin, "end": end}
  elif name != "static":
    config |= {"delta_t": delta_t, "t_end": t_end, "fraction": fraction}
  return config
