"""Settings of the site: `make -C docs html` builds it."""

import os
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_ext")]

import sparsejax  # noqa: E402

# PLACEHOLDER until the project has a home: all "edit", source and Colab links
# are made of this address, the branch of the code, and that of the built site.
repository = {
  "url": "https://github.com/OWNER/sparsejax",
  "branch": "main",
  "site_branch": "gh-pages",
}

project = "sparsejax"
author = "the sparsejax authors"
copyright = author
version = release = sparsejax.__version__

extensions = [
  "myst_nb",
  "sphinx.ext.autodoc",
  "sphinx.ext.napoleon",
  "sphinx_copybutton",
  "sphinx_design",
  "sphinx-mathjax-offline",
  "configs",
  "options",
  "reference",
  "repository",
  "search",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]

nitpicky = True
# Types in public signatures that are nobody's to write down.
nitpick_ignore_regex = [
  (
    "py:class",
    r"(.*\.)?(Back|Begin|ByPath|Cut|Evolution|Layout|Phase|Probe|Progress|_T)",
  )
]
toc_object_entries_show_parents = "hide"
maximum_signature_line_length = 60
napoleon_use_rtype = False
napoleon_use_ivar = True  # no entries of their own for fields
napoleon_attr_annotations = False  # their types are in the signature
autodoc_member_order = "bysource"

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4

# Notebooks are text. One whose code is as it was is not executed again;
# `make -C docs clean` forgets what was executed.
nb_execution_mode = "cache"
nb_execution_cache_path = os.environ.get(
  "SPARSEJAX_DOCS_CACHE", str(DOCS / "_build" / "executed")
)
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

# The placeholder leads nowhere.
linkcheck_ignore = [re.escape(repository["url"]), "https://colab"]
linkcheck_timeout = 20

html_theme = "sphinx_book_theme"
html_title = f"sparsejax {version}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {
  "repository_url": repository["url"],
  "repository_branch": repository["branch"],
  "path_to_docs": "docs",
  "use_repository_button": True,
  "use_edit_page_button": True,
  "show_toc_level": 2,
  # One search field is enough.
  "navbar_persistent": [],
}
