"""Takes heads and hidden units out of any language model: a function is left.

structured.py makes a model of smaller widths, where a family's config has them.
Here each layer has widths of its own and heads leave whatever their positions
mean, so that what is left is no model of the family, but a function that
computes what the whole model does with these slices at zero.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from experiments.llm.families import layers, protocol
from experiments.llm.io import functions
from experiments.llm.io.model import Model
from experiments.llm.prune import layerwise, structured
from experiments.llm.prune.layerwise import PruningError
from sparsejax import shrink
from sparsejax.flops import product_flops

_LARGEST_ERROR = 1e-3  # relative, of logits


class Shrunk(NamedTuple):
  """A smaller function, and what it costs.

  Attributes:
    function: The function.
    params: The number of its parameters.
    flops: Those of its products, of one call.
    error: The largest difference of logits from those of the whole model with
      zeros in place of what has left, relative to the largest of them.
  """

  function: functions.Function
  params: int
  flops: int
  error: float


def shrunk(
  model: Model,
  calibration: layerwise.Tokens,
  inputs: Mapping[str, np.ndarray],
  sparsity: float,
  *,
  score: str = "wanda",
  round_to: int = 8,
  seed: int = 0,
  advance: Callable[[int], None] = lambda layer: None,
) -> Shrunk:
  """Takes the heads and hidden units of the lowest scores out of each layer.

  Scores are those of `structured.prune`, but statistics those of the whole
  model. Where layers share something by head, as T5's do relative positions,
  the same heads leave all of them, and where query heads share keys and values,
  the same ones leave each group.

  Args:
    model: The model, of any family.
    calibration: As for `layerwise.prune`.
    inputs: What the function is exported for: `tokens` int32[batch, length],
      and a source if the family has one.
    sparsity: The share of heads, and of hidden units, that leave.
    score: One of `structured.SCORES`.
    round_to: What widths that are kept are a multiple of, where they can be.
    seed: Of random scores.
    advance: Called with the number of scored layers.

  Returns:
    The function and its costs.

  Raises:
    UserError: If an argument is wrong.
    PruningError: If a kernel has no scores, or the function computes something
      else.
  """
  structured.check(score, sparsity)
  network, params = model.network(), layers.all_apart(_arrays(model.params))
  inputs = {name: jnp.asarray(x) for name, x in inputs.items()}

  def apply(params: Any, inputs: Mapping[str, jax.Array]) -> jax.Array:
    return network.apply({"params": params}, **inputs)

  plan = shrink.trace(
    apply, params, inputs, split=structured.splits(model.config)
  )
  scores = _scores(model, calibration, score, seed, advance)
  remove = structured.lowest(
    plan, scores, sparsity, round_to, whole=True, only=_of_layers
  )
  small = plan.take(params, remove)
  smaller = plan.apply_fn(remove)
  wanted = jax.jit(apply)(plan.mask(params, remove), inputs)
  function = functions.export(smaller, small, inputs, model)
  got = function.exported.call(function.params, inputs)
  error = float(jnp.abs(got - wanted).max() / jnp.abs(wanted).max())
  if not error <= _LARGEST_ERROR:
    raise PruningError(
      "the exported function's logits differ from those of the masked model "
      f"by {error:.2g} of the largest, wanted at most {_LARGEST_ERROR:g}"
    )
  return Shrunk(function, plan.params(remove), plan.flops(remove), error)


def flops(model: Model, inputs: Mapping[str, np.ndarray]) -> int:
  """Counts the FLOPs of a model's products, for inputs as of `shrunk`."""
  return product_flops(
    lambda p, x: model.network().apply({"params": p}, **x),
    _arrays(model.params),
    dict(inputs),
  )


def _arrays(params: Any) -> Any:
  return jax.tree.map(jnp.asarray, params)


def _of_layers(group: shrink.Group) -> bool:
  """Returns whether units are heads or hidden units, and not the stream."""
  # What a norm sums is the stream: one for all layers.
  return not group.summed and any(
    protocol.is_layer_kernel(path) for path, _ in group.cuts
  )


def _scores(
  model: Model,
  calibration: layerwise.Tokens,
  name: str,
  seed: int,
  advance: Callable[[int], None],
) -> Any:
  """Scores the weights of all layers, taken apart; all else counts nothing."""
  flat = traverse_util.flatten_dict(model.params, sep="/")
  scores = {path: np.zeros(np.shape(x)) for path, x in flat.items()}
  for done, at in enumerate(layerwise.walk(model, calibration, flat)):
    with layerwise.named(at.name, PruningError):
      at.store(scores, structured.scores_of(at, name, seed))
    advance(done + 1)
  return layers.all_apart(traverse_util.unflatten_dict(scores, sep="/"))
