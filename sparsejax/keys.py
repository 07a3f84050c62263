"""Randomness keyed by (key, step, leaf path): no order of leaves, no host.

Optimizer states hold a key's raw data, uint32 [2], which any checkpoint can
hold; all draws of a step fold its number in, those of a leaf its key path.
"""

import zlib

import jax
import jax.numpy as jnp

from sparsejax import xla
from sparsejax.masks import PyTree, path_name


def check_key(key: jax.Array) -> jax.Array:
  """Checks that something is a PRNG key."""
  if not hasattr(key, "dtype"):
    raise TypeError(
      f"got key={key!r}, wanted a PRNG key: make one, for example with "
      "jax.random.key(0)"
    )
  return key


def raw(key: jax.Array) -> jax.Array:
  """Draws raw data of a threefry key, uint32 [2], from a key of any kind."""
  return jax.random.bits(check_key(key), (2,), jnp.uint32)


def wrapped(data: jax.Array) -> jax.Array:
  """Makes a threefry key of its raw data, uint32 [2]."""
  return jax.random.wrap_key_data(data, impl="threefry2x32")


def of_step(data: jax.Array, step: jax.Array | int) -> jax.Array:
  """Makes the key of one step's draws from raw data."""
  return jax.random.fold_in(wrapped(data), step)


def of_leaf(key: jax.Array, path: tuple) -> jax.Array:
  """Makes the key of one leaf, the same in every process and leaf order."""
  return jax.random.fold_in(key, zlib.crc32(path_name(path).encode()))


def of_grown(data: jax.Array, step: jax.Array | int, path: tuple) -> jax.Array:
  """Makes the key of the first values of one leaf's newly grown weights."""
  return of_leaf(jax.random.fold_in(of_step(data, step), 1), path)


def uniform_like(key: jax.Array, tree: PyTree) -> PyTree:
  """Draws uniform float32 noise in [0, 1) of a tree's shapes, keyed by path.

  Args:
    key: A PRNG key.
    tree: A pytree of arrays.

  Returns:
    A tree of float32 arrays. Its leaves are sharded as the leaves of `tree`
    where those are concrete.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, x: uniform(of_leaf(key, path), x), tree
  )


def uniform(key: jax.Array, x: jax.Array) -> jax.Array:
  """Draws uniform float32 noise in [0, 1) of one array's shape and sharding."""
  draw = xla.uniform_flat if jax.device_count() == 1 else jax.random.uniform
  # Committed only as the array is: a step would be compiled twice otherwise,
  # for the masks at first and for those that it returns.
  if not isinstance(x, jax.core.Tracer) and getattr(x, "committed", False):
    draw = jax.jit(draw, static_argnums=1, out_shardings=x.sharding)
  return xla.sharded_like(draw(key, jnp.shape(x)), x)
