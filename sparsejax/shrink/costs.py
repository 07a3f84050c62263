"""Costs that are measured."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from sparsejax.masks import PyTree
from sparsejax.shrink.plan import Plan
from sparsejax.shrink.removal import Removal


def milliseconds(
  plan: Plan, params: PyTree, *inputs: Any, repeats: int = 10
) -> Callable[[Removal], float]:
  """Makes a measured cost: the time of a call.

  Args:
    plan: The plan.
    params: The whole model's params.
    *inputs: The inputs to time it with.
    repeats: The number of calls, of which the median counts. One more call
      comes first and compiles.

  Returns:
    `remove -> milliseconds`, for `budget=` of `Plan.lowest`. It compiles the
    smaller model each time. Times depend on the machine and its load.
  """

  def cost(remove: Removal) -> float:
    small = plan.take(params, remove)
    apply = jax.jit(plan.apply_fn(remove))
    jax.block_until_ready(apply(small, *inputs))
    times = []
    for _ in range(repeats):
      begin = time.perf_counter()
      jax.block_until_ready(apply(small, *inputs))
      times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)

  return cost
