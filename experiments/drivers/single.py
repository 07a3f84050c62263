"""Trains one run and writes its report: the driver of configs of one run."""

from pathlib import Path

import ml_collections

from experiments.config import defaults as defaults_lib
from experiments.config import sections
from experiments.config.entry import Entry
from experiments.runs import progress, train
from experiments.runs import workdir as workdirs
from experiments.tables import markdown

defaults = defaults_lib.training_run
SECTION = sections.TRAINING  # what a config can have


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Trains with a progress bar, writes report.md and prints a summary."""
  done = workdirs.finished(workdir)
  with progress.bar() as track:
    result = train.train(config, workdir, progress=track)
  runs = {Entry(config.algorithm.name): [markdown.Run(config, result)]}
  markdown.write_report(Path(workdir), config, runs)
  final = result.metrics
  print(
    f"{config.name} in {workdir} {'was already' if done else 'is'} finished: "
    f"accuracy {final['accuracy']:.4f}, {final['nnz']} of {final['size']} "
    "weights active. The report is report.md there."
  )
