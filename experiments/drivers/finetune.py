"""Fine-tunes a language model and writes the report."""

from pathlib import Path

import ml_collections

from experiments.config.defaults import fine_tuning_run
from experiments.llm.evaluate import tasks
from experiments.runs import finetune, sections
from experiments.runs import progress as progress_lib
from experiments.runs import workdir as workdir_lib
from experiments.tables import llm

defaults = fine_tuning_run
SECTION = sections.FINE_TUNING  # what a config can have


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Fine-tunes with a progress bar, writes report.md, prints a summary."""
  done = workdir_lib.finished(workdir)
  with progress_lib.bar() as progress:
    final, history = finetune.train(config, workdir, progress=progress)
  measure = next(name for name in tasks.MEASURES if name in final)
  llm.write_run_report(Path(workdir), config, history, measure)
  print(
    f"{config.name} in {workdir} {'was already' if done else 'is'} finished: "
    f"{measure} {final[measure]:.4g}, {final['nnz']:,} of {final['size']:,} "
    "weights in the layers' kernels are not 0."
  )
  print(f"The report is {Path(workdir) / 'report.md'}")
  if config.save:
    print(f"The model is {Path(workdir) / 'model'}")
