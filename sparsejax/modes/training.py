"""Transformations of packed arrays, and their ordinary step.

`packed` and `kernels` make of a transformation that holds params at zero one
whose params are the values of the non-zeros only. Gradients and moments are of
these; where they belong travels in the optimizer state, as masks do. One loop
serves all: `sparsejax.init`, `value_and_grad`, `tx.update`, and
`optax.apply_updates`.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from sparsejax.gradients import read_off
from sparsejax.masks import PyTree
from sparsejax.modes import moving, packing, slots
from sparsejax.modes.slots import PackedState
from sparsejax.packed import Format
from sparsejax.packed.formats import Formats
from sparsejax.transform import (
  Recipe,
  SparseTransformation,
  checks,
  first_masks,
  step,
)
from sparsejax.transform.state import SparseState


class PackedTransformation(SparseTransformation):
  """An optax transformation of the non-zeros of params.

  Its `update` needs `update_masks`, a Python bool. If it is True, `update` also
  needs gradients from `value_and_grad`.

  Attributes:
    start: `params -> (values, state)`; `sparsejax.init` calls it.
    probes: `(values, state, update_masks=True) -> probes`: what to read from
      dense gradients when masks change; see `gradients.Probing`.
    pack: `(params, state) -> (values, state)`, from a state of the masked
      transformation that this one was made from.
    unpack: `(values, state) -> (params, state)`: undoes `pack`.
  """

  start: Callable[[PyTree], tuple[PyTree, PackedState]]
  probes: Callable[..., PyTree]
  pack: Callable[[PyTree, SparseState], tuple[PyTree, PackedState]]
  unpack: Callable[[PyTree, PackedState], tuple[PyTree, SparseState]]


def packed(
  tx: SparseTransformation, *, formats: Format | Formats | None = None
) -> PackedTransformation:
  """Trains only the non-zeros of params, in less memory.

  The dense matrix exists only briefly within its product, and its dense
  gradient only within the backward pass of that product.

  Args:
    tx: The transformation of an algorithm such as `sparsejax.rigl`, around an
      elementwise optimizer: the update of a value may depend only on that value
      and on norms.
    formats: How to store the positions of non-zeros: a format, or
      `(path, mask) -> format`. By default the format of the pattern if it has
      one, else row pointers for matrices and linear indices for all others.

  Returns:
    The transformation. Its `start` does not run under `jax.jit`: masks
    determine shapes, so it needs the values of the params.

  Raises:
    ValueError: If inactive params are not held at zero, or the mask of a leaf
      depends on other leaves; from `start`, if scores or the optimizer keep
      dense arrays.

  Example:
    >>> import jax, jax.numpy as jnp, optax, sparsejax
    >>> tx = packed(sparsejax.rigl(
    ...   optax.adam(0.1), 0.75, key=jax.random.key(0), t_end=10, delta_t=1))
    >>> params, state = sparsejax.init(tx, {"w": jnp.ones((8, 8))})
    >>> params["w"].shape
    (16,)
    >>> def loss(params, x):
    ...   return jnp.sum(sparsejax.matmul(x, params["w"]) ** 2)
    >>> for step in range(3):
    ...   now = tx.moves(step)
    ...   _, grads = sparsejax.value_and_grad(loss, tx)(
    ...     params, state, jnp.eye(8), update_masks=now)
    ...   updates, state = tx.update(grads, state, params, update_masks=now)
    ...   params = optax.apply_updates(params, updates)
    >>> sparsejax.nnz(sparsejax.get_masks(state))
    16
  """
  return _transformation(tx, formats, kernel=False)


def kernels(
  tx: SparseTransformation, *, formats: Format | Formats | None = None
) -> PackedTransformation:
  """Trains only the non-zeros of params, with sparse kernels, in less time.

  On CPUs, C++ code computes products with matrices. It pays from about 80 %
  zeros. On GPUs, only matrices of square blocks have kernels. Everywhere else,
  and without a compiler, this is the same as `packed`.

  Args:
    tx: As in `packed`.
    formats: As in `packed`. Kernels support `rows(kernel=True, back=True)`,
      which is the default on CPUs for matrices of at most 65535 inputs and
      outputs, and `blocks`.

  Returns:
    The transformation, as in `packed`.

  Raises:
    ValueError: As in `packed`.
  """
  return _transformation(tx, formats, kernel=True)


def _transformation(
  tx: SparseTransformation,
  formats: Format | Formats | None,
  *,
  kernel: bool,
) -> PackedTransformation:
  recipe = _recipe(tx)
  gathered = functools.partial(
    packing.pack, recipe, formats=formats, kernel=kernel
  )

  def start(params: PyTree) -> tuple[PyTree, PackedState]:
    mask_state, params = first_masks(recipe.mask_update, recipe.key, params)
    return gathered(params, mask_state)

  def pack(
    params: PyTree, opt_state: SparseState
  ) -> tuple[PyTree, PackedState]:
    return gathered(params, opt_state.mask_state, opt_state.inner_state)

  def update(
    grads: PyTree,
    state: PackedState,
    values: PyTree = None,
    *,
    update_masks: bool | None = None,
    **extra: Any,
  ) -> tuple[PyTree, PackedState]:
    if not isinstance(update_masks, bool | np.bool_):
      raise ValueError(
        f"got update_masks={update_masks!r}, wanted a Python bool: ask "
        "tx.moves(step), and compile a step for either answer"
      )
    if values is None:
      raise ValueError(
        "got params=None, wanted the values that are trained: "
        "tx.update(grads, opt_state, params, update_masks=...)"
      )
    checks.check_state(state, PackedState)
    shapes = checks.dense_shapes(values, state)
    checks.check_budgets(recipe.mask_update, state.mask_state, shapes)
    asked = moving.probes(recipe, values, state, update_masks)
    grads = read_off(asked, grads, values, state, update_masks)
    change = moving.moved if update_masks else _stepped
    return change(recipe, grads, state, values, extra)

  self = PackedTransformation(
    lambda params: start(params)[1], update, tx.moves, recipe
  )
  self.start, self.pack = start, pack
  self.unpack = functools.partial(packing.unpack, recipe)
  self.probes = functools.partial(moving.probes, recipe)
  return self


def _recipe(tx: SparseTransformation) -> Recipe:
  """Returns what a transformation was made of, if it can be packed."""
  recipe = getattr(tx, "recipe", None)
  if recipe is None:
    raise ValueError(
      f"got {type(tx).__name__} which is not made by `sparsify`, or does not "
      "hold params at zero: wanted an algorithm such as sparsejax.rigl, the "
      "outermost transformation, whose inactive weights are exactly 0; others "
      "need dense weights, and run in masked mode"
    )
  if not recipe.mask_update.by_leaf:
    raise ValueError(
      "got an algorithm with scope='global', whose masks need all layers at "
      "once: wanted scope='layer', or masked mode"
    )
  return recipe


def _stepped(
  recipe: Recipe,
  grads: PyTree,
  state: PackedState,
  values: PyTree,
  extra: dict[str, Any],
) -> tuple[PyTree, PackedState]:
  """Takes a step in which masks stay."""
  structure = state.mask_state.masks
  updates, inner_state = recipe.inner.update(
    slots.with_axes(grads, structure),
    state.inner_state,
    slots.with_axes(values, structure),
    **extra,
  )
  # As in masked mode: the compiler rounds a sum otherwise without.
  updates = step.exact_updates(
    slots.without_axes(updates, structure), values, slots.used(structure)
  )
  return updates, PackedState(
    step.with_next_count(state.mask_state), inner_state
  )
