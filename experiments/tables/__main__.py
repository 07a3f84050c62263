"""The tables of sweeps, of results/, of the README and of the docs.

python -m experiments.tables --table=NAME --root=DIR [--arg=ARG] \
  [--config.key=value] [--rows=REGEX] [--out=results]

makes the table of configs/NAME.py (with its argument ARG) from the runs in DIR,
those of a sweep with the same --config.key=value and rows that --rows finds:
NAME.csv, .md, .tex, their numbers run by run in NAME_runs.csv, NAME.png and
NAME_flops.png, all in DIR or the folder of --out; and DIR/report.html.

python -m experiments.tables --table=all

makes all tables in results/ again that follow from a NAME_runs.csv or from
arithmetic alone, and then, as `python -m experiments.tables` does, those of
README.md and docs/. A test fails when they differ.

python -m experiments.tables --pictures=results/NAME.csv [--out=DIR]

draws the pictures of a table from its CSV, beside it or in DIR; the CSV is one
of results/, or the table.csv of a run's directory. --pictures=all draws all
that are in results/ again.
"""

import pathlib
import shlex

from absl import flags

from experiments import cli
from experiments.config import describe, grid
from experiments.config.grid import Grid
from experiments.config.overrides import Changes
from experiments.errors import UserError, unknown
from experiments.plots import titles
from experiments.runs.workdir import storage
from experiments.tables import html, paper_costs, pictures, sweep, text
from experiments.tables.rows import Row

ROOT = pathlib.Path(__file__).parents[2]
_RUNS = "_runs.csv"


def make_table(
  name: str,
  root: pathlib.Path,
  *,
  arg: str = "",
  changes: Changes = (),
  only: str = "",
  out: pathlib.Path | None = None,
) -> list[Row]:
  """Makes the table and the report of a sweep.

  Args:
    name: The config file's, without folder and ending.
    root: The directory of the runs.
    arg: The config's argument.
    changes: What the sweep changed in its configs, see `overrides`.
    only: A regular expression for the rows that are wanted.
    out: Where the table goes; `root` by default. The report goes to `root`.

  Returns:
    The rows.

  Raises:
    UserError: If there is no such config, it is no grid, or no run is finished.
  """
  file = _config(name)
  end = f":{arg}" if arg else ""
  config = Grid(f"{file}{end}", changes, only)
  records = sweep.collect_records(config, root)
  out = out or root
  first, *more = config._replace(config=f"configs/{name}.py{end}").flags()
  more = "".join(f" {shlex.quote(word)}" for word in more)
  given = f" --arg={arg}{more}" if arg else more
  made = (
    f"python -m experiments.sweep {first}{more} --root=DIR && "
    f"python -m experiments.tables --table={name}{given} --root=DIR "
    "--out=results"
  )
  with storage(out):
    out.mkdir(parents=True, exist_ok=True)
    sweep.save_records(out / f"{name}{_RUNS}", records, command=made)
  rows = rebuild(out / f"{name}{_RUNS}")
  launched = f"python -m experiments.sweep {first}{more} --root={root}"
  html.write_report(root / "report.html", config, root, rows, launched)
  return rows


def rebuild(file: pathlib.Path) -> list[Row]:
  """Makes a table from its NAME_runs.csv, beside that.

  Args:
    file: NAME_runs.csv.

  Returns:
    The rows.

  Raises:
    UserError: If it cannot be read, or there is no such config.
  """
  name = file.name.removesuffix(_RUNS)
  config = grid.module(str(_config(name)))
  rows = sweep.summarize(sweep.load_records(file), config)
  lines = sweep.table(rows)
  beside = file.with_name
  with storage(file.parent):
    text.write_csv(
      beside(f"{name}.csv"),
      lines,
      command="python -m experiments.tables --table=all",
    )
    parts = sweep.parts(rows, config)
    page = text.render(text.TEMPLATES / "sweep.md", tables=parts)
    beside(f"{name}.md").write_text(f"{page}\n")
    beside(f"{name}.tex").write_text(text.latex(titles.table(lines)) + "\n")
    pictures.draw(file, file.parent, root=ROOT)
  return rows


def _config(name: str) -> pathlib.Path:
  known = {file.stem: file for file in (ROOT / "configs").glob("*.py")}
  if name not in known:
    raise unknown("config with a table", name, {"all", *known})
  return known[name]


def rewrite_pages() -> None:
  """Rewrites the tables of README.md and of all pages in docs/."""
  for file in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
    file.write_text(text.fill(file.read_text(), ROOT))


def draw_pictures(name: str, out: pathlib.Path | None = None) -> None:
  """Draws the pictures of a table, or all that are in results/.

  Args:
    name: The table's CSV, or `all`.
    out: Where they go; beside the CSV by default.

  Raises:
    UserError: If a table cannot be read, or has no picture.
  """
  files = [pathlib.Path(name)]
  if name == "all":
    pngs = (ROOT / "results").glob("*.png")
    files = sorted({pictures.csv_of(png) for png in pngs})
  for file in files:
    for made in pictures.draw(file, out or file.parent, root=ROOT):
      print(made)


def main(changes: Changes) -> None:
  """Makes the tables that the flags ask for."""
  asked = flags.FLAGS
  out = pathlib.Path(asked.out) if asked.out else None
  if asked.pictures:
    if asked.table or asked.root or changes or asked.rows:
      raise UserError("--pictures takes no other flag than --out")
    draw_pictures(asked.pictures, out)
    return
  if asked.table in (None, "all"):
    if changes or asked.rows:
      raise UserError(
        "--rows and --config.key=value are for one table; name it by "
        "--table=NAME"
      )
    if asked.root:
      raise UserError("--root is for one table; name it by --table=NAME")
    if asked.table:
      for file in sorted((ROOT / "results").glob(f"*{_RUNS}")):
        rebuild(file)
      text.write_csv(
        ROOT / "results" / "flops.csv",
        [paper_costs.HEADER, *paper_costs.lines()],
        command="python -m experiments.paper_costs --csv=results/flops.csv",
      )
    rewrite_pages()
    return
  if not asked.root:
    raise UserError(
      f"--table={asked.table} needs --root, the directory of its sweep"
    )
  make_table(
    asked.table,
    pathlib.Path(asked.root),
    arg=asked.arg,
    changes=changes,
    only=asked.rows,
    out=out,
  )
  where = out or asked.root
  print(f"{where}/{asked.table}.md; the report is {asked.root}/report.html")


def _define_flags() -> None:
  flags.DEFINE_string("table", None, "A config's name, or all.")
  flags.DEFINE_string("root", None, "The directory of the sweep's runs.")
  flags.DEFINE_string("arg", "", "The config's argument.")
  flags.DEFINE_string("rows", "", "A regular expression for names of rows.")
  flags.DEFINE_string("pictures", None, "A table's CSV, or all.")
  flags.DEFINE_string("out", None, "Where the table goes; --root by default.")


if __name__ == "__main__":
  cli.run(main, _define_flags, describe=lambda *_: describe.configs())
