"""Prunes a language model in one shot, layer after layer.

A layer's kernels are pruned by statistics of their inputs on calibration text;
the next layer's inputs are the pruned layer's outputs. Only one layer, and the
residual stream of the text, have to be on the device.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from experiments.errors import UserError
from experiments.llm.families.protocol import LAYERS, check_tokens
from experiments.llm.io.model import Model
from experiments.llm.prune.methods import Method
from sparsejax import oneshot
from sparsejax.oneshot.calibration import check_finite

_BATCH = 8  # calibration sequences per call of a layer

Prune = Callable[[jax.Array, oneshot.Statistics], jax.Array]


class PruningError(UserError):
  """A kernel of a model cannot be pruned by the method on this text."""


@contextlib.contextmanager
def named(name: str, error: type[Exception] = ValueError) -> Iterator[None]:
  """Puts a name before the messages of ValueErrors and warnings.

  Args:
    name: The name.
    error: What is raised in place of a ValueError.
  """
  with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    try:
      yield
    except ValueError as reason:
      raise error(f"{name}: {reason}") from reason
  for warning in heard:
    text = f"{name}: {warning.message}"
    warnings.warn(text, warning.category, stacklevel=3)


def prune_layer(
  layer: nn.Module,
  params: Any,
  inputs: Iterable[jax.Array],
  prune: Prune,
  *,
  gram: bool = False,
) -> Any:
  """Prunes the kernels of any Linen module by statistics of their inputs.

  Args:
    layer: The module. Its submodules that own a `kernel` [in, out], and are
      called with one array [..., in], are pruned.
    params: Its parameters.
    inputs: Batches of the module's input.
    prune: `(kernel, statistics) -> kernel`.
    gram: Whether `prune` needs the Gram matrix.

  Returns:
    The parameters, pruned.

  Raises:
    ValueError: If a parameter is not finite, or `prune` raises one; the message
      names it, as do those of the warnings.
  """
  flat = traverse_util.flatten_dict(params, sep="/")
  statistics = calibrate(layer, params, inputs, gram=gram)
  for name, seen in statistics.items():
    with named(name):
      flat[name] = prune(flat[name], seen)
  return traverse_util.unflatten_dict(flat, sep="/")


def calibrate(
  layer: nn.Module, params: Any, inputs: Iterable[jax.Array], *, gram: bool
) -> dict[str, oneshot.Statistics]:
  """Computes the statistics of the inputs of a module's kernels, by path."""
  flat = traverse_util.flatten_dict(params, sep="/")
  # First, lest what a broken parameter makes of the inputs be blamed.
  for name, x in flat.items():
    with named(name):
      check_finite(x, "the parameter", "see where the model was made or read")
  statistics = {
    name: oneshot.statistics(kernel.shape[0], gram=gram)
    for name, kernel in flat.items()
    if name.rpartition("/")[2] == "kernel" and kernel.ndim == 2
  }
  for x in inputs:
    statistics = _observe(layer, params, statistics, x)
  return statistics


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _observe(
  layer: nn.Module,
  params: Any,
  statistics: dict[str, oneshot.Statistics],
  x: jax.Array,
) -> dict[str, oneshot.Statistics]:
  """Adds a batch x [batch, t, dim] to the statistics."""
  statistics = dict(statistics)

  def intercept(
    call: Callable[..., Any], args: Any, kwargs: Any, context: Any
  ) -> Any:
    name = "/".join((*context.module.path, "kernel"))
    if context.method_name == "__call__" and name in statistics:
      statistics[name] = oneshot.observe(statistics[name], args[0])
    return call(*args, **kwargs)

  with nn.intercept_methods(intercept):
    layer.apply({"params": params}, x)
  return statistics


@functools.partial(jax.jit, static_argnums=0)
def _apply(layer: nn.Module, params: Any, x: jax.Array) -> jax.Array:
  return layer.apply({"params": params}, x)


def prune(
  model: Model,
  tokens: np.ndarray,
  method: Method,
  sparsities: Sequence[float],
  *,
  advance: Callable[[int], None] = lambda layer: None,
) -> Model:
  """Prunes the kernels of all layers; embedding and head stay dense.

  Args:
    model: The model.
    tokens: int32[sequences, length], calibration text.
    method: The method.
    sparsities: The share of zeros in each layer's kernels, in [0, 1).
    advance: Called with the number of pruned layers.

  Returns:
    The pruned model, its parameters NumPy arrays.

  Raises:
    PruningError: If the method refuses a kernel, or statistics of its inputs.
  """
  layers = jax.tree.map(np.array, model.params[LAYERS])
  for i, layer, params, inputs in walk(model, tokens, layers):
    prune = functools.partial(method.prune, sparsity=float(sparsities[i]))
    with named(f"layer {i}", PruningError):
      pruned = prune_layer(layer, params, inputs, prune, gram=method.gram)
    leaves = jax.tree.leaves(layers), jax.tree.leaves(pruned)
    for stacked, one in zip(*leaves, strict=True):
      stacked[i] = one
    advance(i + 1)
  return model._replace(params={**model.params, LAYERS: layers})


def owl(
  model: Model,
  tokens: np.ndarray,
  sparsity: float,
  *,
  threshold: float = 5.0,
  deviation: float = 0.08,
) -> list[float]:
  """Computes each layer's sparsity by OWL, from the dense model's outliers.

  Args:
    model: The dense model.
    tokens: int32[sequences, length], calibration text.
    sparsity: Of all layers together.
    threshold: The ratio of an outlier's score to the mean score.
    deviation: Half the difference of the densest layer's density from the
      sparsest's.

  Returns:
    The layers' sparsities.

  Raises:
    PruningError: If a kernel, or statistics of its inputs, have no scores.
  """
  shares = []
  for i, layer, params, inputs in walk(model, tokens, model.params[LAYERS]):
    flat = traverse_util.flatten_dict(params, sep="/")
    scores = {}
    with named(f"layer {i}", PruningError):
      seen = calibrate(layer, params, inputs, gram=False)
      for name in seen:
        with named(name):
          scores[name] = oneshot.wanda(flat[name], seen[name])
      shares.append(float(oneshot.outliers(scores, threshold=threshold)))
  densities = oneshot.owl_densities(shares, sparsity, deviation=deviation)
  return [1 - float(d) for d in densities]


def walk(
  model: Model, tokens: np.ndarray, layers: Any
) -> Iterator[tuple[int, nn.Module, Any, list[jax.Array]]]:
  """Runs calibration text through a model, layer after layer.

  Args:
    model: The model.
    tokens: int32[sequences, length], the text.
    layers: The parameters of all layers. The inputs of a layer are the outputs
      of the one before with the parameters that the caller has left here.

  Yields:
    Each layer's index, its module, its parameters and batches of its inputs.
  """
  network = model.network()
  layer = network.block()
  check_tokens(model.config, tokens)
  embed = jax.jit(functools.partial(network.apply, method="embed"))
  streams = [
    embed({"params": {**model.params, LAYERS: {}}}, tokens[i : i + _BATCH])
    for i in range(0, len(tokens), _BATCH)
  ]
  for i in range(model.config.layers):
    yield i, layer, _at(layers, i), streams
    params = _at(layers, i)
    streams = [_apply(layer, params, x) for x in streams]


def _at(layers: Any, i: int) -> Any:
  """Returns the parameters of one layer, on the device."""
  return jax.tree.map(lambda w: jnp.asarray(w[i]), layers)
