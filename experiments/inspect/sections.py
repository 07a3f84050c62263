"""The sections of a report about trained networks: text, tables, pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.inspect.measure import (
  MOST_GROUPS,
  MOST_MASKS,
  SPARSITIES,
  TRAIN_BATCHES,
  Overlap,
  Profile,
  Sensitivity,
  iou_over_steps,
)
from experiments.plots import instruments
from experiments.runs.finished import Run, natural
from experiments.tables import text
from sparsejax.instruments import Flow

BEGIN, END = "<!-- instruments -->", "<!-- end instruments -->"


def insert_section(path: Path, section: str) -> None:
  """Writes the section to report.md: over the last one, or at its end."""
  file = path / "report.md"
  report = file.read_text() if file.exists() else f"# {path.name}\n"
  before, _, rest = report.partition(BEGIN)
  after = rest.partition(END)[2]
  block = f"{BEGIN}\n{section}\n\n{END}\n"
  file.write_text(f"{before.rstrip()}\n\n{block}{after.lstrip()}")


def render(template: str, **values: Any) -> str:
  """Fills in a template of this package, without a newline at the end."""
  return text.render(Path(__file__).parent / "templates" / template, **values)


def sensitivity_section(path: Path, run: Run, found: Sensitivity) -> str:
  """Reports which layers bear pruning, with a heat map."""
  leaves = list(found.losses)
  rise = np.array([found.losses[leaf] for leaf in leaves]) - found.loss
  kept = np.array(
    [[found.own[leaf] >= s for s in SPARSITIES] for leaf in leaves]
  )
  title = f"{run.title}: test loss {found.loss:.3f} as it is"
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
  return render(
    "sensitivity.md",
    examples=found.examples,
    loss=f"{found.loss:.4f}",
    table=[header, *rows],
  )


def overlap_section(path: Path, overlaps: Sequence[Overlap]) -> str:
  """Reports where masks agree, with a heat map for each group of runs."""
  if not overlaps:
    return ""
  panels = [
    (f"{group.title}\nby chance {group.chance:.2f}", group.names, group.iou)
    for group in overlaps
  ]
  instruments.overlap(panels, path / "mask_overlap.png")
  rows = []
  for group in overlaps:
    pairs = group.iou[np.triu_indices(len(group.iou), 1)]
    numbers = (pairs.mean(), pairs.min(), pairs.max(), group.chance)
    cells = (f"{x:.3f}" for x in numbers)
    rows.append((group.title, str(len(group.iou)), *cells))
  header = ("compared", "masks", "mean IoU", "least", "most", "by chance")
  return render(
    "overlap.md", groups=MOST_GROUPS, masks=MOST_MASKS, table=[header, *rows]
  )


def motion_section(
  path: Path, runs: Sequence[Run], leaders: Sequence[Run], run: Run
) -> str:
  """Reports how masks moved over the steps, and how much was explored."""
  curves = {leader.label: _motion(runs, leader) for leader in leaders}
  curves = {label: curve for label, curve in curves.items() if curve}
  if not curves:
    return ""
  pictures = {"last": "mask_motion.png", "since": "mask_motion_start.png"}
  if explored := {k: c for k, c in curves.items() if c.ever is not None}:
    pictures["ever"] = "explored.png"
  for key, name in pictures.items():
    shown = explored if key == "ever" else curves
    instruments.motion(shown, path / name, key=key)
  rows = [
    (label, str(len(c.last)), *_ends(c.last, c.since, c.ever))
    for label, c in curves.items()
  ]
  return render(
    "motion.md",
    pictures=pictures.values(),
    table=[("method", "runs", *_MOVED), *rows],
    layers=_motion_by_layer(path, run),
    title=run.title,
  )


_MOVED = ("IoU with the last, mean", "IoU of end and start", "R_s")


def _ends(
  last: np.ndarray, since: np.ndarray, ever: np.ndarray | None
) -> tuple[str, ...]:
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
  since = np.array(
    [iou_over_steps(tests, "churn_since_start") for tests in group]
  )
  if np.all(since == 1):
    return None
  return instruments.Motion(
    steps=np.array(steps),
    last=np.array([iou_over_steps(tests, "churn") for tests in group]),
    since=since,
    ever=_recorded([[r.get("explored") for r in tests] for tests in group]),
  )


def _recorded(values: Any) -> np.ndarray | None:
  """An array of numbers; None if any of them is missing."""
  found = np.array(values, float)
  return None if np.isnan(found).any() else found


def _motion_by_layer(path: Path, run: Run) -> list[text.Line]:
  """Draws the motion of each layer's masks; its table, empty if none moved."""
  leaves = list(run.tests[-1]["layers"])
  last, since = (
    np.array([iou_over_steps(run.tests, key, leaf) for leaf in leaves])
    for key in ("churn", "churn_since_start")
  )
  if np.all(since == 1):
    return []
  steps = [record["step"] for record in run.tests[1:]]
  instruments.motion_by_layer(
    run.title, leaves, steps, last, since, path / "mask_layers.png"
  )
  rows = []
  for leaf, *overlaps in zip(leaves, last, since, strict=True):
    ever = _recorded([run.tests[-1]["layers"][leaf].get("explored")])
    rows.append((leaf, *_ends(*overlaps, ever)))
  return [("layer", *_MOVED), *rows]


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


def _norms_table(
  header: str, lines: Mapping[str, tuple[tuple[int, int], Flow]]
) -> list[text.Line]:
  cells = [(name, *_norms(*values)) for name, values in lines.items()]
  return [(header, *_NORMS), *cells]


def _rms(counts: tuple[int, int], flow: Flow) -> Flow:
  return Flow(
    *(v / max(n, 1) ** 0.5 for n, v in zip(counts, flow, strict=True))
  )


def _total_counts(profile: Profile) -> tuple[int, int]:
  """Active and inactive weights of a net."""
  return tuple(map(sum, zip(*profile.counts.values(), strict=True)))


def flow_section(path: Path, profiles: Mapping[str, Profile], run: Run) -> str:
  """Reports how large gradients are at active and inactive weights."""
  own = profiles[run.title]
  sparse = [leaf for leaf, counts in own.counts.items() if counts[1]]
  layers = {leaf: (own.counts[leaf], own.flow[leaf]) for leaf in sparse}
  every = {title: (_total_counts(p), p.total) for title, p in profiles.items()}
  panels = {
    title: {name: _rms(*values) for name, values in lines.items()}
    for title, lines in (("runs", every), (f"layers of {run.title}", layers))
  }
  instruments.flow(panels, path / "gradient_flow.png")
  return render(
    "flow.md",
    batches=TRAIN_BATCHES,
    runs=_norms_table("run", every),
    layers=layers and _norms_table(f"layer of {run.label}", layers),
  )


def dead_section(path: Path, profiles: Mapping[str, Profile], run: Run) -> str:
  """Reports units without weights, and those that never fire."""
  layers = _units(profiles[run.title])
  every = {title: _all_units(profile) for title, profile in profiles.items()}
  instruments.dead(
    {"runs": every, f"layers of {run.title}": layers}, path / "dead_units.png"
  )
  header = ("no weight in", "no weight out", "never fires")
  of_layers = [(name, *map(_share, cells)) for name, cells in layers.items()]
  of_runs = [(title, *map(_share, cells)) for title, cells in every.items()]
  return render(
    "dead.md",
    runs=[("run", *header), *of_runs],
    layers=[(f"layer of {run.label}", *header), *of_layers],
  )


def _units(profile: Profile) -> dict[str, np.ndarray]:
  """By layer int [3, 2]: dead outputs, inputs, silent ones; out of how many."""
  rows = {}
  for leaf, dead in profile.dead.items():
    cells = rows[leaf.rpartition("/")[0] or leaf] = np.zeros((3, 2), int)
    cells[:2] = _dead_of(dead.outputs), _dead_of(dead.inputs)
  for layer, silent in profile.silent.items():
    rows.setdefault(layer, np.zeros((3, 2), int))[2] = _dead_of(silent)
  return {layer: rows[layer] for layer in sorted(rows, key=natural)}


def _all_units(profile: Profile) -> np.ndarray:
  """Those of all layers together."""
  return sum(_units(profile).values(), np.zeros((3, 2), int))


def _dead_of(units: np.ndarray) -> tuple[int, int]:
  """How many of bool [units] are True, and how many there are."""
  return int(units.sum()), units.size


def _share(cell: np.ndarray) -> str:
  return f"{cell[0]} of {cell[1]}" if cell[1] else ""


def print_summary(profiles: Mapping[str, Profile]) -> None:
  """Prints a line for each run on the terminal."""
  lines = [
    (
      *("run", "active", "gradient active", "gradient inactive"),
      *("no weight in", "never fires"),
    )
  ]
  for title, profile in profiles.items():
    active, inactive = counts = _total_counts(profile)
    outputs, _, silent = map(_share, _all_units(profile))
    rms = _norms(counts, profile.total)[4:]
    share = f"{100 * active / (active + inactive):.1f} %"
    lines.append((title, share, *rms, outputs, silent))
  text.print_table(
    "inside the networks: gradients are root mean squares",
    lines,
    rest="report.md",
  )
