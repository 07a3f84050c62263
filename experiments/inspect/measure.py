"""What there is to see in the networks that finished runs have left.

The measurements of inspect.py; how they are told is for looks_report.py.
"""

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
from experiments.runs import batches as source
from experiments.runs import programs, train
from experiments.runs.finished import Run, architecture, config_of, few
from sparsejax import instruments
from sparsejax import masks as masks_lib
from sparsejax.instruments import Dead, Flow

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
TRAIN_BATCHES = 10  # whose mean gradient is looked at
MOST_METHODS = MOST_MASKS = 12  # more in one picture cannot be read
MOST_GROUPS = 9
_LAYERS = (nn.Conv, nn.Dense, nn.BatchNorm)


class Look(NamedTuple):
  """What there is to see in a trained network, but for its sensitivity.

  Attributes:
    counts: Active and inactive weights, by leaf.
    total: Gradient norms of all leaves together.
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
  """Losses of a network after one leaf was pruned.

  Attributes:
    examples: How many test examples they are the mean of.
    loss: That of the network as it is.
    losses: [sparsities] by leaf.
    own: The sparsity that each leaf has.
  """

  examples: int
  loss: float
  losses: dict[str, np.ndarray]
  own: dict[str, float]


class Agreement(NamedTuple):
  """How far the masks of some runs agree.

  Attributes:
    title: What the runs have in common.
    names: What distinguishes each of them.
    iou: [n, n] intersection over union.
    chance: The mean over pairs that random masks would have of as many weights
      in each layer.
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
  options = dict(zip(("data", "model"), json.loads(text), strict=True))
  dataset, model = programs.parts(ml_collections.ConfigDict(options))

  def losses(variables, x, y):
    logits = model.apply(variables, dataset.prepare(x), False)
    found = optax.softmax_cross_entropy_with_integer_labels(
      logits, jnp.maximum(y, 0)
    )
    return jnp.where(y >= 0, found, 0)

  def loss(params, batch_stats, x, y):
    variables = {"params": params, "batch_stats": batch_stats}
    return jnp.mean(losses(variables, x, y))

  def add_grads(sums, *arguments):
    return jax.tree.map(jnp.add, sums, jax.grad(loss)(*arguments))

  def fires(variables, x, y):
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

  def clipped(variables, x, layers):
    def clip(function, args, kwargs, context):
      out = function(*args, **kwargs)
      name = "/".join(context.module.path)
      if context.method_name != "__call__" or name not in layers:
        return out
      return jnp.where(layers[name], nn.relu(out), out)

    with nn.intercept_methods(clip):
      return model.apply(variables, dataset.prepare(x), False)

  made = (losses, add_grads, fires, clipped)
  return _Programs(*map(jax.jit, made))


def load(one: Run) -> train.Result:
  """What a finished run has left, with the params that its model runs with."""
  left = train.train(one.config, one.folder)
  return left._replace(params=_apply_masks(left.params, left.masks))


def _examples(one: Run) -> source.Source:
  return source.of(one.config, np.asarray(parts.streams(one.seed)["data"]))


def measure(one: Run, examples: int) -> Sensitivity:
  """Measures how the test loss depends on pruning each leaf.

  Args:
    one: The run.
    examples: How many test examples to take at least; batches are not cut.

  Returns:
    What was found.
  """
  left = load(one)
  batches, count = [], 0
  for x, y in _examples(one).tests():
    batches.append((x, y))
    count += int((y >= 0).sum())
    if count >= examples:
      break
  losses = _programs(architecture(one.config)).losses

  def loss_fn(params, batch):
    variables = {"params": params, "batch_stats": left.batch_stats}
    # So that the mean over batches is that over examples.
    return losses(variables, *batch).sum() * (len(batches) / count)

  loss, found = instruments.layer_sensitivity(
    loss_fn, left.params, batches, SPARSITIES
  )
  weights = _counts(left)
  return Sensitivity(
    examples=count,
    loss=float(loss),
    losses={path: np.asarray(values) for path, values in found.items()},
    own={path: weights[path][1] / sum(weights[path]) for path in found},
  )


def _counts(left: train.Result) -> dict[str, tuple[int, int]]:
  """Active and inactive weights, by leaf."""
  leaves = jax.tree_util.tree_leaves_with_path(left.params)
  counts = {}
  for (path, p), mask in zip(leaves, jax.tree.leaves(left.masks), strict=True):
    active = int(np.sum(mask)) if np.ndim(mask) else p.size
    counts[masks_lib.path_name(path)] = active, p.size - active
  return counts


def look(one: Run) -> Look:
  """Looks at weights, gradients and units of a trained network."""
  left = load(one)
  program = _programs(architecture(one.config))
  examples = _examples(one)
  variables = {"params": left.params, "batch_stats": left.batch_stats}
  sums = jax.tree.map(np.zeros_like, left.params)
  steps = range(min(TRAIN_BATCHES, one.config.steps))
  for step in steps:
    batch = examples.batches(step).taken(step)
    sums = program.add_grads(sums, *variables.values(), *batch)
  total, flow = jax.device_get(_gradient_flow(sums, left.masks))
  fired = {}
  for x, y in examples.tests():
    for layer, new in program.fires(variables, x, y).items():
      fired[layer] = np.asarray(new) | fired.get(layer, False)
  return Look(
    counts=_counts(left),
    total=_over(len(steps), total),
    flow={path: _over(len(steps), norms) for path, norms in flow.items()},
    dead=jax.device_get(_dead_units(left.masks)),
    silent={layer: ~fired[layer] for layer in _rectified(one, fired, x)},
  )


_gradient_flow = jax.jit(instruments.gradient_flow)


_dead_units = jax.jit(instruments.dead_units)


_apply_masks = jax.jit(masks_lib.apply_masks)


def _over(n: int, norms: Flow) -> Flow:
  return Flow(*(float(norm) / n for norm in norms))


def _rectified(one: Run, layers: Iterable[str], x: jax.Array) -> list[str]:
  """The layers that a ReLU follows at once: clipping them changes nothing.

  Neither logits nor what goes into a residual sum is so. The model is asked as
  it is drawn, when no unit is dead; but BatchNorm has to move what it is given,
  lest the layer before seem to be followed by the ReLU.
  """
  variables = programs.get(one.config).draw(parts.streams(one.seed))
  stats = jax.tree.map(lambda s: s - 0.5, variables.get("batch_stats", {}))
  clipped = functools.partial(
    _programs(architecture(one.config)).clipped,
    {"params": variables["params"], "batch_stats": stats},
    x[:8],
  )
  wanted = clipped(dict.fromkeys(layers, False))
  return [
    layer
    for layer in layers
    if jnp.array_equal(clipped({n: n == layer for n in layers}), wanted)
  ]


def groups(
  runs: Sequence[Run], leaders: Sequence[Run]
) -> Iterator[tuple[str, list[str], list[Run]]]:
  """Sparse runs whose masks to compare: a title, their names, the runs."""
  sparse = [one for one in runs if one.sparse]
  found = []
  for text in dict.fromkeys(architecture(one.config) for one in leaders):
    group = [r for r in leaders if r.sparse and r.kind[1] == text]
    stages = {r.stage for r in group}
    if len(stages) == 1:
      title = ", ".join(filter(None, ("methods", *stages)))
      found.append((title, [r.method for r in group], group))
    else:
      found.append(("methods", [r.label for r in group], group))
  for one in leaders:
    kin = [r for r in sparse if r.kind == one.kind]
    group = [r for r in kin if r.stage == one.stage]
    title = f"seeds of {one.label}"
    found.append((title, [str(r.seed) for r in group], group))
    group = [r for r in kin if r.seed == one.seed]
    title = f"{one.method}, seed {one.seed}"
    found.append((title, [r.stage for r in group], group))
  for title, names, group in [f for f in found if len(f[2]) > 1][:MOST_GROUPS]:
    yield title, few(names, MOST_MASKS), few(group, MOST_MASKS)


@functools.lru_cache(maxsize=2 * MOST_MASKS)
def _masks(folder: Path) -> Any:
  return train.train(config_of(folder), folder).masks


def agreement(title: str, names: list[str], group: list[Run]) -> Agreement:
  """Compares the final masks of all pairs of some runs."""
  masks = [_masks(one.folder) for one in group]
  pairs = [_chance(a, b) for i, a in enumerate(masks) for b in masks[:i]]
  iou = np.asarray(instruments.overlaps(masks))
  return Agreement(title, names, iou, float(np.mean(pairs)))


def _chance(a: Any, b: Any) -> float:
  """The IoU to be expected of random masks of the same layer budgets."""
  both = either = 0.0
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    size, p, q = max(np.size(x), np.size(y)), np.mean(x), np.mean(y)
    if np.ndim(x) or np.ndim(y):
      both += size * p * q
      either += size * (p + q - p * q)
  return both / either if either else 1.0


def moved(
  tests: Sequence[Mapping[str, Any]], key: str, path: str | None = None
) -> np.ndarray:
  """IoU of the masks at each evaluation with earlier ones, from the records.

  Args:
    tests: The records of a run's evaluations.
    key: `churn` for those at the evaluation before, `churn_since_start` for
      the first ones.
    path: The leaf; all together if None.

  Returns:
    float64 [evaluations - 1].
  """

  def nnz(record):
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
