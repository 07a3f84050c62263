"""Whole trainings on packed arrays: the same algorithms, the same masks.

`packed` and `kernels` make of a transformation that holds params at zero one
whose params are the values of the non-zeros only. Gradients and moments are of
these; where they belong travels in the optimizer state, as masks do. One loop
serves all: `sparsejax.init`, `value_and_grad`, `tx.update`, and
`optax.apply_updates`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax import packed as packed_lib
from sparsejax import patterns
from sparsejax.masks import PyTree, is_hole, path_name
from sparsejax.modes import moving, slots
from sparsejax.modes.state import PackedState
from sparsejax.packed import Format, is_structure
from sparsejax.packed.arrays import Formats, chosen, placed
from sparsejax.packed.layouts import formats_of
from sparsejax.transform import SparseTransformation, first_masks, step
from sparsejax.transform.state import SparseState, get_masks


class PackedTransformation(SparseTransformation):
  """An optax transformation of the non-zeros of params.

  Its `update` needs `update_masks`, a Python bool, and where that is True the
  gradients of `value_and_grad`.

  Attributes:
    start: `params -> (values, state)`; `sparsejax.init` does the same.
    probes: `(values, state, update_masks=True) -> probes`: what is read off
      dense gradients when masks move; see `gradients.Probing`.
    pack: `(params, state) -> (values, state)`, from a state of the
      transformation that this one is made of.
    unpack: `(values, state) -> (params, state)`, back.
  """

  start: Callable[[PyTree], tuple[PyTree, PackedState]]
  probes: Callable[..., PyTree]
  pack: Callable[[PyTree, SparseState], tuple[PyTree, PackedState]]
  unpack: Callable[[PyTree, PackedState], tuple[PyTree, SparseState]]


def packed(
  tx: SparseTransformation, *, formats: Format | Formats | None = None
) -> PackedTransformation:
  """Trains the non-zeros of params only: less memory.

  A matrix is dense within its product for a moment, and its dense gradient
  within the backward pass of that product.

  Args:
    tx: What an algorithm of sparsejax gives, such as `sparsejax.rigl`, around
      an elementwise optimizer: a value's update depends on that value, and on
      norms at most.
    formats: How to store places: a format, or `(path, mask) -> format`. By
      default what the pattern knows, or else row pointers for matrices, and
      linear indices for all else.

  Returns:
    The transformation. Its `start` needs the params themselves, since their
    masks set shapes: it does not run under `jax.jit`.

  Raises:
    ValueError: If params are not held at zero, or masks of one leaf depend on
      others; from `start`, if scores or the optimizer keep dense arrays.

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
  """Trains the non-zeros of params only, by sparse kernels: less time, too.

  Products with matrices are made by C++ on CPUs; it pays from about 80 % of
  zeros. On GPUs only matrices of square blocks have kernels. Everywhere else,
  and without a compiler, this is `packed`.

  Args:
    tx: As for `packed`.
    formats: As for `packed`; kernels know `rows(kernel=True, back=True)`, which
      is the default on CPUs for matrices of at most 65535 inputs and outputs,
      and `blocks`.

  Returns:
    The transformation, as from `packed`.

  Raises:
    ValueError: As from `packed`.
  """
  return _transformation(tx, formats, kernel=True)


def trimmed(
  tx: PackedTransformation, values: PyTree, opt_state: PackedState
) -> tuple[PyTree, PackedState]:
  """Leaves out slots that masks no longer use, in steps of a quarter.

  Where masks shrink, as in gradual pruning, that frees memory; and, since it
  changes shapes, has the step compiled anew. How many slots there are depends
  on the masks alone, so that a run that was stopped goes on in the same bits.

  Args:
    tx: The transformation.
    values: What is trained.
    opt_state: Its state.

  Returns:
    The same values and state in fewer slots; themselves if there are no fewer.
  """
  mask_state = opt_state.mask_state
  rows, _ = slots.rows(mask_state.masks, values, mask_state.budget)
  if not any(
    s is not None and _room(int(jnp.sum(s.used())), s, budget) < v.size
    for _, s, v, budget in rows
  ):
    return values, opt_state
  return tx.pack(*tx.unpack(values, opt_state))


def _room(count, like, budget):
  """Slots for so many weights: those of the budget, or of a grid above it."""
  if count <= int(budget):
    return -(-count // 8) * 8
  size = int(np.prod(like.sizes if is_structure(like) else like.shape))
  room = size
  while 3 * room // 4 >= count:
    room = 3 * room // 4
  return -(-room // 8) * 8


def _transformation(tx, formats, *, kernel):
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

  def start(params):
    mask_state, params = first_masks(recipe.mask_update, recipe.key, params)
    return _pack(params, mask_state)

  def _pack(params, mask_state, inner_state=None):
    _check_stateless(mask_state)
    structure = _structures(recipe, mask_state, formats, kernel)
    values = slots.gathered(structure, params)
    raised = slots.raised(values, structure)
    fresh = jax.eval_shape(recipe.inner.init, raised)
    _check_elementwise(recipe.inner, fresh, raised, structure)
    if inner_state is None:
      inner_state = recipe.inner.init(raised)
    else:
      inner_state = slots.moments(
        recipe.inner,
        inner_state,
        structure,
        lambda s, m: slots.raise_(s, s.gather(m)),
      )
    state = PackedState(mask_state._replace(masks=structure), inner_state)
    return values, state

  def pack(params, opt_state):
    return _pack(params, opt_state.mask_state, opt_state.inner_state)

  def unpack(values, opt_state):
    structure = opt_state.mask_state.masks
    params = packed_lib.unpack(packed_lib.join(values, structure))
    masks = get_masks(opt_state)
    inner_state = slots.moments(
      recipe.inner,
      opt_state.inner_state,
      structure,
      lambda s, m: s.expand(m.reshape(-1)),
    )
    return params, SparseState(
      opt_state.mask_state._replace(masks=masks), inner_state
    )

  def update(grads, state, values=None, *, update_masks=None, **extra):
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
    if update_masks:
      return moving.moved(recipe, grads, state, values, extra)
    structure = state.mask_state.masks
    updates, inner_state = recipe.inner.update(
      slots.raised(grads, structure),
      state.inner_state,
      slots.raised(values, structure),
      **extra,
    )
    # As in masked mode: the compiler rounds a sum otherwise without.
    updates = step.towards(
      slots.lowered(updates, structure), values, slots.used(structure), values
    )
    mask_state = step.counted(state.mask_state)
    return updates, PackedState(mask_state, inner_state)

  self = PackedTransformation(
    lambda params: start(params)[1], update, tx.moves, recipe
  )
  self.start, self.pack, self.unpack = start, pack, unpack
  self.probes = functools.partial(moving.probes, recipe)
  return self


def _structures(recipe, mask_state, formats, kernel):
  """What says where non-zeros are, in place of masks that are arrays."""
  leaves = jax.tree_util.tree_leaves_with_path(mask_state.masks)
  paths = [path_name(path) for path, mask in leaves if jnp.ndim(mask)]
  pattern = patterns.resolve(recipe.mask_update.pattern, paths)
  fast = ()
  if kernel and jax.default_backend() == "cpu":
    fast = (packed_lib.rows(kernel=True, back=True),)

  def leaf(path, mask, budget):
    if jnp.ndim(mask) == 0:
      return mask
    name = path_name(path)
    host = np.asarray(mask)
    if formats is not None:
      form = chosen(formats, name or "the array", host)
    else:
      form = packed_lib.fitting(
        host, wanted=(*fast, *formats_of(pattern[name].layout))
      )
    return placed(form, host, _room(int(host.sum()), host, budget))

  return jax.tree_util.tree_map_with_path(
    leaf, mask_state.masks, mask_state.budget
  )


def _check_elementwise(inner, inner_state, values, structure):
  """Refuses moments that are not one for each value, or a scalar."""

  def leaf(moment, v, s):
    if is_hole(moment) or not is_structure(s):
      return moment
    if moment.ndim and moment.shape != v.shape:
      raise ValueError(
        f"got an optimizer that keeps an array of shape {moment.shape} for "
        f"{v.size} values: wanted an elementwise one such as optax.adamw, or "
        "masked mode"
      )
    return moment

  optax.tree.map_params(
    inner, leaf, inner_state, values, structure, is_leaf=is_hole
  )


def _check_stateless(mask_state):
  dense = [x.shape for x in jax.tree.leaves(mask_state.scores) if jnp.ndim(x)]
  if dense:
    raise ValueError(
      f"got scores that remember dense arrays, of shapes {dense}, such as "
      "averages over steps: wanted scores of one batch, or masked mode"
    )
