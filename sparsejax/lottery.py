"""Iterative magnitude pruning, step by step: prune, rewind, train again.

A lottery ticket is a mask and the weights of an early step. You train between
rounds in your own loop; here are the pure functions around it.
"""

import functools
from collections.abc import Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax import distributions, keys, roles, select, transform, xla
from sparsejax import masks as masks_lib
from sparsejax import scores as scores_lib
from sparsejax.checks import refuse_unless
from sparsejax.distributions import Prunable
from sparsejax.masks import PyTree, is_hole, path_name
from sparsejax.scores import Score
from sparsejax.transform import state as states
from sparsejax.transform import step
from sparsejax.updates import MaskState
from sparsejax.updates.base import check_scope

__all__ = [
  "barrier",
  "full_masks",
  "interpolate",
  "prune_round",
  "rewind",
  "shuffle",
]


def full_masks(
  params: PyTree, prunable: Prunable = distributions.matrices
) -> PyTree:
  """Makes the masks before the first round, with all weights active.

  Args:
    params: A pytree of arrays.
    prunable: `(path, leaf) -> bool`: the leaves that are to become sparse.

  Returns:
    A mask tree: True everywhere in these leaves, the scalar True elsewhere.

  Raises:
    ValueError: If no leaf is prunable, or one is a scalar or not floating.

  Example:
    >>> masks = full_masks({"w": jnp.ones((2, 2)), "b": jnp.ones(2)})
    >>> masks["w"].shape, masks["b"].shape
    ((2, 2), ())
  """
  sparse = distributions.budgets(params, 0.0, distributions.uniform, prunable)
  return masks_lib.everything(params, sparse)


def prune_round(
  params: PyTree,
  masks: PyTree,
  rate: float,
  *,
  scope: str = "global",
  score: Score | None = None,
  grads: PyTree | None = None,
  key: jax.Array | None = None,
  prunable: Prunable = distributions.matrices,
) -> PyTree:
  """Prunes a share of the active weights, those with the lowest scores.

  Of n active weights, it keeps exactly n (1 - rate), rounded half up. Among
  equal scores, those in the earlier leaf and at the lower index are kept.
  (open_lth, the code of the papers' authors, keeps what exceeds a threshold: it
  prunes ceil(n rate) + 1 weights, and all that tie with the last of them.)

  Args:
    params: The trained params.
    masks: Their masks; only leaves whose mask is an array take part.
    rate: The share to prune, in [0, 1), taken as the exact decimal that it
      prints as.
    scope: "global" for one threshold over all sparse leaves together, "layer"
      to prune each leaf, and each layer that a leaf stacks, by itself.
    score: The score that decides which weights to keep; by default their
      magnitude.
    grads: Gradients of the params' shapes, for scores that need them.
    key: PRNG key, for scores that need one.
    prunable: As in `full_masks`. The masks decide which leaves are sparse;
      this argument matters only if `roles.by_path` says that a leaf stacks
      layers.

  Returns:
    The new masks, which are subsets of the old ones. Under a transformation
    such as `jax.jit`, all old masks if the score of an active weight is not
    finite.

  Raises:
    ValueError: If the rate or the scope is none of these, if params and masks
      do not fit or no leaf is sparse, if the score needs gradients and there
      are none, or if the score of an active weight is not finite.
    TypeError: If a mask is not bool, or the score needs a key and has none.

  References:
    Frankle and Carbin, The Lottery Ticket Hypothesis: Finding Sparse, Trainable
    Neural Networks, arXiv:1803.03635, 2019, section 2 and appendix B.
    Renda et al., Comparing Rewinding and Fine-tuning in Neural Network Pruning,
    arXiv:2003.02389, 2020, section 3: the global scope.

  Example:
    >>> params = {"a": jnp.array([4.0, -3.0]), "b": jnp.array([1.0, 2.0])}
    >>> masks = full_masks(params, distributions.matching("."))
    >>> masks = prune_round(params, masks, 0.5)
    >>> print(masks["a"], masks["b"])
    [ True  True] [False False]
  """
  check_scope(scope)
  keep = _decimals(1 - distributions.check_sparsity(rate, "rate"))
  _check_masks(masks, params)
  candidates = _sparse(masks, masks)
  if not jax.tree.leaves(candidates):
    raise ValueError(
      "no leaf is sparse: all masks are the scalar True, which stays dense. "
      "Begin with lottery.full_masks(params, prunable)"
    )
  by = _sparse(masks, _rate(score, params, grads, key))
  by_path = roles.of(params, prunable)
  layers = tuple(
    by_path[path_name(path)]
    for path, _ in jax.tree_util.tree_leaves_with_path(candidates)
  )
  pruned, finite = _prune(by, candidates, keep, scope, layers)
  for path, ok in jax.tree_util.tree_leaves_with_path(finite):
    refuse_unless(
      ok,
      f"{path_name(path) or 'the array'}: scores of active weights are NaN or "
      "infinite, wanted finite ones: look at how these params were trained, "
      "and at the gradients if the score uses them",
    )
  return jax.tree.map(
    lambda old, new: old if new is None else new, masks, pruned
  )


@functools.partial(jax.jit, static_argnames=("keep", "scope", "layers"))
def _prune(by, masks, keep, scope, layers):
  """Prunes masks, and returns whether each leaf's scores are finite.

  `layers` are the roles of the leaves.
  """
  count = functools.partial(xla.count, several=jax.device_count() > 1)
  counts = jax.tree.map(lambda x, m: count(m, m & jnp.isfinite(x)), by, masks)
  nnz = jax.tree.map(lambda m, c: c[0], masks, counts)
  finite = jax.tree.map(lambda m, c: c[0] == c[1], masks, counts)
  if scope == "global":
    n = _share(sum(jax.tree.leaves(nnz)), keep)
    pruned = select.top_k_masks(by, n, masks)
  else:

    def one(x, mask):
      n = _share(count(mask)[0], keep)
      return select.top_k_mask(x, n, mask)

    treedef = jax.tree.structure(masks)
    pruned = jax.tree.map(
      lambda x, mask, role: roles.by_layer(one, role)(x, mask),
      by,
      masks,
      treedef.unflatten(layers),
    )
  ok = jnp.all(jnp.array(jax.tree.leaves(finite)))
  return jax.tree.map(lambda a, b: jnp.where(ok, a, b), pruned, masks), finite


def _decimals(share: Fraction) -> tuple[int, ...]:
  """Lists the digits of a finite decimal in (0, 1]; of 1, ten tenths."""
  digits = []
  while share:
    digits.append(int(share * 10))
    share = share * 10 - digits[-1]
  return tuple(digits)


def _share(n, decimals):
  """Computes a decimal share of the integer n, rounded half up.

  Horner's rule from the last digit: floors of tenths nest, so it is exact.
  """
  n = jnp.asarray(n, jnp.uint32)
  tens, ones = n // 10, n % 10
  share = jnp.zeros_like(n)
  for i, digit in reversed(list(enumerate(decimals))):
    half = 0 if i else 5
    share = digit * tens + (digit * ones + share + half) // 10
  return share.astype(jnp.int32)


def _sparse(masks, tree):
  """Replaces the leaves that stay dense by None."""
  return jax.tree.map(lambda m, x: x if jnp.ndim(m) else None, masks, tree)


def _rate(score, params, grads, key):
  score = scores_lib.magnitude() if score is None else score
  update = optax.with_extra_args_support(score).update
  extra = {} if key is None else {"key": key}

  def rate(grads):
    return update(grads, score.init(params), params, **extra)[0]

  if grads is None:
    grads = jax.tree.map(jnp.zeros_like, params)
    jaxpr = jax.make_jaxpr(rate)(grads).jaxpr
    read = [v for e in jaxpr.eqns for v in e.invars] + jaxpr.outvars
    if any(v in jaxpr.invars for v in read):
      raise ValueError(
        "got grads=None, wanted gradients, by which this score is computed: "
        "prune_round(..., grads=grads)"
      )
  return rate(grads)


def _check_masks(masks, params):
  masks_lib.check_like(masks, params, "masks")
  for path, mask in jax.tree_util.tree_leaves_with_path(masks):
    masks_lib.check_bool(path, mask)


def rewind(
  tx: optax.GradientTransformation,
  params: PyTree,
  opt_state: optax.OptState,
  masks: PyTree,
) -> tuple[PyTree, optax.OptState]:
  """Starts again from given params and masks, at the step of a saved state.

  With the state and the params of step k, this is weight rewinding, and the
  original lottery ticket if k = 0. With trained params instead, it is
  learning-rate rewinding. Moments start afresh, as in open_lth, which makes a
  new optimizer for every round and steps its schedule to k. They are zero, or
  made from the params, like the averages that some optimizers keep. A counter
  without moments, such as that of a learning rate schedule, continues from k.
  Adam's counter starts again, and so does everything that a state with moments
  wraps.

  Args:
    tx: A transformation that contains one `sparsify`, at any depth. If the
      masks keep another number of weights than its sparsity asks for, make it
      with sparsity 0 or with `masks=`. Otherwise it refuses them outside
      `jax.jit`.
    params: The params to begin with.
    opt_state: A state of `tx` from the step to begin at.
    masks: The masks to train under.

  Returns:
    The params with exact zeros where inactive (unchanged if `tx` masks only the
    forward pass), and the optimizer state. The state has the masks you pass and
    their budget; all else that changes masks is as in `opt_state`. Both are
    copies: a step may donate them, and what you saved remains.

  Raises:
    ValueError: If the state does not belong to `tx` or does not hold one mask
      state, or if masks and params do not fit.
    TypeError: If a mask is not bool.

  References:
    Frankle and Carbin, The Lottery Ticket Hypothesis: Finding Sparse, Trainable
    Neural Networks, arXiv:1803.03635, 2019, section 2.
    Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis,
    arXiv:1912.05671, 2020, section 3: rewinding to step k.
    Renda et al., Comparing Rewinding and Fine-tuning in Neural Network Pruning,
    arXiv:2003.02389, 2020, section 2: learning-rate rewinding.

  Example:
    >>> import sparsejax
    >>> params = {"w": jnp.array([[4.0, 3.0], [2.0, 1.0]])}
    >>> tx = sparsejax.fixed(optax.sgd(0.1), full_masks(params))
    >>> params, saved = sparsejax.init(tx, params)
    >>> masks = prune_round(params, full_masks(params), 0.25)
    >>> params, state = rewind(tx, params, saved, masks)
    >>> print(params["w"])
    [[4. 3.]
     [2. 0.]]
  """
  found = states.find(opt_state, MaskState)
  if len(found) != 1:
    raise ValueError(
      f"got an optimizer state with {len(found)} mask states, wanted one: make "
      "it with one algorithm of sparsejax"
    )
  _check_masks(masks, params)
  mask_state = _with_masks(found[0], masks, params)
  if not states.find(opt_state, states.ForwardMaskedState):
    params = masks_lib.apply_masks(params, masks)
  saved = jax.tree.map(
    lambda x: mask_state if x is found[0] else x,
    opt_state,
    is_leaf=lambda x: x is found[0],
  )
  with transform.taking_over(mask_state):
    fresh = tx.init(params)
    if jax.tree.structure(fresh) != jax.tree.structure(saved):
      raise ValueError(
        f"got an optimizer state in {jax.tree.structure(saved)}, wanted a "
        f"state of this transformation, in {jax.tree.structure(fresh)}"
      )
    opt_state = step.keep_moments(tx, fresh, saved, params)
  return jax.tree.map(
    lambda x: x.copy() if isinstance(x, jax.Array) else x, (params, opt_state)
  )


def _with_masks(state, masks, params):
  """Puts other masks, and their budget, into a mask state."""

  def mask_leaf(path, old, mask):
    if not is_hole(old):
      return jnp.asarray(mask)
    if jnp.ndim(mask) > 0:
      raise ValueError(
        f"{path_name(path)}: got a mask of shape {jnp.shape(mask)} for a leaf "
        "that no sparse transformation sees: give the scalar True"
      )
    return old

  masks = jax.tree_util.tree_map_with_path(
    mask_leaf, state.masks, masks, is_leaf=is_hole
  )
  return state._replace(
    masks=masks,
    budget=masks_lib.active_of_each(masks, params, state.budget),
  )


def shuffle(
  masks: PyTree, *, key: jax.Array, params: PyTree | None = None
) -> PyTree:
  """Draws random masks with as many active weights in each sparse layer.

  Args:
    masks: A mask tree.
    key: PRNG key. The draw depends only on the key and on a leaf's key path and
      shape. So with the same key, a sparser mask is a subset of a denser one.
    params: The params. Their shapes say more than masks do about which leaves
      stack layers. By default the masks are used.

  Returns:
    A mask tree; the scalar True stays.

  Example:
    >>> masks = shuffle([jnp.arange(9) < 4], key=jax.random.key(0))
    >>> int(masks[0].sum())
    4
  """
  by_path = roles.of(masks if params is None else params)

  def one(noise, mask):
    return select.top_k_mask(noise, jnp.sum(mask, dtype=jnp.int32))

  def leaf(path, mask):
    if jnp.ndim(mask) == 0:
      return mask
    noise = keys.uniform(keys.of_leaf(key, path), mask)
    return roles.by_layer(one, by_path[path_name(path)])(noise, mask)

  return jax.tree_util.tree_map_with_path(leaf, masks)


def interpolate(a: PyTree, b: PyTree, weight: float | jax.Array) -> PyTree:
  """Computes (1 - weight) a + weight b, on the line between two networks.

  Args:
    a: Params, and other variables of the model if it has any.
    b: Another tree of the same structure and shapes.
    weight: Scalar: `a` at 0 and `b` at 1, bit for bit.

  Returns:
    The tree, in the dtypes of `a`; half precision is computed in float32.
    Leaves that are not floating are those of `a`.

  Raises:
    ValueError: If the two trees or the shapes of two leaves differ.

  Example:
    >>> print(interpolate([jnp.zeros(2)], [jnp.ones(2)], 0.25)[0])
    [0.25 0.25]
  """
  masks_lib.check_like(b, a, "ends of the line", scalars=False)

  def leaf(x, y):
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
      return x
    wide = jnp.promote_types(jnp.result_type(x), jnp.float32)
    w = jnp.asarray(weight, wide)
    between = ((1 - w) * x + w * y).astype(x.dtype)
    return jnp.where(w == 0, x, jnp.where(w == 1, y, between))

  return jax.tree.map(leaf, a, b)


def barrier(errors: Sequence[float] | np.ndarray) -> float:
  """Computes how much the error rises on the line between two networks.

  Args:
    errors: The errors at points of the line, in order, its ends included.

  Returns:
    The largest error minus the mean of the errors of the two ends. Two networks
    are linearly connected if it is about zero.

  Raises:
    ValueError: If there are fewer than two errors, or one is not finite.

  References:
    Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis,
    arXiv:1912.05671, 2020, section 2.

  Example:
    >>> barrier([0.25, 0.75, 0.5])
    0.375
  """
  errors = np.asarray(errors, np.float64)
  if errors.ndim != 1 or errors.size < 2 or not np.isfinite(errors).all():
    raise ValueError(
      f"got errors {errors.tolist()}, wanted at least two finite ones, in "
      "order along the line, its ends first and last"
    )
  return float(errors.max() - (errors[0] + errors[-1]) / 2)
