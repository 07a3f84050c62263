"""Text byte by byte, and the model that reads it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data, models
from experiments.data import DataError, MissingDataError
from experiments.runs import train
from tests.configs.shipped import load

TEXT = b"to be, or not to be: that is the question. " * 40


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "wiki.train.raw").write_bytes(TEXT)
  (tmp_path / "wiki.valid.raw").write_bytes(TEXT[:300])
  return tmp_path


def test_labels_are_the_bytes_one_place_on(folder):
  dataset = data.load("wikitext103", data_dir=str(folder), length=32)
  x, y = dataset.train
  assert x.shape == y.shape == ((len(TEXT) - 1) // 32, 32)
  assert x.dtype == np.uint8
  assert bytes(x.ravel()) == TEXT[: x.size]
  assert bytes(y.ravel()) == TEXT[1 : x.size + 1]
  assert dataset.test[0].shape == (9, 32)
  assert dataset.labels == 32
  assert dataset.num_classes == 256


def test_what_is_not_there_or_too_short_is_told(folder):
  with pytest.raises(MissingDataError, match="wikitext-103-raw"):
    data.load("wikitext103", data_dir=str(folder / "none"))
  with pytest.raises(DataError, match="has 300 bytes; wanted at least 513"):
    data.load("wikitext103", data_dir=str(folder))


def test_the_paper_s_net_has_its_weights():
  model = models.create("character_gru", num_classes=256)
  x = jnp.zeros((1, 4), jnp.uint8)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, False))
  sizes = {
    "/".join(str(k.key) for k in path[1:]): math.prod(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
  }
  assert sizes["embed/embedding"] == 256 * 128
  gru = sum(
    n for k, n in sizes.items() if k.startswith("cell") and "kernel" in k
  )
  assert gru == 3 * (128 + 512) * 512
  assert sizes["readout1/kernel"] == 512 * 256
  assert sizes["readout2/kernel"] == 256 * 128
  assert "logits/kernel" not in sizes


@pytest.mark.slow
def test_no_place_sees_what_comes_after_it():
  model = models.create("character_gru", num_classes=256, units=16, embedding=8)
  x = jax.random.randint(jax.random.key(0), (2, 9), 0, 256).astype(jnp.uint8)
  variables = model.init(jax.random.key(1), x, False)
  other = x.at[:, 5:].set(7)
  ours, theirs = (model.apply(variables, a, False) for a in (x, other))
  np.testing.assert_array_equal(ours[:, :5], theirs[:, :5])
  assert not np.allclose(ours[:, 5:], theirs[:, 5:])


@pytest.mark.slow
def test_rigl_learns_text(folder, tmp_path):
  config = load("rigl_wikitext103", "smoke")
  config.data.data_dir = str(folder)
  config.steps, config.algorithm.t_end = 120, 120
  config.schedule.learning_rate = 0.02
  result = train.train(config, tmp_path / "run")
  first, last = result.history[0], result.metrics
  assert first["loss"] > 5
  assert last["loss"] < 3  # nats; a uniform guess has 5.5
  assert 0.2 < last["accuracy"] < 1
  losses = [r for r in result.history if r["split"] == "train"]
  assert losses[-1]["accuracy"] < 1
  sparse = result.history[-1]["layers"]
  assert last["density"] == pytest.approx(0.25, abs=1e-3)
  assert not any("embed" in path for path in sparse)
  assert last["explored"] > 0.25
