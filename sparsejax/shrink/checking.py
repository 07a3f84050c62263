"""The smaller model, compared with the masked one."""

from typing import Any

import jax
import numpy as np

from sparsejax.masks import PyTree, path_name
from sparsejax.shrink.plan import Plan
from sparsejax.shrink.removal import Removal
from sparsejax.shrink.trees import take


def verify(
  plan: Plan,
  params: PyTree,
  remove: Removal,
  *inputs: Any,
  tolerance: float | None = None,
) -> float:
  """Compares the smaller model with the whole one, masked.

  Args:
    plan: The plan.
    params: The whole model's params.
    remove: What to remove.
    *inputs: Arrays to run both models on.
    tolerance: The largest allowed error; None allows any.

  Returns:
    The largest absolute difference of any output. Outputs that are the next
    value of a leaf are compared only at the indices that are kept.

  Raises:
    ValueError: If the error is above the tolerance or not finite.
  """
  whole = jax.jit(plan.function)(plan.mask(params, remove), *inputs)
  small = jax.jit(plan.apply_fn(remove))(plan.take(params, remove), *inputs)
  carried = plan.structure.carried(whole)
  errors = {}
  flat = jax.tree_util.tree_leaves_with_path(whole)
  for k, ((path, x), y) in enumerate(
    zip(flat, jax.tree.leaves(small), strict=True)
  ):
    if k in carried:
      x = plan.structure.cut_leaf(take, carried[k], x, remove)
    x, y = (np.asarray(z, np.float64) for z in (x, y))
    errors[path_name(path)] = float(np.abs(x - y).max(initial=0))
  worst = max(errors, key=lambda k: (np.isnan(errors[k]), errors[k]))
  error = errors[worst]
  if tolerance is not None and not error <= tolerance:
    raise ValueError(
      f"output {worst!r}: the smaller model differs from the masked one by "
      f"{error:.3g}, wanted at most {tolerance:.3g}. With strict=False that is "
      "expected; else look at plan.report(), and freeze what is wrong"
    )
  return error
