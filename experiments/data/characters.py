"""Text as bytes, each of which predicts the next."""

import pathlib

import jax
import numpy as np

from experiments.data import transforms
from experiments.data.failures import DataError, MissingDataError
from experiments.data.sets import Dataset, Split


def wikitext103(
  *,
  data_dir: str | None = None,
  length: int = 512,
  random: int | None = None,
) -> Dataset:
  """Loads WikiText-103 as bytes: 540 M for training, validation set for tests.

  Args:
    data_dir: The folder with `wiki.train.raw` and `wiki.valid.raw`, of
      wikitext-103-raw-v1; other text under these names will do.
    length: Bytes of an example.
    random: How many random examples to train on, and to test on, in place of
      the files; None reads them.

  Returns:
    The data set: x uint8[n, length] and labels [n, length], the next bytes. The
    end of the text, where it does not fill an example, is left out.

  Raises:
    DataError: A file is too short for one example.
    MissingDataError: A file is missing.
  """
  folder = pathlib.Path(data_dir or "data/wikitext-103-raw")
  if random is None:
    names = ("wiki.train.raw", "wiki.valid.raw")
    texts = [_read(folder / name) for name in names]
  else:
    rng = np.random.default_rng(0)
    shape = (2, random * length + 1)
    texts = rng.integers(256, size=shape, dtype=np.uint8)
  train, (x, y) = (_examples(text, length, data_dir=folder) for text in texts)
  return Dataset(
    "wikitext103",
    train,
    (x, y.astype(np.int32)),
    256,
    lambda x: x,
    transforms.keep,
    jax.ShapeDtypeStruct((length,), np.uint8),
  )


def _read(file: pathlib.Path) -> np.ndarray:
  if not file.is_file():
    raise MissingDataError(
      f"there is no {file}. Unpack wikitext-103-raw-v1.zip, and name the "
      "folder of wiki.train.raw with --config.data.data_dir."
    )
  return np.fromfile(file, np.uint8)


def _examples(
  text: np.ndarray, length: int, *, data_dir: pathlib.Path
) -> Split:
  """Cuts a text of bytes into examples, and their labels one byte on."""
  n = (len(text) - 1) // length
  if n < 1:
    raise DataError(
      f"{data_dir}: a text has {len(text)} bytes; wanted at least "
      f"{length + 1}, one example and the byte after it"
    )
  x = text[: n * length].reshape(n, length)
  y = text[1 : n * length + 1].reshape(n, length)
  return x, y
