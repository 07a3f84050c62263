"""Search that finds 2:4, which Sphinx takes for two numbers and leaves out."""

import re

from sphinx.search.en import SearchEnglish


class WithRatios(SearchEnglish):
  """English, in which `2:4` is one word."""

  _word_re = re.compile(r"\d+:\d+|\w+")
  js_splitter_code = (
    "var splitQuery = (query) =>"
    r" query.match(/\d+:\d+|[\p{Letter}\p{Number}_]+/gu) || [];"
  )


def setup(app):
  """Connect what is above to Sphinx."""
  app.add_search_language(WithRatios)
  return {"parallel_read_safe": True, "parallel_write_safe": True}
