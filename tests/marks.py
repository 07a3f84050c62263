"""Marks of single cases of a test."""

import pytest


def slow(*values):
  """A case for the parameters of a test, left out of the default run."""
  return pytest.param(*values, marks=pytest.mark.slow)
