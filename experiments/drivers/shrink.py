"""Trains nets whose channels leave: prune gradually, shrink, train on, report.

Each net is two runs of train.py in directories of their own, so what was
stopped goes on where it was, with the same command.
"""

import ml_collections

from experiments.config import calling, schema, sections
from experiments.config import defaults as defaults_lib
from experiments.errors import UserError
from experiments.runs import progress as progress_lib
from experiments.runs import shrink
from experiments.runs import workdir as workdir_lib
from experiments.runs.recorder import DivergedError
from experiments.tables import shrink as report

# What may change in a workdir: each run has a config of its own.
_FREE = ("seeds", "sparsities", "rounds", "base.devices")


def defaults() -> ml_collections.ConfigDict:
  """Makes the config of nets that shrink, to be filled in by a config file.

  Keys:
    driver: What runs the config.
    name: A title, for people.
    seeds: The seeds at each sparsity.
    base: The config of a run of train.py; its `steps` are those of the masked
      and of the smaller net together, and its algorithm prunes channels.
    sparsities: Shares of channels to prune; 0, which goes first, for the net
      that others are compared with.
    shrink_at: The step at which pruned channels are taken out.
    then: The keys in which training differs from that step on.
    rounds: How often to time the nets, in turns; 0 for never.

  Returns:
    The config.
  """
  config = ml_collections.ConfigDict()
  config.driver = "shrink"
  config.name = "shrink"
  config.seeds = (0, 1, 2)
  config.base = defaults_lib.training_run()
  config.sparsities = (0.0, 0.5, 0.75)
  config.shrink_at = 1
  config.then = ml_collections.ConfigDict()
  config.rounds = 15
  return config


# What a config can have.
SECTION = sections.SHRINKING._replace(more=schema.of_defaults(defaults))


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Trains what is not finished, times it, and writes the report."""
  planned = shrink.plan(config)
  with workdir_lib.locked(workdir) as path:
    workdir_lib.ensure_config(path, calling.plain(config), free=_FREE)
    nets, diverged = {}, {}
    with progress_lib.bar() as progress:
      total = sum(map(len, planned.values()))
      advance = progress("all nets", total, 0, "net")
      for sparsity, firsts in planned.items():
        nets[sparsity] = []
        for first in firsts:
          folder = path / "runs" / f"{100 * sparsity:g}-{first.seed}"
          try:
            net = shrink.train_net(config, first, folder, progress)
            nets[sparsity].append(net)
          except DivergedError as error:
            diverged[sparsity, first.seed] = str(error)
          advance(sum(map(len, nets.values())) + len(diverged))
    if not any(nets.values()):
      raise UserError(f"all runs diverged: {next(iter(diverged.values()))}")
    speeds = {}
    if config.rounds:
      speeds = shrink.speeds(
        {f"{100 * s:g}": group[0] for s, group in nets.items() if group},
        path / "speed.json",
        rounds=config.rounds,
      )
    report.write_report(path, config, nets, speeds, diverged)
  print(f"\nThe report is {path / 'report.md'}")
