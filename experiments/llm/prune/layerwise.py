"""Prunes a language model in one shot, layer after layer.

A layer's kernels are pruned by statistics of their inputs on calibration text;
the next layer's inputs are the pruned layer's outputs. Only one layer, and the
residual stream of the text, have to be on the device.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from experiments.errors import UserError
from experiments.llm.families import protocol
from experiments.llm.families.protocol import check_tokens
from experiments.llm.io.model import Model
from experiments.llm.prune.methods import Method
from sparsejax import oneshot
from sparsejax.oneshot.calibration import check_finite

_BATCH = 8  # calibration sequences per call of a layer

Prune = Callable[[jax.Array, oneshot.Statistics], jax.Array]
# What a module is called with: an array, or an array and keywords.
Inputs = jax.Array | tuple[jax.Array, Mapping[str, Any]]
# Of a text, or all that a network is called with, by name.
Tokens = np.ndarray | Mapping[str, np.ndarray | None]


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
  inputs: Iterable[Inputs],
  prune: Prune,
  *,
  gram: bool = False,
) -> Any:
  """Prunes the kernels of any Linen module by statistics of their inputs.

  Args:
    layer: The module. Its submodules that own a `kernel` [in, out], and are
      called with one array [..., in], are pruned; positions that they are told
      not to be in `where`, bool [...], do not count.
    params: Its parameters.
    inputs: Batches of the module's input, each alone or with keywords.
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
  layer: nn.Module, params: Any, inputs: Iterable[Inputs], *, gram: bool
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
  batch: Inputs,
) -> dict[str, oneshot.Statistics]:
  """Adds a batch to the statistics."""
  statistics = dict(statistics)

  def intercept(
    call: Callable[..., Any], args: Any, kwargs: Any, context: Any
  ) -> Any:
    name = "/".join((*context.module.path, "kernel"))
    if context.method_name == "__call__" and name in statistics:
      x, where = _called(*args, **kwargs)
      statistics[name] = oneshot.observe(statistics[name], x, where=where)
    return call(*args, **kwargs)

  with nn.intercept_methods(intercept):
    _call(layer, params, batch)
  return statistics


def _called(
  x: jax.Array, where: jax.Array | None = None
) -> tuple[jax.Array, jax.Array | None]:
  """Returns the arguments of a layer that owns a kernel, an array."""
  return x, where


def _call(layer: nn.Module, params: Any, batch: Inputs) -> jax.Array:
  x, beside = batch if isinstance(batch, tuple) else (batch, {})
  return layer.apply({"params": params}, x, **beside)


_apply = jax.jit(_call, static_argnums=0)


def prune(
  model: Model,
  inputs: Tokens,
  method: Method,
  sparsities: Sequence[float],
  *,
  advance: Callable[[int], None] = lambda layer: None,
) -> Model:
  """Prunes the kernels of all layers; embedding and head stay dense.

  The encoder of an encoder-decoder comes first; the decoder's cross-attention
  reads what the pruned encoder makes of the sources.

  Args:
    model: The model.
    inputs: The calibration text: int32[sequences, length], or what the network
      is called with, by name, `tokens` among them.
    method: The method.
    sparsities: The share of zeros in each layer's kernels, in [0, 1), of all
      stacks in turn.
    advance: Called with the number of pruned layers.

  Returns:
    The pruned model, its parameters NumPy arrays.

  Raises:
    PruningError: If the method refuses a kernel, or statistics of its inputs.
  """
  flat = own(model)
  for done, at in enumerate(walk(model, inputs, flat)):
    prune = functools.partial(method.prune, sparsity=float(sparsities[done]))
    with named(at.name, PruningError):
      pruned = prune_layer(
        at.block, at.params, at.inputs, prune, gram=method.gram
      )
    at.store(flat, pruned)
    advance(done + 1)
  return model._replace(params=traverse_util.unflatten_dict(flat, sep="/"))


def owl(
  model: Model,
  inputs: Tokens,
  sparsity: float,
  *,
  threshold: float = 5.0,
  deviation: float = 0.08,
) -> list[float]:
  """Computes each layer's sparsity by OWL, from the dense model's outliers.

  Args:
    model: The dense model.
    inputs: The calibration text, as in `prune`.
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
  flat = traverse_util.flatten_dict(model.params, sep="/")
  for at in walk(model, inputs, flat):
    kernels = traverse_util.flatten_dict(at.params, sep="/")
    scores = {}
    with named(at.name, PruningError):
      seen = calibrate(at.block, at.params, at.inputs, gram=False)
      for name in seen:
        with named(name):
          scores[name] = oneshot.wanda(kernels[name], seen[name])
      shares.append(float(oneshot.outliers(scores, threshold=threshold)))
  densities = oneshot.owl_densities(shares, sparsity, deviation=deviation)
  return [1 - float(d) for d in densities]


class At(NamedTuple):
  """A layer that pruning has come to.

  Attributes:
    name: For people.
    path: Of the stack's parameters.
    index: Of the layer in its stack.
    block: The module.
    params: The layer's parameters, on the device.
    inputs: Batches of its input, each with keywords.
  """

  name: str
  path: str
  index: int
  block: nn.Module
  params: Any
  inputs: list[tuple[jax.Array, Mapping[str, Any]]]

  def store(self, flat: Mapping[str, np.ndarray], params: Any) -> None:
    """Writes other parameters of the layer into those of the model, by path."""
    for name, one in traverse_util.flatten_dict(params, sep="/").items():
      flat[f"{self.path}/{name}"][self.index] = one


def own(model: Model) -> dict[str, Any]:
  """Returns a model's parameters by path, layers copied so that they change."""
  flat = traverse_util.flatten_dict(model.params, sep="/")
  for path in filter(protocol.is_stacked, flat):
    flat[path] = np.array(flat[path])
  return flat


def walk(model: Model, inputs: Tokens, flat: Mapping[str, Any]) -> Iterator[At]:
  """Runs calibration text through a model, layer after layer.

  Args:
    model: The model.
    inputs: The text, as in `prune`.
    flat: The parameters of all layers, by path. The inputs of a layer are the
      outputs of the one before with the parameters that the caller has left
      here.

  Yields:
    Each layer of each stack.
  """
  if not isinstance(inputs, Mapping):
    inputs = {"tokens": inputs}
  for x in inputs.values():
    if x is not None and x.dtype.kind == "i":
      check_tokens(model.config, x)
  network = model.network()
  size = len(inputs["tokens"])
  batches = [
    jax.tree.map(lambda x, i=i: x[i : i + _BATCH], dict(inputs))
    for i in range(0, size, _BATCH)
  ]
  others = {k: v for k, v in flat.items() if not protocol.is_stacked(k)}
  xs = [None] * len(batches)
  for stack in protocol.stacks(network):
    enter = jax.jit(functools.partial(network.apply, method=stack.enter))
    variables = {"params": traverse_util.unflatten_dict(others, sep="/")}
    entered = [
      enter(variables, batch, x) for batch, x in zip(batches, xs, strict=True)
    ]
    xs, beside = map(list, zip(*entered, strict=True))
    name = stack.path.removesuffix(protocol.LAYERS)
    for i in range(stack.count):
      streams = list(zip(xs, beside, strict=True))
      yield At(
        f"{name}layer {i}",
        stack.path,
        i,
        stack.block,
        _layer(flat, stack.path, i),
        streams,
      )
      params = _layer(flat, stack.path, i)
      xs = [_apply(stack.block, params, stream) for stream in streams]


def _layer(flat: Mapping[str, Any], stack: str, i: int) -> Any:
  """Returns the parameters of one layer of a stack, on the device."""
  one = {
    path.removeprefix(f"{stack}/"): jnp.asarray(leaf[i])
    for path, leaf in flat.items()
    if path.startswith(f"{stack}/")
  }
  return traverse_util.unflatten_dict(one, sep="/")
