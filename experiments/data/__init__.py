"""Data sets by name, ready for the device.

`load` gives sets that fit in memory, `order.batch_indices` the order of their
examples; `stream.stream` gives batches of sets that do not fit.
"""

import functools

from experiments import names
from experiments.data import characters, sets
from experiments.data.failures import DataError, MissingDataError
from experiments.data.order import batch_indices
from experiments.data.sets import Dataset

__all__ = [
  "DATASETS",
  "DataError",
  "Dataset",
  "MissingDataError",
  "batch_indices",
  "load",
]

DATASETS = {
  "mnist1d": sets.mnist1d,
  "digits": sets.digits,
  "mnist": sets.mnist,
  "fashion_mnist": sets.fashion_mnist,
  "cifar10": functools.partial(sets.cifar, "cifar10"),
  "cifar100": functools.partial(sets.cifar, "cifar100"),
  "wikitext103": characters.wikitext103,
  "imagenet2012": sets.imagenet2012,
}


def load(name: str, *, data_dir: str | None = None, **options) -> Dataset:
  """Loads a data set into host memory.

  Args:
    name: A key of `DATASETS`, or `package.module:attribute` of a function of
      keywords that returns a `Dataset`.
    data_dir: Where its files lie; None is the set's own default. Sets that
      are generated or installed do not use it.
    **options: The set's own, see its function in sets.py.

  Returns:
    The data set.

  Raises:
    UserError: The set, or the option, is unknown; the near ones are listed.
    DataError: A file, a label or an option's value is wrong.
    MissingDataError: The data is not there; says how to get it.
  """
  make = names.find("data set", name, DATASETS)
  accepted, others = names.keywords(make)
  if data_dir is not None or "data_dir" in accepted:
    options["data_dir"] = data_dir
  names.check_options(f"data set {name}", options, accepted, others)
  try:
    return make(**options)
  except MissingDataError:  # an OSError as well
    raise
  except OSError as error:
    raise DataError(f"{name}: its data cannot be read: {error}") from error
