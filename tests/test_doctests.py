"""The examples in docstrings are right."""

import doctest
import importlib
import pkgutil

import pytest

import sparsejax
from tests.marks import few

pytestmark = pytest.mark.core

MODULES = [
  "sparsejax",
  *(
    module.name
    for module in pkgutil.walk_packages(sparsejax.__path__, "sparsejax.")
  ),
]


# These compile whole steps, which other tests do besides.
DEAR = {"sparsejax.modes.training", "sparsejax.select.tiles"}


@pytest.mark.parametrize("name", few(MODULES, set(MODULES) - DEAR))
def test_examples(name):
  failed, _ = doctest.testmod(importlib.import_module(name))
  assert failed == 0


def test_there_are_examples():
  tried = doctest.testmod(importlib.import_module("sparsejax.masks"))
  assert tried.attempted > 5
