"""Who imports whom, and how long files and functions are.

The layers are contracts of import-linter in pyproject.toml.
"""

import ast
import functools
import io
import sys
import tokenize
from pathlib import Path

import grimp
import pytest
from importlinter import cli

ROOT = Path(__file__).parents[1]
PACKAGES = ("experiments", "sparsejax")
FILE_LINES = 400
FUNCTION_LINES = 80

# What does not hold yet. An exception that is no longer needed fails too.
CIRCLES = set()
LONG_FILES = set()
LONG_FUNCTIONS = set()


@functools.cache
def imports(package: str) -> dict[str, set[str]]:
  """Other modules of a package that each imports, also inside functions."""
  graph = grimp.build_graph(package, cache_dir=None)
  return {
    module: graph.find_modules_directly_imported_by(module) - {module}
    for module in graph.modules
  }


def circles(arrows: dict[str, set[str]]) -> set[tuple[str, ...]]:
  """Sets of two or more modules from each of which all others are reached."""

  def reached(module):
    found, ahead = set(), [module]
    while ahead:
      new = arrows[ahead.pop()] - found
      found |= new
      ahead += new
    return found

  reach = {module: reached(module) for module in arrows}
  return {
    tuple(sorted(m for m in reach[module] if module in reach[m]))
    for module in arrows
    if module in reach[module]
  }


def test_circles_are_found():
  arrows = {"a": {"b"}, "b": {"c", "d"}, "c": {"b"}, "d": set()}
  assert circles(arrows) == {("b", "c")}


def test_no_module_imports_itself_by_way_of_others():
  assert {c for p in PACKAGES for c in circles(imports(p))} == CIRCLES


def test_contracts_of_imports_hold(monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  # It would close the handlers of loggers that other tests have made, absl's
  # among them, and pytest's output with these.
  monkeypatch.setattr(cli, "_configure_logging", lambda verbose: None)
  assert cli.lint_imports(no_cache=True) == 0, capsys.readouterr().out


def test_the_library_stands_on_jax_optax_and_numpy():
  graph = grimp.build_graph(
    "sparsejax", include_external_packages=True, cache_dir=None
  )
  outside = {m for m in graph.modules if m.split(".")[0] != "sparsejax"}
  assert outside - sys.stdlib_module_names == {
    "jax",
    "jaxlib",
    "numpy",
    "optax",
  }
  # Files and flags: only where the kernels are compiled.
  for module in ("argparse", "io", "json", "os", "pathlib", "sys", "tempfile"):
    importers = (
      graph.find_modules_that_directly_import(module)
      if module in outside
      else set()
    )
    assert importers <= {"sparsejax.kernels.build"}, module


@functools.cache
def parsed(package: str) -> dict[str, tuple[ast.Module, set[int]]]:
  """The tree and the numbers of the lines of code of each file."""
  return {
    str(file.relative_to(ROOT)): (ast.parse(text), code_lines(text))
    for file in sorted((ROOT / package).rglob("*.py"))
    for text in [file.read_text()]
  }


def code_lines(text: str) -> set[int]:
  """The lines that hold more than docstrings, comments and blanks."""
  lines = set()
  layout = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
    *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
  }
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type not in layout:
      lines |= set(range(token.start[0], token.end[0] + 1))
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (
      ast.get_docstring(node, clean=False) is not None
    ):
      lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
  return lines


def test_lines_of_code_are_counted():
  text = '"""Doc."""\n\nx = 1  # one\n# two\n\n\ndef f():\n  """Doc.\n\n  """\n'
  assert code_lines(text + "  return (\n    2\n  )\n") == {3, 7, 11, 12, 13}


def test_no_file_is_long():
  long = {
    name
    for package in PACKAGES
    for name, (_, lines) in parsed(package).items()
    if len(lines) > FILE_LINES
  }
  assert long == LONG_FILES


def test_no_function_is_long():
  long = {
    f"{name}: {node.name}"
    for package in PACKAGES
    for name, (tree, lines) in parsed(package).items()
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef)
    if len(lines & {*range(node.lineno, node.end_lineno + 1)}) > FUNCTION_LINES
  }
  assert long == LONG_FUNCTIONS


def test_no_file_opens_another_in_the_library():
  calls = {
    name
    for name, (tree, _) in parsed("sparsejax").items()
    for node in ast.walk(tree)
    if isinstance(node, ast.Call)
    if isinstance(node.func, ast.Name)
    if node.func.id in ("open", "input")
  }
  assert not calls


@pytest.mark.parametrize(("package", "most"), [("experiments", 21)])
def test_the_top_of_a_package_is_taken_in_at_a_glance(package, most):
  entries = {
    entry.name
    for entry in (ROOT / package).iterdir()
    if entry.suffix == ".py" or (entry.is_dir() and any(entry.glob("*.py")))
  }
  assert len(entries) <= most, sorted(entries)
