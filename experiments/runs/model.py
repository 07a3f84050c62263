"""A config's model on its data set: parameters, logits, loss, test scores.

All are pure functions of variables, data and keys, for others to compile.
"""

import contextlib
import functools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import linen as nn

from experiments import data, models
from experiments.config import calling, parts
from experiments.models import convolutions
from sparsejax.keys import wrapped
from sparsejax.linen import packed_layers

Keys = dict[str, jax.Array]  # raw key data by stream, see `parts.streams`


class Scores(NamedTuple):
  """What evaluation adds up.

  Attributes:
    loss: float32: the sum of the examples' losses.
    correct: int32: right predictions.
    examples: int32: how many there were.
  """

  loss: jax.Array
  correct: jax.Array
  examples: jax.Array


def no_scores() -> Scores:
  """Makes the scores of no examples."""
  zero = jnp.zeros([], jnp.int32)
  return Scores(loss=jnp.zeros([]), correct=zero, examples=zero)


class Batches(NamedTuple):
  """Examples in device memory, and which of them each step takes.

  Attributes:
    x: Inputs [n, ...].
    y: int32[n] labels.
    order: int32[steps, batch_size] indices into them; None if they are the
      batch of the one step.
    first: int32: the step that takes the first row of `order`.
  """

  x: jax.Array
  y: jax.Array
  order: jax.Array | None
  first: jax.Array

  def taken(self, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the batch of a step."""
    if self.order is None:
      return self.x, self.y
    rows = self.order[step - self.first]
    return self.x[rows], self.y[rows]


def load(
  config: ml_collections.ConfigDict,
) -> tuple[data.Dataset, nn.Module]:
  """Loads the data set and makes the Linen module of a run's config."""
  dataset = parts.dataset(config.data.to_dict())
  options = config.model.to_dict()
  return dataset, models.create(num_classes=dataset.num_classes, **options)


def drawing(config: ml_collections.ConfigDict) -> Callable[[Keys], Any]:
  """Compiles `(keys) -> variables`, for all configs of one model and data."""
  plain = calling.plain(config)
  return _drawing(json.dumps({key: plain[key] for key in ("data", "model")}))


@functools.lru_cache(maxsize=4)
def _drawing(text: str) -> Callable[[Keys], Any]:
  dataset, module = load(ml_collections.ConfigDict(json.loads(text)))

  def draw(keys: Keys) -> Any:
    x = jnp.zeros((1, *dataset.like.shape), dataset.like.dtype)
    key = wrapped(keys["init"])
    return module.init(key, dataset.prepare(x), False)

  return jax.jit(draw)


class Model:
  """A config's model on its data set."""

  def __init__(
    self, config: ml_collections.ConfigDict, *, products: bool = False
  ):
    """Makes the model.

    Args:
      config: A checked config.
      products: Whether to run convolutions as products of matrices; see
        `models.convolutions`.
    """
    self.config = config
    self.products = products
    self.dataset, self.module = load(config)

  def apply(self, *args: Any, **kwargs: Any) -> Any:
    """Calls the Linen module, whose kernels may be packed."""
    with contextlib.ExitStack() as stack:
      stack.enter_context(nn.intercept_methods(packed_layers))
      if self.products:
        stack.enter_context(nn.intercept_methods(convolutions.as_products))
      return self.module.apply(*args, **kwargs)

  def batch(
    self, keys: Keys, batches: Batches, step: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Takes a step's batch of training data, prepared and augmented."""
    x, y = batches.taken(step)
    x = self.dataset.prepare(x)
    if self.config.augment:
      key = jax.random.fold_in(wrapped(keys["augment"]), step)
      x = self.dataset.augment(key, x)
    return x, y

  def loss(
    self,
    params: Any,
    batch_stats: Any,
    keys: Keys,
    step: jax.Array,
    x: jax.Array,
    y: jax.Array,
    temperature: float = 1.0,
  ) -> tuple[jax.Array, tuple[jax.Array, Any]]:
    """Computes the cross-entropy of a training batch.

    Args:
      params: The parameters, some of them packed or not.
      batch_stats: The running averages of BatchNorm; empty without.
      keys: Raw key data by stream.
      step: int32: the step, which dropout is drawn by.
      x: Inputs [batch, ...], as `batch` gives them.
      y: int32[batch] labels.
      temperature: What to divide logits by.

    Returns:
      The mean loss; and int32: right predictions, and the new running averages.
    """
    variables = {"params": params, "batch_stats": batch_stats}
    dropout = jax.random.fold_in(wrapped(keys["dropout"]), step)
    logits, new = self.apply(
      variables, x, True, mutable=["batch_stats"], rngs={"dropout": dropout}
    )
    targets = jax.nn.one_hot(y, self.dataset.num_classes)
    targets = optax.smooth_labels(targets, self.config.label_smoothing)
    losses = optax.softmax_cross_entropy(logits / temperature, targets)
    correct = jnp.sum(logits.argmax(-1) == y, dtype=jnp.int32)
    return losses.mean(), (correct, new.get("batch_stats", {}))

  def evaluate(
    self, scores: Scores, variables: Any, x: jax.Array, y: jax.Array
  ) -> Scores:
    """Adds a batch of the test set to the scores; labels of -1 only fill it."""
    logits = self.apply(variables, self.dataset.prepare(x), False)
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits, jnp.maximum(y, 0)
    )
    right = jnp.sum(logits.argmax(-1) == y, dtype=jnp.int32)
    return Scores(
      loss=scores.loss + jnp.sum(losses, where=y >= 0),
      correct=scores.correct + right,
      examples=scores.examples + jnp.sum(y >= 0, dtype=jnp.int32),
    )

  def initial_masks(
    self, keys: Keys, variables: dict[str, Any], batches: Batches
  ) -> Any:
    """Finds masks by the method of `config.initial`, from the first batches."""
    stats = variables.get("batch_stats", {})

    def loss(params: Any, step: int, temperature: float) -> jax.Array:
      x, y = self.batch(keys, batches, step)
      return self.loss(params, stats, keys, step, x, y, temperature)[0]

    def outputs(params: Any, x: jax.Array) -> jax.Array:
      variables = {"params": params, "batch_stats": stats}
      return self.module.apply(variables, x, False)

    return parts.initial_masks(
      self.config,
      variables["params"],
      loss=loss,
      outputs=outputs,
      x=jax.ShapeDtypeStruct((1, *self.dataset.like.shape), jnp.float32),
      key=wrapped(keys["masks"]),
    )
