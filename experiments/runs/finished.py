"""Finds finished runs below a directory, and selects among them.

Any tree of runs of train.py: one run, a comparison, lottery tickets. Runs are
only read, and nothing is computed of them here.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from experiments.errors import UserError, unknown
from experiments.runs import metrics


class Run(NamedTuple):
  """A finished run, as far as its records tell.

  Attributes:
    name: Its directory, seen from the one that holds all; '.' for that itself.
    folder: Where it is.
    config: Its config.
    method: What distinguishes it, besides stage and seed.
    stage: `level 3` of lottery tickets, `90 %` of several sparsities, or ''.
    tests: The records of its evaluations.
  """

  name: str
  folder: Path
  config: ml_collections.ConfigDict
  method: str
  stage: str
  tests: list[dict[str, Any]]

  @property
  def seed(self) -> int:
    """The seed of its config."""
    return self.config.seed

  @property
  def label(self) -> str:
    """Method and stage, for people."""
    return ", ".join(filter(None, (self.method, self.stage)))

  @property
  def title(self) -> str:
    """Its label and its seed."""
    return f"{self.label}, seed {self.seed}"

  @property
  def kind(self) -> tuple[str, str]:
    """Method and architecture."""
    return self.method, architecture(self.config)

  @property
  def sparse(self) -> bool:
    """Whether weights are inactive at its end."""
    return self.tests[-1]["density"] < 1


def find(root: Path) -> list[Run]:
  """Finds finished runs, in the order of the directory's methods and names.

  Raises:
    UserError: If there are none.
  """
  if not root.is_dir():
    what = "is a file, not a directory" if root.exists() else "does not exist"
    raise UserError(f"the directory {root} {what}. Give another --workdir.")
  found = []
  for file in root.rglob("finished.json"):
    # Second children of lottery tickets only tell if training is stable.
    if file.parent.name.endswith("-child"):
      continue
    if config := config_of(file.parent):
      found.append(_run(root, file.parent, config))
  if not found:
    raise UserError(f"{root} holds no finished run. {_what_else(root)}")
  methods = [m.replace(" ", "_") for m in _saved(root).get("methods", ())]
  order = {method: i for i, method in enumerate(methods)}
  return sorted(
    found,
    key=lambda one: (
      order.get(one.method, -1),
      natural(f"{one.label}/{one.name}"),  # names in a sweep are hashes
    ),
  )


def _what_else(root: Path) -> str:
  """Says what a directory without finished runs holds, and what to do."""
  folders = [file.parent for file in root.rglob("config.json")]
  drivers = [_saved(folder).get("driver") for folder in folders]
  if count := drivers.count("train"):
    return f"{count} began to train; give the command that began them again."
  if others := ", ".join(sorted({*filter(None, drivers)})):
    return (
      f"Runs of the driver {others} are there, whose numbers are in their "
      "report.md; this command reads runs that train a net."
    )
  return (
    "Let the command that makes one come to its end, or give another --workdir."
  )


def _saved(folder: Path) -> dict[str, Any]:
  """Reads the config in config.json; an empty one if there is no file."""
  file = folder / "config.json"
  if not file.exists():
    return {}
  try:
    return dict(json.loads(file.read_text())["config"])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"{file} cannot be read ({error}). Move {folder} elsewhere."
    ) from error


def config_of(folder: Path) -> ml_collections.ConfigDict | None:
  """Reads the config of a run of train.py; None if it is something else."""
  config = _saved(folder)
  if config.get("driver") != "train":
    return None
  return ml_collections.ConfigDict(config)


def _run(root: Path, folder: Path, config: ml_collections.ConfigDict) -> Run:
  """Reads a run; its directory's name says method and stage.

  Of a sweep's run the config's name does; its directory's is a hash.
  """
  name = folder.relative_to(root).as_posix()
  method = config.algorithm.name if name == "." else name.removeprefix("runs/")
  if re.fullmatch(r"[0-9a-f]{12}", name):
    method = config.name.removesuffix(f", seed {config.seed}")
  method = re.sub(rf"^seed-{config.seed}/|-{config.seed}$", "", method)
  sparsity, stage = config.algorithm.get("sparsity", 0), ""
  if level := re.search(r"/level-(\d+)", method):
    method, stage = method.replace(level[0], ""), f"level {int(level[1])}"
  elif method.endswith(end := f"-{sparsity:g}"):
    method, stage = method.removesuffix(end), f"{100 * sparsity:g} %"
  elif method.endswith(" %"):
    method, _, stage = method.rpartition(", ")
  tests = [r for r in metrics.read(folder) if r["split"] == "test"]
  return Run(name, folder, config, method, stage, tests)


def natural(name: str) -> list[str | float]:
  """Makes a sorting key by which level-2 comes before level-10."""
  parts = re.split(r"(\d+(?:\.\d+)?)", name)
  return [float(part) if i % 2 else part for i, part in enumerate(parts)]


def select(runs: Sequence[Run], name: str | None) -> Run:
  """Selects the run of a name; the last sparse one if it is None."""
  if name is None:
    return next((one for one in reversed(runs) if one.sparse), runs[-1])
  for one in runs:
    if one.name == Path(name).as_posix():
      return one
  raise unknown("finished run", name, [one.name for one in runs])


def of_first_seeds(runs: Sequence[Run]) -> list[Run]:
  """Selects a run of each method: the last stage of its first seed."""
  found = {}
  for one in runs:
    if found.setdefault(one.kind, one).seed == one.seed:
      found[one.kind] = one
  return list(found.values())


def architecture(config: ml_collections.ConfigDict) -> str:
  """Writes data set and model of a config as JSON, to be compared."""
  parts = config.data.to_dict(), config.model.to_dict()
  return json.dumps(parts, sort_keys=True)
