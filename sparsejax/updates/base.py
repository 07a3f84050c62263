"""The definition of mask updates, and the parts that they share."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from sparsejax import distributions, keys, patterns, roles, select
from sparsejax import masks as masks_lib
from sparsejax.distributions import Distribution, Prunable
from sparsejax.masks import PyTree, everything, path_name
from sparsejax.patterns import Patterns
from sparsejax.scores import Score, check_transformation
from sparsejax.updates.state import MaskState


class MaskUpdate(NamedTuple):
  """How masks begin and change: two pure functions, and their properties.

  Attributes:
    init: `(key, params) -> MaskState`.
    update: `(grads, state, params, now, *, after=None) -> MaskState`. `grads`
      are dense gradients. `now` is a Python bool: True when masks have to
      change, False on all other steps, on which scores may update their state.
      `straight_through` chooses masks for the next forward pass, and passes the
      params of that pass as `after`; scores without a state rate those params.
      An update that `straight_through` never uses may leave `after` out.
    pattern: The shape of the zeros, if the update fixes one.
    by_leaf: Whether the mask of a leaf depends only on that leaf.
    budgets: `params -> budget`, as in the state: how many weights each leaf has
      to keep in the end. None if no sparsity is given, for example because
      masks are. A state with other budgets is refused where they can be seen.
    exact: Whether masks keep exactly as many weights as their budgets at all
      times.
  """

  init: Callable[[Any, PyTree], MaskState]
  update: Callable[..., MaskState]
  pattern: Patterns | None = None
  by_leaf: bool = True
  budgets: Callable[[PyTree], PyTree] | None = None
  exact: bool = False


def first_state(
  masks: PyTree, budget: PyTree, key: jax.Array | None
) -> MaskState:
  """Makes the state of step 0, for scores without a state."""
  return MaskState(
    masks=masks,
    budget=budget,
    count=jnp.zeros([], jnp.int32),
    key=key,
    refused=jnp.zeros([], jnp.int32),
    scores=(),
  )


def dense_state(
  params: PyTree, prunable: Prunable, counts: dict[str, int], key: jax.Array
) -> MaskState:
  """Makes a first state that begins dense, of what sparse leaves will keep."""
  masks = everything(params, counts)
  budget = budget_tree(counts, params, prunable)
  return first_state(masks, budget, keys.raw(key))


def now_key(state: MaskState) -> jax.Array:
  """Makes the key of this step's draws from the state's key and count."""
  return keys.of_step(state.key, state.count)


def budgets(
  params: PyTree,
  sparsity: float,
  distribution: Distribution,
  prunable: Prunable,
  pattern: Patterns | None = None,
) -> dict[str, int]:
  """Counts the weights that each sparse leaf keeps, by key path."""
  if pattern is not None:
    distribution = patterns.distribution(distribution, pattern)
  return distributions.budgets(params, sparsity, distribution, prunable)


def asked_budgets(
  sparsity: float,
  distribution: Distribution,
  prunable: Prunable,
  pattern: Patterns | None,
  masks: PyTree | None = None,
) -> Callable[[PyTree], PyTree] | None:
  """Makes `MaskUpdate.budgets`: None for masks, and for a sparsity of 0."""
  if masks is not None or sparsity == 0:
    return None

  # A step outside of `jax.jit` asks again: shapes do not change, so that only
  # the first one reads roles and shares weights out.
  @functools.lru_cache(maxsize=1)
  def of_shapes(treedef, shapes):
    params = treedef.unflatten(shapes)
    counts = budgets(params, sparsity, distribution, prunable, pattern)
    return budget_tree(counts, params, prunable)

  def asked(params):
    shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)), params
    )
    leaves, treedef = jax.tree.flatten(shapes)
    return of_shapes(treedef, tuple(leaves))

  return asked


def budget_tree(
  counts: dict[str, int], params: PyTree, prunable: Prunable
) -> PyTree:
  """Makes an int32 tree of counts by key path; a leaf's size where missing.

  Those of leaves that stack layers are shared out to these.
  """
  of = roles.of(params, prunable)

  def leaf(path, p):
    n = counts.get(name := path_name(path))
    if n is None:
      return jnp.int32(np.size(p))
    shape = roles.budget_shape(of[name], np.shape(p))
    return jnp.asarray(roles.shared_out(n, shape))

  return jax.tree_util.tree_map_with_path(leaf, params)


def rate(
  score: Score,
  scored: Any,
  grads: PyTree,
  state: MaskState,
  params: PyTree,
  now: bool,
  after: PyTree | None = None,
) -> tuple[PyTree, Any]:
  """Rates weights; evaluates scores without a state only when masks change.

  Args:
    score: The score.
    scored: Its state.
    grads: The dense gradients.
    state: The mask state before the update: its masks, key and count are the
      score's extra arguments `masks`, `key` and `step`.
    params: The params.
    now: Whether masks change.
    after: The params that a score without a state rates instead.

  Returns:
    The scores, or None if they are not needed, and the score's state.
  """
  has_state = bool(jax.tree.leaves(scored))
  if not now and not has_state:
    return None, scored
  return optax.with_extra_args_support(score).update(
    grads,
    scored,
    params if has_state or after is None else after,
    key=now_key(state),
    masks=state.masks,
    step=state.count,
  )


def rated_update(
  move: Callable[..., MaskState], *scores: Score
) -> Callable[..., MaskState]:
  """Makes the `update` of a mask update whose masks move by scores.

  Args:
    move: `(state, params, *by) -> MaskState`, called only where masks move,
      with what each score rates weights by.
    *scores: The scores. `state.scores` is the state of a single one, and
      begins with those of several.

  Returns:
    The function, as `MaskUpdate.update`.

  Raises:
    TypeError: If a score is no gradient transformation.
  """
  for score in scores:
    check_transformation(score, "score")

  def update(
    grads: PyTree,
    state: MaskState,
    params: PyTree,
    now: bool,
    *,
    after: PyTree | None = None,
  ) -> MaskState:
    old = state.scores if len(scores) > 1 else (state.scores,)
    rated = [
      rate(score, scored, grads, state, params, now, after)
      for score, scored in zip(scores, old, strict=False)
    ]
    by, new = zip(*rated, strict=True)
    new += old[len(scores) :]
    state = state._replace(scores=new if len(scores) > 1 else new[0])
    return move(state, params, *by) if now else state

  return update


def move_masks(
  state: MaskState,
  params: PyTree,
  prunable: Prunable,
  pattern: Patterns | None,
  leaf: Callable,
  *trees: PyTree,
  given: tuple[jax.Array, ...] = (),
) -> MaskState:
  """Maps `leaf(pattern, mask, budget, *trees, *given)` over the sparse layers.

  `leaf` sees one layer of those that are stacked in an array, and scalars that
  all of them are given. It returns the new mask. A layer keeps its old mask if
  a score, in any floating array of the trees, is not finite; that is counted.
  """
  of = patterns_by_path(state.masks, pattern)
  role = roles.of(params, prunable)

  @select.together
  def moved(given, *trees):
    def new(path, mask, *xs):
      if not np.size(mask) or not np.ndim(mask):
        return mask
      name = path_name(path)
      layer = patterns.for_layer(of[name], roles.features(role[name]))
      one = functools.partial(leaf, layer)
      by_layer = roles.by_layer(one, role[name], merged=layer.merged)
      return by_layer(mask, *xs, *given)

    return jax.tree_util.tree_map_with_path(new, *trees)

  new = jax.tree.leaves(moved(given, state.masks, state.budget, *trees))
  paths, treedef = jax.tree_util.tree_flatten_with_path(state.masks)
  masks = [mask for _, mask in paths]
  ok = {i: True for i, m in enumerate(masks) if np.size(m) and np.ndim(m)}
  rated = [
    (i, x)
    for tree in trees
    for i, x in enumerate(treedef.flatten_up_to(tree))
    if i in ok and jnp.issubdtype(jnp.result_type(x), jnp.floating)
  ]
  of_rated = [role[path_name(paths[i][0])] for i, _ in rated]
  found = finite([x for _, x in rated], of_rated)
  for (i, _), fine in zip(rated, found, strict=True):
    ok[i] &= fine
  refused = state.refused
  for i, fine in ok.items():
    masks[i] = jnp.where(fine, new[i], masks[i])
    refused += jnp.sum(jnp.logical_not(fine), dtype=jnp.int32)
  return state._replace(masks=treedef.unflatten(masks), refused=refused)


def move_globally(
  state: MaskState,
  by: PyTree,
  k: jax.Array,
  among: PyTree | None,
  last: bool | jax.Array,
) -> MaskState:
  """Keeps the k best of all sparse leaves together.

  Budgets become what leaves keep when that is as many as all of them are to
  keep in the end, and not before, since their sum says how many that is.
  """
  leaves, treedef = jax.tree.flatten(state.masks)
  sparse = [i for i, m in enumerate(leaves) if jnp.ndim(m)]
  rated = jax.tree.leaves(by)
  where = None
  if among is not None:
    where = [jax.tree.leaves(among)[i] for i in sparse]
  new = select.top_k_masks([rated[i] for i in sparse], k, where)
  whole = [roles.Role()] * len(sparse)
  ok = jnp.all(jnp.stack(finite([rated[i] for i in sparse], whole)))
  budget = jax.tree.leaves(state.budget)
  for i, mask in zip(sparse, new, strict=True):
    leaves[i] = jnp.where(ok, mask, leaves[i])
    n = masks_lib.count_in(mask, jnp.shape(budget[i]))
    budget[i] = jnp.where(ok & last, n, budget[i])
  return state._replace(
    masks=treedef.unflatten(leaves),
    budget=treedef.unflatten(budget),
    refused=state.refused + 1 - ok.astype(jnp.int32),
  )


def patterns_by_path(
  masks: PyTree, pattern: Patterns | None
) -> Mapping[str, patterns.Pattern]:
  """Looks up the pattern of each sparse leaf, by key path."""
  leaves = jax.tree_util.tree_leaves_with_path(masks)
  paths = [path_name(path) for path, mask in leaves if jnp.ndim(mask)]
  return patterns.resolve(pattern, paths)


def check_scope(scope: str, pattern: Patterns | None = None) -> None:
  """Checks a scope: "layer", or "global" with unstructured zeros."""
  if scope not in ("layer", "global"):
    raise ValueError(
      f"got scope={scope!r}, wanted 'layer', each leaf by itself, or 'global', "
      "all sparse leaves under one threshold"
    )
  free = pattern in (None, "unstructured")
  if isinstance(pattern, patterns.Pattern):
    free = pattern.top_k is select.top_k_mask
  if scope == "global" and not free:
    raise ValueError(
      "got scope='global' with a pattern, whose parts of different leaves "
      "cannot be compared: wanted scope='layer', or unstructured zeros"
    )


def finite(
  scores: Sequence[jax.Array], of: Sequence[roles.Role]
) -> list[jax.Array]:
  """Returns whether all scores of each layer are finite.

  Args:
    scores: Floating arrays.
    of: Their roles, which say along which axes layers are stacked.

  Returns:
    A bool array for each, of `roles.budget_shape`.
  """

  def each(scores):
    return [
      jnp.all(
        jnp.isfinite(x),
        tuple(a for a in range(x.ndim) if a not in role.stacked),
        keepdims=bool(role.stacked),
      )
      for x, role in zip(scores, of, strict=True)
    ]

  def at_once(scores):
    """By few kernels for all, not two for each."""
    shapes = [
      roles.budget_shape(role, x.shape)
      for x, role in zip(scores, of, strict=True)
    ]
    odd = select.count_in_rows(
      [
        jnp.moveaxis(
          ~jnp.isfinite(x), role.stacked, range(len(role.stacked))
        ).reshape(math.prod(shape), -1)
        for x, role, shape in zip(scores, of, shapes, strict=True)
      ]
    )
    return [(n == 0).reshape(s) for n, s in zip(odd, shapes, strict=True)]

  if jax.device_count() > 1 or not scores:
    return each(scores)
  return lax.platform_dependent(list(scores), cpu=each, default=at_once)
