"""Rounding to INT8: scales, integers, and what these stand for.

Symmetric: integers are -127 to 127, and 0 stands for 0. So zeros stay zeros.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.checks import refuse_unless

LIMIT = 127  # -128 has no counterpart
_INVERSE = np.float32(1 / LIMIT)
_ROUNDING = 1e-4  # of what was a multiple in float32
_FIRST = 32


def scales(w: jax.Array, *, group: int | None = None) -> jax.Array:
  """Computes the scale of each output: the factor of its integers.

  With this scale the output's largest weight becomes 127 or -127. The scale is
  1 if all weights are 0.

  Args:
    w: [..., in, out], of any float dtype.
    group: How many neighbouring inputs share a scale; all by default.

  Returns:
    float32[..., out, groups].

  Raises:
    ValueError: If w is no matrix, the groups do not divide its inputs, or, in
      arrays that are not traced, a weight is not finite.

  Example:
    >>> print(scales(jnp.array([[127.0, 0.0], [-254.0, 0.0]])))
    [[2.]
     [1.]]
  """
  if jnp.ndim(w) < 2:
    raise ValueError(
      f"got an array of shape {jnp.shape(w)}, wanted a matrix [..., in, out]"
    )
  largest = largest_along(w, (w.ndim - 2,), group=group)
  return jnp.swapaxes(for_largest(largest), -1, -2)


def exact_scales(w: jax.Array, *, group: int | None = None) -> jax.Array:
  """Finds the scales that weights were rounded with before.

  Use it for weights from `oneshot.sparsegpt` and similar methods, where an
  output's largest integer may be below 127.

  Args:
    w: [..., in, out], as in `scales`; not traced.
    group: As in `scales`.

  Returns:
    float32[..., out, groups]: the smallest scales such that all weights of an
    output and a group are multiples of them, by at most 127. Where there are no
    such scales, those of `scales`.

  Raises:
    ValueError: As in `scales`.

  Example:
    >>> print(exact_scales(jnp.array([[0.5, 0.3], [-50.0, 127.0]])))
    [[0.5]
     [1. ]]
  """
  largest = np.asarray(scales(w, group=group))
  turned = np.swapaxes(np.asarray(w, np.float32), -1, -2)
  rows = turned.reshape(largest.size, -1) / largest.reshape(-1, 1)

  def fits(rows, limit):
    """Tells rows that are integers if their largest one is this."""
    x = rows * np.float32(limit / LIMIT)
    return np.all(np.abs(x - np.rint(x)) < _ROUNDING, axis=1)

  limits = np.full(len(rows), LIMIT)
  left = np.arange(len(rows))
  for limit in range(LIMIT, 0, -1):
    # Of weights that are no multiples, the first ones tell.
    found = left[fits(rows[left, :_FIRST], limit)]
    found = found[fits(rows[found], limit)]
    limits[found] = limit
    left = np.setdiff1d(left, found, assume_unique=True)
  return jnp.asarray(largest * (LIMIT / limits).reshape(largest.shape), "f")


def integers(
  w: jax.Array, scales: jax.Array, *, nonzero: bool = False
) -> jax.Array:
  """Rounds a matrix to integers.

  Args:
    w: [..., in, out].
    scales: float32[..., out, groups].
    nonzero: Whether a weight that is not 0 becomes 1 or -1 if the nearest
      integer is 0, so that the number of non-zeros stays the same.

  Returns:
    int8[..., in, out]: the nearest integers from -127 to 127.
  """
  return nearest(w, of_weights(scales, w.shape[-2]), nonzero=nonzero)


def multiples(values: jax.Array, scales: jax.Array) -> jax.Array:
  """Computes the floats that integers stand for.

  Args:
    values: int8[..., in, out].
    scales: float32[..., out, groups].

  Returns:
    float32[..., in, out].
  """
  return values * of_weights(scales, values.shape[-2])


def largest_along(
  w: jax.Array, axes: tuple[int, ...], *, group: int | None = None
) -> jax.Array:
  """Finds the largest |w| along axes.

  Args:
    w: Array.
    axes: From 0 on.
    group: Of how many neighbours along the first of these axes; all by default.

  Returns:
    The array, whose axes are as long as there are groups, and 1 otherwise.
  """
  size = jnp.abs(w)
  if group is None:
    return jnp.max(size, axes, keepdims=True)
  first, *others = axes
  length = w.shape[first]
  if group < 1 or length % group:
    raise ValueError(
      f"got groups of {group} for {length} inputs, wanted a number that "
      "divides them"
    )
  shape = (*w.shape[:first], length // group, group, *w.shape[first + 1 :])
  along = (first + 1, *(a + (a > first) for a in others))
  largest = jnp.max(size.reshape(shape), along, keepdims=True)
  return jnp.squeeze(largest, first + 1)


def spread(scale: jax.Array, length: int, axis: int) -> jax.Array:
  """Repeats the scales of groups along an axis, unless there is one group."""
  groups = scale.shape[axis]
  if length % groups:
    raise ValueError(
      f"got scales of {groups} groups for {length} inputs, wanted a number "
      "that divides them"
    )
  if groups == 1:  # broadcast: nothing as large as the matrix
    return scale
  return jnp.repeat(scale, length // groups, axis)


def of_weights(scales, inputs):
  """Turns scales [..., out, groups] into those of weights [..., in, out]."""
  return spread(jnp.swapaxes(scales, -1, -2), inputs, -2)


def for_largest(largest: jax.Array) -> jax.Array:
  """Computes scales, float32, from the largest |w| of each."""
  refuse_unless(
    jnp.all(jnp.isfinite(largest)),
    "some weights are NaN or infinite, wanted finite ones: see where they were "
    "made or read",
  )
  return scale_of(largest)


def scale_of(largest: jax.Array) -> jax.Array:
  """Computes a scale, float32, without a check; NaN if something is."""
  # XLA would make this of a division by a constant, but not always.
  scale = largest.astype(jnp.float32) * _INVERSE
  return jnp.where(scale == 0, 1, scale)


def nearest(
  x: jax.Array, scale: jax.Array, *, nonzero: bool = False
) -> jax.Array:
  """Rounds numbers to the nearest of the 255 multiples of scales: int8."""
  x = jnp.asarray(x, jnp.float32)
  found = jnp.clip(jnp.round(x / scale), -LIMIT, LIMIT)
  if nonzero:
    found = jnp.where(found == 0, jnp.sign(x), found)
  return found.astype(jnp.int8)
