"""The report of nets whose channels were taken out: report.md, table.csv.

Intervals are Student's t over seeds, at 95 %.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from experiments import statistics
from experiments.config.entry import percent
from experiments.runs.shrink import Net
from experiments.runs.workdir import storage
from experiments.tables import costs, text
from experiments.tables.rows import Row, accuracy, barred, notes, times


class _Line(NamedTuple):
  """A line of the table: a row, and what a shrunk net has besides.

  Attributes:
    row: The row, of accuracies of the smaller net.
    masked: Mean accuracy of the masked net, in percent.
    at_once: That of the smaller net before it was trained.
    flops: Of a forward pass, relative to the first line's.
    speed: How many times as fast as that net it is, see `runs.shrink.speeds`.
  """

  row: Row
  masked: float
  at_once: float
  flops: float
  speed: Mapping[str, float]


def _faster(what: str, line: _Line) -> str:
  return f"{line.speed[what]:.2f}x" if line.speed else "-"


_COLUMNS = {
  "channels pruned": lambda r: r.row.zeros,
  "parameters": lambda r: f"{r.row.size:,}",
  "inference FLOPs": lambda r: times(r.flops),
  "forward pass, faster": lambda r: _faster("forward", r),
  "training step, faster": lambda r: _faster("step", r),
  "masked [%]": lambda r: f"{r.masked:.2f}",
  "shrunk [%]": lambda r: f"{r.at_once:.2f}",
  "trained on [%]": lambda r: r.row.spread,
  "95 % interval": lambda r: statistics.shown(*r.row.interval),
  "runs": lambda r: r.row.runs,
}
# What the terminal leaves out first.
_LAST = ("masked [%]", "inference FLOPs", "95 % interval", "shrunk [%]")


def lines(
  nets: Mapping[float, Sequence[Net]],
  speeds: Mapping[str, Mapping[str, float]],
  diverged: Mapping[tuple[float, int], str] = {},
) -> list[_Line]:
  """Sums up the nets of each sparsity.

  Args:
    nets: By the share of pruned channels, those of every seed.
    speeds: By that share in percent, as `runs.shrink.speeds` returns them.
    diverged: By share and seed, why one has no numbers.

  Returns:
    The lines; shares without a net have none.
  """
  made = []
  for sparsity, group in nets.items():
    if not group:
      continue
    first = group[0]
    lost = {seed: why for (s, seed), why in diverged.items() if s == sparsity}
    values = {net.config.seed: accuracy(net.after) for net in group}
    row = Row(
      "channels",
      float(sparsity),
      values={**values, **dict.fromkeys(lost, np.nan)},
      size=_parameters(first.config),
      lost=lost,
      barred=barred(data=first.config.data, model=first.config.model),
    )
    made.append(
      _Line(
        row,
        masked=float(np.mean([accuracy(net.before) for net in group])),
        at_once=float(np.mean([accuracy(net.at_once) for net in group])),
        flops=costs.dense(first.config)[1],
        speed=speeds.get(f"{100 * sparsity:g}", {}),
      )
    )
  return [line._replace(flops=line.flops / made[0].flops) for line in made]


def _parameters(config: ml_collections.ConfigDict) -> int:
  return sum(x.size for x in jax.tree.leaves(costs.variables(config)["params"]))


def write_report(
  workdir: Path,
  config: ml_collections.ConfigDict,
  nets: Mapping[float, Sequence[Net]],
  speeds: Mapping[str, Mapping[str, float]],
  diverged: Mapping[tuple[float, int], str] = {},
) -> None:
  """Writes report.md and table.csv, and prints the table.

  Args:
    workdir: Where they go.
    config: The config that was launched.
    nets: As for `lines`.
    speeds: As for `lines`.
    diverged: As for `lines`.
  """
  found = lines(nets, speeds, diverged)
  table = text.cells(_COLUMNS, found, optional=_COLUMNS)
  note = notes([line.row for line in found])
  widths = {
    percent(sparsity): group[0].config.model.get("widths", {})
    for sparsity, group in nets.items()
    if group
  }
  report = text.render(
    text.TEMPLATES / "shrink.md",
    name=config.name,
    table=table,
    shrink_at=config.shrink_at,
    steps=config.base.steps,
    batch_size=config.base.batch_size,
    error=max(net.error for group in nets.values() for net in group),
    widths={share: dict(layers) for share, layers in widths.items() if layers},
    note=note,
  )
  with storage(workdir):
    (workdir / "report.md").write_text(f"{report}\n")
    text.write_csv(workdir / "table.csv", table)
  text.print_table(config.name, table, last=_LAST)
  print(note)
