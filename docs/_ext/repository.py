"""Links into the repository, and notebooks to run elsewhere.

Pages in notebooks/ are text, which Colab cannot open. The site has an .ipynb
file beside each, which installs the package first. Colab reads from GitHub
only, so its links are to the branch that the site is published on.
"""

import json
import pathlib
import re

import nbformat


def link_files(app, docname, source):
  """Sphinx's hook: links to files outside docs/ become links to the repository.

  The site has no such files, but for pictures, which Sphinx copies.
  """
  docs = pathlib.Path(app.srcdir)
  home = app.config.repository

  def absolute(match):
    target, anchor = match.groups()
    file = (docs / docname).parent.joinpath(target).resolve()
    if file.is_relative_to(docs) or not file.exists():
      return match[0]
    path = file.relative_to(docs.parent)
    return f"]({home['url']}/blob/{home['branch']}/{path}{anchor})"

  picture = r"(?<!\.png)(?<!\.svg)"
  source[0] = re.sub(
    rf"\]\((\.\./[^)#\s]+{picture})(#[^)\s]*|)\)", absolute, source[0]
  )


def link_notebook(app, docname, source):
  """Sphinx's hook: puts links below the title of a notebook."""
  if not docname.startswith("notebooks/") or docname.endswith("/index"):
    return
  home = app.config.repository
  colab = (
    "https://colab.research.google.com/github"
    + home["url"].removeprefix("https://github.com")
    + f"/blob/{home['site_branch']}/{docname}.ipynb"
  )
  file = docname.split("/")[-1] + ".ipynb"
  links = (
    '\n<p><a class="sd-badge sd-bg-primary sd-bg-text-primary" '
    f'href="{colab}">Open in Colab</a> '
    '<a class="sd-badge sd-outline-primary sd-text-primary" '
    f'href="{file}" download>Download the notebook</a></p>\n'
  )
  source[0] = re.sub(
    r"^# .*\n", lambda title: title[0] + links, source[0], count=1, flags=re.M
  )


def write_notebooks(app, exception):
  """Sphinx's hook: writes notebooks, without outputs, into the site."""
  made = pathlib.Path(app.outdir).parent / "jupyter_execute" / "notebooks"
  for file in [] if exception else sorted(made.glob("*.ipynb")):
    notebook = nbformat.read(file, as_version=4)
    install = f"%pip install -q git+{app.config.repository['url']}"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(install))
    for cell in notebook.cells:
      if cell.cell_type == "code":
        cell.outputs, cell.execution_count = [], None
      cell.source = re.sub(r'<p><a class="sd-badge.*?</p>\n\n', "", cell.source)
    place = pathlib.Path(app.outdir) / "notebooks" / file.name
    place.write_text(json.dumps(notebook, indent=1))


def setup(app):
  """Connect what is above to Sphinx."""
  app.add_config_value("repository", {}, "env")
  app.connect("source-read", link_files)
  app.connect("source-read", link_notebook)
  app.connect("build-finished", write_notebooks)
  return {"parallel_read_safe": True, "parallel_write_safe": True}
