"""Text as bytes, each of which predicts the next."""

import pathlib

import jax
import numpy as np

from experiments.data import transforms
from experiments.data.failures import DataError, MissingDataError
from experiments.data.sets import Dataset, Split


def wikitext103(*, data_dir: str | None = None, length: int = 512) -> Dataset:
  """Loads WikiText-103 as bytes: 540 M for training, validation set for tests.

  Args:
    data_dir: The folder with `wiki.train.raw` and `wiki.valid.raw`, of
      wikitext-103-raw-v1; other text under these names will do.
    length: Bytes of an example.

  Returns:
    The data set: x uint8[n, length] and labels [n, length], the next bytes. The
    end of the text, where it does not fill an example, is left out.

  Raises:
    DataError: A file is too short for one example.
    MissingDataError: A file is missing.
  """
  folder = pathlib.Path(data_dir or "data/wikitext-103-raw")
  train, (x, y) = (
    _read_examples(folder / name, length)
    for name in ("wiki.train.raw", "wiki.valid.raw")
  )
  return Dataset(
    "wikitext103",
    train,
    (x, y.astype(np.int32)),
    256,
    lambda x: x,
    transforms.keep,
    jax.ShapeDtypeStruct((length,), np.uint8),
  )


def _read_examples(file: pathlib.Path, length: int) -> Split:
  if not file.is_file():
    raise MissingDataError(
      f"there is no {file}. Unpack wikitext-103-raw-v1.zip, and name the "
      "folder of wiki.train.raw with --config.data.data_dir."
    )
  text = np.fromfile(file, np.uint8)
  n = (len(text) - 1) // length
  if n < 1:
    raise DataError(
      f"{file} has {len(text)} bytes; wanted at least {length + 1}, one "
      "example and the byte after it"
    )
  x = text[: n * length].reshape(n, length)
  y = text[1 : n * length + 1].reshape(n, length)
  return x, y
