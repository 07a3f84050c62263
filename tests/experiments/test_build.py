"""From a config to its parts: what is built, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax
from configs import rigl_mnist1d
from experiments import build, optimizers
from experiments.errors import UserError

KEY = jax.random.key(0)


def make(**changes):
  config = build.defaults()
  config.steps = 40
  for key, value in changes.items():
    config[key] = value
  return config


ALGORITHMS = {
  "dense": {},
  "static": {"sparsity": 0.5},
  "set": {"sparsity": 0.5, "t_end": 30, "delta_t": 7},
  "rigl": {"sparsity": 0.5, "t_end": 28, "delta_t": 7},
  "snfs": {"sparsity": 0.5, "t_end": 3, "delta_t": 7},
  "seft": {"sparsity": 0.5, "t_end": 30, "delta_t": 8},
  "gmp": {"sparsity": 0.5, "begin": 3, "end": 24, "delta_t": 7},
}


def test_every_algorithm_is_covered():
  assert ALGORITHMS.keys() == build.ALGORITHMS.keys()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_mask_steps_are_those_of_the_algorithm_itself(name, monkeypatch):
  """The trainer asks the host; the library would ask its own `when`."""
  asked = []
  sparsify = sparsejax.transform.sparsify

  def spy(*args, when, **kwargs):
    asked.append(when)
    return sparsify(*args, when=when, **kwargs)

  monkeypatch.setattr(sparsejax.algorithms, "sparsify", spy)
  config = make(algorithm={"name": name, **ALGORITHMS[name]})
  build.transformation(config, KEY)
  (own,) = asked
  moves = build.mask_steps(config)
  assert [bool(moves(s)) for s in range(60)] == [
    bool(own(s)) for s in range(60)
  ]


def test_streams_differ_by_name_and_seed_and_nothing_else():
  one, again, other = map(build.streams, (0, 0, 1))
  values = [tuple(np.asarray(k)) for s in (one, other) for k in s.values()]
  assert len(set(values)) == 2 * len(build.STREAMS)
  for name in build.STREAMS:
    np.testing.assert_array_equal(one[name], again[name])
  # The same in every process and on every version: results hang on it.
  np.testing.assert_array_equal(one["masks"], [2477351647, 1463446531])


def rate(schedule, steps=100):
  made = build.SCHEDULES[schedule.pop("name")](steps=steps, **schedule)
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
  tx = build.transformation(make(algorithm=algorithm), KEY)
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
      "did you mean 'uniform'",
    ),
    ({"steps": 0}, "steps is 0; wanted at least 1"),
    ({"label_smoothing": 1.5}, r"label_smoothing is 1\.5"),
  ],
)
def test_what_is_wrong_is_told(changes, message):
  with pytest.raises(UserError, match=message):
    build.check(make(**changes))


def test_keys_and_types_are_checked():
  config = make().unlock()
  config.lerning_rate = 1.0
  with pytest.raises(UserError, match="'lerning_rate'"):
    build.check(config)
  config = make().unlock()
  del config.seed
  with pytest.raises(UserError, match="lacks seed"):
    build.check(config)
  for key, value in {"steps": 1.5, "augment": 1, "model": "conv"}.items():
    config = make().unlock()
    with config.ignore_type():
      config[key] = value
    with pytest.raises(UserError, match=rf"config\.{key} is "):
      build.check(config)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_mnist1d_config_knows_every_algorithm(name):
  for arg in (name, f"{name},smoke"):
    config = rigl_mnist1d.get_config(arg)
    build.check(config)
    config.steps = 2 * config.steps  # what hangs on it follows
    build.check(config)
  assert build.plain(config)["algorithm"].get("t_end", 90) == 90
