"""The state of a sparse transformation, and what is read from it."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax import lax

from sparsejax import masks as masks_lib
from sparsejax.masks import PyTree, is_hole
from sparsejax.updates import MaskState, Thresholds
from sparsejax.updates.state import with_dense
from sparsejax.updates.thresholds import soft_thresholded


class SparseState(NamedTuple):
  """The state of `sparsify`.

  Attributes:
    mask_state: The masks, and the state of what changes them.
    inner_state: The state of the inner optimizer.
  """

  mask_state: MaskState
  inner_state: Any


class ForwardMaskedState(SparseState):
  """The state of `straight_through`: the forward pass masks."""


def get_masks(opt_state: optax.OptState) -> PyTree:
  """Returns the masks in an optimizer state.

  Args:
    opt_state: The state of a transformation that contains `sparsify`, at any
      depth, once or for several parts of the params (`optax.partition`).

  Returns:
    The mask tree. The mask of a leaf that no `sparsify` sees is the scalar
    True.

  Raises:
    ValueError: If there are no masks, or several for one leaf.
  """
  found = [_as_masks(s.masks) for s in find(opt_state, MaskState)]
  if not found:
    raise ValueError(
      f"there are no masks in this optimizer state, a "
      f"{type(opt_state).__name__}: make it with an algorithm of sparsejax, as "
      "params, opt_state = sparsejax.init(tx, params), and restore checkpoints "
      "into a state of the same types"
    )
  return _merged(found, jnp.array(True))


@runtime_checkable
class Forward(Protocol):
  """An optimizer state whose params are not what the model is run with."""

  def forward(self, params: PyTree, probes: PyTree | None = None) -> PyTree:
    """Makes the params of the model from those that are trained.

    Args:
      params: What is trained.
      probes: A `nodes.Probe` or None for each leaf: what is to be read off its
        dense gradient. None for no probes at all.

    Returns:
      A tree of arrays, and of nodes with `matmul`.
    """
    ...


def _as_masks(tree: PyTree) -> PyTree:
  """Replaces nodes that stand for masks by masks."""
  stands = masks_lib.stands_for_mask
  return jax.tree.map(
    lambda m: m.__sparsejax_mask__() if stands(m) else m, tree, is_leaf=stands
  )


def _merged(trees: list[PyTree], rest: jax.Array) -> PyTree:
  """Merges trees that have holes where the others have leaves."""

  def pick(path: tuple, *leaves: Any) -> Any:
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
  """Returns the params to run the model with.

  Args:
    params: The params that are trained; in fine-tuning and in packed mode, the
      values.
    opt_state: The state of a transformation that contains `sparsify`, or that
      comes from `sparsejax.finetune` or `sparsejax.modes`.
    probes: What to read from the dense gradients of packed arrays and of
      fine-tuned matrices. `value_and_grad` passes it; you leave it out.

  Returns:
    `params` unchanged where zeros are enforced. Where they are not, masked
    params whose gradient reaches all weights as if they were not masked: the
    straight-through estimator. In fine-tuning, nodes that combine the values
    with the base; in packed mode, `packed.join`.

  References:
    Bengio et al., Estimating or Propagating Gradients Through Stochastic
    Neurons for Conditional Computation, arXiv:1308.3432, 2013, section 4.
  """
  check_params(params)
  if isinstance(opt_state, Forward):
    return opt_state.forward(params, probes)
  if not find(opt_state, ForwardMaskedState):
    if any(map(_is_restored, jax.tree.leaves(opt_state, is_leaf=_is_restored))):
      raise TypeError(
        "the optimizer state: got a dict with a mask_state, which does not say "
        "how to run the model, wanted the state that sparsejax.init makes: "
        "restore checkpoints into a state of the same types"
      )
    return params
  values = masks_lib.apply_masks(params, get_masks(opt_state))
  if thresholds := find(opt_state, Thresholds):
    none = jnp.float32(-jnp.inf)
    raw = _merged([with_dense(t.raw, none) for t in thresholds], none)
    values = soft_thresholded(values, raw)
  # Exactly these values, since p - p is 0.
  return jax.tree.map(
    lambda p, v: lax.stop_gradient(v) + (p - lax.stop_gradient(p)),
    params,
    values,
  )


def _is_restored(node):
  """Returns whether a node is a sparse state that came back as a dict."""
  return isinstance(node, dict) and "mask_state" in node


def check_params(params: PyTree) -> None:
  """Raises a TypeError if params are an optimizer state."""
  if isinstance(params, SparseState):
    raise TypeError(
      f"params: got a {type(params).__name__}, an optimizer state, wanted the "
      "params: they come first, in params, opt_state = sparsejax.init(tx, "
      "params) too"
    )


def find(tree: Any, kind: type) -> list[Any]:
  """Lists the outermost nodes of one type."""
  leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind))
  return [x for x in leaves if isinstance(x, kind)]
