"""Looks inside the networks that finished runs have left.

python -m experiments.inspect --workdir=DIR [--run=NAME] [--examples=N]

DIR holds one run, a comparison, lottery tickets: any tree of runs of train.py.
What is found goes into DIR/report.md, between two marks, and into pictures
beside it. The runs are only read.
"""

from pathlib import Path

from absl import flags

from experiments import cli
from experiments.inspect import measure
from experiments.inspect import sections as looks_report
from experiments.runs import finished
from experiments.runs import progress as progress_lib
from experiments.runs import workdir as workdir_lib


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
  runs = finished.find(root)
  one = finished.chosen(runs, name)
  leaders = finished.few(finished.leaders_of(runs), measure.MOST_METHODS)
  groups = list(measure.groups(runs, leaders))
  seen = list({r.name: r for r in (*leaders, one)}.values())
  with progress_lib.bar() as progress:
    advance = progress("looking inside", len(seen) + len(groups) + 1, 0)
    done = iter(range(1, len(seen) + len(groups) + 2))
    sensitivity = measure.measure(one, examples)
    advance(next(done), "sensitivity")
    seen_in = {}
    for other in seen:
      seen_in[other.title] = measure.look(other)
      advance(next(done), other.title)
    agreements = []
    for group in groups:
      agreements.append(measure.agreement(*group))
      advance(next(done), "overlap")
  with workdir_lib.locked(root) as path, workdir_lib.storage(path):
    sections = (
      looks_report.HEAD.format(count=len(runs), title=one.title, name=one.name),
      looks_report.sensitivity_text(path, one, sensitivity),
      looks_report.overlap_text(path, agreements),
      looks_report.motion_text(path, runs, leaders, one),
      looks_report.flow_text(path, seen_in, one),
      looks_report.dead_text(path, seen_in, one),
    )
    looks_report.insert(path, "\n".join(filter(None, sections)))
  looks_report.show(seen_in)
  print(f"The report is {path / 'report.md'}")


def main() -> None:
  """Hands the flags on."""
  given = flags.FLAGS
  run(given.workdir, name=given.run, examples=given.examples)


def _define_flags() -> None:
  flags.DEFINE_string("workdir", None, "Where finished runs are.")
  flags.DEFINE_string(
    "run", None, "The run to show layer by layer: its directory in there."
  )
  flags.DEFINE_integer(
    "examples", 1000, "Test examples to measure sensitivity on.", lower_bound=1
  )
  flags.mark_flag_as_required("workdir")


if __name__ == "__main__":
  cli.run(main, _define_flags)
