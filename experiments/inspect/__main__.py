"""Measures the networks of finished runs, and adds a section to their report.

python -m experiments.inspect --workdir=DIR [--run=NAME] [--examples=N]

DIR holds one run, a comparison, lottery tickets: any tree of runs of train.py.
The section goes into DIR/report.md, between two marks, and its pictures beside
it. The runs are only read.
"""

from pathlib import Path

from absl import flags

from experiments import cli
from experiments.inspect import measure, sections
from experiments.plots.style import evenly_spaced
from experiments.runs import finished, workdir
from experiments.runs import progress as progress_lib


def run(root: str, *, name: str | None = None, examples: int = 1000) -> None:
  """Measures the runs in a directory, writes the report, prints a summary.

  Args:
    root: The directory.
    name: The run to report layer by layer; the last sparse one if None.
    examples: How many test examples at least to measure sensitivity on.

  Raises:
    UserError: If there is no finished run, or none of that name.
  """
  runs = finished.find(Path(root))
  chosen = finished.select(runs, name)
  leaders = evenly_spaced(finished.of_first_seeds(runs), measure.MOST_METHODS)
  groups = list(measure.comparable_groups(runs, leaders))
  profiled = list({one.name: one for one in (*leaders, chosen)}.values())
  with progress_lib.bar() as progress:
    total = len(profiled) + len(groups) + 1
    advance = progress("measuring networks", total, 0, "measurement")
    done = iter(range(1, total + 1))
    sensitivity = measure.sensitivity(chosen, examples)
    advance(next(done), "sensitivity")
    profiles = {}
    for one in profiled:
      profiles[one.title] = measure.profile(one)
      advance(next(done), one.title)
    overlaps = []
    for group in groups:
      overlaps.append(measure.mask_overlap(*group))
      advance(next(done), "overlap")
  with workdir.locked(root) as path, workdir.storage(path):
    text = (
      sections.render(
        "head.md", count=len(runs), title=chosen.title, name=chosen.name
      ),
      sections.sensitivity_section(path, chosen, sensitivity),
      sections.overlap_section(path, overlaps),
      sections.motion_section(path, runs, leaders, chosen),
      sections.flow_section(path, profiles, chosen),
      sections.dead_section(path, profiles, chosen),
    )
    sections.insert_section(path, "\n\n".join(filter(None, text)))
  sections.print_summary(profiles)
  print(f"The report is {path / 'report.md'}")


def main() -> None:
  """Runs the command with its flags."""
  asked = flags.FLAGS
  run(asked.workdir, name=asked.run, examples=asked.examples)


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
