"""Mask updates: what a mask is at first, and how it moves.

A mask update is to masks what a gradient transformation is to updates: two
pure functions. `sparsify` decides when it is called to move them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax import distributions, patterns
from sparsejax import scores as scores_lib
from sparsejax.distributions import Distribution, Prunable
from sparsejax.masks import PyTree, everything, path_name
from sparsejax.patterns import Pattern
from sparsejax.scores import Score


class MaskState(NamedTuple):
  """The state of a mask update.

  Attributes:
    masks: Bool masks of the params' treedef; the scalar True where dense.
    budget: int32 scalar per leaf: how many weights it keeps, at the end if
      that changes; the leaf's size where dense.
    count: int32 scalar: steps so far, counted by `sparsify`.
    key: uint32 [2], raw data of the key that all later draws are folded from;
      None if there are none.
    refused: int32 scalar: how often a leaf's masks did not move because a
      score was not finite.
    scores: States of the scores.
  """

  masks: PyTree
  budget: PyTree
  count: jax.Array
  key: Any
  refused: jax.Array
  scores: Any


class MaskUpdate(NamedTuple):
  """How masks begin and move: a pair of pure functions.

  Attributes:
    init: `(key, params) -> MaskState`.
    update: `(grads, state, params, now) -> MaskState`, with the dense
      gradients and a Python bool: True when masks are to move, False on all
      other steps, on which scores with a state may bring it up to date.
  """

  init: Callable[[Any, PyTree], MaskState]
  update: Callable[[PyTree, MaskState, PyTree, bool], MaskState]


def fixed(masks: PyTree) -> MaskUpdate:
  """Masks that are given, and never move.

  Args:
    masks: Bool arrays of the params' shapes, or True where a leaf is dense;
      a tree prefix will do: True alone leaves everything dense.

  Returns:
    The mask update. Its `init` needs no key, and raises a ValueError that
    names the leaf if masks and params do not fit, a TypeError if a mask is
    not bool.
  """

  def init(key, params):
    del key
    return _first_state(*_given(masks, params), key=None)

  return MaskUpdate(init, lambda grads, state, params, now: state)


def static(
  *,
  sparsity: float,
  distribution: Distribution = distributions.erdos_renyi_kernel,
  prunable: Prunable = distributions.matrices,
  pattern: Pattern | None = None,
  masks: PyTree | None = None,
) -> MaskUpdate:
  """Masks that never move: random ones, or those that are given.

  Args:
    sparsity: The share of zeros among the sparse leaves, in [0, 1).
    distribution: How many weights each of them keeps.
    prunable: Which leaves are sparse.
    pattern: The shape that zeros may take; unstructured by default.
    masks: Masks to take instead, as for `fixed`. They say what each leaf
      keeps, whatever the arguments above do.

  Returns:
    The mask update.
  """
  distributions.check_sparsity(sparsity)
  pattern = pattern or patterns.unstructured()

  def init(key, params):
    draw, rest = jax.random.split(_checked(key))
    if masks is not None:
      return _first_state(*_given(masks, params), key=_own_key(rest))
    counts = distributions.budgets(params, sparsity, distribution, prunable)

    def leaf(path, p):
      if (n := counts.get(path_name(path))) is None:
        return jnp.array(True), _size(p)
      noise = scores_lib.uniform_leaf(scores_lib.fold_in_path(draw, path), p)
      return pattern.top_k(noise, n, None), jnp.int32(n)

    drawn, budget = _unzip(
      jax.tree_util.tree_map_with_path(leaf, params), params
    )
    return _first_state(drawn, budget, key=_own_key(rest))

  return MaskUpdate(init, lambda grads, state, params, now: state)


def drop_and_grow(
  *,
  sparsity: float,
  drop: Score,
  grow: Score,
  fraction: optax.ScalarOrSchedule,
  distribution: Distribution = distributions.erdos_renyi_kernel,
  prunable: Prunable = distributions.matrices,
  pattern: Pattern | None = None,
  regrow: bool = True,
  masks: PyTree | None = None,
) -> MaskUpdate:
  """Drops the active weights rated lowest, grows as many rated highest.

  Of n active weights of a leaf, trunc(fraction x n) move. Masks begin at
  random, unless they are given. A leaf whose scores are not all finite stays
  as it is, and that is counted in the state.

  Args:
    sparsity: The share of zeros among the sparse leaves, in [0, 1).
    drop: The score by which active weights are kept.
    grow: The score by which inactive weights are taken in.
    fraction: The share of active weights that moves, in [0, 1], or an optax
      schedule of the step.
    distribution: How many weights each sparse leaf keeps.
    prunable: Which leaves are sparse.
    pattern: The shape that zeros may take; unstructured by default.
    regrow: Whether a weight just dropped may grow back at once. It then has
      never left, and keeps its value and moments.
    masks: The first masks, as for `static`; each leaf keeps as many weights
      as they do.

  Returns:
    The mask update.

  Raises:
    ValueError: If the sparsity or the fraction is out of range.

  References:
    Evci et al., Rigging the Lottery: Making All Tickets Winners,
    arXiv:1911.11134, 2020, section 3 and algorithm 1.
  """
  if not callable(fraction):
    check_fraction(fraction)
    fraction = optax.constant_schedule(fraction)
  pattern = pattern or patterns.unstructured()
  drop = optax.with_extra_args_support(drop)
  grow = optax.with_extra_args_support(grow)
  start = static(
    sparsity=sparsity,
    distribution=distribution,
    prunable=prunable,
    pattern=pattern,
    masks=masks,
  )

  def init(key, params):
    state = start.init(key, params)
    return state._replace(scores=(drop.init(params), grow.init(params)))

  def update(grads, state, params, now):
    key = now_key(state)
    by_drop, drop_state = _rate(drop, grads, state.scores[0], params, now, key)
    by_grow, grow_state = _rate(grow, grads, state.scores[1], params, now, key)
    state = state._replace(scores=(drop_state, grow_state))
    if not now:
      return state
    share = fraction(state.count)

    def leaf(mask, budget, dropped_by, grown_by):
      n = jnp.trunc(share * budget.astype(jnp.float32)).astype(jnp.int32)
      n = jnp.clip(n, 0, budget if regrow else _least(budget, mask))
      keep = pattern.top_k(dropped_by, budget - n, mask)
      grown = pattern.top_k(grown_by, n, ~(keep if regrow else mask))
      return keep | grown, _finite(dropped_by) & _finite(grown_by)

    return _move(state, leaf, by_drop, by_grow)

  return MaskUpdate(init, update)


def check_fraction(fraction: float) -> None:
  """Raises a ValueError unless a share of active weights is in [0, 1]."""
  if not 0 <= fraction <= 1:
    raise ValueError(
      f"got fraction={fraction}, wanted the share of active weights that "
      "moves, in [0, 1]"
    )


def _least(budget, mask):
  return jnp.minimum(budget, mask.size - budget)


def prune(
  *,
  sparsity: float,
  score: Score,
  progress: Callable[[jax.Array], jax.Array],
  initial_sparsity: float = 0.0,
  distribution: Distribution = distributions.erdos_renyi_kernel,
  prunable: Prunable = distributions.matrices,
  pattern: Pattern | None = None,
  masks: PyTree | None = None,
) -> MaskUpdate:
  """Prunes the active weights rated lowest, from dense to the final budget.

  What is pruned stays so. After the last update the budget is met exactly.

  Args:
    sparsity: The final share of zeros among the sparse leaves, in [0, 1).
    score: The score by which weights are kept.
    progress: The share of pruning done by a step, from 0 to 1.
    initial_sparsity: The sparsity to prune to at progress 0.
    distribution: How many weights each sparse leaf keeps.
    prunable: Which leaves are sparse.
    pattern: The shape that zeros may take; unstructured by default.
    masks: The first masks, as for `static`, instead of dense ones. A leaf in
      which they keep less than its final budget is not pruned.

  Returns:
    The mask update. Its key serves random scores.

  Raises:
    ValueError: If a sparsity is out of range, or the initial one is above
      the final one.
  """
  distributions.check_sparsity(sparsity)
  distributions.check_sparsity(initial_sparsity, "initial_sparsity")
  if initial_sparsity > sparsity:
    raise ValueError(
      f"initial_sparsity: got {initial_sparsity}, wanted at most the final "
      f"sparsity {sparsity}: what is pruned does not come back"
    )
  pattern = pattern or patterns.unstructured()
  score = optax.with_extra_args_support(score)

  def counts(params, sparsity):
    kept = distributions.budgets(params, sparsity, distribution, prunable)
    return jax.tree_util.tree_map_with_path(
      lambda path, p: jnp.int32(kept.get(path_name(path), p.size)), params
    )

  def init(key, params):
    final = distributions.budgets(params, sparsity, distribution, prunable)
    first, budget = everything(params, final), counts(params, sparsity)
    if masks is not None:
      first, left = _given(masks, params)
      budget = jax.tree.map(jnp.minimum, budget, left)
    state = _first_state(first, budget, _own_key(key))
    return state._replace(scores=score.init(params))

  def update(grads, state, params, now):
    by, score_state = _rate(
      score, grads, state.scores, params, now, now_key(state)
    )
    state = state._replace(scores=score_state)
    if not now:
      return state
    left = 1 - progress(state.count)

    def leaf(mask, budget, by, first):
      extra = (first - budget).astype(jnp.float32) * left
      n = jnp.minimum(budget + jnp.floor(extra).astype(jnp.int32), first)
      return pattern.top_k(by, n, mask), _finite(by)

    return _move(state, leaf, by, counts(params, initial_sparsity))

  return MaskUpdate(init, update)


def _rate(score, grads, state, params, now, key):
  """Scores, and their state. Without state they cost nothing until `now`."""
  if not now and not jax.tree.leaves(state):
    return None, state
  return score.update(grads, state, params, key=key)


def _move(state, leaf, *trees):
  """Maps `leaf(mask, budget, *trees) -> mask, ok` over the sparse leaves."""

  def guarded(mask, budget, *xs):
    if jnp.ndim(mask) == 0:
      return mask, jnp.int32(0)
    new, ok = leaf(mask, budget, *xs)
    return jnp.where(ok, new, mask), 1 - ok.astype(jnp.int32)

  moved = jax.tree.map(guarded, state.masks, state.budget, *trees)
  masks, refused = _unzip(moved, state.masks)
  return state._replace(
    masks=masks, refused=state.refused + sum(jax.tree.leaves(refused))
  )


def _finite(x):
  return jnp.all(jnp.isfinite(x))


def _unzip(pairs, like):
  """A tree of pairs, leaf by leaf of `like`, as a pair of trees."""
  pair = jax.tree.structure((0, 0))
  return jax.tree.transpose(jax.tree.structure(like), pair, pairs)


def _size(p):
  return jnp.int32(np.size(p))


def _given(masks, params):
  """Masks of the params' treedef, and how many weights each leaf keeps."""
  full = _broadcast(masks, params)
  budget = jax.tree.map(
    lambda m, p: jnp.sum(m, dtype=jnp.int32) if m.ndim else _size(p),
    full,
    params,
  )
  return full, budget


def _broadcast(masks, params):
  """Masks of the params' treedef, from a prefix of it, checked."""
  try:
    full = jax.tree.map(
      lambda mask, part: jax.tree.map(lambda _: mask, part), masks, params
    )
  except ValueError as error:
    raise ValueError(
      f"the masks do not fit the params: {error}. Give a tree of the params' "
      "structure, or a prefix of it"
    ) from error

  def check(path, mask, p):
    name = path_name(path) or "the array"
    if np.shape(mask) not in ((), np.shape(p)):
      raise ValueError(
        f"{name}: got a mask of shape {np.shape(mask)} for params of shape "
        f"{np.shape(p)}: give one of that shape, or True to stay dense"
      )
    if not jnp.issubdtype(jnp.result_type(mask), jnp.bool_):
      raise TypeError(
        f"{name}: got a mask of {jnp.result_type(mask)}, wanted bool, True "
        "where active: convert it, for example with mask != 0"
      )
    traced = isinstance(mask, jax.core.Tracer)
    if np.ndim(mask) == 0 and not traced and not mask:
      raise ValueError(
        f"{name}: got the mask False, which would leave no weight: give a mask "
        "of the leaf's shape, or True to stay dense"
      )
    return jnp.asarray(mask)

  return jax.tree_util.tree_map_with_path(check, full, params)


def _own_key(key):
  """Raw data of a threefry key, which any checkpoint can hold."""
  return jax.random.bits(_checked(key), (2,), jnp.uint32)


def _checked(key):
  if not hasattr(key, "dtype"):
    raise TypeError(
      f"got key={key!r}, wanted a PRNG key: make one, for example with "
      "jax.random.key(0)"
    )
  return key


def now_key(state: MaskState) -> jax.Array:
  """The key of this step's draws, which the state's key and count make."""
  key = jax.random.wrap_key_data(state.key, impl="threefry2x32")
  return jax.random.fold_in(key, state.count)


def _first_state(masks, budget, key):
  return MaskState(
    masks=masks,
    budget=budget,
    count=jnp.zeros([], jnp.int32),
    key=key,
    refused=jnp.zeros([], jnp.int32),
    scores=(),
  )
