"""Optimizers for weights that join training at different steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparsejax.masks import PyTree, is_hole


class Seeds(NamedTuple):
  """What the moments of newly trained weights begin from, of one matrix.

  Attributes:
    mean: float32[..., k], their mean gradient so far.
    square: float32[..., k], the mean of its square.
    age: int32[..., k], of how many batches.
  """

  mean: jax.Array
  square: jax.Array
  age: jax.Array


class AgedAdamState(NamedTuple):
  """The state of `scale_by_aged_adam`; all but the count like the values.

  Attributes:
    count: int32 scalar: steps so far.
    mean: The mean gradient of each weight, without Adam's bias towards 0.
    square: The mean of its square, without that bias too.
    born: int32, the count less the number of gradients that each weight has
      seen; so nothing has to be written from step to step.
  """

  count: jax.Array
  mean: PyTree
  square: PyTree
  born: PyTree


def scale_by_aged_adam(
  b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6
) -> optax.GradientTransformation:
  """Makes an Adam that counts the steps of each weight separately.

  Adam divides its moments by 1 - b**t, since they begin at 0. Here each weight
  has its own t, which counts from the step at which its training began. The
  state holds moments that are already divided. If gradients of a weight were
  read before its training began, its moments begin at their plain means
  (`Seeds`).

  An update is m / (sqrt(v) + eps / sqrt(1 - b2**t)), where m and v are divided
  moments: the released code adds `eps` to the root of the undivided v. In the
  first step that makes eps 32 times as large as in `optax.scale_by_adam`, after
  1,000 steps 1.3 times.

  Args:
    b1: The decay of the mean.
    b2: The decay of the mean square.
    eps: A number to add to the root of the mean square, before the bias is
      divided out.

  Returns:
    The gradient transformation. With eps=0 and for weights of equal age it is
    `optax.scale_by_adam`.

  References:
    Ansell et al., Scaling Sparse Fine-Tuning to Large Language Models,
    arXiv:2401.16405, 2024; its released code's optimizer for sparse deltas.

  Example:
    >>> tx = scale_by_aged_adam()
    >>> updates, state = tx.update(jnp.ones(2), tx.init(jnp.zeros(2)))
    >>> print(updates.round(3), state.count - state.born)
    [1. 1.] [1 1]
  """

  def init(values):
    def zeros(dtype):
      return jax.tree.map(lambda v: jnp.zeros(v.shape, dtype), values)

    return AgedAdamState(
      count=jnp.zeros([], jnp.int32),
      mean=zeros(jnp.float32),
      square=zeros(jnp.float32),
      born=zeros(jnp.int32),
    )

  def update(grads, state, values=None):
    del values
    count = state.count + 1

    def average(decay, old, new):
      def leaf(m, g, born):
        age = (count - born).astype(jnp.float32)
        weight = (1 - decay) / (1 - decay**age)
        return m + weight * (g - m)

      return jax.tree.map(leaf, old, new, state.born)

    wide = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
    mean = average(b1, state.mean, wide)
    square = average(b2, state.square, jax.tree.map(jnp.square, wide))

    def step(mean, square, born, grad):
      age = (count - born).astype(jnp.float32)
      root = jnp.sqrt(square) + eps * jax.lax.rsqrt(1 - b2**age)
      return (mean / root).astype(grad.dtype)

    updates = jax.tree.map(step, mean, square, state.born, grads)
    return updates, AgedAdamState(count, mean, square, state.born)

  return optax.GradientTransformation(init, update)


def seeded(inner_state: Any, kept: PyTree, seeds: PyTree) -> Any:
  """Starts the moments of weights at new places from their seeds.

  Args:
    inner_state: The state, at any depth of which aged moments may be.
    kept: Bool[..., k] by leaf, or True: the weights that go on.
    seeds: Their seeds by leaf; True where all go on.

  Returns:
    The state.
  """

  def node(state):
    if not isinstance(state, AgedAdamState):
      return state
    count, *trees = state
    treedef = jax.tree.structure(state.born, is_leaf=is_hole)
    rows = zip(*map(treedef.flatten_up_to, (*trees, kept, seeds)), strict=True)
    columns = zip(*(_seeded(count, *row) for row in rows), strict=True)
    return AgedAdamState(count, *map(treedef.unflatten, columns))

  return jax.tree.map(
    node, inner_state, is_leaf=lambda x: isinstance(x, AgedAdamState)
  )


def _seeded(count, mean, square, born, kept, seeds):
  if is_hole(born) or kept is True:
    return mean, square, born
  return (
    jnp.where(kept, mean, seeds.mean),
    jnp.where(kept, square, seeds.square),
    jnp.where(kept, born, count - seeds.age),
  )
