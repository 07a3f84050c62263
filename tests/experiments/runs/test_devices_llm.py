"""Several devices that share a language model: its matrices and batches."""

import functools
import json

import jax
import numpy as np
import pytest

from experiments.drivers import prune_llm
from experiments.errors import UserError
from experiments.llm.io import huggingface, load
from experiments.runs import devices, finetune, finetune_step
from tests.experiments import small_finetune
from tests.experiments.drivers import test_prune_llm
from tests.marks import slow


def fine_tuned(path, count, **changes):
  """A run on so many devices: its numbers, and the model that it leaves."""
  config = small_finetune.make(batch_size=4, **changes)
  config.devices = count
  result = finetune.train(config, path / str(count))
  return result, huggingface.read_model(path / str(count) / "model").params


@pytest.mark.parametrize(
  "changes",
  [
    slow({"steps": 2, "prune": {**small_finetune.WANDA, "name": "magnitude"}}),
    slow({"method": {"name": "lora", "rank": 2}}),
    slow({"method": small_finetune.SEFT, "optimizer": small_finetune.DELTAS}),
  ],
)
def test_devices_that_share_a_language_model_tune_the_same(changes, tmp_path):
  one, params = fine_tuned(tmp_path, 1, **changes)
  four, others = fine_tuned(tmp_path, 4, **changes)
  for a, b in zip(four.history, one.history, strict=True):
    assert a.keys() == b.keys()
    assert a.get("nnz") == b.get("nnz")
    for name in {"loss", "perplexity"} & a.keys():
      assert a[name] == pytest.approx(b[name], rel=1e-5)
  for x, y in zip(*map(jax.tree.leaves, (params, others)), strict=True):
    np.testing.assert_array_equal(x != 0, y != 0)
    np.testing.assert_allclose(x, y, atol=1e-4)


def test_no_device_holds_a_whole_language_model():
  config = small_finetune.make(batch_size=4)
  config.devices = 4
  model = load.random(seed=0, **small_finetune.SIZES)
  with devices.mesh(config, "batch_size"):
    state = finetune_step.begin(config, model.params)
    for x in jax.tree.leaves((state.values, state.tuned)):
      if x.ndim > 1:
        (held,) = {shard.data.size for shard in x.addressable_shards}
        assert held == x.size // 4
    embed = jax.jit(functools.partial(model.network().apply, method="embed"))
    for batch, shards in ((8, 4), (6, 1)):  # six do not divide by four
      x = embed({"params": model.params}, np.zeros((batch, 3), np.int32))
      assert {s.data.shape[0] for s in x.addressable_shards} == {
        batch // shards
      }


@pytest.mark.slow
def test_devices_that_share_windows_prune_the_same(tmp_path):
  cells = []
  for count in (1, 4):
    config = test_prune_llm.make(devices=count, save=False, seeds=(0,))
    prune_llm.run(config, tmp_path / str(count))
    files = sorted((tmp_path / str(count) / "cells").iterdir())
    cells.append({file.name: json.loads(file.read_text()) for file in files})
  assert cells[0].keys() == cells[1].keys()
  for name, one in cells[0].items():
    assert cells[1][name]["nnz"] == one["nnz"]
    assert cells[1][name]["perplexity"] == pytest.approx(
      one["perplexity"], rel=1e-5
    )


def test_a_language_model_on_more_devices_than_there_are_is_refused(tmp_path):
  for change, says in (
    ({"devices": 99}, "there are only 8"),
    ({"devices": 4, "batch_size": 2}, "batch_size is 2; wanted a multiple"),
  ):
    with pytest.raises(UserError, match=says):
      finetune.train(small_finetune.make(**change), tmp_path)
