"""The tables that every algorithm and every optimizer is a row of."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

import sparsejax

SPARSITY = 0.6
KEY = jax.random.key(0)


class Row(NamedTuple):
  """An algorithm, and what the table expects of it."""

  make: Callable  # of an inner optimizer, key=, sparsity= and options
  # The number of active weights after every step: constant; falling to the
  # budget, within the old mask (nested) or not; phases of dense and sparse;
  # fan_in, where neurons may be ablated; or free, where there is no budget.
  counts: str = "constant"
  moves: bool | None = True  # None: not at the table's small learning rate
  straight_through: bool = False  # inactive weights are kept, not zeroed
  # Options with which any pattern at any sparsity is met; None: takes none.
  patterned: dict | None = None


def _row(
  algorithm,
  counts="constant",
  moves=True,
  straight_through=False,
  patterned=None,
  **options,
):
  def make(inner, key=KEY, sparsity=SPARSITY, **more):
    return algorithm(inner, sparsity, key=key, **options | more)

  return Row(make, counts, moves, straight_through, patterned)


def _without_budget(algorithm, **options):
  return Row(
    lambda inner, key=KEY: algorithm(inner, key=key, **options),
    counts="free",
    straight_through=True,
  )


def _fixed(inner, key=KEY, sparsity=SPARSITY):
  kept = round(48 * (1 - sparsity))
  kernel = np.arange(48).reshape(6, 8) * 7 % 48 < kept
  return sparsejax.fixed(inner, {"bias": True, "kernel": kernel})


_SCHEDULE = {"delta_t": 2, "t_end": 100}
_SHRINKING = {"begin": 2, "end": 6, "delta_t": 2}
_DRASTIC = {"fraction": 0.9}

CORE = {
  "fixed": Row(_fixed, moves=False),
  "static": _row(sparsejax.static, moves=False, patterned={}),
  "set": _row(sparsejax.set_, patterned=_DRASTIC, **_SCHEDULE),
  "rigl": _row(sparsejax.rigl, patterned=_DRASTIC, **_SCHEDULE),
  "snfs": _row(sparsejax.snfs, patterned=_DRASTIC, **_SCHEDULE),
  "seft": _row(
    sparsejax.seft,
    smoothing=0.9,
    patterned=_DRASTIC,
    **_SCHEDULE,
  ),
  "gmp": _row(sparsejax.gmp, counts="nested", patterned={}, **_SHRINKING),
}
FAMILIES = {
  "rigl_itop": _row(
    sparsejax.rigl, step_on_update=True, fraction=0.5, **_SCHEDULE
  ),
  "dst_ee": _row(sparsejax.dst_ee, c=0.1, patterned=_DRASTIC, **_SCHEDULE),
  "mest": _row(
    sparsejax.mest,
    t_end=6,
    delta_t=2,
    fraction=0.4,
    patterned={"t_end": 8, "fraction": 0.5},
  ),
  "mest_s": _row(
    sparsejax.mest,
    t_end=6,
    delta_t=2,
    fraction=0.0,
    surplus=0.5,
    counts="falling",
  ),
  "srigl": _row(
    sparsejax.srigl,
    ablation=1.0,
    never_ablate=sparsejax.distributions.matching("none"),
    counts="fan_in",
    **_SCHEDULE,
  ),
  "granet": _row(
    sparsejax.granet,
    begin=0,
    end=4,
    t_end=50,
    delta_t=2,
    counts="falling",
    patterned={"initial_sparsity": 0.0, "scope": "layer"},
  ),
  "ac_dc": _row(
    sparsejax.ac_dc,
    phases=(2, 4, 6),
    counts="phases",
    patterned={"scope": "layer"},
  ),
  "ste": _row(sparsejax.ste, moves=None, straight_through=True, patterned={}),
  "ste_cubic": _row(
    sparsejax.ste, begin=0, end=5, counts="falling", straight_through=True
  ),
  "sr_ste": _row(
    sparsejax.sr_ste,
    pattern=sparsejax.patterns.unstructured(),
    moves=None,
    straight_through=True,
    patterned={},
  ),
  "top_kast": _row(
    sparsejax.top_kast,
    backward_sparsity=0.3,
    moves=None,
    straight_through=True,
    patterned={"backward_sparsity": 0.1},
  ),
  "movement": _row(
    sparsejax.movement,
    begin=0,
    end=5,
    counts="falling",
    straight_through=True,
    patterned={},
  ),
  "soft_movement": _without_budget(
    sparsejax.soft_movement,
    begin=0,
    end=4,
    threshold=0.45,
    optimizer=optax.sgd(1.0),
  ),
  "str": _without_budget(
    sparsejax.str_,
    initial=-1.0,
    optimizer=optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)),
  ),
}
# Options that change a row's state or its path.
VARIANTS = {
  "rigl_accumulate": _row(sparsejax.rigl, accumulate=2, **_SCHEDULE),
  "rigl_no_regrow": _row(sparsejax.rigl, regrow=False, **_SCHEDULE),
  "rigl_grown": _row(
    sparsejax.rigl,
    grown_values=jax.nn.initializers.normal(0.1),
    grown_moments=lambda moment, grad: 0.1 * jnp.abs(grad),
    **_SCHEDULE,
  ),
  "rigl_step_on_update": _row(sparsejax.rigl, step_on_update=True, **_SCHEDULE),
  "seft_one_batch": _row(sparsejax.seft, **_SCHEDULE),
}
ROWS = CORE | FAMILIES | VARIANTS
# What an algorithm is made of when it meets an optimizer: `sparsify` with
# weights that grow, or only fall away; `straight_through`; and a gradient step
# where masks move. The default run has each with every optimizer.
MECHANISMS = ("rigl", "gmp", "ste", "rigl_itop")

# Functions alone, for other tests.
ALGORITHMS = {name: row.make for name, row in CORE.items()}

# Patterns, and a sparsity that each can have.
PATTERNS = {
  "n_of_m": (sparsejax.patterns.n_of_m(2, 4), 0.5),
  "transposable": (sparsejax.patterns.transposable_n_of_m(1, 2), 0.5),
  "blocks": (sparsejax.patterns.blocks((2, 2)), 0.6),
  "fan_in": (sparsejax.patterns.fan_in(), 0.6),
  "channels": (sparsejax.patterns.channels(), 0.6),
  "heads": (sparsejax.patterns.heads(6), 0.5),
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
