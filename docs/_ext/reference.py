"""The API pages: what they list, signatures as the source has them, links.

Autodoc would evaluate annotations, and print `Any` where the source says
`PyTree`, and a long `Callable` where it says `Distribution`. Other projects'
inventories would need the internet at every build.
"""

import inspect
import re

import api
from docutils import nodes
from sphinx.addnodes import desc, desc_signature, pending_xref
from sphinx.transforms import SphinxTransform

PYTHON = "https://docs.python.org/3/library/"
JAX = "https://docs.jax.dev/en/latest/"
OPTAX = "https://optax.readthedocs.io/en/latest/api/"
PAGES = {
  PYTHON + "stdtypes.html": "bool bytes dict float int list object set str "
  "tuple type",
  PYTHON + "collections.abc.html": "Callable Collection Hashable Iterable "
  "Mapping Sequence",
  PYTHON + "exceptions.html": "RuntimeError TypeError ValueError",
  PYTHON + "typing.html": "Any",
  PYTHON + "fractions.html": "Fraction",
  "https://numpy.org/doc/stable/reference/generated/numpy.ndarray.html": (
    "np.ndarray"
  ),
  "https://numpy.org/doc/stable/reference/arrays.dtypes.html": "dtype",
  JAX + "_autosummary/jax.Array.html": "jax.Array",
  JAX + "jax.errors.html": "jax.errors.JaxRuntimeError",
  JAX + "jax.nn.initializers.html": "Initializer",
  JAX + "pytrees.html": "PyTree",
  OPTAX + "optimizer_schedules.html": "optax.ScalarOrSchedule optax.Schedule",
  OPTAX + "transformations.html": "optax.GradientTransformation "
  "optax.GradientTransformationExtraArgs optax.OptState",
}
OUTSIDE = {name: page for page, s in PAGES.items() for name in s.split()}


def expand(app, docname, source):
  """Sphinx's hook: writes `{api}` blocks as directives of autodoc."""
  source[0] = api.expanded(source[0])


def process_signature(app, what, name, thing, *_):
  """Autodoc's hook: the signature that the source has."""
  return api.signature_of(thing)


ARXIV = r"arXiv[: ](\d{4}\.\d{5})"


def process_docstring(app, what, name, thing, options, lines):
  """Autodoc's hook: what docstrings have that is no reStructuredText."""
  arxiv = r"`arXiv:\1 <https://arxiv.org/abs/\1>`__"
  for i, line in enumerate(lines):
    if line.lstrip().startswith((">>>", "...")):
      continue
    parts = re.split(r"(`+[^`]*`+)", line)  # code is at odd places
    for j in range(0, len(parts), 2):
      text = re.sub(r"(\||(?<![\\*\w])\*(?=\w))", r"\\\1", parts[j])
      text = re.sub(ARXIV, arxiv, text)
      # As in `Array`s, which would not end the code.
      parts[j] = re.sub(r"^(?=\w)", r"\\ ", text) if j else text
    lines[i] = "".join(parts)


def skip_member(app, what, name, thing, skip, options):
  """Autodoc's hook: no entries for fields, which `Attributes` tells about."""
  method = inspect.isroutine(thing) or isinstance(thing, property)
  return not method or name.startswith("tree_") or None


class LinkNames(SphinxTransform):
  """Makes code in running text a link to the entry of what it names.

  Single backticks in docstrings are code, as in Markdown. Code that names
  nothing of the library stays as it is.
  """

  default_priority = 400

  def apply(self, **kwargs):
    """Change the document."""
    for node in list(self.document.findall(nodes.title_reference)):
      node.replace_self(nodes.literal("", node.astext()))
    for node in self.document.findall(nodes.field_name):
      if node.astext() == "Variables":  # as Sphinx calls them
        node.replace(node[0], nodes.Text("Attributes"))
    for node in list(self.document.findall(nodes.literal)):
      named = re.fullmatch(r"([A-Za-z_][\w.]*)(\(.*\))?", node.astext())
      module = self._module(node)
      inside = isinstance(node.parent, nodes.reference | pending_xref)
      if not named or inside or isinstance(node.parent, nodes.title):
        continue
      if module or named[1].startswith("sparsejax."):
        link = pending_xref(
          "",
          node.deepcopy(),
          refdomain="py",
          reftype="obj",
          reftarget=named[1],
          refdoc=self.env.docname,
          refwarn=False,
          optional=True,
        )
        link["py:module"] = module
        node.replace_self(link)

  def _module(self, node):
    """The module in whose docstring a node is, if it is in one."""
    while node is not None:
      if isinstance(node, desc):
        return next(iter(node.findall(desc_signature))).get("module")
      node = node.parent
    return None


def missing_reference(app, env, node, content):
  """Sphinx's hook: finds short names of ours, and names of other projects."""
  if node.get("refdomain") != "py":
    return None
  target = node["reftarget"]
  objects = env.get_domain("py").objects
  optional = node.get("optional", False)
  names = [f"sparsejax.{target}", f"{node.get('py:module')}.{target}"]
  names = [name for name in names if name in objects]
  last = target.split(".")[-1]
  if not names and not optional:
    names = [name for name in objects if name.endswith("." + last)]
  if names:
    entry = objects[names[0]]
    page = app.builder.get_relative_uri(node["refdoc"], entry.docname)
    return nodes.reference(
      "", "", content, internal=True, refuri=f"{page}#{entry.node_id}"
    )
  outside = OUTSIDE.get(target) or OUTSIDE.get(last)
  if outside and not optional:
    return nodes.reference("", "", content, refuri=outside)
  return content if optional else None


def setup(app):
  """Connect what is above to Sphinx."""
  app.connect("source-read", expand)
  app.connect("autodoc-process-signature", process_signature)
  app.connect("autodoc-process-docstring", process_docstring)
  app.connect("autodoc-skip-member", skip_member)
  app.connect("missing-reference", missing_reference)
  app.add_transform(LinkNames)
  return {"parallel_read_safe": True, "parallel_write_safe": True}
