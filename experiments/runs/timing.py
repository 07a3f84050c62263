"""Times functions against each other, in turns, so that ratios mean something.

A machine's speed changes from one moment to the next; a ratio is the median of
the ratios within rounds.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def in_turns(
  functions: Mapping[str, Callable[[], Any]], *, rounds: int
) -> dict[str, np.ndarray]:
  """Calls each function once a round, after one call that nobody times.

  Args:
    functions: By name; what they return is waited for.
    rounds: The number of rounds.

  Returns:
    By name, float64[rounds] seconds.
  """
  for function in functions.values():
    jax.block_until_ready(function())
  seconds = {name: np.empty(rounds) for name in functions}
  for i in range(rounds):
    for name, function in functions.items():
      began = time.perf_counter()
      jax.block_until_ready(function())
      seconds[name][i] = time.perf_counter() - began
  return seconds


def ratios(seconds: Mapping[str, np.ndarray], base: str) -> dict[str, float]:
  """Computes how many times as fast as one function the others are.

  Args:
    seconds: As `in_turns` returns them.
    base: The function that they are compared with.

  Returns:
    By name, the median over rounds of the base's seconds by its own.

  Example:
    >>> ratios({"a": np.array([2.0, 4.0]), "b": np.array([1.0, 1.0])}, "a")
    {'a': 1.0, 'b': 3.0}
  """
  return {
    name: float(np.median(seconds[base] / own)) for name, own in seconds.items()
  }
