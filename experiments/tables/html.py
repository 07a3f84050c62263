"""The report of a sweep: one HTML file that opens without a network."""

import base64
import inspect
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import jinja2

from experiments.config import grid
from experiments.config.entry import percent
from experiments.plots import runs as run_plots
from experiments.plots import style
from experiments.runs import metrics, workdir
from experiments.tables import sweep
from experiments.tables.rows import Row, at_middle

_MOST = len(style.COLOURS)  # methods in a picture of curves


def write_report(
  file: pathlib.Path,
  config: str,
  root: pathlib.Path,
  rows: Sequence[Row],
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
  name = config.partition(":")[0]
  module = grid.module(name)
  planned = grid.plan(config)
  done = sum(workdir.finished(root / n) is not None for n in planned)
  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined
  )
  text = environment.from_string(_TEXT).render(
    title=pathlib.Path(name).stem,
    about=inspect.cleandoc(module.__doc__ or ""),
    command=command,
    state=f"{done} of {len(planned)} runs are finished",
    tables=sweep.parts(rows, module),
    pictures=list(_pictures(config, root, rows)),
  )
  with workdir.storage(file.parent):
    file.write_text(text)


def _pictures(
  config: str, root: pathlib.Path, rows: Sequence[Row]
) -> Iterator[tuple[str, str, str]]:
  """Headings, PNGs in base64, and notes."""
  intervals = "Bars are 95 % intervals of the mean, by Student's t."
  if any(row.setting is not None for row in rows):
    yield (
      "Accuracy against sparsity",
      _encoded(lambda file: sweep.draw_sparsities(rows, file)),
      intervals,
    )
  yield (
    "Accuracy against training FLOPs",
    _encoded(lambda file: sweep.draw_flops(rows, file)),
    f"One point a sparsity. {intervals}",
  )
  histories, where = _histories(config, root)
  spread = f"Mean and standard deviation over seeds{where}."
  for heading, draw, note in (
    ("Accuracy over steps", run_plots.accuracy, spread),
    ("Training loss", run_plots.losses, spread),
    ("Zeros by layer", run_plots.layers, f"At the end of training{where}."),
    ("How the masks moved", run_plots.churn, spread),
  ):
    yield heading, _encoded(lambda file, d=draw: d(histories, file)), note


def _encoded(draw: Callable[[pathlib.Path], None]) -> str:
  """A picture as a page holds it."""
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "picture.png"
    draw(file)
    return base64.b64encode(file.read_bytes()).decode()


def _histories(
  config: str, root: pathlib.Path
) -> tuple[Mapping[str, Sequence[run_plots.History]], str]:
  """By method the records of its runs at one sparsity, and which that is."""
  finished = {}
  for entry, group in grid.rows(config).items():
    folders = [root / grid.name_of(one) for one in group]
    done = [f for f in folders if workdir.finished(f) is not None]
    if done:
      finished[entry] = [metrics.read(folder) for folder in done]
  found, middle = at_middle(finished)
  where = "" if middle is None else f", at {percent(middle)}"
  if len(found) > _MOST:  # one distribution of each method
    last = {name.partition(" (")[0]: name for name in found}
    found = {name: found[name] for name in last.values()}
    where += ", methods of several distributions with their last one"
  if len(found) > _MOST:
    where += f", the last {_MOST} methods"
  return dict(list(found.items())[-_MOST:]), where


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
.note { color: #555; }
</style>
<h1>{{ title }}</h1>
<p>{{ state }}.</p>
<pre>{{ command }}</pre>
<details><summary>What this is</summary><pre>{{ about }}</pre></details>
{% for table in tables %}
<h2>{{ table.heading }}</h2>
<div class="wide"><table>
<thead>
<tr>{% for cell in table.lines[0] %}<th>{{ cell }}</th>{% endfor %}</tr>
</thead>
<tbody>
{% for line in table.lines[1:] -%}
<tr>{% for cell in line %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor -%}
</tbody></table></div>
<p class="note">{{ table.note }}</p>
{% endfor %}
{% for heading, picture, note in pictures %}
<h2>{{ heading }}</h2>
<img src="data:image/png;base64,{{ picture }}" alt="{{ heading }}">
<p class="note">{{ note }}</p>
{% endfor %}
</html>
"""
