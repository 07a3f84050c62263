"""The tables that every algorithm and every optimizer is a row of."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

import sparsejax

SPARSITY = 0.6
KEY = jax.random.key(0)


def _moving(algorithm, **options):
  return lambda inner, key=KEY, sparsity=SPARSITY: algorithm(
    inner, sparsity, key=key, delta_t=2, t_end=100, **options
  )


ALGORITHMS = {
  "static": lambda inner, key=KEY, sparsity=SPARSITY: sparsejax.static(
    inner, sparsity, key=key
  ),
  "set": _moving(sparsejax.set_),
  "rigl": _moving(sparsejax.rigl),
  "rigl_accumulate": _moving(sparsejax.rigl, accumulate=2),
  "snfs": _moving(sparsejax.snfs),
  "seft": _moving(sparsejax.seft),
  "seft_smoothed": _moving(sparsejax.seft, smoothing=0.9),
  "gmp": lambda inner, key=KEY, sparsity=SPARSITY: sparsejax.gmp(
    inner, sparsity, key=key, begin=2, end=6, delta_t=2
  ),
}


def _kernels(tree):
  return jax.tree.map(lambda x: x.ndim > 1, tree)


def _labels(tree):
  return jax.tree.map(lambda x: "kernel" if x.ndim > 1 else "bias", tree)


OPTIMIZERS = {
  "sgd": lambda: optax.sgd(0.1, momentum=0.9),
  "schedule": lambda: optax.sgd(optax.cosine_decay_schedule(0.1, 10)),
  "adam": lambda: optax.adam(1e-2),
  "adamw": lambda: optax.adamw(optax.linear_schedule(1e-2, 1e-3, 10)),
  "nadamw": lambda: optax.nadamw(1e-2),
  "lion": lambda: optax.lion(1e-3),
  "rmsprop": lambda: optax.rmsprop(1e-3, momentum=0.9),
  "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=4),
  "amsgrad": lambda: optax.amsgrad(1e-2),
  "lamb": lambda: optax.lamb(1e-2),
  "muon": lambda: contrib.muon(1e-2),
  "clip": lambda: optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(1e-2)
  ),
  "inject": lambda: optax.inject_hyperparams(optax.adamw)(
    learning_rate=optax.linear_schedule(1e-2, 1e-3, 10)
  ),
  "masked": lambda: optax.chain(
    optax.masked(optax.add_decayed_weights(1e-2), _kernels),
    optax.masked(optax.adam(1e-2), _kernels),
  ),
  "partition": lambda: optax.partition(
    {"kernel": optax.adam(1e-2), "bias": optax.sgd(0.1)}, _labels
  ),
  "schedule_free": lambda: contrib.schedule_free(
    optax.sgd(0.1), learning_rate=0.1
  ),
  "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(1e-2), 3),
}


def params(dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(1), 3)
  return {
    "conv": jax.random.normal(keys[0], (2, 2, 3, 4), dtype),
    "dense": {
      "bias": jax.random.normal(keys[1], (5,), dtype),
      "kernel": jax.random.normal(keys[2], (8, 5), dtype),
    },
  }


def noise(params, step):
  """Noise of its own every step, for `gradients`."""
  return jax.tree.map(
    lambda p: np.random.default_rng(step).normal(size=p.shape).astype("f"),
    params,
  )


def gradients(params, noise):
  """Dense gradients of a quadratic loss with noise."""
  return jax.tree.map(lambda p, n: (0.5 * p + n).astype(p.dtype), params, noise)


def inactive_are_zero(params, masks):
  ok = jax.tree.map(
    lambda p, m: jnp.all(m | (p == 0)) if m.ndim else True, params, masks
  )
  return all(jax.tree.leaves(ok))
