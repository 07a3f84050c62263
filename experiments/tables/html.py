"""A sweep as one HTML file, which opens anywhere without a network."""

import base64
import inspect
import pathlib
import tempfile
import types
from collections.abc import Callable, Sequence

import jinja2

from experiments.config import grid
from experiments.config.entry import percent
from experiments.plots import runs as plots
from experiments.plots import sparsities as sweep_plots
from experiments.runs import metrics
from experiments.runs import workdir as workdir_lib
from experiments.tables import rows as sweep_table
from experiments.tables import text as csv_tables

_MOST = len(plots.COLOURS)  # methods that curves can show


def write(
  file: pathlib.Path,
  config: str,
  root: pathlib.Path,
  rows: Sequence[sweep_table.Row],
  command: str,
) -> None:
  """Writes the report.

  Args:
    file: Where it goes.
    config: The config file, with its argument after a colon.
    root: The directory of all runs.
    rows: The rows of the table.
    command: The sweep's, for people.
  """
  module = grid.module(config.partition(":")[0])
  orders = sweep_table.orders(rows, getattr(module, "EXPECTED", ()))
  planned = grid.plan(config)
  done = sum(workdir_lib.finished(root / n) is not None for n in planned)
  text = (
    jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    .from_string(_TEXT)
    .render(
      title=pathlib.Path(config.partition(":")[0]).stem,
      about=_about(module),
      command=command,
      state=f"{done} of {len(planned)} runs are finished",
      tables=[
        ("Table", sweep_table.lines(rows), _NOTE),
        *_orders_part(orders),
      ],
      pictures=list(_pictures(config, root, rows)),
    )
  )
  with workdir_lib.storage(file.parent):
    file.write_text(text)


def _about(module: types.ModuleType) -> str:
  return inspect.cleandoc(module.__doc__ or "")


def _orders_part(orders):
  if not orders:
    return []
  counts = sweep_table.summary(orders)
  said = ", ".join(f"{n} {what}" for what, n in counts.items())
  return [
    (
      "The order that papers report",
      sweep_table.order_lines(orders),
      f"Of {len(orders)} published orders: {said}. Differences are paired by "
      "seed; interval and p by Student's t.",
    )
  ]


def _pictures(config, root, rows):
  """Headings, PNGs as base64, and what to say of them."""

  def drawn(draw: Callable[[pathlib.Path], None]) -> str:
    with tempfile.TemporaryDirectory() as folder:
      file = pathlib.Path(folder) / "picture.png"
      draw(file)
      return base64.b64encode(file.read_bytes()).decode()

  bands = "Bands are 95 % intervals of the mean, by Student's t."
  if any(row.entry.sparsity for row in rows):
    yield (
      "Accuracy against sparsity",
      drawn(lambda file: sweep_plots.sparsities(rows, file)),
      bands,
    )
  yield (
    "Accuracy against training FLOPs",
    drawn(lambda file: sweep_plots.against_flops(rows, file)),
    f"One point a sparsity. {bands}",
  )
  runs, where = _histories(config, root)
  spread = f"Mean and standard deviation over seeds{where}."
  for heading, draw, said in (
    ("Accuracy over steps", plots.accuracy, spread),
    ("Training loss", plots.losses, spread),
    ("Zeros by layer", plots.layers, f"At the end of training{where}."),
    ("How the masks moved", plots.churn, spread),
  ):
    yield heading, drawn(lambda file, draw=draw: draw(runs, file)), said


def _histories(config, root):
  """Records of the finished runs at one sparsity, by method."""
  rows = {
    entry: [
      metrics.read(folder)
      for folder in (root / grid.name_of(one) for one in group)
      if workdir_lib.finished(folder) is not None
    ]
    for entry, group in grid.rows(config).items()
  }
  rows = {entry: histories for entry, histories in rows.items() if histories}
  sparsities = sorted({e.sparsity for e in rows if e.sparsity is not None})
  middle = sparsities[len(sparsities) // 2] if sparsities else None
  found = {e.method: h for e, h in rows.items() if e.sparsity in (None, middle)}
  where = "" if middle is None else f", at {percent(middle)}"
  if len(found) > _MOST:  # one distribution of each method
    last = {name.partition(" (")[0]: name for name in found}
    found = {name: found[name] for name in last.values()}
    where += ", methods of several distributions with their last one"
  if len(found) > _MOST:
    found = dict(list(found.items())[-_MOST:])
    where += f", the last {_MOST} methods"
  return found, where


def markdown(
  rows: Sequence[sweep_table.Row], orders: Sequence[sweep_table.Order]
) -> str:
  """The table, and below it the orders, as Markdown."""
  parts = [csv_tables.table(sweep_table.lines(rows)), _NOTE]
  for heading, cells, said in _orders_part(orders):
    parts += [f"## {heading}", csv_tables.table(cells), said]
  return "\n\n".join(parts) + "\n"


_NOTE = (
  "Accuracy after the last step, mean ± standard deviation over seeds; the "
  "interval is that of the mean, 95 %, by Student's t. FLOPs are those of the "
  "whole training and of a forward pass, relative to dense, by the cost model "
  "of RigL's paper (appendix H). Size: 4 bytes a weight that is left, one bit "
  "of a mask for each of a sparse layer."
)

_TEXT = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px;
  margin: 2rem auto; padding: 0 1rem; color: #222; }
pre { background: #f5f5f5; padding: .8rem; white-space: pre-wrap; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #222; position: sticky; top: 0;
  background: white; }
tbody tr:nth-child(even) { background: #f7f7f7; }
img { max-width: 100%; }
.said { color: #555; }
</style>
<h1>{{ title }}</h1>
<p>{{ state }}.</p>
<pre>{{ command }}</pre>
<details><summary>What this is</summary><pre>{{ about }}</pre></details>
{% for heading, lines, said in tables %}
<h2>{{ heading }}</h2>
<div class="wide"><table>
<thead>
<tr>{% for cell in lines[0] %}<th>{{ cell }}</th>{% endfor %}</tr>
</thead>
<tbody>
{% for line in lines[1:] -%}
<tr>{% for cell in line %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor -%}
</tbody></table></div>
<p class="said">{{ said }}</p>
{% endfor %}
{% for heading, picture, said in pictures %}
<h2>{{ heading }}</h2>
<img src="data:image/png;base64,{{ picture }}" alt="{{ heading }}">
<p class="said">{{ said }}</p>
{% endfor %}
</html>
"""
