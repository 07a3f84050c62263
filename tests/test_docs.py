"""The site: every public name is on a page, and pages name what is there."""

import ast
import contextlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
from collections import Counter
from pathlib import Path

import sparsejax

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def extension(name: str):
  """Imports a module of docs/_ext, which is no package."""
  spec = importlib.util.spec_from_file_location(
    f"docs_{name}", DOCS / "_ext" / f"{name}.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def listed() -> list[tuple[str, str]]:
  pages = sorted((DOCS / "api").glob("*.md"))
  return [x for p in pages for x in extension("api").listed(p.read_text())]


def found(path: str):
  """What a dotted name stands for; raises an AttributeError if nothing."""
  if path == "sparsejax":
    return sparsejax
  owner, _, name = path.rpartition(".")
  # A function may have the name of the module that it is in.
  if not hasattr(found(owner), name):
    with contextlib.suppress(ModuleNotFoundError):
      importlib.import_module(path)
  return getattr(found(owner), name)


def public() -> dict[str, object]:
  """All names in `__all__` of the package and its modules, but for modules."""
  modules = [
    importlib.import_module(name)
    for name in [
      "sparsejax",
      *(m.name for m in pkgutil.iter_modules(sparsejax.__path__, "sparsejax.")),
    ]
  ]
  return {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in modules
    for name in getattr(module, "__all__", ())
    if not inspect.ismodule(getattr(module, name))
  }


def is_on(thing, listed) -> bool:
  return any(thing is x or thing == x for x in listed)


def test_every_public_name_is_on_a_page():
  there = [found(f"{module}.{name}") for module, name in listed()]
  names = public()
  assert len(names) > 200
  assert not [name for name, x in names.items() if not is_on(x, there)]
  assert not is_on(test_every_public_name_is_on_a_page, there)


def test_no_entry_comes_twice():
  assert not [name for name, n in Counter(listed()).items() if n > 1]


def test_public_modules_say_what_is_public():
  for name in sparsejax.__all__:
    thing = getattr(sparsejax, name)
    assert not inspect.ismodule(thing) or thing.__all__


def test_pages_name_what_is_there():
  pages = [ROOT / "README.md", *DOCS.rglob("*.md")]
  for page in pages:
    if "_build" not in page.parts:
      for name in re.findall(r"`(sparsejax(?:\.\w+)+)", page.read_text()):
        try:
          found(name)
        except AttributeError as e:
          raise AssertionError(f"{page}: there is no {name}") from e


def test_all_algorithms_are_on_the_page_of_options():
  options = extension("options")
  text = (DOCS / "options.md").read_text()
  tables = {m: names.split() for m, names in options.MARK.findall(text)}
  assert sorted(tables["sparsejax"]) == sorted(sparsejax.algorithms.__all__)
  table = options.table("sparsejax", ["static", "rigl", "fixed"])
  row = next(x for x in table.splitlines() if x.startswith("| `delta_t`"))
  assert row == (
    "| `delta_t` | `100` | {py:obj}`rigl <sparsejax.rigl>` "
    "| Steps between mask updates. |"
  )
  for module, names in tables.items():
    for keyword, rows in options.options(module, names).items():
      assert all(row.meaning for row in rows), keyword


def test_signatures_are_those_of_the_source():
  api = extension("api")
  args, result = api.signature_of(sparsejax.apply_masks)
  assert (args, result) == ("(tree: PyTree, masks: PyTree)", "PyTree")
  args, _ = api.signature_of(sparsejax.rigl)
  assert "pattern: Patterns | None=None" in args
  assert "distribution: Distribution=distributions.erdos_renyi_kernel" in args


def said(tree: ast.AST) -> str:
  """All text of a module, a line for each string, ... for what is filled in."""

  def text(node):
    if isinstance(node, ast.Constant):
      return node.value if isinstance(node.value, str) else ""
    return "".join(
      text(x) if isinstance(x, ast.Constant) else "..." for x in node.values
    )

  strings = (ast.Constant, ast.JoinedStr)
  return "\n".join(text(x) for x in ast.walk(tree) if isinstance(x, strings))


def test_messages_that_are_explained_are_those_of_the_code():
  page = (DOCS / "troubleshooting.md").read_text()
  parts = [
    part.strip()
    for message in re.findall(r"^### `(.*)`$", page, re.M)
    for part in message.split("...")
    if part.strip()
  ]
  assert len(parts) >= 20
  texts = [
    said(ast.parse(file.read_text()))
    for room in ("sparsejax", "experiments")
    for file in sorted((ROOT / room).rglob("*.py"))
  ]
  assert [p for p in parts if not any(p in text for text in texts)] == []
