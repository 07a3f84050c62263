"""The one skin over optax: an inner optimizer on sparse params.

Params hold the zeros: the update of an inactive weight is what brings it to
exactly 0. So the loss needs no masks, and its gradient is the dense one.
"""

import contextlib
import contextvars
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from sparsejax import masks as masks_lib
from sparsejax import scores
from sparsejax.masks import PyTree, is_hole
from sparsejax.schedules import When
from sparsejax.updates import MaskState, MaskUpdate, now_key

_taken_over = contextvars.ContextVar("mask state", default=None)


class SparseState(NamedTuple):
  """The state of `sparsify`.

  Attributes:
    mask_state: Masks, and what moves them.
    inner_state: The state of the inner optimizer.
  """

  mask_state: MaskState
  inner_state: Any


class ForwardMaskedState(SparseState):
  """The state of `sparsify(..., enforce=False)`: the forward pass masks."""


def sparsify(
  inner: optax.GradientTransformation,
  mask_update: MaskUpdate,
  *,
  when: When,
  key: jax.Array | None,
  enforce: bool = True,
  step_on_update: bool = False,
  grown_values: jax.nn.initializers.Initializer = jax.nn.initializers.zeros,
  grown_moments=None,
) -> optax.GradientTransformationExtraArgs:
  """Trains with `inner` what a mask update leaves active.

  Everything that shapes the update belongs inside: `sparsify(chain(clip,
  adamw), ...)`. It then sees masked gradients only, so that norms and moments
  count active weights, and nothing scales the updates that make zeros.

  The state holds masks and moments; checkpoint it, and the run resumes with
  the same bits.

  Args:
    inner: Any optax optimizer.
    mask_update: How masks begin and move.
    when: `step -> bool`, the steps at which they move; steps count from 0.
    key: PRNG key of all draws, of any kind; None only if there are none.
    enforce: Whether inactive params are held at exactly 0. If not, all params
      are trained and the loss has to use `forward_params`.
    step_on_update: Whether params also take a gradient step when masks move.
      RigL does not: its moments stand still, while counters of schedules go
      on, so that the learning rate follows the global step.
    grown_values: jax initializer `(key, shape, dtype) -> values` of newly grown
      weights; zeros in the papers. Weights dropped and regrown at
      once keep theirs.
    grown_moments: `(moment, grad) -> moment` of newly grown weights, from the
      inner optimizer's old moment and the dense gradient; zero by default.

  Returns:
    A gradient transformation. Its `update` takes dense gradients and needs
    the params. An extra argument `update_masks` overrides `when`: a Python
    bool is settled at trace time, so that the step holds no selection (False)
    or no condition (True); None asks `when` inside a `lax.cond`. All other
    extra arguments go to `inner`.

  Raises:
    ValueError: From `update`, if params are missing, or gradients do not fit.

  Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> from sparsejax import schedules, updates
    >>> tx = sparsify(optax.sgd(0.1), updates.static(sparsity=0.5),
    ...               when=schedules.never, key=jax.random.key(0))
    >>> params, state = init(tx, jnp.ones((2, 4)))
    >>> change, state = tx.update(jnp.ones((2, 4)), state, params)
    >>> int((optax.apply_updates(params, change) != 0).sum())
    4
  """
  inner = optax.with_extra_args_support(inner)
  state_type = SparseState if enforce else ForwardMaskedState

  def init_fn(params):
    if (mask_state := _taken_over.get()) is None:
      mask_state = mask_update.init(key, params)
      if enforce:
        params = masks_lib.apply_masks(params, mask_state.masks)
    return state_type(mask_state, inner.init(params))

  def update_fn(grads, state, params=None, *, update_masks=None, **extra):
    if params is None:
      raise ValueError(
        "got params=None, wanted the params, which say what is to become "
        "zero: tx.update(grads, opt_state, params)"
      )
    masks_lib.check_like(grads, params, "gradients", scalars=False)
    if jax.tree.structure(grads) != jax.tree.structure(params):
      raise ValueError(
        f"got gradients in {jax.tree.structure(grads)}, wanted the params' "
        f"{jax.tree.structure(params)}"
      )
    old = state.mask_state
    masks_lib.check_like(old.masks, params, "masks in the optimizer state")

    def masked(tree, masks):
      return masks_lib.apply_masks(tree, masks) if enforce else tree

    now = when(old.count) if update_masks is None else update_masks
    now = bool(now) if isinstance(now, np.bool_) else now
    new = _either(
      now,
      lambda: mask_update.update(grads, old, params, True),
      lambda: mask_update.update(grads, old, params, False),
    )
    values, inner_state = params, state.inner_state
    if enforce and now is not False:
      values = _grow(grown_values, old, new, params)
      inner_state = _reset(
        inner, inner_state, now, old, new, grads, grown_moments
      )
    updates, stepped = inner.update(
      masked(grads, new.masks), inner_state, values, **extra
    )
    if now is not False and not step_on_update:
      stay = jax.tree.map(jnp.zeros_like, updates)
      updates = _where(now, stay, updates)
      still = stand_still(inner, inner_state, stepped, params)
      stepped = _where(now, still, stepped)
    if enforce:
      updates = _towards(updates, params, new.masks, values)
    return updates, state_type(_counted(new), stepped)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def init(
  tx: optax.GradientTransformation, params: PyTree
) -> tuple[PyTree, optax.OptState]:
  """Draws the masks and applies them once, before the first step.

  Args:
    tx: A transformation that holds `sparsify`, at any depth.
    params: The params, finite.

  Returns:
    The params with exact zeros where inactive, and the optimizer state.
    Params that are only masked in the forward pass come back as they are.

  Raises:
    ValueError: If a param is not finite, or there are no masks in the state.

  Example:
    >>> import jax, optax, sparsejax
    >>> tx = sparsejax.static(optax.adam(1e-3), 0.9, key=jax.random.key(0))
    >>> params, state = init(tx, {"w": jnp.ones((10, 10)), "b": jnp.ones(10)})
    >>> int(params["w"].sum()), int(params["b"].sum())
    (10, 10)
  """
  _check_finite(params)
  opt_state = tx.init(params)
  masks = get_masks(opt_state)
  if not find(opt_state, ForwardMaskedState):
    params = masks_lib.apply_masks(params, masks)
  return params, opt_state


@contextlib.contextmanager
def taking_over(mask_state: MaskState):
  """Has `init` of any `sparsify` take over masks, on params with their zeros.

  What lies around it, at any depth, hands `init` the params alone.

  Args:
    mask_state: The mask state to begin with.

  Yields:
    Nothing.
  """
  token = _taken_over.set(mask_state)
  try:
    yield
  finally:
    _taken_over.reset(token)


@jax.jit
def _all_finite(leaves):
  return [jnp.all(jnp.isfinite(x)) for x in leaves]


def _check_finite(params):
  leaves = [
    (path, x)
    for path, x in jax.tree_util.tree_leaves_with_path(params)
    if not isinstance(x, jax.core.Tracer)
    and jnp.issubdtype(jnp.result_type(x), jnp.inexact)
  ]
  with jax.ensure_compile_time_eval():  # `init` may itself be under jit
    finite = _all_finite([x for _, x in leaves])
  for (path, x), ok in zip(leaves, finite, strict=True):
    if not ok:
      raise ValueError(
        f"{masks_lib.path_name(path) or 'the array'}: {np.shape(x)} params "
        "hold NaN or infinity, wanted finite ones: look at how they were "
        "initialised or loaded"
      )


def get_masks(opt_state: optax.OptState) -> PyTree:
  """The masks in an optimizer state.

  Args:
    opt_state: The state of a transformation that holds `sparsify`, at any
      depth, once or for several parts of the params (`optax.partition`).

  Returns:
    The mask tree. Leaves that no `sparsify` sees are the scalar True.

  Raises:
    ValueError: If there are no masks, or several for one leaf.
  """
  found = [s.masks for s in find(opt_state, MaskState)]
  if not found:
    raise ValueError(
      f"there are no masks in this optimizer state, a "
      f"{type(opt_state).__name__}: make it with an algorithm of sparsejax, "
      "and restore checkpoints into a state of the same types"
    )

  def pick(path, *leaves):
    there = [m for m in leaves if not is_hole(m)]
    if len(there) > 1:
      raise ValueError(
        f"{masks_lib.path_name(path)}: {len(there)} masks for one leaf, wanted "
        "one: chain only one sparse transformation"
      )
    return there[0] if there else jnp.array(True)

  return jax.tree_util.tree_map_with_path(pick, *found, is_leaf=is_hole)


def forward_params(params: PyTree, opt_state: optax.OptState) -> PyTree:
  """The params that the model is to be run with.

  Args:
    params: The params that are trained.
    opt_state: The state of a transformation that holds `sparsify`.

  Returns:
    `params` as they are where zeros are enforced. Otherwise masked ones,
    whose gradient reaches all weights, as if they were not masked: the
    straight-through estimator.

  References:
    Bengio et al., Estimating or Propagating Gradients Through Stochastic
    Neurons for Conditional Computation, arXiv:1308.3432, 2013, section 4.
  """
  if not find(opt_state, ForwardMaskedState):
    return params
  masked = masks_lib.apply_masks(params, get_masks(opt_state))
  return jax.tree.map(lambda p, m: p + lax.stop_gradient(m - p), params, masked)


def find(tree, kind):
  """The outermost nodes of one type."""
  leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind))
  return [x for x in leaves if isinstance(x, kind)]


def _either(now, then, otherwise):
  """One of two functions' results; a Python bool leaves no trace of it."""
  if isinstance(now, bool):
    return then() if now else otherwise()
  return lax.cond(now, then, otherwise)


def _where(now, then, otherwise):
  """One of two trees, elementwise: no copy, as a `lax.cond` would make."""
  if now is True:
    return then
  return jax.tree.map(lambda a, b: jnp.where(now, a, b), then, otherwise)


def _counted(state):
  return state._replace(count=state.count + 1)


def _towards(updates, params, masks, values):
  """Updates on top of the values, and to exactly 0 where inactive.

  p + (0 - p) is exact in every float type, and so is 0 + (v - 0) for a newly
  grown weight.
  """

  def leaf(u, p, mask, v):
    if jnp.ndim(mask) == 0:
      return u
    dtype = jnp.promote_types(u.dtype, p.dtype)
    u, p, v = (x.astype(dtype) for x in (u, p, v))
    return jnp.where(mask, u + (v - p), -p)

  return jax.tree.map(leaf, updates, params, masks, values)


def _grow(initializer, old, new, params):
  """Params with dropped weights at zero and grown ones at their first value."""

  def leaf(path, was, now, p):
    if jnp.ndim(now) == 0:
      return p
    first = jnp.zeros_like(p)
    if initializer is not jax.nn.initializers.zeros:
      key = jax.random.fold_in(now_key(old), 1)
      key = scores.fold_in_path(key, path)
      first = scores.sharded_like(initializer(key, p.shape, p.dtype), p)
    return jnp.where(now, jnp.where(was, p, first), jnp.zeros_like(p))

  return jax.tree_util.tree_map_with_path(leaf, old.masks, new.masks, params)


def _reset(inner, inner_state, now, old, new, grads, grown_moments):
  """Moments of kept weights; zero, or their first value, elsewhere.

  Whatever has not a weight's shape, such as factored moments, is left alone.
  """

  def leaf(moment, kept, mask, grad):
    if is_hole(moment) or jnp.ndim(mask) == 0 or moment.shape != mask.shape:
      return moment
    first = jnp.zeros_like(moment)
    if grown_moments is not None:
      first = jnp.where(mask, grown_moments(moment, grad), first)
    return jnp.where(kept, moment, first.astype(moment.dtype))

  # On an ordinary step everything is kept, what lies outside the mask too:
  # the same bits as with update_masks=False.
  kept = jax.tree.map(
    lambda was, is_: (was & is_) | jnp.logical_not(now), old.masks, new.masks
  )
  return optax.tree.map_params(
    inner, leaf, inner_state, kept, new.masks, grads, is_leaf=is_hole
  )


def stand_still(inner, old, new, params):
  """The old state, but for counters that no moments go with.

  A state that holds arrays per parameter is kept whole: Adam's count belongs
  to its moments. All others take the step: the count of a learning rate's
  schedule follows the global step.
  """
  marks = optax.tree.map_params(
    inner,
    lambda _: True,
    old,
    transform_non_params=lambda _: False,
    is_leaf=is_hole,
  )
  treedef = jax.tree.structure(params, is_leaf=is_hole)

  def like_params(node):
    leaves, structure = jax.tree.flatten(node)
    return structure == treedef and all(leaves)

  def holds_moments(node):
    if type(node) in (bool, tuple, list, dict):
      return False
    children = jax.tree.leaves(node, is_leaf=lambda x: x is not node)
    return any(map(like_params, children))

  return jax.tree.map(
    lambda mark, o, n: n if mark is False else o,
    marks,
    old,
    new,
    is_leaf=holds_moments,
  )
