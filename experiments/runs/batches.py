"""Opens the data of a run: in device memory, or as a stream from the disk.

Both are functions of the seed and the step alone, so a resumed run sees what
it would have seen.
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import data
from experiments.config import parts
from experiments.errors import UserError
from experiments.runs.devices import Sharing
from experiments.runs.model import Batches
from sparsejax.keys import wrapped


class Source(NamedTuple):
  """The examples of a run.

  Attributes:
    block: How many steps the result of `batches` serves.
    batches: `(step) -> Batches` of the block that the step lies in.
    tests: `() -> (x, y)` of each batch of the test set; labels of -1 fill the
      last.
    examples: Inputs and labels of the training set; None if it is streamed.
  """

  block: int
  batches: Callable[[int], Batches]
  tests: Callable[[], Iterable[tuple[jax.Array, jax.Array]]]
  examples: tuple[jax.Array, jax.Array] | None = None


def check_size(batch_size: int, n: int, what: str) -> None:
  """Refuses a batch that is larger than the data.

  Args:
    batch_size: The examples of a step.
    n: The examples that there are to train on.
    what: What holds them, for the error.

  Raises:
    UserError: If a batch would hold an example twice.
  """
  if batch_size > n:
    raise UserError(
      f"config.batch_size is {batch_size}, but {what} has {n} examples to "
      f"train on; wanted a batch of at most {n}"
    )


def check_batch(config: ml_collections.ConfigDict) -> None:
  """Refuses a run's batch if it is larger than a data set in memory."""
  train = parts.dataset(config.data.to_dict()).train
  if train is not None:
    what = f"data set {config.data.name}"
    check_size(config.batch_size, len(train[1]), what)


def open_source(
  config: ml_collections.ConfigDict,
  key: jax.Array,
  sharing: Sharing | None = None,
) -> Source:
  """Opens the data of a run.

  Args:
    config: The run's config.
    key: Raw data uint32[2] of the key of their order.
    sharing: Which devices the batches go to; the default one if None.

  Returns:
    The source.
  """
  sharing = sharing or Sharing()
  if parts.dataset(config.data.to_dict()).train is None:
    return _streamed(config, key, sharing)
  x, y, tests = _on_device(
    json.dumps(config.data.to_dict()), config.eval_batch_size, sharing.count
  )
  n = len(y)
  block = _block(config, n)

  @functools.lru_cache(maxsize=1)
  def drawn(first: int) -> Batches:
    order = data.batch_indices(
      wrapped(key),
      n=n,
      batch_size=config.batch_size,
      start=first,
      steps=block,
    )
    order = sharing.order(order)
    return Batches(x, y, order, np.int32(first))

  return Source(
    block=block,
    batches=lambda step: drawn(step - step % block),
    tests=lambda: tests,
    examples=(x, y),
  )


def _block(config: ml_collections.ConfigDict, n: int) -> int:
  """Chooses for how many steps to draw the order: several epochs at least."""
  return min(config.steps, max(1000, 4 * n // config.batch_size))


@functools.lru_cache(maxsize=2)
def _on_device(
  text: str, eval_batch_size: int, count: int
) -> tuple[jax.Array, jax.Array, list[tuple[jax.Array, jax.Array]]]:
  """Loads a data set, given as JSON, once for all runs of a process.

  Returns:
    Inputs and labels of its training set, and the batches of its test set.
  """
  sharing = Sharing(count)
  dataset = parts.dataset(json.loads(text))
  x, y = dataset.test
  rows = -(-len(y) // eval_batch_size) * eval_batch_size
  fill = rows - len(y)
  x = np.pad(x, [(0, fill)] + [(0, 0)] * (x.ndim - 1))
  y = np.pad(y, [(0, fill)] + [(0, 0)] * (y.ndim - 1), constant_values=-1)
  batches = rows // eval_batch_size
  tests = [
    sharing.batch((jnp.asarray(a), jnp.asarray(b)))
    for a, b in zip(np.split(x, batches), np.split(y, batches), strict=True)
  ]
  train = sharing.replicated(tuple(map(jnp.asarray, dataset.train)))
  return *train, tests


def _streamed(
  config: ml_collections.ConfigDict, key: jax.Array, sharing: Sharing
) -> Source:
  """Opens a stream: one step at a time, with crops and mirrors drawn."""
  from experiments.data import stream  # loads Grain

  options = config.data.to_dict()
  size = parts.dataset(options).like.shape[0]
  opened = functools.partial(
    stream.stream,
    options["name"],
    image_size=size,
    seed=int(key[0]),
    data_dir=options.get("data_dir"),
  )
  position, train = None, None

  def placed(batch: dict[str, np.ndarray]) -> tuple[jax.Array, jax.Array]:
    x, y = jnp.asarray(batch["image"]), jnp.asarray(batch["label"])
    return sharing.batch((x, y))

  @functools.lru_cache(maxsize=1)
  def drawn(step: int) -> Batches:
    nonlocal position, train
    if step != position:
      train = opened(
        "train", batch_size=config.batch_size, train=True, start_step=step
      )
    batch, position = next(train), step + 1
    return Batches(*placed(batch), None, np.int32(step))

  def tests() -> Iterator[tuple[jax.Array, jax.Array]]:
    size = config.eval_batch_size
    for batch in opened("validation", batch_size=size, train=False):
      yield placed(batch)

  return Source(block=1, batches=drawn, tests=tests)
