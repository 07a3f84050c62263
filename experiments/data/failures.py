"""Errors of data sets, which say how to mend them."""

from experiments.errors import UserError


class DataError(UserError, ValueError):
  """A data file, a label or an option of a data set is not right."""


class MissingDataError(UserError, FileNotFoundError):
  """A data set is not there; the message says how to get it."""
