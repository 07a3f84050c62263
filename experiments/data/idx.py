"""Reads IDX files: the format of MNIST and of sets like it.

The format: http://yann.lecun.com/exdb/mnist: two zero bytes, a type, the
number of dimensions, the dimensions as big-endian int32, the values.
"""

import math
import pathlib
import zlib

import numpy as np

from experiments.data.failures import DataError, MissingDataError

_UINT8 = 0x08


def read_idx(path: str | pathlib.Path, *, ndim: int) -> np.ndarray:
  """Reads one IDX file of unsigned bytes.

  Args:
    path: The file, plain or, if its name ends in .gz, compressed by gzip.
    ndim: Number of dimensions that it must have: 3 for images, 1 for labels.

  Returns:
    uint8 of the shape that the file's header states.

  Raises:
    DataError: The file is damaged, of another kind, or of another length
      than its header states.
  """
  path = pathlib.Path(path)
  content = path.read_bytes()
  if path.suffix == ".gz":
    try:
      content = _decompressed(content)
    except zlib.error as error:
      raise DataError(
        f"{path}: not a sound gzip file ({error}); fetch it again."
      ) from error
  magic = bytes((0, 0, _UINT8, ndim))
  if content[:4] != magic:
    raise DataError(
      f"{path}: expected an IDX file of bytes in {ndim} dimensions, which "
      f"begins with {magic.hex()}, got {content[:4].hex() or 'nothing'}."
    )
  header = 4 + 4 * ndim
  if len(content) < header:
    raise DataError(
      f"{path}: expected a header of {header} bytes, got {len(content)}; "
      "the file was cut short, fetch it again."
    )
  shape = tuple(np.frombuffer(content, ">u4", ndim, 4).tolist())
  expected = header + math.prod(shape)
  if len(content) != expected:
    raise DataError(
      f"{path}: expected {expected} bytes for shape {shape}, got "
      f"{len(content)}; the file is damaged, fetch it again."
    )
  return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _decompressed(content: bytes) -> bytes:
  """Decompresses all members of a gzip file, and what is there of the last.

  gzip.decompress tells nothing of a truncated file, but a caller that knows the
  length can say how much is missing.
  """
  parts = []
  while content:
    member = zlib.decompressobj(wbits=31)
    parts.append(member.decompress(content))
    content = member.unused_data.lstrip(b"\0")  # which may fill up blocks
  return b"".join(parts)


def read_folder(
  folder: str | pathlib.Path, *, missing: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Reads the four files of an MNIST-like set.

  Args:
    folder: where `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and
      the same with `t10k` lie, each plain or with .gz.
    missing: What to do when a file is not there; ends the error.

  Returns:
    {"train", "test"}: images uint8[n, h, w, 1], labels uint8[n].

  Raises:
    MissingDataError: A file is missing.
    DataError: A file is damaged, or images and labels differ in number.
  """
  splits = {}
  for split, prefix in (("train", "train"), ("test", "t10k")):
    images = _find(folder, f"{prefix}-images-idx3-ubyte", missing)
    labels = _find(folder, f"{prefix}-labels-idx1-ubyte", missing)
    x, y = read_idx(images, ndim=3), read_idx(labels, ndim=1)
    if len(x) != len(y):
      raise DataError(
        f"{labels}: expected {len(x)} labels, as many as {images} has "
        f"images, got {len(y)}; the files are of different sets."
      )
    splits[split] = x[..., None], y
  return splits


def _find(folder: str | pathlib.Path, stem: str, missing: str) -> pathlib.Path:
  for name in (stem, f"{stem}.gz"):
    path = pathlib.Path(folder) / name
    if path.is_file():
      return path
  raise MissingDataError(f"{folder}: no {stem} or {stem}.gz there. {missing}")
