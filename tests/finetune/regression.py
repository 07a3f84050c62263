"""A linear regression in which tests fine-tune a small sparse matrix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax
from sparsejax.linear import matmul

KEY = jax.random.key(3)
ROWS, COLUMNS = 6, 8
SIZE = ROWS * COLUMNS
X = np.asarray(jax.random.normal(KEY, (50, 10, ROWS)))  # a batch a step
Y = np.asarray(jax.random.normal(jax.random.fold_in(KEY, 1), (50, 10, COLUMNS)))


def everything(path, leaf):
  del path, leaf
  return True


def sparse_base(density=0.4):
  w = jax.random.normal(jax.random.fold_in(KEY, 2), (ROWS, COLUMNS))
  where = jax.random.uniform(jax.random.fold_in(KEY, 4), w.shape) < density
  return jnp.where(where, w, 0)


def gradient(w, t):
  """Of the dense matrix, float64, by NumPy."""
  x = X[t].astype(np.float64)
  return x.T @ (x @ w - Y[t])


def loss(w, t):
  x, y = jnp.asarray(X)[t], jnp.asarray(Y)[t]
  return 0.5 * jnp.sum((matmul(x, w) - y) ** 2)


@functools.lru_cache
def step_of(tx):
  """One step of training, compiled once for every phase."""

  value_and_grad = sparsejax.value_and_grad(loss, tx)

  @functools.partial(jax.jit, static_argnums=3)
  def step(values, state, t, now):
    _, grads = value_and_grad(values, state, t, update_masks=now)
    updates, state = tx.update(grads, state, values, update_masks=now)
    return optax.apply_updates(values, updates), state

  return step


@functools.lru_cache
def update_of(tx):
  """The update alone, compiled."""
  return jax.jit(tx.update, static_argnames="update_masks")


def trained(tx, base, steps, seen=lambda *_: None):
  values, state = sparsejax.init(tx, base)
  for t in range(steps):
    values, state = step_of(tx)(values, state, t, tx.moves(t))
    seen(t, values, state)
  return values, state


def places_of(state):
  return np.asarray(state.parts.indices).tolist()
