"""Skips what compiles for an H100 where nothing can."""

import pytest

from tests.compiled import harness
from tests.conftest import lane


def pytest_collection_modifyitems(
  config: pytest.Config, items: list[pytest.Item]
) -> None:
  """Marks the tests of this directory, and says why they are skipped."""
  reason = harness.missing()
  if lane(config) != "compiled":
    # Eight devices would be traced otherwise than the one of a GPU's program.
    reason = "compiles for one H100, alone: python -m pytest -m compiled"
  for item in items:
    if item.path.is_relative_to(harness.ROOM):
      item.add_marker("compiled")
      if reason:
        item.add_marker(pytest.mark.skip(reason=reason))
