"""Batches in the device's memory and from a stream: the same at every start."""

import io

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from experiments import data
from experiments.config import parts
from experiments.runs import train
from experiments.runs.batches import open_source
from tests.experiments import small
from tests.experiments.interrupted import Crash, assert_same_run, crash_at

KEY = parts.streams(0)["data"]


def photo(i):
  content = io.BytesIO()
  Image.new("RGB", (20 + i, 24), (25 * i, 99, 9)).save(content, "jpeg")
  return {"image": content.getvalue(), "label": i}


@pytest.fixture
def photos():
  examples = [photo(i) for i in range(10)]
  with tfds.testing.mock_data(as_data_source_fn=lambda *_, **__: examples):
    yield


def photo_config():
  config = small.get_config("rigl")
  config.data = {"name": "imagenet2012", "image_size": 16}
  config.model = {"name": "small_conv", "features": (4,), "hidden": (8,)}
  config.batch_size = 4
  config.eval_batch_size = 8
  config.algorithm.accumulate = 1
  return config


def test_memory_gives_the_order_of_the_seed():
  config = small.get_config("rigl")
  examples = open_source(config, KEY)
  x, y = parts.dataset(config.data.to_dict()).train
  order = data.batch_indices(
    jax.random.wrap_key_data(KEY),
    n=len(y),
    batch_size=config.batch_size,
    start=0,
    steps=config.steps,
  )
  for step in (5, 0, 23):
    batches = examples.batches(step)
    rows = batches.order[step - batches.first]
    np.testing.assert_array_equal(rows, order[step])
    np.testing.assert_array_equal(batches.x[rows], x[order[step]])
  labels = np.concatenate([y for _, y in examples.tests()])
  assert (labels >= 0).sum() == len(parts.dataset({"name": "digits"}).test[1])


def test_a_stream_gives_a_step_its_batch_whenever_it_begins(photos):
  config = photo_config()
  one, other = open_source(config, KEY), open_source(config, KEY)
  in_order = [one.batches(step) for step in range(5)]
  for step in (3, 4, 1):
    batches = other.batches(step)
    assert batches.first == step
    np.testing.assert_array_equal(batches.x, in_order[step].x)
    np.testing.assert_array_equal(batches.y, in_order[step].y)
  labels = np.concatenate([y for _, y in one.tests()])
  assert sorted(labels) == [-1] * 6 + list(range(10))


@pytest.mark.slow
def test_a_streamed_run_resumes_to_the_same_bits(photos, tmp_path):
  config = photo_config()
  whole = train.train(config, tmp_path / "whole")
  with pytest.raises(Crash):
    train.train(config, tmp_path / "cut", progress=crash_at([15]))
  resumed = train.train(config, tmp_path / "cut")
  assert whole.metrics == resumed.metrics
  assert_same_run(tmp_path / "whole", tmp_path / "cut")
