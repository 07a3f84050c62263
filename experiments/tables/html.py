"""The report of a sweep: one HTML file that opens without a network."""

import base64
import inspect
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence

from experiments.config import grid, smoke
from experiments.config.entry import percent
from experiments.plots import runs as run_plots
from experiments.plots import titles
from experiments.runs import metrics, workdir
from experiments.tables import sweep, text
from experiments.tables.rows import Row, at_middle


def write_report(
  file: pathlib.Path,
  config: grid.Grid | str,
  root: pathlib.Path,
  rows: Sequence[Row],
  command: str,
) -> None:
  """Writes the report.

  Args:
    file: Where it goes.
    config: Which runs; or the config file alone, with its argument.
    root: The directory of all runs.
    rows: The rows of the table.
    command: The sweep's, for people.
  """
  name = grid.of(config).config.partition(":")[0]
  module = grid.module(name)
  planned = grid.plan(config)
  done = sum(workdir.finished(root / n) is not None for n in planned)
  page = text.render(
    text.TEMPLATES / "sweep.html",
    title=pathlib.Path(name).stem,
    about=inspect.cleandoc(module.__doc__ or ""),
    command=command,
    state=f"{done} of {len(planned)} runs are finished"
    + smoke.note(planned.values()),
    tables=sweep.parts(rows, module),
    pictures=list(_pictures(config, root, rows)),
  )
  with workdir.storage(file.parent):
    file.write_text(page)


def _pictures(
  config: grid.Grid | str, root: pathlib.Path, rows: Sequence[Row]
) -> Iterator[tuple[str, str, str]]:
  """Headings, PNGs in base64, and notes."""
  histories, where = _histories(config, root)
  title = titles.of(grid.base(config))
  intervals = "Shaded are 95 % intervals of the mean, by Student's t."
  points = f"One point a sparsity. {intervals}"
  spread = f"Means over seeds{where}. {intervals}"
  zeros = f"At the end of training{where}."
  churn = run_plots.churn_since_start
  pictures = [
    ("Accuracy against sparsity", sweep.draw_sparsities, rows, intervals),
    ("Accuracy against training FLOPs", sweep.draw_flops, rows, points),
    ("Accuracy over steps", run_plots.accuracy, histories, spread),
    ("Training loss", run_plots.losses, histories, spread),
    ("Zeros by layer", run_plots.layers, histories, zeros),
    ("How the masks moved", run_plots.churn, histories, spread),
    ("How far they moved from the first ones", churn, histories, spread),
  ]
  if all(row.setting is None for row in rows):
    del pictures[0]
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "picture.png"
    for heading, draw, values, note in pictures:
      draw(values, file, title=title)
      yield heading, base64.b64encode(file.read_bytes()).decode(), note


def _histories(
  config: grid.Grid | str, root: pathlib.Path
) -> tuple[Mapping[str, Sequence[run_plots.History]], str]:
  """By method the records of its runs at one sparsity, and which that is."""
  finished = {}
  for entry, group in grid.rows(config).items():
    folders = [root / grid.name_of(one) for one in group]
    done = [f for f in folders if workdir.finished(f) is not None]
    if done:
      finished[entry] = [metrics.read(folder) for folder in done]
  found, middle = at_middle(finished)
  return found, "" if middle is None else f", at {percent(middle)}"
