"""Pages of configs: `{config} NAME` shows the docstring of configs/NAME.py."""

import ast
import pathlib
import re

from docutils import nodes
from docutils.statemachine import StringList
from reference import ARXIV
from sphinx.util.docutils import SphinxDirective

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def page(name: str) -> str:
  """Writes what a config says of itself as Markdown.

  Args:
    name: The config's, without folder and ending.

  Returns:
    Its docstring, with links to papers and code.

  Raises:
    FileNotFoundError: There is no such config.
  """
  tree = ast.parse((CONFIGS / f"{name}.py").read_text())
  title, _, text = ast.get_docstring(tree).partition("\n")
  lines = [x if x.startswith("    ") else _linked(x) for x in text.split("\n")]
  return "\n".join([f"**{title}**", *lines, ""])


def _linked(line: str) -> str:
  """Links papers and code, and sets flags as code."""
  for pattern, instead in (
    (ARXIV, r"[arXiv:\1](https://arxiv.org/abs/\1)"),
    (r"\bgithub\.com/([\w-]+/[\w-]+)", r"[\1](https://github.com/\1)"),
    (r"(?<![`\S])--[\w.=]*\w", r"`\g<0>`"),
  ):
    line = re.sub(pattern, instead, line)
  return line


class Config(SphinxDirective):
  """Shows a config's docstring in place."""

  required_arguments = 1

  def run(self) -> list[nodes.Node]:
    """Parses the docstring as Markdown."""
    (name,) = self.arguments
    source = str(CONFIGS / f"{name}.py")
    self.env.note_dependency(source)
    node = nodes.container(classes=["config"])
    lines = StringList(page(name).splitlines(), source)
    self.state.nested_parse(lines, 0, node)
    return [node]


def setup(app):
  """Connect what is above to Sphinx."""
  app.add_directive("config", Config)
  return {"parallel_read_safe": True, "parallel_write_safe": True}
