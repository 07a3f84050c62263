"""The rows of RigL's tables as a grid, on any net and data.

Evci et al., Rigging the Lottery, arXiv:1911.11134, figure 2 and table 4: a
dense net, a small dense one of as many weights, SNIP, and, with uniform and
with ERK sparsities, static masks, SET, SNFS, RigL, RigL for five times as many
steps, and gradual pruning.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from experiments import models, programs, recipes
from experiments.entry import Entry
from experiments.errors import UserError
from sparsejax import distributions

DISTRIBUTIONS = {"uniform": "uniform", "ERK": "erdos_renyi_kernel"}
METHODS = {
  "static": "static",
  "SET": "set",
  "SNFS": "snfs",
  "RigL": "rigl",
  "RigL 5x": "rigl",
  "pruning": "gmp",
}
# Which of two rows papers report to do worse.
EXPECTED = (
  ("static", "SET"),
  ("SET", "RigL"),
  ("RigL", "pruning"),
  ("RigL", "RigL 5x"),
  ("small-dense", "RigL (uniform)"),
  ("static (uniform)", "static (ERK)"),
  ("RigL (uniform)", "RigL (ERK)"),
)
# Figure 2 and table 4: top-1 accuracy in percent, ResNet-50 on ImageNet. Of
# table 4's row "Static (ERK)" nothing, which repeats that of 80 and 90 %.
SOURCE = "Evci et al. 2020, ResNet-50, ImageNet"
_IMAGENET = {
  "dense": {None: 76.8},
  "static (uniform)": {0.8: 70.6, 0.9: 65.8, 0.95: 59.5},
  "static (ERK)": {0.8: 72.1, 0.9: 67.7},
  "SNIP": {0.8: 72.0, 0.9: 67.2, 0.95: 57.8},
  "small-dense": {0.8: 72.1, 0.9: 68.9},
  "SET (uniform)": {0.8: 72.9, 0.9: 69.6, 0.95: 64.4},
  "RigL (uniform)": {0.8: 74.6, 0.9: 72.0, 0.95: 67.5},
  "RigL (ERK)": {0.8: 75.1, 0.9: 73.0, 0.95: 69.7},
  "RigL 5x (uniform)": {0.8: 76.6, 0.9: 75.7, 0.95: 73.1},
  "RigL 5x (ERK)": {0.8: 77.1, 0.9: 76.4, 0.95: 74.5},
  "SNFS (ERK)": {0.8: 75.2, 0.9: 72.9, 0.95: 70.0},
  "pruning (uniform)": {0.8: 75.6, 0.9: 73.9, 0.95: 70.6},
}
PUBLISHED = {
  Entry(method, sparsity): (value, SOURCE)
  for method, values in _IMAGENET.items()
  for sparsity, value in values.items()
}
# The fields of models that are their widths.
_WIDTHS = {"hidden", "features", "channels", "width"}


def grid(
  config: ml_collections.ConfigDict,
  sparsities: Sequence[float],
  seeds: Sequence[int],
  *,
  every: int = 100,
) -> Iterator[tuple[Entry, dict[str, Any]]]:
  """All rows, as `sweep` of a config file gives them.

  Updates end after 75 % of the training, and so does pruning, which begins
  after 25 %; uniform sparsities are those of all layers, so that the two
  distributions keep as many weights.

  Args:
    config: The config of a run, which all rows share.
    sparsities: The shares of zeros.
    seeds: Of each row.
    every: Steps between mask updates.

  Yields:
    The row, and what to change in the config.
  """

  def runs(entry, **changes):
    for seed in seeds:
      yield entry, {**changes, "seed": seed}

  begin, end = (config.steps * n // 4 // every * every for n in (1, 3))
  yield from runs(Entry("dense"), algorithm={"name": "dense"})
  for sparsity in sparsities:
    small = narrowed(config, 1 - sparsity)
    yield from runs(
      Entry("small-dense", sparsity), algorithm={"name": "dense"}, model=small
    )
    yield from runs(
      Entry("SNIP", sparsity),
      algorithm={"name": "static", "sparsity": sparsity},
      initial={"name": "snip"},
    )
    for method, algorithm in METHODS.items():
      for title, distribution in DISTRIBUTIONS.items():
        times = 5 if method.endswith("5x") else 1
        yield from runs(
          Entry(f"{method} ({title})", sparsity),
          **_longer(config, times),
          algorithm=recipes.algorithm(
            algorithm,
            sparsity=sparsity,
            delta_t=every,
            t_end=times * config.steps * 3 // 4,
            begin=begin,
            end=end,
            prune_every=every,
            distribution=distribution,
          ),
        )


def expected() -> list[tuple[str, str]]:
  """Pairs of rows of which papers report the first to do worse."""
  pairs = []
  for low, high in EXPECTED:
    if low in METHODS:
      pairs += [(f"{low} ({d})", f"{high} ({d})") for d in DISTRIBUTIONS]
    else:
      pairs.append((low, high))
  return pairs


def _longer(config, times: int) -> dict[str, int]:
  """So many times the steps, looked at as often in all."""
  if times == 1:
    return {}
  keys = ("steps", "log_every", "eval_every", "checkpoint_every")
  return {key: times * config[key] for key in keys}


def narrowed(config: ml_collections.ConfigDict, share: float) -> dict[str, Any]:
  """The options of a net of fewer units: small-dense.

  Args:
    config: The config of a run.
    share: How many of its kernels' weights it may have at most, in (0, 1].

  Returns:
    Options of the model, all of whose widths are scaled by one factor: the
    widest that fits.

  Raises:
    UserError: If the model has no width, or not even the narrowest fits.
  """
  options = config.model.to_dict()
  dataset, model = programs.parts(config)
  fields = {k: getattr(model, k) for k in _WIDTHS if hasattr(model, k)}
  if not fields:
    raise UserError(
      f"model {config.model.name} has none of {sorted(_WIDTHS)} to make it "
      "small-dense"
    )

  def scaled(factor):
    own = {k: _scaled(v, factor) for k, v in fields.items() if k != "width"}
    if "width" in fields:  # itself a factor
      own["width"] = fields["width"] * factor
    return {**options, **own}

  def weights(some):
    net = models.create(num_classes=dataset.num_classes, **some)
    x = jax.ShapeDtypeStruct((1, *dataset.like.shape), jnp.float32)
    shapes = jax.eval_shape(
      lambda x: net.init(jax.random.key(0), x, False)["params"], x
    )
    return sum(
      math.prod(leaf.shape)
      for leaf in jax.tree.leaves(shapes)
      if distributions.matrices("", leaf)
    )

  limit = share * weights(options)
  sizes = max(64, round(max(jax.tree.leaves(fields))))
  for n in range(sizes, 0, -1):
    if weights(some := scaled(n / sizes)) <= limit:
      return some
  raise UserError(
    f"model {config.model.name} has {weights(options)} weights, and no "
    f"narrower one has only {share:g} of them"
  )


def _scaled(width, factor: float):
  if isinstance(width, (tuple, list)):
    return tuple(_scaled(one, factor) for one in width)
  return max(1, round(width * factor))
