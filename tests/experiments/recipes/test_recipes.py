"""What recipes may use of other rooms."""

import ast
from pathlib import Path

import pytest

from experiments import recipes

FILES = sorted(Path(recipes.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_of_drivers_only_defaults(file):
  tree = ast.parse(file.read_text())
  drivers = {
    alias.asname or alias.name
    for node in ast.walk(tree)
    if isinstance(node, ast.ImportFrom)
    and node.module.startswith("experiments.drivers")
    for alias in node.names
  }
  used = {
    node.attr
    for node in ast.walk(tree)
    if isinstance(node, ast.Attribute)
    and isinstance(node.value, ast.Name)
    and node.value.id in drivers
  }
  assert used == ({"defaults"} if drivers else set())
