"""Takes heads and hidden units out of a language model: it becomes narrower.

Which slices of a layer's kernels leave together is found by `sparsejax.shrink`,
from what the layer computes. Every layer loses as many, so that layers still
are stacked, but each loses its own.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from experiments.errors import UserError, check_known
from experiments.llm.families import registry
from experiments.llm.families.protocol import LAYERS
from experiments.llm.io.model import Model
from experiments.llm.prune import layerwise
from experiments.llm.prune.layerwise import PruningError
from sparsejax import keys, oneshot, shrink
from sparsejax.masks import path_name

SCORES = ("wanda", "magnitude", "random")
_LARGEST_ERROR = 1e-3  # relative, of logits


def prune(
  model: Model,
  tokens: np.ndarray,
  sparsity: float,
  *,
  score: str,
  round_to: int = 8,
  seed: int = 0,
  advance: Callable[[int], None] = lambda layer: None,
) -> Model:
  """Takes the heads and hidden units of the lowest scores out of each layer.

  A unit's score is the sum over the weights that read it, rows of the kernels
  behind it. The statistics of a layer's inputs are those behind the layers
  before it, which are pruned already.

  Args:
    model: The model. Its family has to have `resized`.
    tokens: int32[sequences, length], calibration text.
    sparsity: The share of heads, and of hidden units, that leave each layer.
    score: One of SCORES: "wanda" for |w| times the norm of its input.
    round_to: What the number of hidden units that are kept is a multiple of.
    seed: Of random scores.
    advance: Called with the number of pruned layers.

  Returns:
    The narrower model, its parameters NumPy arrays. Its logits are those of the
    model with zeros in place of what has left, or an error is raised.

  Raises:
    UserError: If a name or a number is wrong, or models of this family cannot
      be narrower.
    PruningError: If a kernel has no scores, or the narrower model computes
      something else.
  """
  check(score, sparsity)
  resized = getattr(model.family, "resized", None)
  if resized is None:
    raise UserError(
      f"models of the family {model.family.NAME} have no config of fewer heads "
      "or hidden units; wanted one of "
      + ", ".join(
        name
        for name, family in registry.FAMILIES.items()
        if hasattr(family, "resized")
      )
      + ", or the driver shrink_llm, which exports a function"
    )
  masked = layerwise.own(model)
  small, plan = [], None
  for at in layerwise.walk(model, tokens, masked):
    with layerwise.named(at.name, PruningError):
      scores = scores_of(at, score, seed)
    if plan is None:
      run = functools.partial(_run, at.block)
      split = splits(model.config)
      x, _ = at.inputs[0]
      plan = shrink.trace(run, at.params, x, split=split)
    remove = lowest(plan, scores, sparsity, round_to)
    at.store(masked, plan.mask(at.params, remove))
    small.append(jax.tree.map(np.asarray, plan.take(at.params, remove)))
    advance(at.index + 1)
  params = {
    **model.params,
    LAYERS: jax.tree.map(lambda *layers: np.stack(layers), *small),
  }
  config = resized(model.config, _shapes(small[0]))
  narrow = model._replace(config=config, params=params)
  zeros = model._replace(params=traverse_util.unflatten_dict(masked, sep="/"))
  _verify(narrow, zeros, tokens[:1])
  return narrow


def check(score: str, sparsity: float) -> None:
  """Raises a UserError if a score is unknown, or a sparsity no share."""
  check_known("score", score, SCORES)
  if not 0 < sparsity < 1:
    raise UserError(
      f"structured: got sparsity={sparsity}, wanted a share in (0, 1)"
    )


def lowest(
  plan: shrink.Plan,
  scores: Any,
  sparsity: float,
  round_to: int,
  *,
  whole: bool = False,
  only: Callable[[shrink.Group], bool] = lambda group: True,
) -> shrink.Removal:
  """Removes of each group as many units as are nearest to the share.

  Where keys and values stay, a unit is one query head of each group of heads
  that shares them. In a model that is made anew only their number has to be the
  same in all these groups, so each loses its own; in a function, which keeps
  `whole` units, all lose the same.
  """
  parts = _whole if whole else _runs
  # Rows of kernels; biases read nothing.
  rated = {
    path_name(path): np.asarray(x, np.float64).sum(1)
    for path, x in jax.tree_util.tree_leaves_with_path(scores)
    if x.ndim == 2
  }
  keep = {}
  for group in filter(only, plan.groups.values()):
    gone = _rounded(len(group), sparsity, round_to)
    # Of each unit, by leaf and axis, its runs of neighbours.
    units = [
      {cut: parts(~kept) for cut, kept in plan.remove([unit]).keep.items()}
      for unit in group
    ]
    (runs,) = {len(found) for unit in units for found in unit.values()}
    for cut, kept in plan.remove(group.units[:1]).keep.items():
      keep[cut] = np.ones(len(kept), bool)
    for i in range(runs):
      totals = [
        sum(
          rated[path][found[i]].sum()
          for (path, axis), found in unit.items()
          if axis == 0 and path in rated
        )
        for unit in units
      ]
      for lowest in np.argsort(totals, kind="stable")[:gone]:
        for cut, found in units[lowest].items():
          keep[cut][found[i]] = False
  return shrink.Removal(keep)


def _rounded(size: int, sparsity: float, round_to: int) -> int:
  """Rounds how many of a group's units leave.

  So that what is left is a multiple of `round_to`, but for few units: heads.
  """
  step = round_to if size >= 4 * round_to else 1
  left = max(round(size * (1 - sparsity) / step), 1) * step
  return max(size - left, 0)


def _runs(gone: np.ndarray) -> list[np.ndarray]:
  """Lists the indices where a mask is True, by runs of neighbours."""
  at = np.flatnonzero(gone)
  return np.split(at, np.flatnonzero(np.diff(at) > 1) + 1)


def _whole(gone: np.ndarray) -> list[np.ndarray]:
  """Lists the indices where a mask is True, all together."""
  return [np.flatnonzero(gone)]


def splits(config: Any) -> Callable[[tuple[int, ...], str], int | None]:
  """Makes the rule that keeps keys and values, and cuts query heads.

  Whole groups of heads could leave instead. SmolLM2 has three, and without one
  of them it is far worse than without a third of its query heads.
  """
  kv_heads = getattr(config, "kv_heads", config.heads)
  shared = config.heads // kv_heads

  def split(sizes: tuple[int, ...], line: str) -> int | None:
    del line
    return 1 if sizes == (kv_heads, shared) and shared > 1 else None

  return split


def is_narrower(model: Model, than: Model) -> bool:
  """Returns whether a model has the config of another, but for its widths.

  Args:
    model: The model, with heads and hidden units as the other, or fewer.
    than: The other.
  """
  if model.config == than.config:
    return True
  if model.family is not than.family or not hasattr(than.family, "resized"):
    return False
  shapes = _shapes(jax.tree.map(lambda w: w[0], model.params[LAYERS]))
  try:
    return than.family.resized(than.config, shapes) == model.config
  except (KeyError, UserError):  # of other layers, or widths that do not fit
    return False


def _shapes(layer: Any) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of one layer's parameters by path."""
  flat = traverse_util.flatten_dict(layer, sep="/")
  return {path: x.shape for path, x in flat.items()}


def _run(layer: nn.Module, params: Any, x: jax.Array) -> jax.Array:
  return layer.apply({"params": params}, x)


def scores_of(at: layerwise.At, name: str, seed: int) -> Any:
  """Scores every weight of a layer's kernels; all else counts nothing."""
  if name == "random":
    key = jax.random.fold_in(jax.random.key(seed), at.index)
    return keys.uniform_like(key, at.params)
  flat = traverse_util.flatten_dict(at.params, sep="/")
  scores = {path: jnp.zeros_like(x) for path, x in flat.items()}
  seen = layerwise.calibrate(at.block, at.params, at.inputs, gram=False)
  for path, statistics in seen.items():
    with layerwise.named(path):
      score = getattr(oneshot, name)
      scores[path] = score(flat[path], statistics)
  return traverse_util.unflatten_dict(scores, sep="/")


def _verify(narrow: Model, masked: Model, tokens: np.ndarray) -> None:
  """Refuses a narrower model whose logits are not those of the masked one."""
  got, wanted = (
    jax.jit(m.network().apply)({"params": m.params}, jnp.asarray(tokens))
    for m in (narrow, masked)
  )
  error = float(jnp.abs(got - wanted).max() / jnp.abs(wanted).max())
  if not error <= _LARGEST_ERROR:
    raise PruningError(
      f"the narrower model's logits differ from those of the masked model by "
      f"{error:.2g} of the largest, wanted at most {_LARGEST_ERROR:g}: "
      "its family's `resized` has made another model"
    )
