"""Instruments that look inside sparse networks: pure functions on pytrees.

They return arrays, and dicts by key path. Tables are in report.py; pictures are
elsewhere.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import distributions, roles, select
from sparsejax import masks as masks_lib
from sparsejax.distributions import Prunable
from sparsejax.masks import PyTree, path_name
from sparsejax.scores import wide

__all__ = [
  "Dead",
  "Flow",
  "dead_units",
  "explored",
  "gradient_flow",
  "layer_sensitivity",
  "overlaps",
  "units_left",
]


class Flow(NamedTuple):
  """Gradient norms of one leaf, or of several together.

  Attributes:
    active: Scalar, float32 or wider: the L2 norm at active weights.
    inactive: The same at inactive weights; 0 where a leaf is dense.
  """

  active: jax.Array
  inactive: jax.Array


class Dead(NamedTuple):
  """The units of a leaf that nothing flows through, whatever the weights.

  Attributes:
    inputs: bool [n_in]: True for input units that no active weight leaves.
    outputs: bool [n_out]: True for output units that no active weight reaches.
  """

  inputs: jax.Array
  outputs: jax.Array


def layer_sensitivity(
  loss_fn: Callable[[PyTree, Any], jax.Array],
  params: PyTree,
  batches: Sequence[Any],
  sparsities: Sequence[float],
  *,
  prunable: Prunable = distributions.matrices,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Computes the loss with one leaf pruned by magnitude, leaf by leaf.

  Sparsity is the share of all weights of a leaf. Layers that a leaf stacks are
  each pruned to the same sparsity. Inactive weights, which are zero, go first,
  so a leaf that is already as sparse does not change. The loss is compiled
  once, the selection once per shape.

  Args:
    loss_fn: `(params, batch) -> loss`, a scalar.
    params: The params, exactly zero where inactive.
    batches: The batches to average the loss over, each with the same weight.
    sparsities: Shares of zeros, each in [0, 1); a leaf keeps size x (1 -
      sparsity) weights, to the nearest integer, and at least 1.
    prunable: `(path, leaf) -> bool`: the leaves to prune.

  Returns:
    The mean loss of the unpruned params, a scalar; and by key path the mean
    losses with that leaf pruned, of shape [len(sparsities)].

  Raises:
    ValueError: If there are no batches or sparsities, a sparsity is out of
      range, or no leaf is prunable.

  References:
    Han et al., Learning both Weights and Connections for Efficient Neural
    Networks, arXiv:1506.02626, 2015, figure 6.
    Li et al., Pruning Filters for Efficient ConvNets, arXiv:1608.08710, 2017,
    section 3.2, which prunes filters.

  Example:
    >>> params = {"w": jnp.array([[3.0, -1.0], [2.0, 4.0]])}
    >>> def loss_fn(params, batch):
    ...   return batch - jnp.abs(params["w"]).sum()
    >>> loss, losses = layer_sensitivity(loss_fn, params, [10.0], [0.5, 0.75])
    >>> print(loss, losses["w"])
    0.0 [3. 6.]
  """
  batches = list(batches)
  if not batches or not len(sparsities):
    raise ValueError(
      f"got {len(batches)} batches and {len(sparsities)} sparsities, wanted at "
      "least one of each"
    )
  kept = [
    distributions.budgets(params, s, _one_by_one, prunable) for s in sparsities
  ]
  loss = jax.jit(loss_fn)
  by_path = roles.of(params, prunable)

  def mean_loss(params):
    return jnp.mean(jnp.stack([loss(params, batch) for batch in batches]))

  def pruned(name, k):
    role = by_path[name]

    def leaf(path, x):
      if path_name(path) != name:
        return x
      each = roles.shared_out(k, roles.budget_shape(role, np.shape(x)))
      return roles.by_layer(_largest, role)(x, each)

    return jax.tree_util.tree_map_with_path(leaf, params)

  losses = {
    name: jnp.stack([mean_loss(pruned(name, k[name])) for k in kept])
    for name in kept[0]
  }
  return mean_loss(params), losses


def _one_by_one(shapes, sparsity):
  """Every leaf's own budget, which the others' rounding leaves alone."""
  return {
    path: distributions.uniform({path: shape}, sparsity)[path]
    for path, shape in shapes.items()
  }


def _largest(x, k):
  return jnp.where(select.top_k_mask(jnp.abs(x), k), x, jnp.zeros_like(x))


def overlaps(masks: Sequence[PyTree]) -> jax.Array:
  """Computes intersection over union of every pair of mask trees.

  Args:
    masks: n mask trees for the same params. A leaf that is dense in some of
      them counts as fully active there; one that is dense in both of a pair
      is left out.

  Returns:
    float32 [n, n], symmetric, in [0, 1]; 1 for a pair without active weights.

  Raises:
    ValueError: If two trees or the shapes of two leaves differ.

  Example:
    >>> a, b = jnp.array([1, 1, 0, 0], bool), jnp.array([0, 1, 0, 0], bool)
    >>> print(overlaps([a, b, jnp.array(True)]))
    [[1.   0.5  0.5 ]
     [0.5  1.   0.25]
     [0.5  0.25 1.  ]]
  """
  table = [[1.0] * len(masks) for _ in masks]
  for i, a in enumerate(masks):
    for j, b in enumerate(masks[:i]):
      table[i][j] = table[j][i] = _overlap(b, a)
  return jnp.asarray(table, jnp.float32).reshape(len(masks), len(masks))


def _overlap(a, b):
  masks_lib.check_like(jax.tree.map(lambda _: True, b), a, "masks")
  wanted = jax.tree.map(lambda x, y: x if np.ndim(x) else y, a, b)
  masks_lib.check_like(b, wanted, "masks")
  both = masks_lib.nnz(jax.tree.map(jnp.logical_and, a, b))
  either = masks_lib.nnz(jax.tree.map(jnp.logical_or, a, b))
  empty = either == 0
  return both / (either + empty) + empty


def explored(ever: PyTree, masks: PyTree) -> PyTree:
  """Adds the weights that are active now to those that ever were.

  The density of the union, `masks.density`, is the in-time over-parametrisation
  rate R_s. One call after each mask update is enough.

  Args:
    ever: The union so far; at first, the initial masks.
    masks: The current masks.

  Returns:
    The union, a mask tree.

  Raises:
    ValueError: If the two trees or the shapes of two leaves differ.

  References:
    Liu et al., Do We Actually Need Dense Over-Parameterization? In-Time
    Over-Parameterization in Sparse Training, arXiv:2102.02887, 2021, section 3.

  Example:
    >>> ever = jnp.array([1, 0, 0, 0], bool)
    >>> for mask in ([0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]):
    ...   ever = explored(ever, jnp.array(mask, bool))
    >>> masks_lib.density(ever)
    0.75
  """
  masks_lib.check_like(masks, ever, "masks")
  return jax.tree.map(jnp.logical_or, ever, masks)


def gradient_flow(grads: PyTree, masks: PyTree) -> tuple[Flow, dict[str, Flow]]:
  """Computes the norm of the gradient at active and at inactive weights.

  Args:
    grads: The dense gradients.
    masks: Bool masks of their shapes, or the scalar True where a leaf is
      dense.

  Returns:
    The norms over all leaves together; and those of each leaf, by key path.

  Raises:
    ValueError: If the two trees or the shapes of two leaves differ.

  References:
    Evci et al., Gradient Flow in Sparse Neural Networks and How Lottery
    Tickets Win, arXiv:2010.03533, 2022, section 3.

  Example:
    >>> grads = {"w": jnp.array([3.0, 4.0, 7.0]), "b": jnp.array([12.0])}
    >>> masks = {"w": jnp.array([1, 1, 0], bool), "b": jnp.array(True)}
    >>> total, leaves = gradient_flow(grads, masks)
    >>> print(leaves["w"].active, leaves["w"].inactive, total.active)
    5.0 7.0 13.0
  """
  masks_lib.check_like(masks, grads, "masks")
  squares = {
    path_name(path): _squares(g, mask)
    for (path, g), mask in zip(
      jax.tree_util.tree_leaves_with_path(grads),
      jax.tree.leaves(masks),
      strict=True,
    )
  }
  total = Flow(*map(sum, zip(*squares.values(), strict=True)))
  norms = {path: Flow(*map(jnp.sqrt, flow)) for path, flow in squares.items()}
  return Flow(*map(jnp.sqrt, total)), norms


def _squares(g, mask):
  # In float32 at least, where the squares of small gradients do not vanish.
  square = jnp.square(wide(g))
  return Flow(
    active=jnp.sum(square, where=mask),
    inactive=jnp.sum(square, where=jnp.logical_not(mask)),
  )


def dead_units(
  masks: PyTree,
  *,
  axes: tuple[int, int] | None = None,
  params: PyTree | None = None,
) -> dict[str, Dead]:
  """Finds the units of every sparse leaf that have no active weight.

  An output unit without active weights outputs its bias, whatever the input. An
  input unit without active weights ignores its input.

  Args:
    masks: A mask tree. Dense leaves have no dead units and are left out;
      vectors count as [1, n].
    axes: The axes of input and output units, among the axes of one layer; by
      default those that `roles` finds, or the last two. With grouped
      convolutions the inputs are those of one group.
    params: The params. Their shapes say more than masks do about what the axes
      are. By default the masks are used.

  Returns:
    By key path, which input and output units are dead. If a leaf stacks layers,
    each layer has its own, [layers, n_in].

  References:
    Lasby et al., Dynamic Sparse Training with Structured Sparsity,
    arXiv:2305.02299, 2024, section 3: there such units are ablated neurons.

  Example:
    >>> mask = jnp.array([[1, 0, 0], [1, 1, 0]], bool)
    >>> dead = dead_units({"w": mask, "b": jnp.array(True)})["w"]
    >>> print(dead.inputs, dead.outputs)
    [False False] [False False  True]
  """
  by_path = roles.of(masks if params is None else params)

  def leaf(role, mask):
    at = axes or roles.features(role) or (-2, -1)

    def one(mask):
      mask = jnp.reshape(mask, (1,) * (2 - mask.ndim) + mask.shape)
      return Dead(*(select.count_of_each(mask, axis) == 0 for axis in at))

    mask = roles.layers_first(mask, role, merged=axes is None)
    for _ in role.stacked:
      one = jax.vmap(one)
    return one(mask)

  return {
    path_name(path): leaf(by_path[path_name(path)], mask)
    for path, mask in jax.tree_util.tree_leaves_with_path(masks)
    if np.ndim(mask)
  }


def units_left(masks: Sequence[Any]) -> tuple[int, ...]:
  """Counts the units in use in consecutive layers: the architecture left.

  An input without active weights is unused, and so is a unit without incoming
  or without outgoing weights. From the first layer to the last, the outgoing
  weights of an unused unit do not count either.

  Args:
    masks: The mask of each layer, bool [in, out]; a layer has as many inputs as
      the layer before has outputs.

  Returns:
    How many inputs are left, and how many outputs of each layer.

  Raises:
    ValueError: If the layers do not follow on each other.

  References:
    Evci et al., Rigging the Lottery, arXiv:1911.11134, 2020, appendix B and
    table 2.

  Example:
    >>> first = np.array([[1, 1, 0], [0, 0, 0]], bool)
    >>> second = np.array([[1, 0], [0, 0], [0, 1]], bool)
    >>> units_left([first, second])
    (1, 1, 1)
  """
  masks = [np.asarray(mask, bool) for mask in masks]
  for before, after in itertools.pairwise(masks):
    if before.shape[1] != after.shape[0]:
      raise ValueError(
        f"got layers {before.shape} and {after.shape} in a row, wanted as many "
        "inputs as the one before has outputs"
      )
  alive = masks[0].any(1)
  left = [int(alive.sum())]
  for i, mask in enumerate(masks):
    alive = mask[alive].any(0)
    if i + 1 < len(masks):
      alive &= masks[i + 1].any(1)
    left.append(int(alive.sum()))
  return tuple(left)
