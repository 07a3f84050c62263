"""The examples in docstrings of experiments are right."""

import doctest
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
MODULES = [
  ".".join(file.relative_to(ROOT).with_suffix("").parts)
  for file in sorted((ROOT / "experiments").rglob("*.py"))
  if ">>>" in file.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
  found = doctest.testmod(importlib.import_module(name))
  assert found.failed == 0
  assert found.attempted
