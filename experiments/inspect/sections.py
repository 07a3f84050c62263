"""The instruments' part of a report: its sections, tables and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import rich.table

from experiments.inspect.measure import (
  MOST_GROUPS,
  MOST_MASKS,
  SPARSITIES,
  TRAIN_BATCHES,
  Agreement,
  Look,
  Sensitivity,
  moved,
)
from experiments.plots import instruments
from experiments.runs.finished import Run, natural
from experiments.tables.text import table
from sparsejax.instruments import Flow

BEGIN, END = "<!-- instruments -->", "<!-- end instruments -->"


def insert(path: Path, section: str) -> None:
  """Puts the section where it was, or at the end of the report."""
  file = path / "report.md"
  text = file.read_text() if file.exists() else f"# {path.name}\n"
  before, _, rest = text.partition(BEGIN)
  after = rest.partition(END)[2]
  block = f"{BEGIN}\n{section}\n{END}\n"
  file.write_text(f"{before.rstrip()}\n\n{block}{after.lstrip()}")


HEAD = """\
## Instruments

What `python -m experiments.inspect` sees in the networks of the finished runs
here, {count} in number. Layer by layer it shows the run `{name}`: {title}.
"""


def sensitivity_text(path: Path, one: Run, found: Sensitivity) -> str:
  """Says which layers bear pruning, with a heat map."""
  leaves = list(found.losses)
  rise = np.array([found.losses[leaf] for leaf in leaves]) - found.loss
  kept = np.array(
    [[found.own[leaf] >= s for s in SPARSITIES] for leaf in leaves]
  )
  title = f"{one.title}: test loss {found.loss:.3f} as it is"
  instruments.sensitivity(
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

{table([header, *rows])}
"""


def overlap_text(path: Path, agreements: Sequence[Agreement]) -> str:
  """Says where masks agree, with a heat map for each group of runs."""
  if not agreements:
    return ""
  instruments.overlap(agreements, path / "mask_overlap.png")
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

{table([header, *rows])}
"""


def motion_text(
  path: Path, runs: Sequence[Run], leaders: Sequence[Run], one: Run
) -> str:
  """Says how masks moved over the steps, and how much was explored."""
  curves = {leader.label: _motion(runs, leader) for leader in leaders}
  if not any(curves.values()):
    return ""
  instruments.motion(curves, path / "mask_motion.png")
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

{table([("method", "runs", *_MOVED), *rows])}
{_motion_by_layer(path, one)}"""


_MOVED = ("IoU with the last, mean", "IoU of end and start", "R_s")


def _ends(last, since, ever) -> tuple[str, ...]:
  """The cells of _MOVED, of arrays [..., evaluations]."""
  share = "" if ever is None else f"{np.mean(ever[..., -1]):.3f}"
  return f"{last.mean():.3f}", f"{since[..., -1].mean():.3f}", share


def _motion(runs: Sequence[Run], leader: Run) -> instruments.Motion | None:
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
  return instruments.Motion(
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
  instruments.motion_by_layer(
    one.title, leaves, steps, last, since, path / "mask_layers.png"
  )
  rows = []
  for leaf, *overlaps in zip(leaves, last, since, strict=True):
    ever = _recorded([one.tests[-1]["layers"][leaf].get("explored")])
    rows.append((leaf, *_ends(*overlaps, ever)))
  return f"""
![overlap of the masks of each layer with earlier ones](mask_layers.png)

The same for each layer of {one.title}.

{table([("layer", *_MOVED), *rows])}
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


def flow_text(path: Path, looks: Mapping[str, Look], one: Run) -> str:
  """Says how large gradients are at active and inactive weights."""
  mine = looks[one.title]
  sparse = [leaf for leaf, counts in mine.counts.items() if counts[1]]
  layers = {leaf: (mine.counts[leaf], mine.flow[leaf]) for leaf in sparse}
  every = {title: (_sums(seen), seen.total) for title, seen in looks.items()}
  instruments.flow(
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

{table([("run", *_NORMS), *((t, *_norms(*v)) for t, v in every.items())])}
"""
  if layers:
    rows = [(leaf, *_norms(*v)) for leaf, v in layers.items()]
    text += f"\n{table([(f'layer of {one.label}', *_NORMS), *rows])}\n"
  return text


def _rms_of(rows):
  return {name: _rms(*values) for name, values in rows.items()}


def dead_text(path: Path, looks: Mapping[str, Look], one: Run) -> str:
  """Counts units without weights, and those that never fire."""
  layers = _units(looks[one.title])
  every = {title: _all_units(seen) for title, seen in looks.items()}
  instruments.dead(
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

{table([("run", *header), *of_runs])}

{table([(f"layer of {one.label}", *header), *of_layers])}
"""


def _units(seen: Look) -> dict[str, np.ndarray]:
  """By layer int [3, 2]: dead outputs, inputs, silent ones; out of how many."""
  rows = {}
  for leaf, dead in seen.dead.items():
    cells = rows[leaf.rpartition("/")[0] or leaf] = np.zeros((3, 2), int)
    cells[:2] = _dead_of(dead.outputs), _dead_of(dead.inputs)
  for layer, silent in seen.silent.items():
    rows.setdefault(layer, np.zeros((3, 2), int))[2] = _dead_of(silent)
  return {layer: rows[layer] for layer in sorted(rows, key=natural)}


def _all_units(seen: Look) -> np.ndarray:
  return sum(_units(seen).values(), np.zeros((3, 2), int))


def _dead_of(units: np.ndarray) -> tuple[int, int]:
  return int(units.sum()), units.size


def _share(cell: np.ndarray) -> str:
  return f"{cell[0]} of {cell[1]}" if cell[1] else ""


def show(looks: Mapping[str, Look]) -> None:
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
