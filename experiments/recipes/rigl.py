"""The rows of RigL's tables as a grid, on any net and data.

Evci et al., Rigging the Lottery, arXiv:1911.11134, figure 2 and table 4: a
dense net, a small dense one of as many weights, SNIP, and, with uniform and
with ERK sparsities, static masks, SET, SNFS, RigL, RigL for several times as
many steps, and gradual pruning.

The paper's uniform sparsities leave the first layer dense (section 3), which in
a large net is next to nothing. In a small one it is not: such rows, if asked
for, stand beside those whose layers are all as sparse, and have a small dense
net of their own size, where that is another one.
"""

import bisect
import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from experiments import models
from experiments.config import grid
from experiments.config.entry import Entry
from experiments.errors import UserError
from experiments.recipes import vision
from sparsejax import distributions, masks

Make = Callable[[str, str, int], ml_collections.ConfigDict]
DISTRIBUTIONS = {"uniform": "uniform", "ERK": "erdos_renyi_kernel"}
# The words of config files for them, the default first.
WORDS = {"uniform": "uniform", "erk": "erdos_renyi_kernel"}
FIRST = "first dense"  # of rows with uniform sparsities but for the first layer
METHODS = {
  "static": "static",
  "SET": "set",
  "SNFS": "snfs",
  "RigL": "rigl",
  "pruning": "gmp",
}
LONGER = ("RigL",)  # what is also run for longer
# Which of two rows papers report to do worse.
EXPECTED = (
  ("static", "SET"),
  ("SET", "RigL"),
  ("RigL", "pruning"),
  ("small-dense", "RigL (uniform)"),
  ("static (uniform)", "static (ERK)"),
  ("RigL (uniform)", "RigL (ERK)"),
)
# Figure 2 and table 4: top-1 accuracy in percent, ResNet-50 on ImageNet. Of
# table 4's row "Static (ERK)" nothing, which repeats that of 80 and 90 %.
SOURCE = "Evci et al. 2020, ResNet-50, ImageNet"
IMAGENET = {
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
# The fields of models that are their widths.
_WIDTHS = {"hidden", "features", "channels", "width"}


def rows(
  base: ml_collections.ConfigDict,
  make: Make,
  sparsities: Sequence[float],
  seeds: Sequence[int],
  *,
  shape: tuple[int, ...],
  num_classes: int,
  times: int = 5,
  longer: Sequence[str] = LONGER,
  first: str = "",
) -> Iterator[tuple[Entry, dict[str, Any]]]:
  """All rows, as `sweep` of a config file gives them.

  Args:
    base: The config that the file gives; all rows are changes of it.
    make: `(algorithm, distribution, times) -> config`, of so many times the
      steps; the sparsity is set here.
    sparsities: The shares of zeros.
    seeds: Of each row.
    shape: Of an example of the data.
    num_classes: Of the data.
    times: How many times the steps of the longer runs.
    longer: The methods that are also run for longer.
    first: A regular expression for the path of the first layer's kernel; with
      it there are rows of uniform sparsities that leave it dense.

  Yields:
    The row, and what to change in the config.
  """
  uniform, _ = DISTRIBUTIONS.values()
  dense = make("dense", uniform, 1)
  yield from seeded(Entry("dense"), base, dense, seeds)
  options = dense.model.to_dict()
  net = {"shape": shape, "num_classes": num_classes}
  rest = share_without(options, first, **net) if first else 1.0
  for sparsity in sparsities:
    nets = {"small-dense": narrowed(options, 1 - sparsity, **net)}
    if first:
      as_large = narrowed(options, 1 - sparsity * rest, **net)
      if as_large not in nets.values():
        nets = {f"small-dense ({FIRST})": as_large, **nets}
    for name, model in nets.items():
      small = dense.copy_and_resolve_references()
      small.model = model
      yield from seeded(Entry(name, sparsity), base, small, seeds)
    snip = make("static", uniform, 1)
    snip.initial = {"name": "snip"}
    del snip.algorithm.distribution
    yield from seeded(Entry("SNIP", sparsity), base, snip, seeds)
    for method, algorithm in METHODS.items():
      for n in (1, times) if method in longer else (1,):
        for title in titles(first):
          one = make(algorithm, DISTRIBUTIONS.get(title, uniform), n)
          if title == FIRST:
            one.algorithm.by_path = ((first, 0.0),)
          name = method if n == 1 else f"{method} {n}x"
          entry = Entry(f"{name} ({title})", sparsity)
          yield from seeded(entry, base, one, seeds)


def titles(first: str | bool = False) -> list[str]:
  """How rows name their distributions.

  Args:
    first: Whether there are some that leave the first layer dense.
  """
  uniform, *rest = DISTRIBUTIONS
  return [uniform, *([FIRST] if first else []), *rest]


def seeded(
  entry: Entry,
  base: ml_collections.ConfigDict,
  config: ml_collections.ConfigDict,
  seeds: Sequence[int],
) -> Iterator[tuple[Entry, dict[str, Any]]]:
  """The runs of one row.

  Args:
    entry: The row; all but dense runs are made as sparse as it says.
    base: The config that the file gives.
    config: That of the row's runs.
    seeds: Of the runs.

  Yields:
    As `rows`.
  """
  config = config.copy_and_resolve_references()
  if entry.sparsity is not None and config.algorithm.name != "dense":
    config.algorithm.sparsity = entry.sparsity
  change = grid.replaced(base, config)
  for seed in seeds:
    yield entry, {**change, "seed": seed}


def by_steps(
  config: ml_collections.ConfigDict,
  *,
  shape: tuple[int, ...],
  smoke: bool,
  first: str = "",
) -> Iterator[tuple[Entry, dict[str, Any]]]:
  """The rows at 80 to 98 %, five seeds each, by shares of the steps.

  Updates end after 75 % of the training, and so does pruning, which begins
  after 25 %; uniform sparsities are those of all layers, so that the two
  distributions keep as many weights.

  Args:
    config: The config of a run on data of ten classes, which all rows share.
    shape: Of an example of the data.
    smoke: Whether to take two sparsities, one seed, and updates every 10 steps
      instead of 100.
    first: As for `rows`.

  Returns:
    As `rows`.
  """
  every = 10 if smoke else 100

  def make(algorithm, distribution, times):
    one = config.copy_and_resolve_references()
    for key in ("steps", "log_every", "eval_every", "checkpoint_every"):
      one[key] *= times
    begin, end = (one.steps * n // 4 // every * every for n in (1, 3))
    one.algorithm = vision.algorithm(
      algorithm,
      sparsity=0.9,
      delta_t=every,
      t_end=one.steps * 3 // 4,
      begin=begin,
      end=end,
      prune_every=every,
      distribution=distribution,
    )
    return one

  return rows(
    config,
    make,
    sparsities=(0.8, 0.98) if smoke else (0.8, 0.9, 0.95, 0.98),
    seeds=range(1 if smoke else 5),
    shape=shape,
    num_classes=10,
    first=first,
  )


def expected(times: int = 5, *, first: bool = False) -> list[tuple[str, str]]:
  """Pairs of rows of which papers report the first to do worse.

  Args:
    times: How many times the steps of the longer runs.
    first: Whether there are rows that leave the first layer dense.
  """
  pairs = []
  for low, high in (*EXPECTED, *((m, f"{m} {times}x") for m in LONGER)):
    if low in METHODS:
      pairs += [(f"{low} ({d})", f"{high} ({d})") for d in titles(first)]
    else:
      pairs.append((low, high))
  if first:
    pairs.append((f"small-dense ({FIRST})", f"RigL ({FIRST})"))
  return pairs


def published(
  values: Mapping[str, Mapping[float | None, float]], source: str
) -> dict[Entry, tuple[float, str]]:
  """Published numbers as a table wants them.

  Args:
    values: Accuracies in percent, by method and by sparsity.
    source: Where they are from.
  """
  return {
    Entry(method, sparsity): (value, source)
    for method, of_sparsity in values.items()
    for sparsity, value in of_sparsity.items()
  }


def narrowed(
  options: Mapping[str, Any],
  share: float,
  *,
  shape: tuple[int, ...],
  num_classes: int,
) -> dict[str, Any]:
  """The options of a net of fewer units: small-dense.

  Args:
    options: Those of the model, `models.create`'s.
    share: How many of its kernels' weights it may have at most, in (0, 1].
    shape: Of one input.
    num_classes: How many logits.

  Returns:
    Options of the model, all of whose widths are scaled by one factor: the
    widest that fits.

  Raises:
    UserError: If not even the narrowest fits.
  """
  model = models.create(num_classes=num_classes, **options)
  fields = {
    f.name: (float if "float" in str(f.type) else int, getattr(model, f.name))
    for f in dataclasses.fields(model)
    if f.name in _WIDTHS
  }

  def scaled(factor):
    own = {k: _scaled(v, factor, kind) for k, (kind, v) in fields.items()}
    return {**options, **own}

  def weights(some):
    of = kernels(some, shape=shape, num_classes=num_classes)
    return sum(of.values())

  limit = share * weights(options)
  widths = jax.tree.leaves([v for _, v in fields.values()])
  sizes = max(64, round(max(widths)))
  fits = bisect.bisect_right(
    range(1, sizes + 1), limit, key=lambda n: weights(scaled(n / sizes))
  )
  if fits:
    return scaled(fits / sizes)
  raise UserError(
    f"model {options['name']} has {weights(options)} weights, and no "
    f"narrower one has only {share:g} of them"
  )


def share_without(
  options: Mapping[str, Any],
  dense: str,
  *,
  shape: tuple[int, ...],
  num_classes: int,
) -> float:
  """The share of a net's weights that lie outside the layers that stay dense.

  Args:
    options: Those of the model, `models.create`'s.
    dense: A regular expression for the paths of the dense layers' kernels.
    shape: Of one input.
    num_classes: How many logits.
  """
  sizes = kernels(options, shape=shape, num_classes=num_classes)
  kept = sum(n for path, n in sizes.items() if re.search(dense, path))
  return 1 - kept / sum(sizes.values())


def kernels(
  options: Mapping[str, Any], *, shape: tuple[int, ...], num_classes: int
) -> dict[str, int]:
  """How many weights each kernel of a net has, by key path.

  Args:
    options: Those of the model, `models.create`'s.
    shape: Of one input.
    num_classes: How many logits.
  """
  model = models.create(num_classes=num_classes, **options)
  x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  shapes = jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, False)["params"], x
  )
  return {
    masks.path_name(path): math.prod(leaf.shape)
    for path, leaf in jax.tree.leaves_with_path(shapes)
    if distributions.matrices("", leaf)
  }


def _scaled(width, factor: float, kind: type):
  if isinstance(width, (tuple, list)):
    return tuple(_scaled(one, factor, kind) for one in width)
  return width * factor if kind is float else max(1, round(width * factor))
