"""Checks of what a sparse transformation is given, and of what it leaves.

What can be seen of types and shapes is checked whenever a step is traced. What
takes values, as `check`, runs outside of `jax.jit`.
"""

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax import masks as masks_lib
from sparsejax.masks import PyTree, is_hole, path_name
from sparsejax.transform.state import (
  Forward,
  ForwardMaskedState,
  SparseState,
  find,
  get_masks,
)
from sparsejax.updates import MaskState, MaskUpdate

# States of optax, by name, whose transformation keeps the zeros that it wraps:
# it hands updates on, or replaces all of them by 0.
_WRAPPERS_THAT_KEEP_ZEROS = {
  "ApplyIfFiniteState",
  "ConditionallyMaskState",
  "InjectHyperparamsState",
  "InjectStatefulHyperparamsState",
  "MaskedState",
  "MultiStepsState",
  "PartitionState",
  "SplitRealAndImaginaryState",
}
# And of those that leave the updates before them in a chain as they are.
_FOLLOWERS_THAT_KEEP_ZEROS = {
  "MonitorState",
  "NonNegativeParamsState",
  "SnapshotState",
  "ZeroNansState",
}


def check(
  params: PyTree,
  opt_state: optax.OptState,
  tx: optax.GradientTransformation | None = None,
) -> None:
  """Checks that params are finite, and exactly 0 outside their masks.

  Call it at every evaluation of a training loop. It costs one compiled
  reduction over all leaves, and one transfer of two numbers per leaf. It finds
  out whether a transformation around or after the sparse one has changed the
  zeros.

  Args:
    params: The params that the model runs with:
      `forward_params(params, opt_state)`. Where zeros are enforced, these are
      the params themselves.
    opt_state: The optimizer state of the same step.
    tx: The transformation that training continues with. Pass it to compare its
      sparsity with the budgets in the state, for example after you restored a
      checkpoint. It has to be the algorithm itself, not a transformation around
      it.

  Raises:
    ValueError: If a leaf holds NaN or infinity, or non-zeros outside its mask;
      if masks and params do not fit; with `tx`, if the state's budgets are not
      those of its sparsity, or a mask keeps another number of weights.
    TypeError: If a mask is not bool, params are traced, or `tx` does not come
      from sparsejax.

  Example:
    >>> import jax, jax.numpy as jnp, optax, sparsejax
    >>> tx = sparsejax.rigl(optax.sgd(0.1), 0.5, key=jax.random.key(0), t_end=9)
    >>> params, opt_state = sparsejax.init(tx, {"w": jnp.ones((4, 4))})
    >>> check(params, opt_state, tx)
    >>> check({"w": jnp.ones((4, 4))}, opt_state)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
      ...
    ValueError: w: 8 of 16 weights are not 0 outside the mask, wanted none: ...
  """
  leaves = _arrays(params)
  if any(isinstance(x, jax.core.Tracer) for _, x in leaves):
    raise TypeError(
      "got traced params, wanted values: check outside of jax.jit"
    )
  found = find(opt_state, MaskState)
  if isinstance(opt_state, Forward):  # packed: zeros are not stored at all
    masks = [True] * len(leaves)
  else:
    for state in found:
      jax.tree_util.tree_map_with_path(masks_lib.check_bool, state.masks)
    masks = get_masks(opt_state)
    masks_lib.check_like(masks, params, "masks in the optimizer state")
  infinite, outside = jax.device_get(
    _counts([x for _, x in leaves], jax.tree.leaves(masks))
  )
  _refuse_infinite(leaves, infinite)
  for (path, x), n in zip(leaves, outside, strict=True):
    if n:
      raise ValueError(
        f"{path}: {n} of {np.size(x)} weights are not 0 outside the mask, "
        f"wanted none: {_advice(opt_state)}"
      )
  if tx is None or not found:
    return
  if (update := getattr(tx, "mask_update", None)) is None:
    raise TypeError(
      f"tx: got a {type(tx).__name__}, wanted what an algorithm of sparsejax "
      "gives, without what is around it"
    )
  for state in found:
    if isinstance(opt_state, Forward):
      check_budgets(update, state, dense_shapes(params, opt_state))
    else:
      check_budgets(update, state, params)
      if update.exact:
        _check_counts(state)


def _check_counts(state):
  """Checks that masks keep their budgets, layer by layer."""
  budgets = _by_path(state.budget)
  for path, mask in _by_path(state.masks).items():
    if jnp.ndim(mask) == 0:
      continue
    n = masks_lib.count_in(mask, jnp.shape(budgets[path]))
    if not np.array_equal(n, budgets[path]):
      raise ValueError(
        f"{path or 'the array'}: the mask in the optimizer state keeps "
        f"{masks_lib.nnz(mask)} weights, wanted {jnp.sum(budgets[path])}, its "
        "budget: restore masks and budgets from one checkpoint"
      )


def _advice(opt_state):
  if find(opt_state, ForwardMaskedState):
    return (
      "this transformation masks the forward pass only. Run the model with "
      "sparsejax.forward_params(params, opt_state), and check these"
    )
  return (
    "what is around or after the sparse transformation changes its updates "
    "(a scale, a schedule, lookahead): put it inside, as in "
    "sparsejax.rigl(optax.chain(...), ...). Or these are an average of params: "
    "sparsejax.apply_masks(average, sparsejax.get_masks(opt_state))"
  )


@jax.jit
def _counts(leaves, masks):
  """Counts what is not finite, and what is not 0 outside the mask, by leaf."""

  def infinite(x):
    if not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
      return jnp.int32(0)
    return jnp.sum(~jnp.isfinite(x), dtype=jnp.int32)

  def outside(x, mask):
    if jnp.ndim(mask) == 0:
      return jnp.int32(0)
    return jnp.sum(~mask & (x != 0), dtype=jnp.int32)

  pairs = zip(leaves, masks, strict=True)
  return (
    jnp.array([infinite(x) for x in leaves]),
    jnp.array([outside(x, mask) for x, mask in pairs]),
  )


def check_finite(params: PyTree) -> None:
  """Checks that all params are arrays, and finite where they are not traced."""
  leaves = [
    (path, x)
    for path, x in _arrays(params)
    if not isinstance(x, jax.core.Tracer)
  ]
  for path, x in leaves:
    dtype = jnp.result_type(x)
    if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 2:
      raise TypeError(
        f"{path}: got params of {dtype}, wanted bfloat16 or wider: steps of an "
        "optimizer are lost in so few bits. Train x.astype(jnp.bfloat16), and "
        "round to it in the forward pass"
      )
  with jax.ensure_compile_time_eval():  # `init` may itself be under jit
    infinite, _ = jax.device_get(
      _counts([x for _, x in leaves], [True] * len(leaves))
    )
  _refuse_infinite(leaves, infinite)


def _refuse_infinite(leaves, infinite):
  for (path, x), n in zip(leaves, infinite, strict=True):
    if n:
      raise ValueError(
        f"{path}: {np.shape(x)} params hold NaN or infinity, wanted finite "
        "ones: look at how they were initialised or loaded, or trained"
      )


def _arrays(params):
  """Lists leaves by name: arrays or numbers, in the memory of a device."""
  leaves = [
    (path_name(path) or "the array", x)
    for path, x in jax.tree_util.tree_leaves_with_path(params)
  ]
  for path, x in leaves:
    if not hasattr(x, "dtype") and not isinstance(x, complex | float | int):
      raise TypeError(
        f"{path}: got {x!r:.60}, a {type(x).__name__}, wanted an array: keep "
        "the arrays of a model apart from all else, as eqx.partition(model, "
        "eqx.is_inexact_array) and eqx.filter do"
      )
    if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer):
      usual = next(iter(x.devices())).default_memory().kind
      if (kind := x.sharding.memory_kind) not in (None, usual):
        raise ValueError(
          f"{path}: got an array in {kind} memory, wanted {usual}, where it is "
          "computed with: jax.device_put(x, x.sharding.with_memory_kind("
          f"{usual!r}))"
        )
  return leaves


_AS_INIT = (
  "sparsejax.init(tx, params) returns params and state, in this order; restore "
  "a checkpoint into a state of the same types, as init makes it"
)


def check_type(state: Any, kind: type) -> None:
  """Checks the type of an optimizer state, or of a part of it."""
  if type(state) is not kind:
    raise TypeError(
      f"the optimizer state: got a {type(state).__name__}, wanted the "
      f"{kind.__name__} of this transformation. {_AS_INIT}"
    )


def check_state(state: Any, kind: type[SparseState]) -> None:
  """Checks the types in an optimizer state, which a loader may have changed."""
  check_type(state, kind)
  check_type(mask_state := state.mask_state, MaskState)
  numbers = {"budget": "int32", "count": "int32", "key": "uint32"}
  for name, wanted in numbers.items():
    for x in jax.tree.leaves(getattr(mask_state, name)):
      if (got := jnp.result_type(x)) != wanted:
        raise TypeError(
          f"{name} in the optimizer state: got {got}, wanted {wanted}. "
          f"{_AS_INIT}"
        )


def check_inputs(grads: PyTree, params: PyTree | None, masks: PyTree) -> None:
  """Checks that gradients, params and masks are trees of one structure."""
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
  masks_lib.check_like(masks, params, "masks in the optimizer state")
  jax.tree_util.tree_map_with_path(masks_lib.check_bool, masks)


def check_budgets(update: MaskUpdate, state: MaskState, params: PyTree) -> None:
  """Checks that a state keeps as many weights as a mask update is asked for.

  Where either is traced nothing can be said: the state's budgets hold.

  Args:
    update: The mask update.
    state: Its state.
    params: The params, or anything of their shapes.

  Raises:
    ValueError: If the budgets differ; those of all leaves together, where one
      threshold is for all of them.
  """
  if update.budgets is None:
    return
  got = _by_path(state.budget)
  if any(isinstance(n, jax.core.Tracer) for n in got.values()):
    return
  with jax.ensure_compile_time_eval():  # the state may be seen from a `cond`
    asked = _by_path(update.budgets(params))
    got, asked = (
      {path: np.squeeze(n).tolist() for path, n in jax.device_get(x).items()}
      for x in (got, asked)
    )
  sizes = {path: math.prod(np.shape(x)) for path, x in _by_path(params).items()}
  if not update.by_leaf:
    sparse = [p for p, n in sizes.items() if not got[p] == asked[p] == n]
    got, asked, sizes = (
      {"all sparse leaves together": int(sum(np.sum(x[p]) for p in sparse))}
      for x in (got, asked, sizes)
    )
  for path, n in got.items():
    if n != asked[path]:
      now, then = (1 - np.sum(x[path]) / sizes[path] for x in (got, asked))
      raise ValueError(
        f"{path or 'the array'}: the optimizer state has a budget of {n} of "
        f"{sizes[path]} weights, a sparsity of {now:.4g}; this transformation "
        f"asks for {asked[path]}, {then:.4g}. What a state keeps is settled "
        "by init. Go on with the sparsity, distribution and pattern that it "
        "was made by, or give masks=sparsejax.get_masks(opt_state), which ask "
        "for nothing else; for another sparsity begin anew by sparsejax.init"
      )


def dense_shapes(values: PyTree, opt_state: optax.OptState) -> PyTree:
  """Makes `jax.ShapeDtypeStruct` of the params that packed values are of."""
  masks = jax.eval_shape(get_masks, opt_state)
  arrays = _by_path(values)
  return jax.tree_util.tree_map_with_path(
    lambda path, mask: (
      jax.ShapeDtypeStruct(mask.shape, jnp.float32)
      if mask.ndim
      else arrays[path_name(path)]
    ),
    masks,
  )


def _by_path(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {path_name(path): x for path, x in leaves}


def check_surroundings(opt_state: optax.OptState) -> None:
  """Checks what is around sparse transformations, as far as states show it.

  Args:
    opt_state: The state of the whole transformation, as `init` makes it.

  Raises:
    ValueError: If something of optax is around or after one that changes the
      updates that make zeros.

  Warns:
    UserWarning: If something is that is not known to keep them.
  """
  if isinstance(opt_state, SparseState) or not find(opt_state, SparseState):
    return
  children = _children(opt_state)
  inside = [i for i, x in enumerate(children) if find(x, SparseState)]
  if _is_chain(opt_state):
    sparse = _sparse_paths(children[inside[0]])
    for after in children[inside[0] + 1 :]:
      if not find(after, SparseState) and not _leaves_out(after, sparse):
        _judge(after, "after", _FOLLOWERS_THAT_KEEP_ZEROS)
  else:
    _judge(opt_state, "around", _WRAPPERS_THAT_KEEP_ZEROS)
  for i in inside:
    check_surroundings(children[i])


def _sparse_paths(opt_state):
  return [p for p, mask in _by_path(get_masks(opt_state)).items() if mask.ndim]


def _leaves_out(node, paths):
  """Returns whether a state is of `optax.masked`, with holes at all paths."""
  if not isinstance(node, optax.MaskedState):
    return False
  leaves = jax.tree_util.tree_leaves_with_path(node, is_leaf=is_hole)
  holes = [f"/{path_name(path)}" for path, x in leaves if is_hole(x)]
  return all(any(h.endswith(f"/{p}") for h in holes) for p in paths)


def _is_chain(node):
  return type(node) in (tuple, list) or isinstance(node, dict)


def _children(node):
  if isinstance(node, optax.PartitionState):
    # Its parts are a dict, but do not follow each other.
    return [x.inner_state for x in node.inner_states.values()]
  if isinstance(node, dict):
    return list(node.values())  # in the order of the chain
  return jax.tree.leaves(node, is_leaf=lambda x: x is not node)


def _judge(node, where, harmless):
  """Raises or warns unless a state is of something that keeps zeros."""
  if _is_chain(node):
    for child in _children(node):
      _judge(child, where, harmless)
    return
  kind = type(node)
  if kind.__module__.startswith("optax") and kind.__name__ in harmless:
    return
  advice = (
    f"got {kind.__name__} {where} the sparse transformation: what scales, "
    "averages or replaces its updates loses the zeros. Put it inside, as in "
    "sparsejax.rigl(optax.chain(...), ...)"
  )
  known = kind.__module__.startswith("optax")
  if known and kind.__name__ not in ("EmptyState", "MaskedState"):
    raise ValueError(advice)
  warnings.warn(
    f"{advice}. If it keeps every update that ends at 0, nothing is lost: "
    "sparsejax.check(params, opt_state) sees that",
    stacklevel=4,
  )
