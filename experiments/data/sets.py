"""The data sets that fit in memory, one function each.

Every function takes `data_dir` and its own options and returns a `Dataset`.
Files are read by idx.py and tfds_source.py, sets that do not fit by stream.py.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from experiments.data import idx, tfds_source, transforms
from experiments.data.failures import DataError, MissingDataError

DEBIAN_FASHION_MNIST = "/usr/share/datasets/fashion-mnist"

# Mean and standard deviation of the training pixels / 255.
# MNIST: github.com/pytorch/examples, mnist/main.py.
_MNIST = 0.1307, 0.3081
# Computed from the 60,000 training images: 0.28604, 0.35302.
_FASHION_MNIST = 0.2860, 0.3530
# CIFAR: as commonly published for the training sets, to four places, e.g. in
# github.com/weiaicunzai/pytorch-cifar100, conf/global_settings.py.
_CIFAR = {
  "cifar10": (10, ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))),
  "cifar100": (100, ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))),
}
# scikit-learn's digits: of the first 1,437 images / 16.
_DIGITS = 0.3054, 0.3755

Split = tuple[np.ndarray, np.ndarray]
Prepare = Callable[[jax.Array], jax.Array]


class Dataset(NamedTuple):
  """A data set in host memory, and how the device prepares its batches.

  A training batch is `augment(key, prepare(x))`, a test batch `prepare(x)`.

  Attributes:
    name: As given to `load`.
    train: x, y. x: uint8[n, h, w, c] images or float32[n, ...] features;
      y: int32[n] labels in [0, num_classes), or uint8[n, length] of a text.
      None for a set that does not fit in memory: see stream.py.
    test: As train.
    num_classes: Number of classes.
    prepare: x[b, ...] -> float32[b, ...]; under jit.
    augment: key, x[b, ...] -> x; the same shape and dtype; under jit.
    like: Shape and dtype of one input, without the batch axis.
  """

  name: str
  train: Split | None
  test: Split | None
  num_classes: int
  prepare: Prepare
  augment: Callable[[jax.Array, jax.Array], jax.Array]
  like: jax.ShapeDtypeStruct

  @property
  def labels(self) -> int:
    """Number of labels of an example: 1, or the length of a text."""
    return 1 if self.train is None else self.train[1][0].size


def mnist1d(*, data_dir: str | None = None) -> Dataset:
  """Generates MNIST-1D: 4,000 + 1,000 signals float32[40, 1], 10 classes.

  The published arguments and seed (Greydanus and Kobak, "Scaling Down Deep
  Learning with MNIST-1D", arXiv 2011.14439). Nothing is downloaded.

  Args:
    data_dir: Not used.

  Returns:
    The data set; `prepare` and `augment` leave the signals as they are.
  """
  del data_dir
  from mnist1d import data

  # The package seeds and uses the global generators.
  python_state, numpy_state = random.getstate(), np.random.get_state()
  try:
    made = data.make_dataset(data.get_dataset_args())
  finally:
    random.setstate(python_state)
    np.random.set_state(numpy_state)

  def split(suffix: str) -> Split:
    x = made[f"x{suffix}"].astype(np.float32)
    return x[..., None], made[f"y{suffix}"]

  return _dataset(
    "mnist1d",
    {"train": split(""), "test": split("_test")},
    num_classes=10,
    prepare=transforms.as_float,
  )


def digits(*, data_dir: str | None = None) -> Dataset:
  """Loads scikit-learn's digits: 1,437 + 360 images uint8[8, 8, 1] in 0..16.

  In the package's order, without a shuffle: the first four fifths train, the
  last fifth tests.

  Args:
    data_dir: Not used.

  Returns:
    The data set, normalised by the training images' mean and deviation.
  """
  del data_dir
  from sklearn import datasets

  x, y = datasets.load_digits(return_X_y=True)
  x = x.astype(np.uint8).reshape(-1, 8, 8, 1)
  cut = 1437
  return _dataset(
    "digits",
    {"train": (x[:cut], y[:cut]), "test": (x[cut:], y[cut:])},
    num_classes=10,
    prepare=transforms.normalize(*_DIGITS, scale=16.0),
  )


def mnist(
  *,
  data_dir: str | None = None,
  source: str = "idx",
  normalize: str = "dataset",
  random: int | None = None,
) -> Dataset:
  """Loads MNIST: 60,000 + 10,000 images uint8[28, 28, 1], 10 classes.

  Args:
    data_dir: The folder of the four IDX files, plain or .gz; for
      source="tfds" that of TFDS.
    source: "idx" or "tfds".
    normalize: "dataset": by the training set's mean and deviation; "unit": to
      [0, 1].
    random: How many random examples to train on, and to test on, in place of
      the files; None reads them.

  Returns:
    The data set.

  Raises:
    MissingDataError: The data is not there.
    DataError: A file is damaged, a label out of range, or an option unknown.
  """
  unit = transforms.normalize(0.0, 1.0)
  prepare = _find_normalization("mnist", normalize, _MNIST, unit=unit)
  missing = (
    "Name a folder of MNIST's four IDX files with --config.data.data_dir, or "
    "read TFDS with --config.data.source=tfds."
  )
  if data_dir is None and source == "idx" and random is None:
    raise MissingDataError(f"mnist: no folder given. {missing}")
  return _dataset(
    "mnist",
    _random_images(random, (28, 28, 1), 10)
    or _read_images("mnist", source, data_dir, missing),
    num_classes=10,
    prepare=prepare,
  )


def fashion_mnist(
  *,
  data_dir: str | None = None,
  source: str = "idx",
  normalize: str = "dataset",
  pad: int = 4,
  mode: str = "symmetric",
  flip: bool = True,
  random: int | None = None,
) -> Dataset:
  """Loads Fashion-MNIST: 60,000 + 10,000 images uint8[28, 28, 1], 10 classes.

  Xiao, Rasul and Vollgraf, arXiv 1708.07747.

  Args:
    data_dir: The folder of the four IDX files, plain or .gz; that of Debian's
      package by default. For source="tfds" that of TFDS.
    source: "idx" or "tfds".
    normalize: As for `cifar`.
    pad: of `transforms.pad_crop_flip`, as are `mode` and `flip`.
    mode: How to pad.
    flip: Whether to mirror.
    random: How many random examples to train on, and to test on, in place of
      the files; None reads them.

  Returns:
    The data set.

  Raises:
    MissingDataError: The data is not there.
    DataError: A file is damaged, a label or an option out of range.
  """
  prepare = _find_normalization(
    "fashion_mnist",
    normalize,
    _FASHION_MNIST,
    image=transforms.standardize_each,
  )
  missing = (
    "Get it with `apt-get install dataset-fashion-mnist`, or name a folder of "
    "its four IDX files with --config.data.data_dir."
  )
  if source == "idx":
    data_dir = data_dir or DEBIAN_FASHION_MNIST
  return _dataset(
    "fashion_mnist",
    _random_images(random, (28, 28, 1), 10)
    or _read_images("fashion_mnist", source, data_dir, missing),
    num_classes=10,
    prepare=prepare,
    augment=transforms.pad_crop_flip(pad, mode=mode, flip=flip),
  )


def cifar(
  name: str,
  *,
  data_dir: str | None = None,
  normalize: str = "dataset",
  pad: int = 4,
  mode: str = "symmetric",
  flip: bool = True,
  random: int | None = None,
) -> Dataset:
  """Loads CIFAR from TFDS: 50,000 + 10,000 images uint8[32, 32, 3].

  The code released with RigL (google-research/rigl, cifar_resnet/) does
  normalize="image" and the other defaults.

  Args:
    name: "cifar10" or "cifar100".
    data_dir: TFDS's folder; None is its own default.
    normalize: "dataset": by the training set's mean and deviation of each
      channel; "image": by each image's own.
    pad: of `transforms.pad_crop_flip`, as are `mode` and `flip`.
    mode: How to pad.
    flip: Whether to mirror.
    random: How many random examples to train on, and to test on, in place of
      the files; None reads them.

  Returns:
    The data set.

  Raises:
    MissingDataError: The set was not prepared.
    DataError: An option or a label is out of range.
  """
  num_classes, statistics = _CIFAR[name]
  prepare = _find_normalization(
    name, normalize, statistics, image=transforms.standardize_each
  )
  return _dataset(
    name,
    _random_images(random, (32, 32, 3), num_classes)
    or _read_tfds(name, data_dir),
    num_classes=num_classes,
    prepare=prepare,
    augment=transforms.pad_crop_flip(pad, mode=mode, flip=flip),
  )


def imagenet2012(
  *,
  data_dir: str | None = None,
  image_size: int = 224,
  random: int | None = None,
) -> Dataset:
  """Describes ImageNet, which does not fit in memory and is read by stream.py.

  Args:
    data_dir: Not used.
    image_size: Height and width of the images, in pixels.
    random: How many random examples to train on, and to test on, in place of
      the stream; None for the stream.

  Returns:
    The data set, without arrays unless they are random. Crops and mirrors are
    drawn on the host, so `augment` does nothing.
  """
  del data_dir
  # torchvision's statistics of the pixels / 255:
  # pytorch.org/vision/stable/models.html.
  prepare = transforms.normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
  shape = (image_size, image_size, 3)
  if splits := _random_images(random, shape, 1000):
    return _dataset("imagenet2012", splits, num_classes=1000, prepare=prepare)
  like = jax.ShapeDtypeStruct(shape, np.uint8)
  return Dataset(
    "imagenet2012", None, None, 1000, prepare, transforms.keep, like
  )


def check_labels(
  name: str, split: str, y: np.ndarray, num_classes: int, *, first: int = 0
) -> None:
  """Checks that labels are class indices.

  Args:
    name: The set, for the error.
    split: The split, for the error.
    y: integers [n].
    num_classes: Number of classes.
    first: The index of y[0] in the split.

  Raises:
    DataError: One is not in [0, num_classes).
  """
  wrong = np.flatnonzero((y < 0) | (y >= num_classes))
  if wrong.size:
    i = wrong[0]
    raise DataError(
      f"{name}, split {split!r}: label {y[i]} at index {first + i} is not in "
      f"[0, {num_classes}), {wrong.size} of {y.size} labels are not; the data "
      "is damaged or of another set, get it again."
    )


def _random_images(
  n: int | None, shape: tuple[int, ...], num_classes: int
) -> dict[str, Split]:
  """Draws pixels and labels; nothing if there is no number of examples."""
  if n is None:
    return {}
  rng = np.random.default_rng(0)
  return {
    split: (
      rng.integers(256, size=(n, *shape), dtype=np.uint8),
      rng.integers(num_classes, size=n),
    )
    for split in ("train", "test")
  }


def _read_images(
  name: str, source: str, data_dir: str | None, missing: str
) -> dict[str, Split]:
  if source == "idx":
    return idx.read_folder(data_dir, missing=missing)
  if source == "tfds":
    return _read_tfds(name, data_dir)
  raise DataError(f"{name}: source must be idx or tfds; got {source!r}.")


def _read_tfds(name: str, data_dir: str | None) -> dict[str, Split]:
  splits = {}
  for split in ("train", "test"):
    examples = tfds_source.open_split(name, split, data_dir=data_dir)
    x, y = zip(*((e["image"], e["label"]) for e in examples), strict=True)
    splits[split] = np.stack(x), np.stack(y)
  return splits


def _find_normalization(
  name: str, normalize: str, statistics: Sequence, **others: Prepare
) -> Prepare:
  prepares = {"dataset": transforms.normalize(*statistics), **others}
  if normalize not in prepares:
    raise DataError(
      f"{name}: normalize must be one of {', '.join(prepares)}; got "
      f"{normalize!r}."
    )
  return prepares[normalize]


def _dataset(
  name: str,
  splits: dict[str, Split],
  *,
  num_classes: int,
  prepare: Prepare,
  augment: Callable[[jax.Array, jax.Array], jax.Array] = transforms.keep,
) -> Dataset:
  for split, (_, y) in splits.items():
    check_labels(name, split, y, num_classes)
  splits = {split: (x, y.astype(np.int32)) for split, (x, y) in splits.items()}
  x = splits["train"][0]
  return Dataset(
    name,
    splits["train"],
    splits["test"],
    num_classes,
    prepare,
    augment,
    jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
  )
