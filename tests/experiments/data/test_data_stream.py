"""Streams: the same global batches for any process count and any restart."""

import contextlib
import io
import itertools

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from experiments import data
from experiments.data import DataError, MissingDataError
from experiments.data import stream as streams
from experiments.errors import UserError

N = 10


def jpeg(i):
  """A photo in one colour, of a size and (once) a mode of its own."""
  colour = (20 * i, 200 - 15 * i, 90)
  image = Image.new("RGB", (40 + 5 * i, 60 - 3 * i), colour)
  if i == 4:
    image = image.convert("L")
  content = io.BytesIO()
  image.save(content, "jpeg", quality=95)
  return content.getvalue()


PHOTOS = [{"image": jpeg(i), "label": i} for i in range(N)]


@contextlib.contextmanager
def photos(examples=PHOTOS):
  """TFDS's mock cannot encode an image without TensorFlow: we give it ours."""
  with tfds.testing.mock_data(as_data_source_fn=lambda *_, **__: examples):
    yield


def batches(steps, **options):
  options = {
    "batch_size": 4,
    "image_size": 16,
    "seed": 0,
    "train": True,
    "num_threads": 2,
    **options,
  }
  with photos():
    got = streams.stream("imagenet2012", "train", **options)
    taken = list(itertools.islice(got, steps))
    got.close()
  return taken


def assert_same(a, b):
  assert len(a) == len(b)
  for left, right in zip(a, b, strict=True):
    np.testing.assert_array_equal(left["image"], right["image"])
    np.testing.assert_array_equal(left["label"], right["label"])


def test_shapes_and_dtypes():
  (batch,) = batches(1)
  assert batch["image"].shape == (4, 16, 16, 3)
  assert batch["image"].dtype == np.uint8
  assert batch["label"].shape == (4,)
  assert batch["label"].dtype == np.int32


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("count", [2, 4])
def test_process_count_does_not_change_the_global_batch(count, train):
  whole = batches(3, train=train)
  parts = [
    batches(3, train=train, process_index=i, process_count=count)
    for i in range(count)
  ]
  joined = [
    {k: np.concatenate([p[k] for p in pieces]) for k in ("image", "label")}
    for pieces in zip(*parts, strict=True)
  ]
  assert_same(joined, whole)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("start", [1, 2])
def test_restart_at_a_step_gives_the_same_batches(start, train):
  whole = batches(3, train=train)
  assert_same(batches(3 - start, train=train, start_step=start), whole[start:])
  second = {"process_index": 1, "process_count": 2, "train": train}
  assert_same(
    batches(3 - start, start_step=start, **second),
    batches(3, **second)[start:],
  )


def test_every_epoch_visits_each_example_once_in_another_order():
  labels = np.concatenate([b["label"] for b in batches(15)]).reshape(-1, N)
  np.testing.assert_array_equal(np.sort(labels), [range(N)] * len(labels))
  assert len({tuple(epoch) for epoch in labels}) == len(labels)


def test_seeds_give_other_orders_and_crops():
  first, second = (
    np.concatenate([b["label"] for b in batches(5, seed=s)]) for s in (0, 1)
  )
  assert not np.array_equal(first, second)
  # Nor is one seed's second epoch the next one's first.
  assert not np.array_equal(first[N:], second[:N])


def test_images_carry_their_labels_and_are_rgb():
  for batch in batches(3):
    for image, label in zip(batch["image"], batch["label"], strict=True):
      colour = np.array([20 * label, 200 - 15 * label, 90])
      if label == 4:
        assert np.ptp(image.reshape(-1, 3).mean(0)) < 1
      else:
        assert np.abs(image.reshape(-1, 3) - colour).max() <= 4


def test_evaluation_is_one_pass_in_order_filled_up():
  got = batches(99, train=False)
  labels = np.concatenate([b["label"] for b in got])
  assert labels.tolist() == [*range(N), -1, -1]
  assert not got[-1]["image"][2:].any()
  assert_same(got, batches(99, train=False, seed=9))


def test_a_real_tfds_set_is_read_without_tensorflow(tmp_path, monkeypatch):
  class StreamedPhotos(tfds.core.GeneratorBasedBuilder):
    """A set of three photos."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = tmp_path

    def _info(self):
      image = tfds.features.Image(encoding_format="jpeg")
      label = tfds.features.ClassLabel(num_classes=N)
      features = tfds.features.FeaturesDict({"image": image, "label": label})
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for i, photo in enumerate(PHOTOS):
        yield i, {**photo, "image": io.BytesIO(photo["image"])}

  monkeypatch.setitem(streams.NUM_CLASSES, "streamed_photos", N)
  options = {
    "batch_size": N,
    "image_size": 16,
    "seed": 0,
    "train": False,
    "data_dir": str(tmp_path),
  }
  with pytest.raises(MissingDataError, match="download_and_prepare"):
    streams.stream("streamed_photos", "train", **options)
  builder = StreamedPhotos(data_dir=tmp_path, file_format="array_record")
  builder.download_and_prepare()
  (got,) = streams.stream("streamed_photos", "train", **options)
  order = np.argsort(got["label"])  # TFDS shuffles when it prepares.
  got = [{k: v[order] for k, v in got.items()}]
  assert_same(got, batches(1, batch_size=N, train=False))


def test_random_crops_stay_inside_and_vary():
  rng = np.random.default_rng(0)
  crops = [streams.random_crop((100, 80), rng) for _ in range(500)]
  crops = np.array([c for c in crops if c])
  left, top, right, bottom = crops.T
  assert left.min() >= 0
  assert top.min() >= 0
  assert right.max() <= 100
  assert bottom.max() <= 80
  share = (right - left) * (bottom - top) / 8000
  assert 0.07 < share.min() < 0.12
  assert 0.9 < share.max() <= 1
  ratio = (right - left) / (bottom - top)
  assert 0.7 < ratio.min() < 0.8
  assert 1.25 < ratio.max() < 1.4
  assert streams.random_crop((1000, 1), rng) is None  # Then: the centre.


def test_train_images_are_mirrored_half_of_the_time():
  ramp = np.tile(
    np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], (60, 1, 3)
  )
  content = io.BytesIO()
  Image.fromarray(ramp).save(content, "jpeg", quality=95)
  examples = [{"image": content.getvalue(), "label": 0}] * 64
  with photos(examples):
    got = streams.stream(
      "imagenet2012", "train", batch_size=64, image_size=8, seed=0,
      train=True, num_threads=0,
    )  # fmt: skip
    images = next(got)["image"].astype(int)
  mirrored = images[:, 0, 0, 0] > images[:, 0, -1, 0]
  assert 16 < mirrored.sum() < 48
  assert len({i.tobytes() for i in images}) > 60  # Crops of their own.


@pytest.mark.parametrize(
  ("size", "wanted"),
  [
    ((256, 256), (16, 16, 240, 240)),
    ((512, 256), (144, 16, 368, 240)),
    ((1, 9), (0, 4, 1, 5)),
  ],
)
def test_center_crop_of_the_resnet_recipe(size, wanted):
  assert streams.center_crop(size, 224) == wanted


def test_prepare_normalises_by_imagenets_statistics():
  known = data.load("imagenet2012", image_size=2)
  assert (known.train, known.test, known.num_classes) == (None, None, 1000)
  x = np.zeros((1, *known.like.shape), known.like.dtype)
  np.testing.assert_allclose(
    known.prepare(x)[0, 0, 0],
    [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225],
    rtol=1e-5,
  )


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"batch_size": 3, "process_count": 2}, "batch_size=3 .* process_count=2"),
    ({"batch_size": 0}, "batch_size=0"),
    ({"process_index": 2, "process_count": 2}, "got 2 of 2"),
    ({"process_count": 0}, "got 0 of 0"),
    ({"start_step": -1}, "start_step=-1"),
    ({"seed": 2**32}, "seed=4294967296"),
  ],
)
def test_what_is_wrong_is_said(change, message):
  with pytest.raises(DataError, match=message):
    batches(1, **change)


def test_a_batch_larger_than_the_data_is_refused():
  options = {"batch_size": len(PHOTOS) + 1, "image_size": 8, "seed": 0}
  with photos():
    with pytest.raises(
      DataError, match=rf"'train': a batch of {len(PHOTOS) + 1}"
    ):
      streams.stream("imagenet2012", "train", train=True, **options)
    tests = streams.stream("imagenet2012", "train", train=False, **options)
  assert len(next(tests)["label"]) == len(PHOTOS) + 1


def test_an_unknown_set_lists_the_near_ones():
  with pytest.raises(UserError, match="'imagenet2012'"):
    streams.stream(
      "imagenet", "train", batch_size=1, image_size=8, seed=0, train=True
    )


def test_a_missing_set_says_how_to_prepare_it(tmp_path):
  with pytest.raises(MissingDataError, match=r"builder\('imagenet2012'"):
    streams.stream(
      "imagenet2012", "train", batch_size=1, image_size=8, seed=0,
      train=True, data_dir=str(tmp_path),
    )  # fmt: skip


def test_a_label_out_of_range_is_named():
  with photos([{**PHOTOS[0], "label": 1000}]):
    got = streams.stream(
      "imagenet2012", "validation", batch_size=1, image_size=8, seed=0,
      train=False,
    )  # fmt: skip
    with pytest.raises(
      DataError,
      match=r"'validation': label 1000 at index 0 is not in \[0, 1000",
    ):
      next(got)
