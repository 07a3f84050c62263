"""The state of a sparse transformation, and what is read from it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparsejax import masks as masks_lib
from sparsejax import packed
from sparsejax.masks import PyTree, is_hole
from sparsejax.packed import is_structure
from sparsejax.updates import MaskState, Thresholds
from sparsejax.updates.thresholds import shrunk


class SparseState(NamedTuple):
  """The state of `sparsify`.

  Attributes:
    mask_state: Masks, and what moves them.
    inner_state: The state of the inner optimizer.
  """

  mask_state: MaskState
  inner_state: Any


class ForwardMaskedState(SparseState):
  """The state of `straight_through`: the forward pass masks."""


class PackedState(SparseState):
  """The state of `modes.packed`: masks are structures of packed arrays."""

  def forward(self, values: PyTree, probes: PyTree = None) -> PyTree:
    """The params that the model is to be run with: `packed.join`."""
    return packed.join(values, self.mask_state.masks, probes)


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
  found = [_as_masks(s.masks) for s in find(opt_state, MaskState)]
  if not found:
    raise ValueError(
      f"there are no masks in this optimizer state, a "
      f"{type(opt_state).__name__}: make it with an algorithm of sparsejax, "
      "and restore checkpoints into a state of the same types"
    )
  return _merged(found, jnp.array(True))


def _as_masks(tree):
  """Masks, where structures say what is active."""
  return jax.tree.map(
    lambda s: s.mask() if is_structure(s) else s, tree, is_leaf=is_structure
  )


def _merged(trees, rest):
  """One tree of several that have holes where the others have leaves."""

  def pick(path, *leaves):
    there = [m for m in leaves if not is_hole(m)]
    if len(there) > 1:
      raise ValueError(
        f"{masks_lib.path_name(path)}: {len(there)} masks for one leaf, wanted "
        "one: chain only one sparse transformation"
      )
    return there[0] if there else rest

  return jax.tree_util.tree_map_with_path(pick, *trees, is_leaf=is_hole)


def forward_params(
  params: PyTree, opt_state: optax.OptState, probes: PyTree = None
) -> PyTree:
  """The params that the model is to be run with.

  Args:
    params: The params that are trained; or, in fine-tuning, the values.
    opt_state: The state of a transformation that holds `sparsify`, or of one
      of `sparsejax.finetune`, or of `sparsejax.modes`.
    probes: What is to be read off the dense gradients of packed arrays, and of
      fine-tuned matrices; `modes.value_and_grad` does that.

  Returns:
    `params` as they are where zeros are enforced. Where they are not, masked
    ones, whose gradient reaches all weights, as if they were not masked: the
    straight-through estimator. In fine-tuning, `finetune.join` of the two;
    of packed arrays, `packed.join`.

  References:
    Bengio et al., Estimating or Propagating Gradients Through Stochastic
    Neurons for Conditional Computation, arXiv:1308.3432, 2013, section 4.
  """
  if hasattr(opt_state, "forward"):
    return opt_state.forward(params, probes)
  if not find(opt_state, ForwardMaskedState):
    return params
  values = masks_lib.apply_masks(params, get_masks(opt_state))
  if thresholds := find(opt_state, Thresholds):
    raw = _merged([t.raw for t in thresholds], jnp.float32(-jnp.inf))
    values = shrunk(values, raw)
  # Exactly these values, since p - p is 0.
  return jax.tree.map(
    lambda p, v: lax.stop_gradient(v) + (p - lax.stop_gradient(p)),
    params,
    values,
  )


def find(tree, kind):
  """The outermost nodes of one type."""
  leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind))
  return [x for x in leaves if isinstance(x, kind)]
