"""The report of finished runs of single nets: a table, report.md, its pictures.

Every number comes from the runs' own records, masks and models.
"""

import math
import statistics as means
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from experiments import statistics
from experiments.config import parts
from experiments.config.entry import Entry, percent
from experiments.plots import runs as run_plots
from experiments.plots import titles
from experiments.runs.train import Result
from experiments.runs.workdir import storage
from experiments.tables import costs, orders, text
from experiments.tables.rows import (
  Row,
  accuracy,
  at_middle,
  barred,
  draw_settings,
  notes,
  times,
)
from sparsejax import report as library_report


class Run(NamedTuple):
  """A finished run: its config and its result."""

  config: ml_collections.ConfigDict
  result: Result


Runs = Mapping[Entry, Sequence[Run]]
_COLUMNS = {
  "method": lambda r: r.label,
  "test accuracy [%]": lambda r: r.spread,
  "95 % interval": lambda r: statistics.shown(*r.interval),
  "runs": lambda r: r.runs,
  "active weights": lambda r: f"{r.nnz:,} of {r.size:,}" if r.finite else "-",
  "training FLOPs": lambda r: r.training_flops,
  "inference FLOPs": lambda r: times(r.inference),
}
# What the terminal leaves out first.
_LAST = ("inference FLOPs", "active weights", "95 % interval", "training FLOPs")


def summarize(
  runs: Runs, diverged: Mapping[tuple[Entry, int], str] = {}
) -> list[Row]:
  """Sums up the runs of each method and sparsity.

  Args:
    runs: Runs by entry; those of one entry differ in their seed.
    diverged: By entry and seed, the messages of those that diverged.

  Returns:
    One row per entry. FLOPs are those of its first run.
  """
  rows = []
  for entry, group in runs.items():
    final = {run.config.seed: run.result.metrics for run in group}
    lost = {seed: why for (e, seed), why in diverged.items() if e == entry}
    values = {seed: accuracy(metrics) for seed, metrics in final.items()}
    row = Row(
      entry.method,
      None if entry.sparsity is None else float(entry.sparsity),
      values={**values, **dict.fromkeys(lost, math.nan)},
      lost=lost,
    )
    if group:
      first = group[0]
      cost = costs.of(first.config, first.result.history)
      training, inference = cost.relative
      row = row._replace(
        nnz=round(means.fmean(m["nnz"] for m in final.values())),
        size=first.result.metrics["size"],
        training=training,
        estimated=cost.estimated,
        inference=inference,
        barred=barred(data=first.config.data, model=first.config.model),
      )
    rows.append(row)
  return rows


def print_summary(
  rows: Sequence[Row], title: str, expected: Sequence[tuple[str, str]]
) -> None:
  """Prints the table on the terminal, and the orders that papers report."""
  text.print_table(title, text.cells(_COLUMNS, rows), last=_LAST)
  said = [notes(rows), *map(orders.sentence, orders.compare(rows, expected))]
  print("\n".join(filter(None, said)))


def write_report(
  workdir: Path,
  config: ml_collections.ConfigDict,
  runs: Runs,
  expected: Sequence[tuple[str, str]] = (),
  diverged: Mapping[tuple[Entry, int], str] = {},
) -> list[Row]:
  """Writes report.md, its tables as CSV and its pictures.

  Args:
    workdir: Where they go.
    config: The config that was launched.
    runs: Finished runs by entry.
    expected: Pairs of methods, as for `orders.compare`.
    diverged: As for `summarize`.

  Returns:
    The rows of its table.
  """
  rows = summarize(runs, diverged)
  runs = {entry: group for entry, group in runs.items() if group}
  lines = text.cells(_COLUMNS, rows)
  shown, middle = at_middle(runs)
  histories = {
    method: [run.result.history for run in group]
    for method, group in shown.items()
  }
  last = shown.get("rigl", next(reversed(shown.values())))[0]
  by_layer = library_report.layers(
    last.result.params, last.result.masks, costs.by_leaf(last.config)
  )
  sparsities = _by_sparsity(rows)
  report = text.render(
    text.TEMPLATES / "runs.md",
    name=config.name,
    table=lines,
    note=notes(rows),
    orders=[*map(orders.sentence, orders.compare(rows, expected))],
    middle=None if middle is None else percent(middle),
    sparsities=sparsities,
    method=last.config.algorithm.name,
    seed=last.config.seed,
    layers=library_report.table(by_layer),
  )
  with storage(workdir):
    (workdir / "report.md").write_text(f"{report}\n")
    text.write_csv(workdir / "table.csv", lines)
    about = titles.of(last.config)
    at = about if middle is None else f"{about}, {percent(middle)} zeros"
    for draw, name in _PICTURES:
      draw(histories, workdir / name, title=at)
    if middle is not None:
      text.write_csv(workdir / "sparsities.csv", sparsities)
      file = workdir / "sparsities.png"
      configs = {entry: group[0].config for entry, group in runs.items()}
      draw_settings(
        rows,
        features(configs),
        file,
        title=about,
        chance=titles.chance(last.config),
      )
  return rows


_PICTURES = (
  (run_plots.accuracy, "accuracy.png"),
  (run_plots.layers, "layers.png"),
  (run_plots.churn, "churn.png"),
  (run_plots.churn_since_start, "churn_since_start.png"),
)


def features(
  configs: Mapping[Entry, ml_collections.ConfigDict],
) -> dict[str, tuple[str, str]]:
  """Finds what methods of a comparison share, as for `style.places`.

  Args:
    configs: Of one run of each row.

  Returns:
    By method what it begins with, and its algorithm.
  """
  found = {}
  for entry, config in configs.items():
    if entry.sparsity is not None:
      words = [v for v in config.initial.values() if isinstance(v, str)]
      pattern = _pattern(config)
      if words == [parts.DRAWN]:
        words = [] if pattern else ["random masks"]
      begin = " ".join([*sorted(words), pattern])
      found[entry.method] = (begin.strip(), config.algorithm.name)
  return found


def _pattern(config: ml_collections.ConfigDict) -> Any:
  pattern = config.algorithm.get("pattern", "")
  return getattr(pattern, "name", pattern)


def _by_sparsity(rows: Sequence[Row]) -> list[tuple[str, ...]]:
  """Accuracies, a line per method and a column per sparsity."""
  found = sorted({row.setting for row in rows} - {None})
  lines = [("method", *map(percent, found), "runs")]
  for method in dict.fromkeys(row.method for row in rows):
    own = {row.setting: row for row in rows if row.method == method}
    at = [own.get(sparsity, own.get(None)) for sparsity in found]
    cells = (row.spread if row else "-" for row in at)
    runs = str(len(next(iter(own.values())).values))
    lines.append((method, *cells, runs))
  return lines
