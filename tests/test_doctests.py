"""The examples in docstrings are right."""

import doctest
import importlib
import pkgutil

import pytest

import sparsejax

pytestmark = pytest.mark.core

MODULES = [
  "sparsejax",
  *(
    module.name
    for module in pkgutil.walk_packages(sparsejax.__path__, "sparsejax.")
  ),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
  failed, _ = doctest.testmod(importlib.import_module(name))
  assert failed == 0


def test_there_are_examples():
  tried = doctest.testmod(importlib.import_module("sparsejax.masks"))
  assert tried.attempted > 5
