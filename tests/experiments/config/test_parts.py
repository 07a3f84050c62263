"""From a config to its parts: what is built, and what is refused."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax
from configs import rigl_mnist1d
from experiments.config import (
  algorithms,
  calling,
  check,
  defaults,
  optimizers,
  parts,
)
from experiments.errors import UserError
from experiments.recipes import vision

KEY = jax.random.key(0)


def make(**changes):
  config = defaults.training_run()
  config.steps = 40
  for key, value in changes.items():
    config[key] = value
  return config


SCORES = {"name": "adam", "rate_factor": 0.5}
TIMING = algorithms.Timing(
  delta_t=7, t_end=28, fraction=0.3, begin=3, end=24, prune_every=7
)
ALGORITHMS = {
  **{
    name: row.timing(TIMING) | ({"sparsity": 0.5} if name != "dense" else {})
    for name, row in algorithms.ALGORITHMS.items()
    if row.timing
  },
  "set": {"sparsity": 0.5, "t_end": 30, "delta_t": 7},
  "snfs": {"sparsity": 0.5, "t_end": 3, "delta_t": 7},
  "seft": {"sparsity": 0.5, "t_end": 30, "delta_t": 8},
  "mest": {"sparsity": 0.5, "t_end": 28, "delta_t": 7},
  "srigl": {
    "sparsity": 0.5,
    "t_end": 28,
    "delta_t": 7,
    "never_ablate": "^logits",
  },
  "granet": {"sparsity": 0.5, "begin": 3, "end": 24, "t_end": 30, "delta_t": 7},
  "ac_dc": {"sparsity": 0.5, "phases": (4, 10, 11)},
  "ste": {"sparsity": 0.5, "delta_t": 7},
  "sr_ste": {"sparsity": 0.5},
  "top_kast": {"sparsity": 0.5, "backward_sparsity": 0.2, "delta_t": 7},
  "movement": {"sparsity": 0.5, "begin": 3, "end": 24, "optimizer": SCORES},
  "soft_movement": {"begin": 3, "end": 24, "optimizer": SCORES},
  "str": {"optimizer": {"name": "sgd", "weight_decay": 0.1}},
}
# The steps below 40 on which masks move; a straight-through method chooses, in
# the step before, those of the steps that are multiples of delta_t.
MOVES = {
  **{
    name: [7, 14, 21] if "t_end" in row.timing(TIMING) else []
    for name, row in algorithms.ALGORITHMS.items()
    if row.timing
  },
  "set": [7, 14, 21, 28],
  "snfs": [],
  "seft": [8, 16, 24],
  "mest": [7, 14, 21, 28],
  "srigl": [7, 14, 21],
  "gmp": [3, 10, 17, 24],
  "granet": [3, 10, 17, 24],
  "ac_dc": [4, 10, 11],
  "ste": [6, 13, 20, 27, 34],
  "sr_ste": list(range(40)),
  "top_kast": [6, 13, 20, 27, 34],
  "movement": list(range(40)),
  "soft_movement": list(range(40)),
  "str": list(range(40)),
}


def algorithm(name, **changes):
  return {"name": name, **ALGORITHMS[name], **changes}


def functions(name, **changes):
  """The keywords that the algorithm gets, of a config that is valid."""
  config = make(algorithm=algorithm(name, **changes))
  check.training_run(config)
  return parts.algorithm_functions(config)


def test_every_algorithm_is_covered():
  assert ALGORITHMS.keys() == algorithms.ALGORITHMS.keys() == MOVES.keys()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_moves_is_a_schedule_for_every_algorithm(name):
  """The trainer asks on the host, the library on the device."""
  config = make(algorithm=algorithm(name))
  moves = parts.transformation(config, KEY).moves
  assert [step for step in range(40) if moves(step)] == MOVES[name]
  traced = jax.vmap(lambda step: jnp.asarray(moves(step)))(jnp.arange(40))
  np.testing.assert_array_equal(np.flatnonzero(traced), MOVES[name])


def test_one_pattern_for_all_layers():
  made = functions("sr_ste", pattern={"name": "n_of_m", "n": 2, "m": 4})
  assert made["pattern"].density == Fraction(1, 2)
  assert made["pattern"].budget((8, 6), 1) == 24
  scores = jnp.array([[9.0, 0.0, 5.0, 5.0]])
  for pool, kept in (("max", 0), ("mean", 2)):
    blocks = {"name": "blocks", "shape": [1, 2], "pool": pool}
    mask = functions("static", pattern=blocks)["pattern"].top_k(scores, 2)
    assert np.flatnonzero(mask).tolist() == [kept, kept + 1]


def test_patterns_by_path():
  rules = [
    ["^first", {"name": "n_of_m", "n": 1, "m": 4}],
    ["^logits", {"name": "fan_in"}],
    ["", {"name": "unstructured"}],
  ]
  made = functions("static", pattern=rules)["pattern"]
  of = made(["first", "second", "logits"])
  budgets = {path: pattern.budget((8, 4), 17) for path, pattern in of.items()}
  assert budgets == {"first": 8, "second": 17, "logits": 16}


def test_layers_are_named_by_a_regular_expression():
  made = functions("srigl", never_ablate="^logits", prunable="kernel$")
  assert made["never_ablate"]("logits/kernel", None)
  assert not made["never_ablate"]("dense/logits", None)
  assert made["prunable"]("dense/kernel", None)
  assert not made["prunable"]("dense/kernel_scale", None)


@pytest.mark.parametrize("name", ["movement", "soft_movement", "str"])
def test_an_algorithms_own_optimizer_has_a_multiple_of_the_rate(name):
  """It decays scalars too: that is what moves STR's thresholds."""
  for factor in (1.0, 10.0):
    rule = {
      "name": "sgd",
      "momentum": 0.0,
      "weight_decay": 0.5,
      "rate_factor": factor,
    }
    tx = functions(name, optimizer=rule)["optimizer"]
    scalar = jnp.float32(2.0)
    change, _ = tx.update(jnp.float32(3.0), tx.init(scalar), scalar)
    assert float(change) == pytest.approx(-0.1 * factor * (3 + 0.5 * 2))


@pytest.mark.parametrize("name", ["ste", "gmp", "granet", "ac_dc"])
def test_a_score_by_name(name):
  score = functions(name, score="gradient")["score"]
  grads, params = jnp.array([-3.0, 1.0]), jnp.array([1.0, 2.0])
  by, _ = score.update(grads, score.init(params), params)
  assert by.tolist() == [3, 1]


def test_streams_differ_by_name_and_seed_and_nothing_else():
  one, again, other = map(parts.streams, (0, 0, 1))
  values = [tuple(np.asarray(k)) for s in (one, other) for k in s.values()]
  assert len(set(values)) == 2 * len(parts.STREAMS)
  for name in parts.STREAMS:
    np.testing.assert_array_equal(one[name], again[name])
  # The same in every process and on every version: results hang on it.
  np.testing.assert_array_equal(one["masks"], [2477351647, 1463446531])


def rate(schedule, steps=100):
  made = parts.SCHEDULES[schedule.pop("name")](steps=steps, **schedule)
  return [float(made(s)) for s in range(steps + 1)]


def test_cosine_warms_up_and_falls_to_its_end():
  rates = rate(
    {"name": "cosine", "learning_rate": 1.0, "warmup": 10, "end": 0.1}
  )
  assert rates[0] == 0
  assert rates[5] == pytest.approx(0.5)
  assert rates[10] == 1
  assert rates[55] == pytest.approx(0.55)
  assert rates[100] == pytest.approx(0.1)


def test_piecewise_counts_from_the_first_step():
  for warmup in (0, 4):
    rates = rate(
      {
        "name": "piecewise",
        "learning_rate": 1.0,
        "boundaries": (30, 60),
        "factor": 0.2,
        "warmup": warmup,
      }
    )
    assert rates[29] == 1
    assert rates[31] == pytest.approx(0.2)
    assert rates[61] == pytest.approx(0.04)


def test_cosine_may_stay_the_same_within_an_epoch():
  rates = rate(
    {
      "name": "cosine",
      "learning_rate": 1.0,
      "warmup": 40,
      "end": 0.2,
      "epoch": 20,
    }
  )
  smooth = rate(
    {"name": "cosine", "learning_rate": 1.0, "warmup": 40, "end": 0.2}
  )
  assert rates[:40] == pytest.approx([0.5] * 20 + [1.0] * 20)
  for first in (40, 60, 80):
    assert rates[first : first + 20] == pytest.approx([smooth[first]] * 20)
  assert len(set(rates)) == 5  # 0.5, that of epochs 2 and 3, ..., the end


def test_linear_warms_up_and_falls_to_its_end():
  rates = rate(
    {"name": "linear", "learning_rate": 1.0, "warmup": 20, "end": 0.2}
  )
  assert [rates[t] for t in (0, 10, 20, 60, 100)] == pytest.approx(
    [0, 0.5, 1, 0.6, 0.2]
  )


def test_l2_comes_before_momentum_and_spares_vectors():
  tx = optimizers.sgd(0.5, momentum=0.9, weight_decay=0.1)
  params = {"w": jnp.full((1, 1), 2.0), "b": jnp.ones(1)}
  grads = jax.tree.map(jnp.ones_like, params)
  state = tx.init(params)
  updates, state = tx.update(grads, state, params)
  assert float(updates["w"][0, 0]) == pytest.approx(-0.5 * (1 + 0.1 * 2))
  assert float(updates["b"][0]) == pytest.approx(-0.5)
  updates, state = tx.update(grads, state, params)
  assert float(updates["w"][0, 0]) == pytest.approx(-0.5 * 1.9 * 1.2)


def test_group_lasso_pulls_at_the_norm_of_each_output():
  tx = optimizers.sgd(1.0, momentum=0.0, group_lasso=0.1)
  params = {"w": jnp.array([[3.0, 0.0], [4.0, 0.0]]), "b": jnp.ones(2)}
  grads = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(grads, tx.init(params), params)
  # 0.1 sqrt(2) w / 5; nothing where the norm is 0, nor of biases.
  wanted = -0.1 * 2**0.5 * np.array([[0.6, 0.0], [0.8, 0.0]])
  np.testing.assert_allclose(updates["w"], wanted, rtol=1e-6)
  assert not updates["b"].any()


def test_optimizers_clip():
  params = {"w": jnp.ones((2, 2))}
  grads = {"w": jnp.full((2, 2), 1e6)}
  tx = optimizers.sgd(0.1, clip=1.0)
  updates, _ = tx.update(grads, tx.init(params), params)
  np.testing.assert_allclose(updates["w"], -0.05, rtol=1e-5)
  for make_tx in (optimizers.adam, optimizers.adamw):
    tx = make_tx(0.1, clip=1.0)
    _, state = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(
      optax.tree.get(state, "mu")["w"], 0.05, rtol=1e-5
    )


def test_distribution_by_path():
  algorithm = {
    "name": "static",
    "sparsity": 0.9,
    "distribution": "uniform",
    "by_path": (("first", 0.0),),
  }
  tx = parts.transformation(make(algorithm=algorithm), KEY)
  params = {"first": jnp.ones((9, 9)), "second": jnp.ones((10, 10))}
  _, state = sparsejax.init(tx, params)
  masks = sparsejax.get_masks(state)
  assert int(masks["first"].sum()) == 81
  assert int(masks["second"].sum()) == 10


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"optimizer": {"name": "sgdd"}}, "no optimizer .* did you mean 'sgd'"),
    ({"schedule": {"name": "cosin", "learning_rate": 1.0}}, "mean 'cosine'"),
    ({"algorithm": {"name": "rigle"}}, "did you mean 'rigl'"),
    (
      {"optimizer": {"name": "sgd", "momentun": 0.9}},
      "option of optimizer sgd is called 'momentun'; did you mean 'momentum'",
    ),
    (
      {"algorithm": {"name": "rigl", "sparsity": 0.9, "tend": 9}},
      "did you mean 't_end'",
    ),
    ({"algorithm": {"name": "rigl", "sparsity": 0.9}}, "missing .* 't_end'"),
    ({"algorithm": {"name": "static", "sparsity": 1.0}}, r"in \[0, 1\)"),
    (
      {
        "algorithm": {
          "name": "static",
          "sparsity": 0.5,
          "distribution": "unifrom",
        }
      },
      "no distribution is called 'unifrom'. Near it: uniform",
    ),
    (
      {"algorithm": algorithm("static", pattern={"name": "n_off_m"})},
      "no pattern .* did you mean 'n_of_m'",
    ),
    (
      {"algorithm": algorithm("static", pattern={"name": "n_of_m", "k": 2})},
      "no option of pattern n_of_m is called 'k'",
    ),
    (
      {
        "algorithm": algorithm(
          "static", pattern={"name": "n_of_m", "n": 5, "m": 4}
        )
      },
      "pattern n_of_m: .*5:4",
    ),
    (
      {
        "algorithm": algorithm(
          "static", pattern={"name": "blocks", "shape": [2], "pool": "min"}
        )
      },
      "no pool .* 'min'",
    ),
    (
      {"algorithm": algorithm("str", optimizer="sgd")},
      "optimizer of str is 'sgd'; wanted a mapping with a name",
    ),
    (
      {"algorithm": algorithm("movement", optimizer={"name": "adamm"})},
      "no optimizer of movement .* did you mean 'adam'",
    ),
    (
      {"algorithm": algorithm("gmp", score="magnitud")},
      "no score .* did you mean 'magnitude'",
    ),
    ({"algorithm": {"name": "str"}}, "missing .* 'optimizer'"),
    (
      {"algorithm": {"name": "srigl", "sparsity": 0.5, "t_end": 300}},
      "srigl: got no never_ablate",
    ),
    ({"steps": 0}, "steps is 0; wanted at least 1"),
    ({"label_smoothing": 1.5}, r"label_smoothing is 1\.5"),
  ],
)
def test_what_is_wrong_is_told(changes, message):
  with pytest.raises(UserError, match=message):
    check.training_run(make(**changes))


@pytest.mark.parametrize(
  "name",
  [n for n, a in algorithms.ALGORITHMS.items() if a.chooses_first_masks],
)
def test_what_chooses_its_masks_itself_takes_no_others(name):
  config = make(algorithm=algorithm(name), initial={"name": "magnitude"})
  with pytest.raises(UserError, match=f"algorithm {name} chooses .* drawn"):
    check.training_run(config)
  check.training_run(
    make(algorithm=algorithm("mest"), initial={"name": "magnitude"})
  )


def test_keys_and_types_are_checked():
  config = make().unlock()
  config.lerning_rate = 1.0
  with pytest.raises(UserError, match="'lerning_rate'"):
    check.training_run(config)
  config = make().unlock()
  del config.seed
  with pytest.raises(UserError, match="lacks seed"):
    check.training_run(config)
  for key, value in {"steps": 1.5, "augment": 1, "model": "conv"}.items():
    config = make().unlock()
    with config.ignore_type():
      config[key] = value
    with pytest.raises(UserError, match=rf"config\.{key} is "):
      check.training_run(config)


@pytest.mark.parametrize("name", vision.COMMON)
def test_the_mnist1d_config_knows_the_common_algorithms(name):
  for arg in (name, f"{name},smoke"):
    config = rigl_mnist1d.get_config(arg)
    check.training_run(config)
    config.steps = 2 * config.steps  # what hangs on it follows
    check.training_run(config)
  assert calling.plain(config)["algorithm"].get("t_end", 90) == 90
