"""Marks of single cases of a test."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow(*values):
  """A case for the parameters of a test, left out of the default run."""
  return pytest.param(*values, marks=pytest.mark.slow)


def few(cases: Iterable[Any], quick: Collection[Any]) -> list:
  """All cases, of which the default run has the quick ones."""
  return [case if case in quick else slow(case) for case in cases]
