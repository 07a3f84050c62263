"""Looks inside the networks that finished runs have left.

python -m experiments.inspect --workdir=DIR [--run=NAME] [--examples=N]

DIR holds one run, a comparison, lottery tickets: any tree of runs of train.py.
What is found goes into DIR/report.md, between two marks, and into pictures
beside it. The runs are only read.
"""

import functools
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import rich.console
import rich.table
from absl import app, flags, logging
from flax import linen as nn

from experiments import (
  build,
  instrument_plots,
  metrics,
  programs,
  source,
  train,
)
from experiments import progress as progress_lib
from experiments import workdir as workdir_lib
from experiments.errors import UserError, unknown
from sparsejax import instruments
from sparsejax import masks as masks_lib
from sparsejax.instruments import Dead, Flow

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
TRAIN_BATCHES = 10  # whose mean gradient is looked at
MOST_METHODS = MOST_MASKS = 12  # more in one picture cannot be read
MOST_GROUPS = 9
BEGIN, END = "<!-- instruments -->", "<!-- end instruments -->"
_LAYERS = (nn.Conv, nn.Dense, nn.BatchNorm)


class Run(NamedTuple):
  """A finished run, as far as its records tell.

  Attributes:
    name: Its directory, seen from the one that holds all; '.' for that itself.
    folder: Where it is.
    config: Its config.
    method: What distinguishes it, besides stage and seed.
    stage: `level 3` of lottery tickets, `90 %` of several sparsities, or ''.
    tests: The records of its evaluations.
  """

  name: str
  folder: Path
  config: ml_collections.ConfigDict
  method: str
  stage: str
  tests: list[dict[str, Any]]

  @property
  def seed(self) -> int:
    """The seed of its config."""
    return self.config.seed

  @property
  def label(self) -> str:
    """Method and stage, for people."""
    return ", ".join(filter(None, (self.method, self.stage)))

  @property
  def title(self) -> str:
    """Its label and its seed."""
    return f"{self.label}, seed {self.seed}"

  @property
  def kind(self) -> tuple[str, str]:
    """Method and architecture."""
    return self.method, architecture(self.config)

  @property
  def sparse(self) -> bool:
    """Whether weights are inactive at its end."""
    return self.tests[-1]["density"] < 1


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


def run(workdir: str, *, name: str | None = None, examples: int = 1000) -> None:
  """Looks at what is in a directory, writes the report, prints a summary.

  Args:
    workdir: The directory.
    name: The run to look at layer by layer; the last sparse one if None.
    examples: How many test examples at least to measure sensitivity on.

  Raises:
    UserError: If there is no finished run, or none of that name.
  """
  root = Path(workdir)
  runs = find(root)
  one = _chosen(runs, name)
  leaders = _few(_leaders(runs), MOST_METHODS)
  groups = list(_groups(runs, leaders))
  seen = list({r.name: r for r in (*leaders, one)}.values())
  with progress_lib.bar() as progress:
    advance = progress("looking inside", len(seen) + len(groups) + 1, 0)
    done = iter(range(1, len(seen) + len(groups) + 2))
    sensitivity = measure(one, examples)
    advance(next(done), "sensitivity")
    looks = {}
    for other in seen:
      looks[other.title] = look(other)
      advance(next(done), other.title)
    agreements = []
    for group in groups:
      agreements.append(_agreement(*group))
      advance(next(done), "overlap")
  with workdir_lib.locked(root) as path, workdir_lib.storage(path):
    sections = (
      _HEAD.format(count=len(runs), title=one.title, name=one.name),
      _sensitivity_text(path, one, sensitivity),
      _overlap_text(path, agreements),
      _motion_text(path, runs, leaders, one),
      _flow_text(path, looks, one),
      _dead_text(path, looks, one),
    )
    _insert(path, "\n".join(filter(None, sections)))
  _show(looks)
  print(f"The report is {path / 'report.md'}")


# Finding runs.


def find(root: Path) -> list[Run]:
  """The finished runs in a directory, in the order of its methods and names.

  Raises:
    UserError: If there are none.
  """
  if not root.is_dir():
    raise UserError(f"there is no directory {root}. Give another --workdir.")
  found = []
  for file in root.rglob("finished.json"):
    # Second children of lottery tickets only tell if training is stable.
    if file.parent.name.endswith("-child"):
      continue
    if config := _config(file.parent):
      found.append(_run(root, file.parent, config))
  if not found:
    raise UserError(
      f"{root} holds no finished run. Let the command that makes one come to "
      "its end, or give another --workdir."
    )
  methods = [m.replace(" ", "_") for m in _saved(root).get("methods", ())]
  order = {method: i for i, method in enumerate(methods)}
  return sorted(
    found, key=lambda one: (order.get(one.method, -1), _natural(one.name))
  )


def _saved(folder: Path) -> dict[str, Any]:
  """What config.json holds of a config; nothing if there is none."""
  file = folder / "config.json"
  if not file.exists():
    return {}
  try:
    return dict(json.loads(file.read_text())["config"])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"{file} cannot be read ({error}). Move {folder} elsewhere."
    ) from error


def _config(folder: Path) -> ml_collections.ConfigDict | None:
  """The config of a run of train.py; None where there is something else."""
  config = _saved(folder)
  if config.get("driver") != "train":
    return None
  return ml_collections.ConfigDict(config)


def _run(root: Path, folder: Path, config: ml_collections.ConfigDict) -> Run:
  """What a directory's name says, as compare.py and lottery.py name them."""
  name = folder.relative_to(root).as_posix()
  method = config.algorithm.name if name == "." else name.removeprefix("runs/")
  method = re.sub(rf"^seed-{config.seed}/|-{config.seed}$", "", method)
  sparsity, stage = config.algorithm.get("sparsity", 0), ""
  if level := re.search(r"/level-(\d+)", method):
    method, stage = method.replace(level[0], ""), f"level {int(level[1])}"
  elif method.endswith(end := f"-{sparsity:g}"):
    method, stage = method.removesuffix(end), f"{100 * sparsity:g} %"
  tests = [r for r in metrics.read(folder) if r["split"] == "test"]
  return Run(name, folder, config, method, stage, tests)


def _natural(name: str) -> list[str | float]:
  """A key by which level-2 comes before level-10."""
  parts = re.split(r"(\d+(?:\.\d+)?)", name)
  return [float(part) if i % 2 else part for i, part in enumerate(parts)]


def _chosen(runs: Sequence[Run], name: str | None) -> Run:
  if name is None:
    return next((one for one in reversed(runs) if one.sparse), runs[-1])
  for one in runs:
    if one.name == Path(name).as_posix():
      return one
  raise unknown("finished run", name, [one.name for one in runs])


def _leaders(runs: Sequence[Run]) -> list[Run]:
  """A run of each method: the last stage of its first seed."""
  found = {}
  for one in runs:
    if found.setdefault(one.kind, one).seed == one.seed:
      found[one.kind] = one
  return list(found.values())


def architecture(config: ml_collections.ConfigDict) -> str:
  """The data set and the model of a config; equal strings for equal ones."""
  parts = config.data.to_dict(), config.model.to_dict()
  return json.dumps(parts, sort_keys=True)


def _few(items: Sequence[Any], most: int) -> list[Any]:
  """At most so many of them, the first and the last among them."""
  at = np.linspace(0, len(items) - 1, min(most, len(items)))
  return [items[round(i)] for i in at]


# Looking at one network.


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
  return source.of(one.config, np.asarray(build.streams(one.seed)["data"]))


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
    batches = examples.batches(step)
    rows = batches.order[step - batches.first]
    batch = batches.x[rows], batches.y[rows]
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


# As one program each, and not one per operation and shape.
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
  variables = programs.get(one.config).draw(build.streams(one.seed))
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


# Comparing masks.


def _groups(
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
    yield title, _few(names, MOST_MASKS), _few(group, MOST_MASKS)


@functools.lru_cache(maxsize=2 * MOST_MASKS)
def _masks(folder: Path) -> Any:
  return train.train(_config(folder), folder).masks


def _agreement(title: str, names: list[str], group: list[Run]) -> Agreement:
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


# The report.


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  rule = ("---", *["---:"] * (len(header) - 1))
  lines = (f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))
  return "\n".join(lines)


def _insert(path: Path, section: str) -> None:
  """Puts the section where it was, or at the end of the report."""
  file = path / "report.md"
  text = file.read_text() if file.exists() else f"# {path.name}\n"
  before, _, rest = text.partition(BEGIN)
  after = rest.partition(END)[2]
  block = f"{BEGIN}\n{section}\n{END}\n"
  file.write_text(f"{before.rstrip()}\n\n{block}{after.lstrip()}")


_HEAD = """\
## Instruments

What `python -m experiments.inspect` sees in the networks of the finished runs
here, {count} in number. Layer by layer it shows the run `{name}`: {title}.
"""


def _sensitivity_text(path: Path, one: Run, found: Sensitivity) -> str:
  leaves = list(found.losses)
  rise = np.array([found.losses[leaf] for leaf in leaves]) - found.loss
  kept = np.array(
    [[found.own[leaf] >= s for s in SPARSITIES] for leaf in leaves]
  )
  title = f"{one.title}: test loss {found.loss:.3f} as it is"
  instrument_plots.sensitivity(
    title, leaves, SPARSITIES, rise, kept, path / "sensitivity.png"
  )
  header = ("layer", "zeros", *(f"{100 * s:g} %" for s in SPARSITIES))
  rows = [
    (
      leaf,
      f"{100 * found.own[leaf]:.1f} %",
      *("as it is" if k else f"{r:+.4f}" for r, k in zip(*pair, strict=True)),
    )
    for leaf, *pair in zip(leaves, rise, kept, strict=True)
  ]
  return f"""\
### Which layers bear pruning

![loss after pruning one layer](sensitivity.png)

How much the mean cross-entropy on {found.examples} test examples rises, from
{found.loss:.4f}, if one layer alone is pruned to a share of zeros, its smallest
weights first, and nothing is trained afterwards. A layer that has as many zeros
already stays as it is.

{_table(header, rows)}
"""


def _overlap_text(path: Path, agreements: Sequence[Agreement]) -> str:
  if not agreements:
    return ""
  instrument_plots.overlap(agreements, path / "mask_overlap.png")
  rows = []
  for group in agreements:
    pairs = group.iou[np.triu_indices(len(group.iou), 1)]
    numbers = (pairs.mean(), pairs.min(), pairs.max(), group.chance)
    cells = (f"{x:.3f}" for x in numbers)
    rows.append((group.title, str(len(group.iou)), *cells))
  header = ("compared", "masks", "mean IoU", "least", "most", "by chance")
  return f"""\
### Where masks agree

![overlap of the masks of pairs of runs](mask_overlap.png)

Intersection over union of the final masks of two runs, all sparse layers
together: 1 if they keep the same weights. Random masks that keep as many
weights in each layer would agree as far as the last column says. Shown are at
most {MOST_GROUPS} groups, and {MOST_MASKS} masks of each.

{_table(header, rows)}
"""


def _motion_text(
  path: Path, runs: Sequence[Run], leaders: Sequence[Run], one: Run
) -> str:
  curves = {leader.label: _motion(runs, leader) for leader in leaders}
  if not any(curves.values()):
    return ""
  instrument_plots.motion(curves, path / "mask_motion.png")
  rows = [
    (label, str(len(c.last)), *_ends(c.last, c.since, c.ever))
    for label, c in curves.items()
    if c
  ]
  return f"""\
### How masks moved

![overlap of masks with earlier ones over steps](mask_motion.png)

Intersection over union of a run's masks with its own at the evaluation before,
and with its first ones, from the counts in metrics.jsonl: means over seeds, and
bands of a standard deviation; in the table, the mean over all evaluations, and
the last one. R_s is the share of weights that have ever been active (Liu et
al., arXiv:2102.02887), where it was recorded. Methods whose masks stand still
are left out.

{_table(("method", "runs", *_MOVED), rows)}
{_motion_by_layer(path, one)}"""


_MOVED = ("IoU with the last, mean", "IoU of end and start", "R_s")


def _ends(last, since, ever) -> tuple[str, ...]:
  """The cells of _MOVED, of arrays [..., evaluations]."""
  share = "" if ever is None else f"{np.mean(ever[..., -1]):.3f}"
  return f"{last.mean():.3f}", f"{since[..., -1].mean():.3f}", share


def _motion(runs: Sequence[Run], leader: Run) -> instrument_plots.Motion | None:
  """How the masks of a method's runs moved; None if they did not."""
  steps = [record["step"] for record in leader.tests]
  group = [
    r.tests
    for r in runs
    if (r.kind, r.stage) == (leader.kind, leader.stage)
    and [record["step"] for record in r.tests] == steps
  ]
  since = np.array([moved(tests, "churn_since_start") for tests in group])
  if np.all(since == 1):
    return None
  return instrument_plots.Motion(
    steps=np.array(steps),
    last=np.array([moved(tests, "churn") for tests in group]),
    since=since,
    ever=_recorded([[r.get("explored") for r in tests] for tests in group]),
  )


def _recorded(values: Any) -> np.ndarray | None:
  """An array of numbers; None if any of them is missing."""
  found = np.array(values, float)
  return None if np.isnan(found).any() else found


def _motion_by_layer(path: Path, one: Run) -> str:
  leaves = list(one.tests[-1]["layers"])
  last, since = (
    np.array([moved(one.tests, key, leaf) for leaf in leaves])
    for key in ("churn", "churn_since_start")
  )
  if np.all(since == 1):
    return ""
  steps = [record["step"] for record in one.tests[1:]]
  instrument_plots.motion_by_layer(
    one.title, leaves, steps, last, since, path / "mask_layers.png"
  )
  rows = []
  for leaf, *overlaps in zip(leaves, last, since, strict=True):
    ever = _recorded([one.tests[-1]["layers"][leaf].get("explored")])
    rows.append((leaf, *_ends(*overlaps, ever)))
  return f"""
![overlap of the masks of each layer with earlier ones](mask_layers.png)

The same for each layer of {one.title}.

{_table(("layer", *_MOVED), rows)}
"""


_NORMS = (
  *("active weights", "inactive weights"),
  *("norm at active", "norm at inactive", "RMS at active", "RMS at inactive"),
)


def _norms(counts: tuple[int, int], flow: Flow) -> tuple[str, ...]:
  """Numbers of weights, L2 norms, and these per weight."""
  cells = [f"{n:,}" for n in counts]
  for values in (flow, _rms(counts, flow)):
    pairs = zip(counts, values, strict=True)
    cells += [f"{v:.2e}" if n else "" for n, v in pairs]
  return tuple(cells)


def _rms(counts: tuple[int, int], flow: Flow) -> Flow:
  return Flow(
    *(v / max(n, 1) ** 0.5 for n, v in zip(counts, flow, strict=True))
  )


def _sums(look: Look) -> tuple[int, int]:
  return tuple(map(sum, zip(*look.counts.values(), strict=True)))


def _flow_text(path: Path, looks: Mapping[str, Look], one: Run) -> str:
  mine = looks[one.title]
  sparse = [leaf for leaf, counts in mine.counts.items() if counts[1]]
  layers = {leaf: (mine.counts[leaf], mine.flow[leaf]) for leaf in sparse}
  every = {title: (_sums(seen), seen.total) for title, seen in looks.items()}
  instrument_plots.flow(
    {"runs": _rms_of(every), f"layers of {one.title}": _rms_of(layers)},
    path / "gradient_flow.png",
  )
  text = f"""\
### Gradient flow

![gradient at active and inactive weights](gradient_flow.png)

L2 norm of the mean gradient over {TRAIN_BATCHES} training batches at the end,
of the cross-entropy of the model in evaluation mode; RMS is the norm over the
square root of the number of weights. The larger it is at inactive weights, the
more the training loss would fall, to first order, if some of them were grown.

{_table(("run", *_NORMS), [(t, *_norms(*v)) for t, v in every.items()])}
"""
  if layers:
    rows = [(leaf, *_norms(*v)) for leaf, v in layers.items()]
    text += f"\n{_table((f'layer of {one.label}', *_NORMS), rows)}\n"
  return text


def _rms_of(rows):
  return {name: _rms(*values) for name, values in rows.items()}


def _dead_text(path: Path, looks: Mapping[str, Look], one: Run) -> str:
  layers = _units(looks[one.title])
  every = {title: _all_units(seen) for title, seen in looks.items()}
  instrument_plots.dead(
    {"runs": every, f"layers of {one.title}": layers}, path / "dead_units.png"
  )
  header = ("no weight in", "no weight out", "never fires")
  of_layers = [(name, *map(_share, cells)) for name, cells in layers.items()]
  of_runs = [(title, *map(_share, cells)) for title, cells in every.items()]
  return f"""\
### Dead units

![units without weights, and that never fire](dead_units.png)

By the masks: output units of a sparse layer that no active weight reaches, and
input units that none leaves; the inputs of the first layer are the data's. By
the whole test set: units whose output before the ReLU is never positive, at any
position. That is asked of layers which a ReLU follows at once: not of the
logits, nor of what goes into a residual sum.

{_table(("run", *header), of_runs)}

{_table((f"layer of {one.label}", *header), of_layers)}
"""


def _units(seen: Look) -> dict[str, np.ndarray]:
  """By layer int [3, 2]: dead outputs, inputs, silent ones; out of how many."""
  rows = {}
  for leaf, dead in seen.dead.items():
    cells = rows[leaf.rpartition("/")[0] or leaf] = np.zeros((3, 2), int)
    cells[:2] = _dead_of(dead.outputs), _dead_of(dead.inputs)
  for layer, silent in seen.silent.items():
    rows.setdefault(layer, np.zeros((3, 2), int))[2] = _dead_of(silent)
  return {layer: rows[layer] for layer in sorted(rows, key=_natural)}


def _all_units(seen: Look) -> np.ndarray:
  return sum(_units(seen).values(), np.zeros((3, 2), int))


def _dead_of(units: np.ndarray) -> tuple[int, int]:
  return int(units.sum()), units.size


def _share(cell: np.ndarray) -> str:
  return f"{cell[0]} of {cell[1]}" if cell[1] else ""


def _show(looks: Mapping[str, Look]) -> None:
  """Prints the runs in one table on the terminal."""
  printed = rich.table.Table(
    *("run", "active"),
    *("gradient\nactive", "gradient\ninactive"),
    *("no weight\nin", "never\nfires"),
    title="inside the networks: gradients are root mean squares",
  )
  for column in printed.columns[1:]:
    column.justify, column.no_wrap = "right", True
  for title, seen in looks.items():
    active, inactive = counts = _sums(seen)
    outputs, _, silent = map(_share, _all_units(seen))
    rms = _norms(counts, seen.total)[4:]
    share = f"{100 * active / (active + inactive):.1f} %"
    printed.add_row(title, share, *rms, outputs, silent)
  rich.console.Console().print(printed)


def main(argv: list[str]) -> None:
  """Hands the flags on."""
  if len(argv) > 1:
    raise UserError(f"unknown arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)  # Orbax tells a lot
  given = flags.FLAGS
  run(given.workdir, name=given.run, examples=given.examples)


def _define_flags() -> None:
  """Not on import, since another command has a --workdir too."""
  flags.DEFINE_string("workdir", None, "Where finished runs are.")
  flags.DEFINE_string(
    "run", None, "The run to show layer by layer: its directory in there."
  )
  flags.DEFINE_integer(
    "examples", 1000, "Test examples to measure sensitivity on.", lower_bound=1
  )
  flags.mark_flag_as_required("workdir")


if __name__ == "__main__":
  try:
    _define_flags()
    app.run(main)
  except UserError as error:
    print(f"Error: {error}", file=sys.stderr)
    sys.exit(getattr(error, "exit_code", 1))
  except KeyboardInterrupt:
    sys.exit("Interrupted")
