"""Measures the networks of finished runs; sections.py reports the numbers."""

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import linen as nn

from experiments.config import parts
from experiments.plots.style import evenly_spaced
from experiments.runs import model as model_lib
from experiments.runs import programs, train
from experiments.runs.batches import Source, open_source
from experiments.runs.finished import Run, architecture, config_of
from sparsejax import instruments, report
from sparsejax import masks as masks_lib
from sparsejax.instruments import Dead, Flow

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
TRAIN_BATCHES = 10  # whose mean gradient is measured
MOST_METHODS = MOST_MASKS = 12  # more in one picture cannot be read
MOST_GROUPS = 9
_LAYERS = (nn.Conv, nn.Dense, nn.BatchNorm)


class Profile(NamedTuple):
  """Weights, gradients and units of a trained network.

  Attributes:
    counts: Active and inactive weights, by leaf.
    total: Gradient norms over all leaves, at active and inactive weights.
    flow: Gradient norms by leaf.
    dead: Units without weights, by leaf that is sparse.
    silent: bool [units] by layer that a ReLU follows: which never fire.
  """

  counts: dict[str, tuple[int, int]]
  total: Flow
  flow: dict[str, Flow]
  dead: dict[str, Dead]
  silent: dict[str, np.ndarray]


class Sensitivity(NamedTuple):
  """Test losses of a network after one leaf was pruned.

  Attributes:
    examples: The number of test examples that losses are the mean of.
    loss: The loss of the network as it is.
    losses: [sparsities] by leaf.
    own: The sparsity that each leaf has.
  """

  examples: int
  loss: float
  losses: dict[str, np.ndarray]
  own: dict[str, float]


class Overlap(NamedTuple):
  """The overlap of the final masks of some runs.

  Attributes:
    title: What the runs have in common.
    names: What distinguishes each of them.
    iou: [n, n] intersection over union.
    chance: The mean IoU over pairs of random masks with as many weights in each
      layer.
  """

  title: str
  names: list[str]
  iou: np.ndarray
  chance: float


class _Programs(NamedTuple):
  """The jitted functions of one data set and model, in evaluation mode.

  Attributes:
    losses: `(variables, x, y) -> float32 [batch]`: cross-entropies; 0 where
      the label is -1.
    add_grads: `(sums, params, batch_stats, x, y)`: adds the gradient of their
      mean to sums.
    fires: `(variables, x, y) -> {layer: bool [units]}`: whether an output is
      positive for any example, at any position.
    clipped: `(variables, x, {layer: bool}) -> logits` if the outputs of some
      layers are clipped at 0.
  """

  losses: Callable[..., jax.Array]
  add_grads: Callable[..., Any]
  fires: Callable[..., dict[str, jax.Array]]
  clipped: Callable[..., jax.Array]


@functools.lru_cache(maxsize=4)
def _programs(text: str) -> _Programs:
  """Makes the programs of a data set and model, given as `architecture`."""
  options = dict(zip(("data", "model"), json.loads(text), strict=True))
  dataset, model = model_lib.load(ml_collections.ConfigDict(options))

  def losses(variables: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    logits = model.apply(variables, dataset.prepare(x), False)
    found = optax.softmax_cross_entropy_with_integer_labels(
      logits, jnp.maximum(y, 0)
    )
    return jnp.where(y >= 0, found, 0)

  def loss(
    params: Any, batch_stats: Any, x: jax.Array, y: jax.Array
  ) -> jax.Array:
    variables = {"params": params, "batch_stats": batch_stats}
    return jnp.mean(losses(variables, x, y))

  def add_grads(sums: Any, *arguments: Any) -> Any:
    return jax.tree.map(jnp.add, sums, jax.grad(loss)(*arguments))

  def fires(variables: Any, x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    _, state = model.apply(
      variables,
      dataset.prepare(x),
      False,
      capture_intermediates=lambda module, _: isinstance(module, _LAYERS),
      mutable=["intermediates"],
    )
    found = {}
    for path, out in jax.tree_util.tree_leaves_with_path(
      state["intermediates"]
    ):
      real = (y >= 0).reshape(-1, *[1] * (out.ndim - 1))
      any_of = tuple(range(out.ndim - 1))
      # Without the names of the method and of the call.
      found[masks_lib.path_name(path[:-2])] = jnp.any((out > 0) & real, any_of)
    return found

  def clipped(
    variables: Any, x: jax.Array, layers: Mapping[str, Any]
  ) -> jax.Array:
    def clip(function: Callable, args: Any, kwargs: Any, context: Any) -> Any:
      out = function(*args, **kwargs)
      name = "/".join(context.module.path)
      if context.method_name != "__call__" or name not in layers:
        return out
      return jnp.where(layers[name], nn.relu(out), out)

    with nn.intercept_methods(clip):
      return model.apply(variables, dataset.prepare(x), False)

  made = (losses, add_grads, fires, clipped)
  return _Programs(*map(jax.jit, made))


def load(run: Run) -> train.Result:
  """Loads the result of a finished run, with inactive weights set to zero."""
  result = train.train(run.config, run.folder)
  return result._replace(params=_apply_masks(result.params, result.masks))


def _examples(run: Run) -> Source:
  return open_source(run.config, np.asarray(parts.streams(run.seed)["data"]))


def sensitivity(run: Run, examples: int) -> Sensitivity:
  """Measures how the test loss rises if one leaf is pruned, for each leaf.

  Args:
    run: The run.
    examples: How many test examples to take at least; batches are not cut.

  Returns:
    The losses at SPARSITIES, by leaf.
  """
  result = load(run)
  batches, count = [], 0
  for x, y in _examples(run).tests():
    batches.append((x, y))
    count += int((y >= 0).sum())
    if count >= examples:
      break
  losses = _programs(architecture(run.config)).losses

  def loss_fn(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    variables = {"params": params, "batch_stats": result.batch_stats}
    # So that the mean over batches is that over examples.
    return losses(variables, *batch).sum() * (len(batches) / count)

  loss, found = instruments.layer_sensitivity(
    loss_fn, result.params, batches, SPARSITIES
  )
  leaves = report.layers(result.params, result.masks)
  return Sensitivity(
    examples=count,
    loss=float(loss),
    losses={path: np.asarray(values) for path, values in found.items()},
    own={leaf.path: leaf.sparsity for leaf in leaves if leaf.path in found},
  )


def profile(run: Run) -> Profile:
  """Measures the weights, gradients and units of a trained network."""
  result = load(run)
  program = _programs(architecture(run.config))
  examples = _examples(run)
  variables = {"params": result.params, "batch_stats": result.batch_stats}
  sums = jax.tree.map(np.zeros_like, result.params)
  steps = range(min(TRAIN_BATCHES, run.config.steps))
  for step in steps:
    batch = examples.batches(step).taken(step)
    sums = program.add_grads(sums, *variables.values(), *batch)
  total, flow = jax.tree.map(
    lambda norm: float(norm) / len(steps), _gradient_flow(sums, result.masks)
  )
  fired = {}
  for x, y in examples.tests():
    for layer, new in program.fires(variables, x, y).items():
      fired[layer] = np.asarray(new) | fired.get(layer, False)
  return Profile(
    counts={
      leaf.path: (leaf.nnz, leaf.size - leaf.nnz)
      for leaf in report.layers(result.params, result.masks)
    },
    total=total,
    flow=flow,
    dead=jax.device_get(_dead_units(result.masks)),
    silent={layer: ~fired[layer] for layer in _rectified(run, fired, x)},
  )


_gradient_flow = jax.jit(instruments.gradient_flow)
_dead_units = jax.jit(instruments.dead_units)
_apply_masks = jax.jit(masks_lib.apply_masks)


def _rectified(run: Run, layers: Iterable[str], x: jax.Array) -> list[str]:
  """Finds the layers that a ReLU follows directly.

  Clipping their outputs at 0 does not change the logits, as it does for the
  logits themselves and for what goes into a residual sum.
  """
  # In a newly drawn model no unit is dead, which would hide a change.
  variables = programs.get(run.config).draw(parts.streams(run.seed))
  # BatchNorm must shift its input: at a mean of 0 and a scale of 1 the layer
  # before it would seem to be followed by the ReLU after it.
  stats = jax.tree.map(lambda s: s - 0.5, variables.get("batch_stats", {}))
  clipped = functools.partial(
    _programs(architecture(run.config)).clipped,
    {"params": variables["params"], "batch_stats": stats},
    x[:8],
  )
  wanted = clipped(dict.fromkeys(layers, False))
  return [
    layer
    for layer in layers
    if jnp.array_equal(clipped({n: n == layer for n in layers}), wanted)
  ]


def comparable_groups(
  runs: Sequence[Run], leaders: Sequence[Run]
) -> Iterator[tuple[str, list[str], list[Run]]]:
  """Groups sparse runs that differ in one thing: method, seed, or stage.

  Args:
    runs: All runs.
    leaders: One of each method and architecture.

  Yields:
    What the runs of a group have in common, what distinguishes each, the runs.
  """
  sparse = [run for run in runs if run.sparse]
  found = []
  for text in dict.fromkeys(architecture(run.config) for run in leaders):
    group = [r for r in leaders if r.sparse and r.kind[1] == text]
    stages = {r.stage for r in group}
    if len(stages) == 1:
      title = ", ".join(filter(None, ("methods", *stages)))
      found.append((title, "method", group))
    else:
      found.append(("methods", "label", group))
  for leader in leaders:
    own = [r for r in sparse if r.kind == leader.kind]
    group = [r for r in own if r.stage == leader.stage]
    found.append((f"seeds of {leader.label}", "seed", group))
    group = [r for r in own if r.seed == leader.seed]
    found.append((f"{leader.method}, seed {leader.seed}", "stage", group))
  for title, key, group in [f for f in found if len(f[2]) > 1][:MOST_GROUPS]:
    shown = evenly_spaced(group, MOST_MASKS)
    yield title, [str(getattr(r, key)) for r in shown], shown


@functools.lru_cache(maxsize=2 * MOST_MASKS)
def _masks(folder: Path) -> Any:
  """The final masks of a run, which several groups compare."""
  return train.train(config_of(folder), folder).masks


def mask_overlap(title: str, names: list[str], group: list[Run]) -> Overlap:
  """Computes the overlap of the final masks of all pairs of some runs."""
  masks = [_masks(run.folder) for run in group]
  pairs = [_chance(a, b) for i, a in enumerate(masks) for b in masks[:i]]
  iou = np.asarray(instruments.overlaps(masks))
  return Overlap(title, names, iou, float(np.mean(pairs)))


def _chance(a: Any, b: Any) -> float:
  """The expected IoU of random masks of the same layer budgets.

  A layer of n weights, of which masks keep the shares p and q, has n p q in
  both and n (p + q - p q) in either.
  """
  both = either = 0.0
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    size, p, q = max(np.size(x), np.size(y)), np.mean(x), np.mean(y)
    if np.ndim(x) or np.ndim(y):
      both += size * p * q
      either += size * (p + q - p * q)
  return both / either if either else 1.0


def iou_over_steps(
  tests: Sequence[Mapping[str, Any]], key: str, path: str | None = None
) -> np.ndarray:
  """Computes the IoU of the masks at each evaluation with earlier ones.

  Args:
    tests: The records of a run's evaluations.
    key: `churn` for those at the evaluation before, `churn_since_start` for
      the first ones.
    path: The leaf; all together if None.

  Returns:
    float64 [evaluations - 1].
  """

  def nnz(record: Mapping[str, Any]) -> int:
    layers = record["layers"]
    chosen = layers.values() if path is None else [layers[path]]
    return sum(layer["nnz"] for layer in chosen)

  found = []
  for before, now in itertools.pairwise(tests):
    earlier = nnz(before if key == "churn" else tests[0])
    new = (now if path is None else now["layers"][path])[key] * nnz(now)
    either = earlier + new
    found.append((nnz(now) - new) / either if either else 1.0)
  return np.array(found)
