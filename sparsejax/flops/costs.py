"""What a forward pass and a training step cost, in floating-point operations.

The count is read off the jaxpr, so any model on any params pytree will do.
Measured times are no business of this module.
"""

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from sparsejax.flops import jaxpr
from sparsejax.masks import path_name


def param_flops(fn: Callable[..., Any], params: Any, *args: Any) -> Any:
  """Counts the forward FLOPs of every leaf, at 2 per multiply-add.

  A leaf is followed from `params` to the products (`dot_general`, ragged dot,
  convolution) that use it: through casts, layout, slices of a stack, masks,
  arithmetic on parameters, scan, vmap, jit, remat and custom derivatives. The
  rules are those by which papers count:

  * a parameter that is used twice counts twice; one that is used in no product
    counts 0, such as biases, normalization scales and embeddings that are
    looked up;
  * a convolution counts every tap of its kernel at every output position,
    including those on the padding (as in the 8.2 GFLOPs of ResNet-50; XLA's
    `cost_analysis` leaves these out), but not those on the zeros that
    `lhs_dilation` inserts;
  * products of two activations, as in attention, belong to no leaf; see
    `product_flops` for all products;
  * a product of two parameters belongs to the larger one; a product with
    concatenated parameters is divided among them by size;
  * a `lax.cond` costs as much as its most expensive branch.

  Nothing is computed, so you can pass `jax.ShapeDtypeStruct`s as well as
  arrays.

  Args:
    fn: A function of `params` and `args`, with any outputs. Bind arguments that
      are not arrays, such as a `train` flag, beforehand.
    params: A pytree of arrays of any shape and type.
    *args: Pytrees of arrays. FLOPs are those of this batch; give a batch of
      one for FLOPs per example.

  Returns:
    A pytree of the structure of `params`, of Python integers.

  Raises:
    TypeError: If a leaf of `params` is no array.
    ValueError: If a product lies inside a `lax.while_loop`.
    NotImplementedError: If a product lies inside an equation that cannot be
      inspected, such as a Pallas kernel.

  Example:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from sparsejax import flops
    >>> def mlp(params, x):
    ...   for w, b in params:
    ...     x = jax.nn.relu(x @ w + b)
    ...   return x
    >>> params = [
    ...   (jnp.zeros((784, 300)), jnp.zeros(300)),
    ...   (jnp.zeros((300, 10)), jnp.zeros(10)),
    ... ]
    >>> x = jax.ShapeDtypeStruct((1, 784), jnp.float32)
    >>> flops.param_flops(mlp, params, x)
    [(470400, 0), (6000, 0)]

  References:
    Evci et al., Rigging the Lottery: Making All Tickets Winners,
    arXiv 1911.11134, 2020, appendix H.
  """
  leaves = jax.tree_util.tree_leaves_with_path(params)
  for path, leaf in leaves:
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
      raise TypeError(
        f"params must hold arrays, but '{path_name(path)}' is a"
        f" {type(leaf).__name__}; take the arrays out first, e.g. with"
        " equinox.partition"
      )
  sizes = [math.prod(leaf.shape) for _, leaf in leaves]
  counts = jaxpr.count(fn, sizes, params, *args)
  return jax.tree.unflatten(
    jax.tree.structure(params), [counts[i] for i in range(len(sizes))]
  )


def product_flops(fn: Callable[..., Any], *args: Any) -> int:
  """Counts the FLOPs of every product in a function, of params or not.

  The FLOPs beyond the sum of `param_flops` are those of products of
  activations, such as attention scores, which masks do not make cheaper.

  Args:
    fn: A function of `args`.
    *args: Pytrees of arrays or `jax.ShapeDtypeStruct`s.

  Returns:
    The FLOPs, at 2 per multiply-add, counted as in `param_flops`.

  Raises:
    ValueError: If a product lies inside a `lax.while_loop`.
    NotImplementedError: If a product lies inside an equation that cannot be
      inspected.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsejax import flops
    >>> flops.product_flops(lambda q, k: q @ k.T, jnp.ones((5, 8)),
    ...                     jnp.ones((7, 8)))
    560
  """
  return jaxpr.count(fn, [], *args).total()


def sparse_flops(flops: Any, masks: Any) -> int | float:
  """Counts the FLOPs of a forward pass that skips what masks turn off.

  Every leaf costs its FLOPs times its density. The sum is made in exact
  fractions, so it does not depend on the order or the number of leaves.

  Args:
    flops: A pytree of integers, from `param_flops`.
    masks: A pytree of the same structure, of bool arrays (True = active) on
      the host or a device, or the scalar True for a leaf that stays dense.

  Returns:
    The FLOPs: an int if they are whole, as they are if each weight of a leaf is
    used equally often.

  Raises:
    ValueError: If the two structures differ.

  Example:
    >>> import numpy as np
    >>> from sparsejax import flops
    >>> masks = {"first": np.True_, "second": np.eye(4, dtype=bool)}
    >>> flops.sparse_flops({"first": 100, "second": 32}, masks)
    108

  References:
    Evci et al., Rigging the Lottery: Making All Tickets Winners,
    arXiv 1911.11134, 2020, appendix H.
  """
  if jax.tree.structure(flops) != jax.tree.structure(masks):
    raise ValueError(
      "flops and masks must have one structure, that of params; got"
      f" {jax.tree.structure(flops)} and {jax.tree.structure(masks)}"
    )
  total = sum(
    Fraction(int(count) * int(np.count_nonzero(mask)), max(np.size(mask), 1))
    for count, mask in zip(
      jax.tree.leaves(flops),
      map(np.asarray, jax.tree.leaves(masks)),
      strict=True,
    )
  )
  return int(total) if total == int(total) else float(total)


def dense_training_flops(dense: float) -> float:
  """Computes the FLOPs of a training step of a dense network: 3 f_D.

  A backward pass costs twice a forward pass: once for the gradient of the
  activations, once for that of the weights.

  Args:
    dense: f_D, the FLOPs of the dense forward pass, in any unit.

  Returns:
    The FLOPs per step, in that unit. Divide the FLOPs of another method by this
    to get them relative to dense training, as tables print them.

  Example:
    >>> from sparsejax import flops
    >>> flops.dense_training_flops(8.2e9)
    24600000000.0

  References:
    Evci et al., Rigging the Lottery: Making All Tickets Winners,
    arXiv 1911.11134, 2020, appendix H.
  """
  return 3 * dense


def static_training_flops(sparse: float) -> float:
  """Computes the FLOPs of a step with a fixed mask, or of SET: 3 f_S.

  SET grows at random and SNIP masks once, so neither needs a dense gradient.

  Args:
    sparse: f_S, the FLOPs of the sparse forward pass, in any unit.

  Returns:
    The FLOPs per step, in that unit.

  Example:
    >>> from sparsejax import flops
    >>> flops.static_training_flops(100)
    300

  References:
    Evci et al., Rigging the Lottery: Making All Tickets Winners,
    arXiv 1911.11134, 2020, appendix H.
  """
  return 3 * sparse


def snfs_training_flops(dense: float, sparse: float) -> float:
  """Computes the FLOPs of a step of SNFS: 2 f_S + f_D.

  SNFS grows by momentum, which needs the dense gradient of the weights on every
  step.

  Args:
    dense: f_D, the FLOPs of the dense forward pass, in any unit.
    sparse: f_S, the FLOPs of the sparse forward pass, in the same unit.

  Returns:
    The FLOPs per step, in that unit.

  Example:
    >>> from sparsejax import flops
    >>> flops.snfs_training_flops(1000, 100)
    1200

  References:
    Evci et al., Rigging the Lottery: Making All Tickets Winners,
    arXiv 1911.11134, 2020, appendix H.
  """
  return 2 * sparse + dense


def rigl_training_flops(dense: float, sparse: float, *, delta_t: int) -> float:
  """Computes the FLOPs of RigL: (3 f_S dT + 2 f_S + f_D) / (dT + 1).

  RigL needs the dense gradient of the weights once every delta_t steps. As in
  the paper, steps after the last mask update are not counted separately.

  Args:
    dense: f_D, the FLOPs of the dense forward pass, in any unit.
    sparse: f_S, the FLOPs of the sparse forward pass, in the same unit.
    delta_t: dT, the steps between two mask updates, at least 1.

  Returns:
    The FLOPs per step on average, in that unit.

  Raises:
    ValueError: If delta_t is less than 1.

  Example:
    A ResNet-50 at 80 % sparsity (ERK), relative to dense training:

    >>> from sparsejax import flops
    >>> step = flops.rigl_training_flops(1.0, 0.414, delta_t=100)
    >>> round(step / flops.dense_training_flops(1.0), 3)
    0.416

  References:
    Evci et al., Rigging the Lottery: Making All Tickets Winners,
    arXiv 1911.11134, 2020, appendix H.
  """
  if delta_t < 1:
    raise ValueError(f"delta_t must be at least 1, got {delta_t}")
  update = snfs_training_flops(dense, sparse)
  return (delta_t * static_training_flops(sparse) + update) / (delta_t + 1)


def pruning_training_flops(sparse: Iterable[float]) -> float:
  """Computes the FLOPs of gradual pruning: the mean of 3 f_S(t) over steps t.

  Args:
    sparse: f_S(t), the FLOPs of the forward pass at every step, or at steps
      spaced evenly over all of training, in any unit.

  Returns:
    The FLOPs per step on average, in that unit.

  Raises:
    ValueError: If there is no step.

  Example:
    >>> from sparsejax import flops
    >>> flops.pruning_training_flops([100, 60, 20])
    180.0

  References:
    Evci et al., Rigging the Lottery: Making All Tickets Winners,
    arXiv 1911.11134, 2020, appendix H.
  """
  return _mean_over_steps(static_training_flops(s) for s in sparse)


def straight_through_training_flops(
  dense: float, sparse: Iterable[float]
) -> float:
  """Computes the FLOPs of straight-through steps: the mean of 2 f_S(t) + f_D.

  The forward pass and the gradient of the inputs use the masked weights, but
  every weight, or its score, gets a gradient.

  Args:
    dense: f_D, the FLOPs of the dense forward pass, in any unit.
    sparse: f_S(t), the FLOPs of the sparse forward pass at every step, or at
      steps spaced evenly over all of training, in the same unit.

  Returns:
    The FLOPs per step on average, in that unit.

  Raises:
    ValueError: If there is no step.

  Example:
    >>> from sparsejax import flops
    >>> flops.straight_through_training_flops(1000, [300, 100])
    1400.0
  """
  return _mean_over_steps(snfs_training_flops(dense, s) for s in sparse)


def _mean_over_steps(costs: Iterable[float]) -> float:
  steps = list(costs)
  if not steps:
    raise ValueError("the mean over the steps of training needs a step")
  return math.fsum(steps) / len(steps)


def top_kast_training_flops(forward: float, backward: float) -> float:
  """Computes the FLOPs of a step of Top-KAST: 2 f_A + f_B.

  The forward pass and the gradient of the inputs use the weights in A; the
  weights in B get a gradient.

  Args:
    forward: f_A, the FLOPs of the forward pass with the weights in A.
    backward: f_B, the FLOPs of a forward pass with the weights in B.

  Returns:
    The FLOPs per step, in the same unit.

  Example:
    >>> from sparsejax import flops
    >>> flops.top_kast_training_flops(100, 200)
    400

  References:
    Jayakumar et al., Top-KAST: Top-K Always Sparse Training,
    arXiv:2106.03517, 2021.
  """
  return 2 * forward + backward
