"""Masks before training, for the `masks` of an algorithm.

Each function takes `(loss_fn, params, batches, sparsity)` and keywords, and
returns masks, eagerly or under `jax.jit`. So you can replace one by another.
All of them keep exact budgets, with ties as in `select`. By default there is
one budget over all prunable leaves together, size x (1 - sparsity) rounded half
up, and a leaf may keep any number of weights. With a `distribution`, each layer
has its own budget. A score that is not finite raises an error that names the
leaf. Under `jax.jit` it cannot be seen, and NaN ranks last.

Before you trust a mask, compare it with two controls that lack what its method
knows: `lottery.shuffle(masks, key=...)`, which keeps only the number of weights
per layer, and newly drawn weights (Frankle et al., Pruning Neural Networks at
Initialization: Why Are We Missing the Mark?, arXiv:2009.08576, 2021).
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from sparsejax import distributions, keys, roles, select
from sparsejax import masks as masks_lib
from sparsejax import scores as scores_lib
from sparsejax.checks import refuse_unless
from sparsejax.distributions import Distribution, Prunable
from sparsejax.masks import PyTree, is_hole, path_name
from sparsejax.scores import Score

__all__ = ["LossFn", "force", "grasp", "magnitude", "random", "snip", "synflow"]

LossFn = Callable[[PyTree, Any], jax.Array]


def random(
  loss_fn: LossFn | None,
  params: PyTree,
  batches: Sequence[Any] | None,
  sparsity: float,
  *,
  key: jax.Array,
  prunable: Prunable = distributions.matrices,
  distribution: Distribution | None = distributions.erdos_renyi_kernel,
) -> PyTree:
  """Keeps weights at random: the masks that `static` draws from the same key.

  Args:
    loss_fn: Ignored.
    params: A pytree of arrays.
    batches: Ignored.
    sparsity: The share of zeros among the prunable leaves, in [0, 1).
    key: PRNG key of the masks.
    prunable: `(path, leaf) -> bool`: the leaves to make sparse.
    distribution: How many weights each of them keeps; None to draw from all
      leaves together.

  Returns:
    Bool masks of the params' treedef, shapes and sharding; the scalar True
    where a leaf is not prunable.

  Raises:
    ValueError: If the budget cannot be met; see `distributions.budgets`.

  Example:
    >>> params = {"w": jnp.ones((10, 10)), "b": jnp.ones(10)}
    >>> masks = random(None, params, None, 0.9, key=jax.random.key(0))
    >>> int(masks["w"].sum()), bool(masks["b"])
    (10, True)
  """
  del loss_fn, batches
  part, kept = _budget(params, sparsity, prunable, distribution)
  draw, _ = jax.random.split(key)  # as `updates.static` splits it
  return _masks(params, _keep(kept, keys.uniform_like(draw, part)))


def magnitude(
  loss_fn: LossFn | None,
  params: PyTree,
  batches: Sequence[Any] | None,
  sparsity: float,
  *,
  prunable: Prunable = distributions.matrices,
  distribution: Distribution | None = None,
) -> PyTree:
  """Keeps the largest |w|.

  Args:
    loss_fn: Ignored.
    params: A pytree of arrays.
    batches: Ignored.
    sparsity: The share of zeros among the prunable leaves, in [0, 1).
    prunable: `(path, leaf) -> bool`: the leaves to make sparse.
    distribution: How many weights each of them keeps; by default the masks keep
      the highest scores of all leaves together.

  Returns:
    Bool masks of the params' treedef, shapes and sharding; the scalar True
    where a leaf is not prunable.

  Raises:
    ValueError: If the budget cannot be met, or a weight is not finite.

  Example:
    >>> params = {"a": jnp.array([[1.0, -4.0]]), "b": jnp.array([[3.0, 2.0]])}
    >>> masks = magnitude(None, params, None, 0.5)
    >>> print(masks["a"], masks["b"])
    [[False  True]] [[ True False]]
  """
  del loss_fn, batches
  part, kept = _budget(params, sparsity, prunable, distribution)
  return _select(params, kept, jax.tree.map(jnp.abs, _wide(part)))


def snip(
  loss_fn: LossFn,
  params: PyTree,
  batches: Sequence[Any],
  sparsity: float,
  *,
  prunable: Prunable = distributions.matrices,
  distribution: Distribution | None = None,
  score: Score | None = None,
) -> PyTree:
  """Keeps the weights that the loss is most sensitive to: |w g|.

  Args:
    loss_fn: `(params, batch) -> scalar`.
    params: A pytree of arrays.
    batches: A list or tuple of batches, any pytrees; g is the mean of their
      gradients.
    sparsity: The share of zeros among the prunable leaves, in [0, 1).
    prunable: `(path, leaf) -> bool`: the leaves to make sparse.
    distribution: How many weights each of them keeps; by default the masks keep
      the highest scores of all leaves together.
    score: The score, computed from g; `scores.sensitivity()` by default.

  Returns:
    Bool masks of the params' treedef, shapes and sharding; the scalar True
    where a leaf is not prunable.

  Raises:
    ValueError: If the budget cannot be met, there is no batch, the loss is
      not a scalar or a score is not finite.
    TypeError: If the batches are not in a list or tuple.

  References:
    Lee et al., SNIP: Single-shot Network Pruning based on Connection
    Sensitivity, arXiv:1810.02340, 2019, equation 6 and algorithm 1.

  Example:
    >>> params = {"w": jnp.array([[1.0, -2.0, 0.5]])}
    >>> x = jnp.array([1.0, 0.1, 4.0])
    >>> masks = snip(lambda p, x: (p["w"] @ x).sum(), params, [x], 0.5)
    >>> print(masks["w"])
    [[ True False  True]]
  """
  part, kept = _budget(params, sparsity, prunable, distribution)
  score = scores_lib.sensitivity() if score is None else score
  grads = _mean(jax.grad(_scalar(loss_fn)), batches, part, params)
  return _select(params, kept, score.update(grads, score.init(part), part)[0])


def grasp(
  loss_fn: LossFn,
  params: PyTree,
  batches: Sequence[Any],
  sparsity: float,
  *,
  prunable: Prunable = distributions.matrices,
  distribution: Distribution | None = None,
) -> PyTree:
  """Keeps the weights that keep the norm of the gradient high.

  To first order, removing the weight w changes |g|^2 by 2 S, where
  S = -w (H g), g is the gradient and H the Hessian of the prunable leaves. As
  in the paper, the weights with the largest S are pruned, since |g|^2 is larger
  without them, and the lowest S are kept, whatever their sign. Other
  implementations call -S the score. H g is the derivative of the gradient along
  itself, so the Hessian is never built.

  Args:
    loss_fn: `(params, batch) -> scalar`. Put a temperature into it: the authors
      divide the logits by 200.
    params: A pytree of arrays.
    batches: A list or tuple of batches, any pytrees; g and H are those of
      the mean of their losses.
    sparsity: The share of zeros among the prunable leaves, in [0, 1).
    prunable: `(path, leaf) -> bool`: the leaves to make sparse.
    distribution: How many weights each of them keeps; by default the masks keep
      the highest scores of all leaves together.

  Returns:
    Bool masks of the params' treedef, shapes and sharding; the scalar True
    where a leaf is not prunable.

  Raises:
    ValueError: If the budget cannot be met, there is no batch, the loss is
      not a scalar or a score is not finite.
    TypeError: If the batches are not in a list or tuple.

  References:
    Wang et al., Picking Winning Tickets Before Training by Preserving
    Gradient Flow, arXiv:2002.07376, 2020, algorithm 1.

  Example:
    >>> params = {"w": jnp.array([[1.0, -2.0, 0.5]])}
    >>> x = jnp.array([1.0, 0.1, 4.0])
    >>> masks = grasp(lambda p, x: (p["w"] @ x).sum() ** 2, params, [x], 0.5)
    >>> print(masks["w"])
    [[ True False  True]]
  """
  part, kept = _budget(params, sparsity, prunable, distribution)
  gradient = jax.grad(_scalar(loss_fn))

  def along(part, params, direction, batch):
    at = functools.partial(gradient, params=params, batch=batch)
    return jax.jvp(at, (part,), (direction,))[1]

  g = _mean(gradient, batches, part, params)
  g = jax.tree.map(lambda p, g: g.astype(p.dtype), part, g)
  hg = _mean(along, batches, part, params, g)
  return _select(params, kept, jax.tree.map(jnp.multiply, _wide(part), hg))


def force(
  loss_fn: LossFn,
  params: PyTree,
  batches: Sequence[Any],
  sparsity: float,
  *,
  prunable: Prunable = distributions.matrices,
  distribution: Distribution | None = None,
  rounds: int = 10,
) -> PyTree:
  """Prunes in rounds by |w g|, with the gradient of the net pruned so far.

  Each round keeps fewer weights, in a geometric series. In |w g|, g is the
  gradient of the pruned net with respect to all weights, and w is the initial
  value of each weight. So pruned weights may come back.

  Args:
    loss_fn: `(params, batch) -> scalar`.
    params: A pytree of arrays.
    batches: A list or tuple of batches, any pytrees; g is the mean of their
      gradients, in every round.
    sparsity: The share of zeros among the prunable leaves, in [0, 1).
    prunable: `(path, leaf) -> bool`: the leaves to make sparse.
    distribution: How many weights each of them keeps; by default the masks keep
      the highest scores of all leaves together.
    rounds: The number of rounds; 1 is SNIP.

  Returns:
    Bool masks of the params' treedef, shapes and sharding; the scalar True
    where a leaf is not prunable.

  Raises:
    ValueError: If the budget cannot be met, there is no batch or no round,
      the loss is not a scalar or a score is not finite.
    TypeError: If the batches are not in a list or tuple.

  References:
    de Jorge et al., Progressive Skeletonization: Trimming more fat from a
    network at initialization, arXiv:2006.09081, 2021.

  Example:
    >>> params = {"w": jnp.array([[1.0, -2.0, 0.5]])}
    >>> x = jnp.array([1.0, 0.1, 4.0])
    >>> masks = force(lambda p, x: (p["w"] @ x).sum() ** 2, params, [x], 0.5)
    >>> print(masks["w"])
    [[ True False  True]]
  """
  part, kept = _budget(params, sparsity, prunable, distribution)
  gradient = jax.grad(_scalar(loss_fn))

  def rate(masks):
    left = masks_lib.apply_masks(part, masks)
    return _product(part, _mean(gradient, batches, left, params))

  return _progressive(rate, params, part, kept, rounds, regrow=True)


def synflow(
  loss_fn: LossFn,
  params: PyTree,
  batches: Sequence[Any],
  sparsity: float,
  *,
  prunable: Prunable = distributions.matrices,
  distribution: Distribution | None = None,
  rounds: int = 100,
) -> PyTree:
  """Keeps the weights on the strongest paths; needs no data.

  R is the sum of the outputs for inputs of ones, of a net whose params are all
  made positive. The score of a weight is |w dR/dw|. Round i keeps the share
  (1 - sparsity)^(i / rounds) of the weights, and pruned weights stay pruned. If
  all leaves compete and there are no biases, no layer that every path goes
  through loses all its weights. A residual block may, since a path goes around
  it.

  R grows exponentially with depth. Inputs and outputs are scaled by powers of
  two, so that R and its derivative stay in the range of float32. In a net
  without biases this changes all scores by the same factor, exactly for R from
  about 1e-70 to 1e70. Nothing is scaled if zero inputs do not give zero outputs
  (biases that are not zero, integer inputs).

  Args:
    loss_fn: `(params, x) -> outputs`, any array: the net, not the loss.
      Positive params make ReLU the identity. Run BatchNorm in evaluation mode,
      with its initial statistics.
    params: A pytree of arrays.
    batches: `[x]`: inputs of which only shapes and dtypes matter; one example
      is enough. Only the first batch is used.
    sparsity: The share of zeros among the prunable leaves, in [0, 1).
    prunable: `(path, leaf) -> bool`: the leaves to make sparse.
    distribution: How many weights each of them keeps; by default the masks keep
      the highest scores of all leaves together.
    rounds: The number of rounds.

  Returns:
    Bool masks of the params' treedef, shapes and sharding; the scalar True
    where a leaf is not prunable.

  Raises:
    ValueError: If the budget cannot be met, there is no batch or no round, R is
      zero because no path is left, or R overflows its dtype.
    TypeError: If the batches are not in a list or tuple.

  References:
    Tanaka et al., Pruning neural networks without any data by iteratively
    conserving synaptic flow, arXiv:2006.05467, 2020, algorithm 1.

  Example:
    >>> params = [jnp.array([[1.0, 3.0]]), jnp.array([[-2.0], [1.0]])]
    >>> net = lambda p, x: jax.nn.relu(x @ p[0]) @ p[1]
    >>> masks = synflow(net, params, [jnp.zeros((1, 1))], 0.5)
    >>> print(masks[0], masks[1].T)
    [[False  True]] [[False  True]]
  """
  part, kept = _budget(params, sparsity, prunable, distribution)
  params, part = _positive(params), _positive(part)
  x = _checked(batches)[0]

  def flow(part, scale):
    def filled(x):
      ones = jnp.ones_like(x)
      return ones * scale.astype(ones.dtype) if _floating(ones) else ones

    outputs = loss_fn(_join(params, part), jax.tree.map(filled, x))
    return jnp.sum(outputs, dtype=jnp.promote_types(outputs.dtype, "float32"))

  def rate(masks):
    left = masks_lib.apply_masks(part, masks)
    scale = _scale(functools.partial(flow, left))
    grads = jax.grad(lambda left: scale * flow(left, scale))(left)
    return _product(left, grads)

  hint = (
    "the flow R is zero or beyond what its dtype holds. Lower the sparsity if "
    "no path can be left, else make params and net float64"
  )
  return _progressive(rate, params, part, kept, rounds, regrow=False, hint=hint)


def _scale(flow) -> jax.Array:
  """Finds a power of two to scale inputs and outputs by: about R^(-1/2).

  Forward values then range from R^(-1/2) to R^(1/2) and the derivatives
  back again, with |w dR/dw| adding up to about 1 in a layer.
  """
  exponents = jnp.array([0, -120, 120])
  tried = jnp.ldexp(1.0, exponents)
  # In one loop, so that the net is compiled once for all.
  flows = lax.map(flow, jnp.concatenate([jnp.zeros_like(tried[:1]), tried]))
  silent, reached = flows[0] == 0, flows[1:]
  ok = jnp.isfinite(reached) & (reached > 0)
  first = jnp.argmax(ok)
  log = jnp.log2(reached[first]) - exponents[first]
  half = jnp.round(jnp.clip(log / 2, -120, 120)).astype(jnp.int32)
  scale = jnp.where(ok[first], jnp.ldexp(1.0, -half), jnp.nan)
  return jnp.where(silent, scale, 1.0)


def _progressive(rate, params, part, kept, rounds, *, regrow, hint=None):
  """Prunes in rounds by `rate(masks)` of the masks of the round before."""
  if not isinstance(rounds, int | np.integer) or rounds < 1:
    raise ValueError(f"got rounds={rounds!r}, wanted how often, at least 1")
  done = np.arange(1, rounds + 1) / rounds

  def series(n, leaves):
    n = np.asarray(n)
    size = sum(x.size for x in jax.tree.leaves(leaves)) // max(n.size, 1)
    share = (n / max(size, 1)) ** done.reshape(-1, *(1 for _ in n.shape))
    return jnp.asarray(np.rint(size * share), jnp.int32)

  steps = jax.tree.map(series, kept.counts, part)

  def prune(i, carry):
    masks, finite = carry
    rated = rate(masks)
    counts = jax.tree.map(lambda n: n[i], steps)
    finite = jax.tree.map(jnp.logical_and, finite, _finite(rated))
    now = kept._replace(counts=counts)
    return _keep(now, rated, *(() if regrow else (masks,))), finite

  everything = jax.tree.map(lambda p: jnp.ones_like(p, bool), part)
  start = everything, jax.tree.map(lambda p: jnp.array(True), part)
  masks, finite = lax.fori_loop(0, rounds, prune, start)
  return _masks(params, masks, finite, hint)


class _Kept(NamedTuple):
  """How many weights are kept.

  Attributes:
    counts: One integer for all together, or a tree of those of each leaf, of
      `roles.budget_shape`: a prefix of the prunable part.
    roles: The leaves' roles by key path; None for all together.
  """

  counts: Any
  roles: Mapping[str, roles.Role] | None


def _budget(params, sparsity, prunable, distribution):
  """Returns the prunable part of the params, and how many weights it keeps.

  Holes take the place of what is not prunable.
  """
  counts = distributions.budgets(
    params,
    sparsity if distribution else 0.0,
    distribution or distributions.uniform,
    prunable,
  )
  part = jax.tree_util.tree_map_with_path(
    lambda path, p: p if path_name(path) in counts else masks_lib.HOLE,
    params,
  )
  if distribution is not None:
    by_path = roles.of(params, prunable)

    def of_layers(path, p):
      shape = roles.budget_shape(by_path[path_name(path)], np.shape(p))
      return roles.shared_out(counts[path_name(path)], shape)

    return part, _Kept(
      jax.tree_util.tree_map_with_path(of_layers, part), by_path
    )
  size = sum(counts.values())
  share = 1 - distributions.check_sparsity(sparsity)
  kept = math.floor(size * share + Fraction(1, 2))
  if kept == 0:
    raise ValueError(
      f"sparsity: {sparsity} leaves none of {size} weights in {len(counts)} "
      "leaves, wanted at least one: lower it"
    )
  return part, _Kept(kept, None)


def _keep(kept, rated, *where):
  """Keeps the highest of all leaves together, or of each layer."""
  if kept.roles is None:
    return select.top_k_masks(rated, kept.counts, *where)

  def leaf(path, n, scores, *where):
    role = kept.roles[path_name(path)]
    return roles.by_layer(select.top_k_mask, role)(scores, n, *where)

  return jax.tree_util.tree_map_with_path(leaf, kept.counts, rated, *where)


def _select(params, kept, rated):
  return _masks(params, _keep(kept, rated), _finite(rated))


def _masks(params, masks, finite=(), hint=None):
  """Makes masks of the params' treedef from those of the prunable part."""
  for path, ok in jax.tree_util.tree_leaves_with_path(finite):
    hint = hint or (
      "look for NaN or infinity in the params, the batches and the gradients"
    )
    refuse_unless(
      ok,
      f"{path_name(path) or 'the array'}: got scores that are not finite, "
      f"wanted finite ones: {hint}",
    )

  def leaf(p, mask):
    if is_hole(mask):
      return jnp.array(True)
    # XLA may have left a gradient on another sharding than its param's.
    known = not isinstance(p, jax.core.Tracer) and getattr(p, "committed", 0)
    return jax.device_put(mask, p.sharding) if known else mask

  return jax.tree.map(leaf, params, masks)


def _finite(rated):
  return jax.tree.map(lambda s: jnp.all(jnp.isfinite(s)), rated)


def _scalar(loss_fn):
  """Makes the loss a function of the prunable part, checked when traced."""

  def loss(part, params, batch):
    value = loss_fn(_join(params, part), batch)
    if (shape := jax.tree.map(jnp.shape, value)) != ():
      raise ValueError(
        f"loss_fn: got a value of shape {shape}, wanted a scalar: take the "
        "mean over the batch, and return nothing beside it"
      )
    return value

  return loss


def _join(params, part):
  return jax.tree.map(lambda p, x: p if is_hole(x) else x, params, part)


def _mean(f, batches, *args):
  """Averages `f(*args, batch)` over the batches, in float32 or wider."""
  f = jax.jit(f)
  trees = (_wide(f(*args, batch)) for batch in _checked(batches))
  total = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), trees)
  return jax.tree.map(lambda x: x / len(batches), total)


def _checked(batches):
  if not isinstance(batches, list | tuple):
    raise TypeError(
      f"batches: got {type(batches).__name__}, wanted a list or tuple of "
      "batches: put one batch into a list, [batch]"
    )
  if not batches:
    raise ValueError("batches: got none, wanted at least one: [batch]")
  return batches


def _product(part, grads):
  """Computes |w g|."""
  return scores_lib.sensitivity().update(grads, optax.EmptyState(), part)[0]


def _wide(tree):
  return jax.tree.map(scores_lib.wide, tree)


def _positive(tree):
  return jax.tree.map(lambda x: jnp.abs(x) if _floating(x) else x, tree)


def _floating(x):
  return jnp.issubdtype(jnp.result_type(x), jnp.floating)
