"""The report of language models that became smaller functions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections

from experiments.llm.evaluate.tasks import Task
from experiments.runs.shrink_llm import DENSE, Line
from experiments.runs.workdir import storage
from experiments.tables import text
from experiments.tables.rows import times


def write_report(
  workdir: Path,
  config: ml_collections.ConfigDict,
  lines: Sequence[Line],
  speeds: Mapping[str, float],
  task: Task,
) -> None:
  """Writes report.md and table.csv, and prints the table.

  Args:
    workdir: Where they go.
    config: The config that was launched.
    lines: The whole model's first, then the functions'.
    speeds: How many times as fast as the whole model they are, by `zeros`;
      empty if that was not measured.
    task: What they are tested on.
  """
  whole = lines[0]
  scores = [
    name for name in whole.scores if name not in ("tokens", "questions")
  ]

  def speed(line: Line) -> str:
    name = line.zeros if line.file else DENSE
    return f"{speeds[name]:.2f}x" if name in speeds else "-"

  columns = {
    "heads and units gone": lambda line: line.zeros,
    "parameters": lambda line: f"{line.params:,}",
    "FLOPs": lambda line: times(line.flops / whole.flops),
    "forward pass, faster": speed,
    **{
      name.replace("_", " "): lambda line, name=name: f"{line.scores[name]:.4g}"
      for name in scores
    },
    "function": lambda line: (
      str(line.file.relative_to(workdir)) if line.file else "-"
    ),
  }
  table = text.cells(columns, lines, optional=columns)
  written = text.render(
    text.TEMPLATES / "functions.md",
    name=config.name,
    table=table,
    score=config.score,
    batch_size=config.batch_size,
    tested=task.tested_on(whole.scores),
    example=lines[-1].file,
  )
  with storage(workdir):
    (workdir / "report.md").write_text(f"{written}\n")
    text.write_csv(workdir / "table.csv", table)
  text.print_table(config.name, table)
