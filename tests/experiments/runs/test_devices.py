"""Several devices that share each batch: the global batch's means, on all."""

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from jax.experimental.compilation_cache import compilation_cache

from experiments.config import parts
from experiments.drivers import compare, lottery
from experiments.errors import UserError
from experiments.runs import devices, metrics, programs, train
from experiments.runs.batches import open_source
from tests.configs.shipped import load, photo
from tests.experiments import small, small_lottery
from tests.marks import slow


def close(ours, theirs, tolerance):
  for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("algorithm", ["rigl", slow("gmp")])
def test_devices_that_share_a_batch_train_the_same_net(algorithm, tmp_path):
  results = []
  for count in (1, 4):
    config = small.get_config(algorithm)
    config.devices = count
    config.eval_batch_size = 120
    results.append(train.train(config, tmp_path / str(count)))
  one, four = results
  close(four.params, one.params, 1e-4)
  for a, b in zip(four.history, one.history, strict=True):
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    assert a.get("nnz") == b.get("nnz")
  # The inactive weights are exact zeros on every device.
  for p, m in zip(
    *map(jax.tree.leaves, (four.params, four.masks)), strict=True
  ):
    assert np.all((p == 0) | m)


def test_batches_are_shared_and_the_state_is_everywhere():
  config = small.get_config("rigl")
  config.devices, config.eval_batch_size = 8, 200
  shared = devices.sharing(config)
  keys = parts.streams(0)
  program = programs.get(config)
  state = shared.replicated(program.begin(keys, program.draw(keys)))
  batches = open_source(config, keys["data"], shared).batches(0)
  shards = batches.order.addressable_shards
  assert {s.data.shape for s in shards} == {(config.steps, 4)}
  text = (
    program.moving.one.lower(state, batches).compile().as_text()
  )  # each device has its share, and then sums are made
  assert "all-reduce" in text
  state = program.moving.one(state, batches)
  for leaf in jax.tree.leaves(state.params):
    assert leaf.sharding.is_fully_replicated
  x, _ = open_source(config, keys["data"], shared).tests()[0]
  assert {s.data.shape[0] for s in x.addressable_shards} == {25}


@pytest.mark.slow
def test_batch_norm_sees_the_global_batch(tmp_path):
  """Streamed photos, a net with BatchNorm: what a GPU's user would run."""
  results = []
  photos = [photo(i) for i in range(10)]
  for count in (1, 4):
    config = load("sr_ste_imagenet", "1of4,smoke")
    config.devices = count
    config.steps = 6
    with tfds.testing.mock_data(as_data_source_fn=lambda *_, **__: photos):
      results.append(train.train(config, tmp_path / str(count)))
  one, four = results
  # Per device, two images each would have other variances.
  close(four.batch_stats, one.batch_stats, 1e-3)
  assert four.metrics["nnz"] == one.metrics["nnz"]


def test_a_run_goes_on_with_other_devices(tmp_path):
  config = small.get_config("rigl")
  config.eval_batch_size = 120
  first = train.train(config, tmp_path)
  config.devices = 2
  assert train.train(config, tmp_path).metrics == first.metrics


@pytest.mark.parametrize(
  ("change", "says"),
  [
    ({"devices": 99}, "there are only 8"),
    ({"devices": 5}, "batch_size is 32; wanted a multiple of the 5"),
    ({"devices": 4, "eval_batch_size": 50}, "eval_batch_size is 50"),
    ({"devices": 4, "eval_batch_size": 40, "mode": "packed"}, "only 'masked'"),
  ],
)
def test_what_cannot_be_shared_is_refused(change, says, tmp_path):
  config = small.get_config("rigl")
  config.update(change)
  with pytest.raises(UserError, match=says):
    train.train(config, tmp_path)


@pytest.mark.slow
def test_half_precision_computes_but_does_not_keep(tmp_path):
  config = small.get_config("rigl")
  config.model.dtype = "bfloat16"
  half = train.train(config, tmp_path / "half")
  config.model.dtype = "float32"
  full = train.train(config, tmp_path / "full")
  assert {p.dtype for p in jax.tree.leaves(half.params)} == {
    np.dtype("float32")
  }
  assert half.metrics["nnz"] == full.metrics["nnz"]
  assert half.metrics["loss"] != full.metrics["loss"]
  assert half.metrics["loss"] == pytest.approx(full.metrics["loss"], rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("driver", [compare, lottery])
def test_runs_of_many_share_their_batches_and_may_change_devices(
  driver, tmp_path
):
  """The same table on one device as on four, and a run goes on elsewhere."""
  if driver is compare:
    config = driver.defaults()
    config.base = small.get_config("rigl")
    config.algorithms = {"rigl": config.base.algorithm.to_dict()}
    config.methods, config.seeds = ("rigl",), (0,)
  else:
    config = small_lottery.make(methods=("rewound",))
  config.base.eval_batch_size = 120
  for path, count in (("one", 1), ("four", 4), ("one", 4)):
    config.base.devices = count
    driver.run(config, str(tmp_path / path))
  runs = sorted(f.parent for f in (tmp_path / "one").rglob("metrics.jsonl"))
  assert runs
  for run in runs:
    other = tmp_path / "four" / run.relative_to(tmp_path / "one")
    for a, b in zip(metrics.read(run), metrics.read(other), strict=True):
      assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
      assert a.get("nnz") == b.get("nnz")


@pytest.fixture
def no_cache(monkeypatch):
  """JAX without a folder for compiled programs, as it is by default."""
  keys = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
  )
  before = {key: getattr(jax.config, key) for key in keys}
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  jax.config.update(keys[0], None)
  compilation_cache.reset_cache()
  yield
  for key, value in before.items():
    jax.config.update(key, value)
  compilation_cache.reset_cache()


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_what_is_compiled_for_accelerators_is_kept(
  backend, tmp_path, monkeypatch
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  jax.jit(lambda x: x + 1)(np.arange(3))  # JAX has looked for a folder
  devices.keep_programs()
  devices.jit(lambda x: 3 * x - 1)(np.arange(3))
  kept = list(tmp_path.glob("sparsejax/programs/jit__lambda*"))
  assert bool(kept) == (backend == "gpu")


@pytest.mark.usefixtures("no_cache")
def test_a_folder_that_was_chosen_stays(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  jax.config.update("jax_compilation_cache_dir", str(tmp_path))
  devices.keep_programs()
  assert jax.config.jax_compilation_cache_dir == str(tmp_path)
