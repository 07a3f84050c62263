"""Texts by the names that configs have for their sources."""

import pydoc_data.topics
from collections.abc import Sequence

from experiments.llm.text import corpora


def state_of_the_union(*, data_dir: str, years: Sequence[int]) -> list[str]:
  """Addresses of the years from the first to before the last."""
  return corpora.state_of_the_union(data_dir, years=range(*years))


def text(*, data_dir: str, suffix: str = ".txt") -> list[str]:
  """The text files below a folder."""
  return corpora.text_folder(data_dir, suffix=suffix)


def jsonl(
  *, path: str, field: str = "text", count: int | None = None
) -> list[str]:
  """The lines of a JSONL file."""
  return corpora.jsonl(path, field=field, count=count)


def python_help(*, test: bool) -> list[str]:
  """The texts of Python's `help`, half a megabyte that is always there.

  Args:
    test: Whether to take every eighth topic, or the others.

  Returns:
    The texts.
  """
  topics = pydoc_data.topics.topics
  return [
    topics[name]
    for i, name in enumerate(sorted(topics))
    if (i % 8 == 0) == test
  ]


TEXTS = {
  "state_of_the_union": state_of_the_union,
  "text": text,
  "jsonl": jsonl,
  "python_help": python_help,
}
