"""Batches of photos from sets that do not fit in memory, read by Grain.

The order is a function of seed and step alone: any number of processes sees
the same global batches, and a stream that starts at step k continues exactly.
"""

import functools
import io
import math
from collections.abc import Iterator

import grain
import numpy as np
from PIL import Image

from experiments import errors
from experiments.data import sets, tfds_source
from experiments.data.failures import DataError

NUM_CLASSES = {"imagenet2012": 1000, "cifar10": 10, "cifar100": 100}

# Pixels of margin around the centre crop, per image_size: 224 of 256. From
# github.com/tensorflow/tpu, models/official/resnet/resnet_preprocessing.py,
# as are the numbers of `random_crop`.
_MARGIN = 32


def stream(
  name: str,
  split: str,
  *,
  batch_size: int,
  image_size: int,
  seed: int,
  start_step: int = 0,
  train: bool,
  process_index: int = 0,
  process_count: int = 1,
  data_dir: str | None = None,
  num_threads: int = 16,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields this process's slice of each global batch, from a step on.

  Training never ends: it shuffles every epoch anew, and batches straddle
  epochs. Each image gets a random crop and a random mirror, drawn from the
  seed and the image's position in the stream. Evaluation passes once through
  the split in its own order with centre crops; its last batch is filled up
  with black images of label -1, so that every batch has the same shape.

  Args:
    name: A TFDS set with features "image" and "label": a key of NUM_CLASSES.
    split: Its split, e.g. "train" or "validation".
    batch_size: Examples of the global batch.
    image_size: Height and width of the images that come out, in pixels.
    seed: Seed of order, crops and mirrors, in [0, 2**32); unused in evaluation.
    start_step: The first batch, from 0.
    train: Whether to train or to evaluate.
    process_index: The slice to yield, e.g. `jax.process_index()`.
    process_count: Number of slices, e.g. `jax.process_count()`.
    data_dir: TFDS's folder; None is its own default.
    num_threads: Threads that read; each prepares one batch ahead.

  Returns:
    An iterator of {"image": uint8[batch_size / process_count, image_size,
    image_size, 3], "label": int32[batch_size / process_count]}; the set's
    `prepare` makes the images float32 on the device.

  Raises:
    UserError: The name is unknown; the near ones are listed.
    DataError: At once: batch_size does not divide by process_count, is larger
      than the split to train on, or an argument is out of range; when the
      batch comes: a label is out of range.
    MissingDataError: The set was not prepared; says how to.
  """
  if name not in NUM_CLASSES:
    raise errors.unknown("streamed data set", name, NUM_CLASSES)
  if not 0 <= process_index < process_count:
    raise DataError(
      f"stream: process_index must be in [0, process_count), got "
      f"{process_index} of {process_count}."
    )
  if batch_size < 1 or batch_size % process_count:
    raise DataError(
      f"stream: batch_size={batch_size} must be a positive multiple of "
      f"process_count={process_count}."
    )
  if start_step < 0 or not 0 <= seed < 2**32:
    raise DataError(
      "stream: start_step must be >= 0 and seed in [0, 2**32), got "
      f"start_step={start_step}, seed={seed}."
    )
  import tensorflow_datasets as tfds

  num_classes = NUM_CLASSES[name]
  source = tfds_source.open_split(
    name,
    split,
    data_dir=data_dir,
    decoders={"image": tfds.decode.SkipDecoding()},
  )
  n = len(source)
  if train and batch_size > n:
    raise DataError(
      f"{name}, split {split!r}: a batch of {batch_size} is larger than the "
      f"data, of {n} examples; take a smaller batch_size."
    )

  def example(index: int, rng: np.random.Generator | None) -> dict:
    if index >= n:  # Fills the last batch of an evaluation.
      black = np.zeros((image_size, image_size, 3), np.uint8)
      return {"image": black, "label": np.int32(-1)}
    record = source[index]
    label = np.asarray(record["label"], np.int32)
    sets.check_labels(name, split, label[None], num_classes, first=index)
    image = Image.open(io.BytesIO(record["image"])).convert("RGB")
    box = center_crop(image.size, image_size)
    if rng is not None:
      box = random_crop(image.size, rng) or box
    shape = (image_size, image_size)
    pixels = np.asarray(image.resize(shape, Image.Resampling.BICUBIC, box))
    if rng is not None and rng.random() < 0.5:
      pixels = pixels[:, ::-1]
    return {"image": pixels, "label": label}

  if train:
    examples = grain.MapDataset.range(n).seed(seed).shuffle().repeat()
    examples = examples.random_map(example)
  else:
    filled = math.ceil(n / batch_size) * batch_size
    examples = grain.MapDataset.range(filled)
    examples = examples.map(functools.partial(example, rng=None))
  # Grain's own sharding would change the order with the process count. A
  # global batch is process_count pieces in a row: each process takes its own.
  pieces = examples.batch(batch_size // process_count, drop_remainder=True)
  pieces = pieces[start_step * process_count + process_index :: process_count]
  options = grain.ReadOptions(
    num_threads=num_threads, prefetch_buffer_size=num_threads
  )
  return iter(pieces.to_iter_dataset(options))


def random_crop(
  size: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int, int, int] | None:
  """Draws a crop of 8 to 100 % of an image's area, 3:4 to 4:3 in shape.

  Drawn as torchvision's `RandomResizedCrop` does (Szegedy et al., "Going
  Deeper with Convolutions", arXiv 1409.4842, section 6).

  Args:
    size: The image's width and height, in pixels.
    rng: The source of randomness.

  Returns:
    left, top, right, bottom in pixels; None if ten draws did not fit.
  """
  width, height = size
  for _ in range(10):
    area = width * height * rng.uniform(0.08, 1.0)
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if 0 < w <= width and 0 < h <= height:
      left = int(rng.integers(width - w + 1))
      top = int(rng.integers(height - h + 1))
      return left, top, left + w, top + h
  return None


def center_crop(
  size: tuple[int, int], image_size: int
) -> tuple[int, int, int, int]:
  """Returns the largest centred square, less a margin of 32 / 256 at 224.

  Args:
    size: The image's width and height, in pixels.
    image_size: What the crop will be resized to, in pixels.

  Returns:
    left, top, right, bottom in pixels.
  """
  width, height = size
  side = max(1, min(size) * image_size // (image_size + _MARGIN))
  left, top = (width - side + 1) // 2, (height - side + 1) // 2
  return left, top, left + side, top + side
