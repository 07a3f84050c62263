"""What API pages list, and signatures as the source has them; no Sphinx here.

A block of a page

    ```{api} sparsejax.masks
    overlap
    ```

stands for the directives of autodoc for these names of this module.
"""

import ast
import functools
import importlib
import inspect
import re

BLOCK = re.compile(r"^```\{api\} (\S+)\n(.*?)^```$", re.M | re.S)
ENTRY = re.compile(r"^\.\. py:\w+:: (\S+)\.(\w+)$", re.M)


def listed(text: str) -> list[tuple[str, str]]:
  """Finds what a page lists, by `{api}` blocks or entries of its own.

  Args:
    text: The page.

  Returns:
    The module and the name of each.
  """
  blocks = [
    (module, name)
    for module, names in BLOCK.findall(text)
    for name in names.split()
  ]
  return blocks + ENTRY.findall(text)


def expanded(text: str) -> str:
  """Writes the `{api}` blocks of a page as directives of autodoc."""

  def directives(match):
    module, names = match.groups()
    lines = ["```{eval-rst}", f".. currentmodule:: {module}", ""]
    for name in names.split():
      thing = getattr(importlib.import_module(module), name)
      kind = "autoclass" if inspect.isclass(thing) else "autofunction"
      lines += [f".. {kind}:: {name}"]
      lines += ["   :members:"] * (kind == "autoclass")
    return "\n".join([*lines, "```"])

  return BLOCK.sub(directives, text)


@functools.cache
def _definitions(module) -> dict[str, ast.AST]:
  """Functions and classes of a module's source, by qualified name."""
  found = {}

  def visit(node, prefix):
    for child in ast.iter_child_nodes(node):
      if isinstance(child, ast.ClassDef | ast.FunctionDef):
        found[prefix + child.name] = child
        visit(child, prefix + child.name + ".")

  visit(ast.parse(inspect.getsource(module)), "")
  return found


def signature_of(thing) -> tuple[str, str | None] | None:
  """Reads arguments and result off the source.

  Args:
    thing: A function or a class.

  Returns:
    The text of both; None where there is no source.
  """
  thing = inspect.unwrap(thing)
  module = inspect.getmodule(thing)
  if not module or not module.__name__.startswith("sparsejax"):
    return None
  definition = _definitions(module).get(getattr(thing, "__qualname__", None))
  if isinstance(definition, ast.ClassDef):
    fields = [f for f in definition.body if isinstance(f, ast.AnnAssign)]
    return f"({', '.join(map(ast.unparse, fields))})" if fields else "", None
  if definition is None:
    return None
  args, result = definition.args, definition.returns
  named = [*args.posonlyargs, *args.args]
  if named and named[0].arg in ("self", "cls"):
    (args.posonlyargs or args.args).pop(0)
  return f"({ast.unparse(args)})", result and ast.unparse(result)
