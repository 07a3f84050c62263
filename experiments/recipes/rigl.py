"""The runs of RigL's tables, for any net and data set.

Evci et al., Rigging the Lottery, arXiv:1911.11134, figure 2 and table 4: the
dense net; small-dense, a narrow dense net with as many weights; SNIP; and, with
uniform and with ERK sparsities, static masks, SET, SNFS, RigL, RigL for several
times as many steps, and gradual pruning. How the net is trained stands in the
config files.

The paper's uniform sparsities leave the first layer dense (section 3), which
costs next to nothing in a large net, but not in a small one. Config files may
ask for such runs, called "first dense", beside those in which all layers are
equally sparse; they are compared with a small-dense net of their own size.
"""

import bisect
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from experiments import models
from experiments.config import grid
from experiments.config.entry import Entry
from experiments.errors import UserError
from sparsejax import masks, roles

# Rows of a table with, by dotted key, what a run changes in the config.
Runs = Iterable[tuple[Entry, dict[str, Any]]]
DISTRIBUTIONS = {"uniform": "uniform", "ERK": "erdos_renyi_kernel"}
# Words for them in arguments of config files, the default first.
WORDS = {"uniform": "uniform", "erk": "erdos_renyi_kernel"}
FIRST_DENSE = "first dense"
METHODS = {
  "static": "static",
  "SET": "set",
  "SNFS": "snfs",
  "RigL": "rigl",
  "pruning": "gmp",
}
LONGER = ("RigL",)  # also trained for several times the steps
# Orders that papers report: (worse, better).
ORDERS = (
  ("static", "SET"),
  ("SET", "RigL"),
  ("RigL", "pruning"),
  ("small-dense", "RigL (uniform)"),
  ("static (uniform)", "static (ERK)"),
  ("RigL (uniform)", "RigL (ERK)"),
)
# Figure 2 and table 4: top-1 accuracy in percent. Table 4's row "Static (ERK)"
# is left out, since it repeats the numbers of 80 % and 90 %.
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
# Fields of models that are their widths.
_WIDTHS = {"hidden", "features", "channels", "width"}


def table_runs(
  base: ml_collections.ConfigDict,
  make: Callable[[str, str, int], ml_collections.ConfigDict],
  sparsities: Sequence[float],
  seeds: Sequence[int],
  *,
  shape: tuple[int, ...],
  num_classes: int,
  times: int = 5,
  longer: Sequence[str] = LONGER,
  first: str = "",
) -> Iterator[tuple[Entry, dict[str, Any]]]:
  """Plans all runs of the table, in the form of a config file's `sweep`.

  Args:
    base: The config file's own config, to which runs are given as changes.
    make: `(algorithm, distribution, times) -> config` of a run that lasts
      `times` as long; its sparsity is replaced.
    sparsities: Shares of zeros.
    seeds: Seeds of each row of the table.
    shape: Shape of one input.
    num_classes: Number of classes.
    times: Factor by which longer runs last longer.
    longer: Methods that are also run for longer.
    first: A regular expression for the path of the first layer's kernel, to
      have "first dense" rows; none if empty.

  Yields:
    The row of the table, and by dotted key what to change in `base`.
  """
  uniform = DISTRIBUTIONS["uniform"]
  dense = make("dense", uniform, 1)
  yield from with_seeds(Entry("dense"), base, dense, seeds)
  options = dense.model.to_dict()
  net = {"shape": shape, "num_classes": num_classes}
  sparse = sparse_share(options, first, **net) if first else 1.0
  for sparsity in sparsities:
    nets = {"small-dense": narrow_model(options, 1 - sparsity, **net)}
    if first:
      # Widths are integers, so both sizes may lead to one net: a second row
      # would repeat its runs, which a grid refuses.
      other = narrow_model(options, 1 - sparsity * sparse, **net)
      if other not in nets.values():
        nets = {f"small-dense ({FIRST_DENSE})": other, **nets}
    for name, model in nets.items():
      small = dense.copy_and_resolve_references()
      small.model = model
      yield from with_seeds(Entry(name, sparsity), base, small, seeds)
    snip = make("static", uniform, 1)
    snip.initial = {"name": "snip"}
    del snip.algorithm.distribution  # SNIP finds its own
    yield from with_seeds(Entry("SNIP", sparsity), base, snip, seeds)
    for method, algorithm in METHODS.items():
      for n in (1, times) if method in longer else (1,):
        for title in distribution_titles(first):
          config = make(algorithm, DISTRIBUTIONS.get(title, uniform), n)
          if title == FIRST_DENSE:
            config.algorithm.by_path = ((first, 0.0),)
          name = method if n == 1 else f"{method} {n}x"
          entry = Entry(f"{name} ({title})", sparsity)
          yield from with_seeds(entry, base, config, seeds)


def distribution_titles(first: str | bool = False) -> list[str]:
  """Lists how rows name their distributions.

  Args:
    first: Whether there are "first dense" rows.
  """
  uniform, *others = DISTRIBUTIONS
  return [uniform, *([FIRST_DENSE] if first else []), *others]


def with_seeds(
  entry: Entry,
  base: ml_collections.ConfigDict,
  config: ml_collections.ConfigDict,
  seeds: Sequence[int],
) -> Iterator[tuple[Entry, dict[str, Any]]]:
  """Plans the runs of one row of a table, one for each seed.

  Args:
    entry: The row. Its sparsity is set in the config, unless that is dense.
    base: The config file's own config.
    config: The config of the row's runs.
    seeds: Their seeds.

  Yields:
    The row, and by dotted key what to change in `base`.
  """
  config = config.copy_and_resolve_references()
  if entry.sparsity is not None and config.algorithm.name != "dense":
    config.algorithm.sparsity = entry.sparsity
  change = grid.replaced(base, config)
  for seed in seeds:
    yield entry, {**change, "seed": seed}


def expected_orders(
  times: int = 5, *, first: bool = False
) -> list[tuple[str, str]]:
  """Lists the orders that papers report, as pairs of rows (worse, better).

  Args:
    times: Factor by which longer runs last longer.
    first: Whether there are "first dense" rows.
  """
  pairs = []
  for worse, better in (*ORDERS, *((m, f"{m} {times}x") for m in LONGER)):
    if worse in METHODS:  # holds for each distribution
      for title in distribution_titles(first):
        pairs.append((f"{worse} ({title})", f"{better} ({title})"))
    else:
      pairs.append((worse, better))
  if first:
    pairs.append((f"small-dense ({FIRST_DENSE})", f"RigL ({FIRST_DENSE})"))
  return pairs


def published_accuracies(
  percent: Mapping[str, Mapping[float | None, float]], source: str
) -> dict[Entry, tuple[float, str]]:
  """Makes a config file's `PUBLISHED` from a table.

  Args:
    percent: Accuracies in percent, by method and sparsity.
    source: Where they were published.

  Returns:
    By row of the table the accuracy and its source.
  """
  return {
    Entry(method, sparsity): (value, source)
    for method, of_sparsity in percent.items()
    for sparsity, value in of_sparsity.items()
  }


def narrow_model(
  options: Mapping[str, Any],
  share: float,
  *,
  shape: tuple[int, ...],
  num_classes: int,
) -> dict[str, Any]:
  """Narrows a net to a share of its weights: small-dense.

  Args:
    options: Its name and options, as for `models.create`.
    share: The share of its kernels' weights to keep at most, in (0, 1].
    shape: Shape of one input.
    num_classes: Number of classes.

  Returns:
    The options of the widest net that fits; all widths are multiplied by one
    factor.

  Raises:
    UserError: If not even the narrowest fits.
  """
  model = models.create(num_classes=num_classes, **options)
  fields = {
    f.name: (float if "float" in str(f.type) else int, getattr(model, f.name))
    for f in dataclasses.fields(model)
    if f.name in _WIDTHS
  }

  def scaled(factor: float) -> dict[str, Any]:
    own = {k: _scaled(v, factor, kind) for k, (kind, v) in fields.items()}
    return {**options, **own}

  def weights(options: Mapping[str, Any]) -> int:
    sizes = kernel_sizes(options, shape=shape, num_classes=num_classes)
    return sum(sizes.values())

  limit = share * weights(options)
  widths = jax.tree.leaves([v for _, v in fields.values()])
  factors = max(64, round(max(widths)))
  fits = bisect.bisect_right(
    range(1, factors + 1), limit, key=lambda n: weights(scaled(n / factors))
  )
  if fits:
    return scaled(fits / factors)
  raise UserError(
    f"model {options['name']} has {weights(options)} weights, and no "
    f"narrower one has only {share:g} of them"
  )


def sparse_share(
  options: Mapping[str, Any],
  dense: str,
  *,
  shape: tuple[int, ...],
  num_classes: int,
) -> float:
  """Measures the share of a net's weights outside the layers kept dense.

  Args:
    options: Its name and options, as for `models.create`.
    dense: A regular expression for the paths of the dense layers' kernels.
    shape: Shape of one input.
    num_classes: Number of classes.
  """
  sizes = kernel_sizes(options, shape=shape, num_classes=num_classes)
  kept = sum(n for path, n in sizes.items() if re.search(dense, path))
  return 1 - kept / sum(sizes.values())


def kernel_sizes(
  options: Mapping[str, Any], *, shape: tuple[int, ...], num_classes: int
) -> dict[str, int]:
  """Counts the weights of each kernel of a net, by key path.

  Args:
    options: Its name and options, as for `models.create`.
    shape: Shape of one input.
    num_classes: Number of classes.
  """
  model = models.create(num_classes=num_classes, **options)
  x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  shapes = jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, False)["params"], x
  )
  sparse = roles.sparse(shapes)
  return {
    masks.path_name(path): math.prod(leaf.shape)
    for path, leaf in jax.tree.leaves_with_path(shapes)
    if masks.path_name(path) in sparse
  }


def _scaled(width: Any, factor: float, kind: type) -> Any:
  """Scales a width or widths, integers by rounding to at least 1."""
  if isinstance(width, (tuple, list)):
    return tuple(_scaled(one, factor, kind) for one in width)
  return width * factor if kind is float else max(1, round(width * factor))
