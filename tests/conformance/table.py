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


def _fixed(inner, key=KEY, sparsity=SPARSITY):
  kept = round(48 * (1 - sparsity))
  kernel = np.arange(48).reshape(6, 8) * 7 % 48 < kept
  return sparsejax.fixed(inner, {"bias": True, "kernel": kernel})


ALGORITHMS = {
  "fixed": _fixed,
  "static": lambda inner, key=KEY, sparsity=SPARSITY: sparsejax.static(
    inner, sparsity, key=key
  ),
  "set": _moving(sparsejax.set_),
  "rigl": _moving(sparsejax.rigl),
  "snfs": _moving(sparsejax.snfs),
  "seft": _moving(sparsejax.seft, smoothing=0.9),
  "gmp": lambda inner, key=KEY, sparsity=SPARSITY: sparsejax.gmp(
    inner, sparsity, key=key, begin=2, end=6, delta_t=2
  ),
}

# The families, with fewer combinations: see test_conformance.py.


def _keyed(algorithm, *args, **options):
  return lambda inner, key=KEY, sparsity=SPARSITY: algorithm(
    inner, *args, sparsity, key=key, **options
  )


def _seeking(algorithm, **options):
  return lambda inner, key=KEY: algorithm(inner, key=key, **options)


FAMILIES = {
  "rigl_itop": _moving(sparsejax.rigl, step_on_update=True, fraction=0.5),
  "mest": _keyed(sparsejax.mest, t_end=6, delta_t=2, fraction=0.4),
  "mest_s": _keyed(
    sparsejax.mest, t_end=6, delta_t=2, fraction=0.0, surplus=0.5
  ),
  "srigl": _moving(
    sparsejax.srigl,
    ablation=1.0,
    never_ablate=sparsejax.distributions.matching("none"),
  ),
  "granet": _keyed(sparsejax.granet, begin=0, end=4, t_end=50, delta_t=2),
  "ac_dc": _keyed(sparsejax.ac_dc, phases=(2, 4, 6)),
  "ste": _keyed(sparsejax.ste),
  "ste_cubic": _keyed(sparsejax.ste, begin=0, end=5),
  "sr_ste": _keyed(sparsejax.sr_ste, pattern=sparsejax.patterns.unstructured()),
  "top_kast": _keyed(sparsejax.top_kast, backward_sparsity=0.3),
  "movement": _keyed(sparsejax.movement, begin=0, end=5),
  "soft_movement": _seeking(
    sparsejax.soft_movement,
    begin=0,
    end=4,
    threshold=0.45,
    optimizer=optax.sgd(1.0),
  ),
  "str": _seeking(
    sparsejax.str_,
    initial=-1.0,
    optimizer=optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)),
  ),
}
STRAIGHT = {
  *("ste", "ste_cubic", "sr_ste", "top_kast"),
  *("movement", "soft_movement", "str"),
}

# Every algorithm that moves masks, with every pattern that it can have.


def patterned(pattern, sparsity):
  """Rows of one pattern, of `sparsity`."""
  moving = {"delta_t": 2, "t_end": 100, "fraction": 0.9}
  rows = {
    "static": (sparsejax.static, {}),
    "set": (sparsejax.set_, moving),
    "rigl": (sparsejax.rigl, moving),
    "snfs": (sparsejax.snfs, moving),
    "seft": (sparsejax.seft, moving),
    "mest": (sparsejax.mest, {"t_end": 8, "delta_t": 2, "fraction": 0.5}),
    "gmp": (sparsejax.gmp, {"begin": 2, "end": 6, "delta_t": 2}),
    "granet": (
      sparsejax.granet,
      {
        "begin": 0,
        "end": 4,
        "t_end": 50,
        "delta_t": 2,
        "initial_sparsity": 0.0,
        "scope": "layer",
      },
    ),
    "ac_dc": (sparsejax.ac_dc, {"phases": (2, 4, 6), "scope": "layer"}),
    "ste": (sparsejax.ste, {}),
    "sr_ste": (sparsejax.sr_ste, {}),
    "top_kast": (sparsejax.top_kast, {"backward_sparsity": 0.1}),
    "movement": (sparsejax.movement, {"begin": 0, "end": 5}),
  }
  return {
    name: lambda inner, f=f, given=given: f(
      inner, sparsity, key=KEY, pattern=pattern, **given
    )
    for name, (f, given) in rows.items()
  }


PATTERNS = {
  "n_of_m": (sparsejax.patterns.n_of_m(2, 4), 0.5),
  "transposable": (sparsejax.patterns.transposable_n_of_m(1, 2), 0.5),
  "blocks": (sparsejax.patterns.blocks((2, 2)), 0.6),
  "fan_in": (sparsejax.patterns.fan_in(), 0.6),
  "channels": (sparsejax.patterns.channels(), 0.6),
  "heads": (sparsejax.patterns.heads(6), 0.5),
}

# Options that change a row's state or its path; fewer optimizers will do.
VARIANTS = {
  "rigl_accumulate": _moving(sparsejax.rigl, accumulate=2),
  "rigl_no_regrow": _moving(sparsejax.rigl, regrow=False),
  "rigl_grown": _moving(
    sparsejax.rigl,
    grown_values=jax.nn.initializers.normal(0.1),
    grown_moments=lambda moment, grad: 0.1 * jnp.abs(grad),
  ),
  "rigl_step_on_update": _moving(sparsejax.rigl, step_on_update=True),
  "seft_one_batch": _moving(sparsejax.seft),
}


def _kernels(tree):
  return jax.tree.map(lambda x: x.ndim > 1, tree)


def _labels(tree):
  return jax.tree.map(lambda x: "kernel" if x.ndim > 1 else "bias", tree)


OPTIMIZERS = {
  "sgd": lambda: optax.sgd(0.1, momentum=0.9),
  "adam": lambda: optax.adam(1e-2),
  "adamw": lambda: optax.adamw(optax.linear_schedule(1e-2, 1e-3, 10)),
  "lion": lambda: optax.lion(1e-3),
  "rmsprop": lambda: optax.rmsprop(1e-3, momentum=0.9),
  "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=4),
  "amsgrad": lambda: optax.amsgrad(1e-2),
  "lamb": lambda: optax.lamb(1e-2),
  "muon": lambda: contrib.muon(1e-2),
  "clip": lambda: optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(1e-2)
  ),
  # In bfloat16, b2 = 0.999 would be 1, with or without masks.
  "inject": lambda: optax.inject_hyperparams(
    optax.adamw, hyperparam_dtype=jnp.float32
  )(learning_rate=optax.linear_schedule(1e-2, 1e-3, 10)),
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

# Close to one above, and so for fewer algorithms.
MORE_OPTIMIZERS = {
  "schedule": lambda: optax.sgd(optax.cosine_decay_schedule(0.1, 10)),
  "nadamw": lambda: optax.nadamw(1e-2),
}


def small_params(dtype=jnp.float32):
  """A kernel to be sparse and a bias to stay dense: what compiles fastest."""
  keys = jax.random.split(jax.random.key(1))
  return {
    "bias": jax.random.normal(keys[0], (8,), dtype),
    "kernel": jax.random.normal(keys[1], (6, 8), dtype),
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
  """Whether it is so, of host copies: eager JAX would take longer."""
  pairs = zip(
    *map(jax.tree.leaves, jax.device_get((params, masks))), strict=True
  )
  return all(np.all(m | (p == 0)) for p, m in pairs if np.ndim(m))


def same(a, b):
  """Whether two trees have the same structure, dtypes and bits."""
  if jax.tree.structure(a) != jax.tree.structure(b):
    return False
  pairs = zip(*map(jax.tree.leaves, jax.device_get((a, b))), strict=True)
  return all(
    np.asarray(x).dtype == np.asarray(y).dtype
    and np.asarray(x).tobytes() == np.asarray(y).tobytes()
    for x, y in pairs
  )
