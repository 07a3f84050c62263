"""Runs that begin with masks found before training, by name."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import models
from experiments.config import comparison, parts
from experiments.config.entry import Entry
from experiments.errors import UserError
from experiments.runs import checkpoints, programs, train
from experiments.runs.batches import open_source
from sparsejax import initial
from tests.experiments import small


def make(name, algorithm="rigl", **options):
  config = small.get_config(algorithm)
  config.initial = {"name": name, **options}
  return config


def begin(config):
  """The first state of a run, and the params that were drawn."""
  program = programs.get(config)
  state = train.first_state(config, program)
  drawn = program.draw(parts.streams(config.seed))["params"]
  return jax.tree.map(np.asarray, (state, drawn))


def masks_of(state):
  return state.opt_state.mask_state.masks


def kernels(tree):
  return {k: np.asarray(v["kernel"]) for k, v in tree.items()}


def dense_loss(params, steps):
  """The mean loss of the first batches, from the model and data themselves."""
  config = small.get_config()
  x, y = parts.dataset(config.data.to_dict()).train
  prepare = parts.dataset(config.data.to_dict()).prepare
  model = models.create("lenet_300_100", 10, hidden=(8,))
  batches = open_source(config, parts.streams(config.seed)["data"]).batches(0)
  total = 0.0
  for rows in np.asarray(batches.order)[:steps]:
    logits = model.apply(
      {"params": params}, prepare(jnp.asarray(x[rows])), True
    )
    total += -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(32), y[rows]])
  return total / steps


def test_snip_is_that_of_the_first_batches():
  state, drawn = begin(make("snip", batches=3))
  g = kernels(jax.grad(dense_loss)(drawn, 3))
  w = kernels(drawn)
  scores = {k: np.abs(w[k] * g[k]) for k in w}
  masks = kernels(masks_of(state))
  lowest = min(scores[k][masks[k]].min() for k in w)
  highest = max(scores[k][~masks[k]].max() for k in w)
  assert highest <= lowest * (1 + 1e-5)
  # 592 weights at sparsity 0.8.
  assert sum(m.sum() for m in masks.values()) == 118
  for k, p in kernels(state.params).items():
    np.testing.assert_array_equal(p, np.where(masks[k], w[k], 0))


@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("random", {}),
    ("magnitude", {}),
    ("snip", {"score": "gradient"}),
    ("snip", {"distribution": "uniform"}),
    ("grasp", {}),
    ("synflow", {"rounds": 20}),
    ("force", {"rounds": 3, "batches": 2}),
  ],
)
def test_every_method_gives_the_first_masks(name, options):
  state, drawn = begin(make(name, **options))
  masks = kernels(masks_of(state))
  assert sum(m.sum() for m in masks.values()) == 118
  for k, p in kernels(state.params).items():
    np.testing.assert_array_equal(p, np.where(masks[k], kernels(drawn)[k], 0))


def test_rigl_moves_the_masks_that_it_is_given(tmp_path):
  """With each layer's number of weights as it was found."""
  config = make("force", rounds=3, batches=2)
  config.checkpoints_to_keep = 1
  config.keep_steps = (0, 7)
  state, _ = begin(config)
  result = train.train(config, tmp_path)
  counts = [m.sum() for m in kernels(masks_of(state)).values()]
  assert [m.sum() for m in kernels(result.masks).values()] == counts
  first = result.history[0]
  assert first["churn_since_start"] == 0
  assert result.metrics["churn_since_start"] > 0
  assert first["explored"] == pytest.approx(118 / 592)
  assert 118 / 592 < result.metrics["explored"] <= 1

  folder = tmp_path / "checkpoints"
  with checkpoints.open_manager(folder, keep=9) as manager:
    assert sorted(manager.all_steps()) == [0, 7, 24]
  kept = train.state_at(config, tmp_path, 0)
  for a, b in zip(
    jax.tree.leaves(kept.params), jax.tree.leaves(state.params), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  assert train.state_at(config, tmp_path, 7).step == 7
  with pytest.raises(UserError, match=r"no checkpoint of step 6.*0, 7, 24"):
    train.state_at(config, tmp_path, 6)


def test_static_keeps_what_was_found(tmp_path):
  config = make("magnitude", algorithm="set")
  config.algorithm = {"name": "static", "sparsity": 0.8}
  state, drawn = begin(config)
  result = train.train(config, tmp_path)
  for a, b in zip(
    jax.tree.leaves(result.masks), jax.tree.leaves(masks_of(state)), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  wanted = initial.magnitude(None, drawn, None, 0.8)
  for a, b in zip(
    jax.tree.leaves(result.masks), jax.tree.leaves(wanted), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  assert result.metrics["explored"] == pytest.approx(118 / 592)


def test_shuffled_masks_keep_the_layers_numbers():
  found, drawn = begin(make("magnitude"))
  shuffled, again = begin(make("magnitude", shuffle=True))
  for k, mask in kernels(masks_of(found)).items():
    other = kernels(masks_of(shuffled))[k]
    assert mask.sum() == other.sum()
    assert np.any(mask != other)
    np.testing.assert_array_equal(kernels(drawn)[k], kernels(again)[k])


def test_reinitialised_weights_keep_the_masks():
  found, drawn = begin(make("magnitude"))
  new, _ = begin(make("magnitude", reinit=True))
  for k, mask in kernels(masks_of(found)).items():
    np.testing.assert_array_equal(mask, kernels(masks_of(new))[k])
    w = kernels(new.params)[k]
    np.testing.assert_array_equal(w != 0, mask)
    assert not np.any(w[mask] == kernels(drawn)[k][mask])


@pytest.mark.parametrize(
  ("config", "message"),
  [
    (make("snap"), "snip"),
    (make("snip", batch=1), "batches"),
    (make("snip", score="gradeint"), "gradient"),
    (make("magnitude", rounds=3), "rounds"),
    (make("snip", algorithm="dense"), "chooses its first masks by itself"),
    (make("drawn", batches=1), "batches"),
  ],
)
def test_what_is_wrong_is_told_before_any_work(config, message, tmp_path):
  with pytest.raises(UserError, match=message):
    train.train(config, tmp_path / "a")
  assert not (tmp_path / "a").exists()


def test_a_wrong_number_is_told_when_masks_are_made(tmp_path):
  with pytest.raises(UserError, match="rounds=0"):
    train.train(make("force", rounds=0), tmp_path)


def test_steps_to_keep_are_steps_of_the_run(tmp_path):
  config = small.get_config()
  config.keep_steps = (25,)
  with pytest.raises(UserError, match=r"keep_steps has 25; .* 0 to 24"):
    train.train(config, tmp_path)


@pytest.mark.slow
def test_snip_by_the_gradient_alone_does_worse_than_random(tmp_path):
  """RigL's appendix M; with the weight in the score it does better."""
  config_file = Path(__file__).parents[3] / "configs/init_pruning.py"
  config = runpy.run_path(str(config_file))["get_config"]()
  config.base.steps = 1000
  accuracy = {}
  for method in ("gradient", "random", "snip"):
    run = comparison._config(config, Entry(method, 0.98), seed=0)
    accuracy[method] = train.train(run, tmp_path / method).metrics["accuracy"]
  assert accuracy["gradient"] < accuracy["random"] - 0.02
  assert accuracy["random"] < accuracy["snip"] - 0.05


@pytest.mark.parametrize("name", ["magnitude", "snip"])
def test_scores_that_are_not_finite_are_refused_by_leaf(name):
  """They are computed in a compiled function, where NaN would rank last."""
  config = make(name)
  program = programs.get(config)
  streams = parts.streams(config.seed)
  variables = program.draw(streams)
  path, kernel = next(iter(kernels(variables["params"]).items()))
  bad = {**variables["params"][path], "kernel": kernel.copy()}
  bad["kernel"][0, 0] = np.nan
  variables = {**variables, "params": {**variables["params"], path: bad}}
  batches = open_source(config, streams["data"]).batches(0)
  with pytest.raises(ValueError, match=rf"^{path}/kernel: got scores that are"):
    program.initial(streams, variables, batches)
