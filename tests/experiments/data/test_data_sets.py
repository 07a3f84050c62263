"""The sets in memory: what comes out, and what is said when it cannot."""

import functools
import gzip
import pathlib
import random
import shlex
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments import data
from experiments.data import DataError, MissingDataError, sets, transforms
from experiments.errors import UserError

load_mnist1d = functools.cache(functools.partial(data.load, "mnist1d"))

SPLITS = {"train": "train", "test": "t10k"}


def idx_bytes(array):
  header = (
    bytes((0, 0, 8, array.ndim)) + np.asarray(array.shape, ">u4").tobytes()
  )
  return header + array.tobytes()


@pytest.fixture
def folder(tmp_path):
  """An MNIST-like set: train plain, test compressed."""
  rng = np.random.default_rng(0)
  for prefix, n in (("train", 12), ("t10k", 5)):
    x = rng.integers(0, 256, (n, 28, 28)).astype(np.uint8)
    y = (np.arange(n) % 10).astype(np.uint8)
    for stem, array in (("images-idx3", x), ("labels-idx1", y)):
      path = tmp_path / f"{prefix}-{stem}-ubyte"
      content = idx_bytes(array)
      if prefix == "train":
        path.write_bytes(content)
      else:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
  return tmp_path


def check(dataset, train_shape, test_shape, dtype=np.uint8):
  for (x, y), shape in (
    (dataset.train, train_shape),
    (dataset.test, test_shape),
  ):
    assert x.shape == shape
    assert x.dtype == dtype
    assert y.shape == shape[:1]
    assert y.dtype == np.int32
    assert y.min() >= 0
    assert y.max() < dataset.num_classes
  prepared = jax.jit(dataset.prepare)(dataset.train[0][:3])
  assert prepared.shape == (3, *train_shape[1:])
  assert prepared.dtype == jnp.float32
  augmented = jax.jit(dataset.augment)(jax.random.key(0, impl="rbg"), prepared)
  assert augmented.shape == prepared.shape
  assert augmented.dtype == prepared.dtype
  return prepared


def test_mnist1d_is_the_published_set_and_leaves_global_seeds_alone():
  random.seed(5)
  np.random.seed(5)
  before = random.random(), np.random.rand()
  random.seed(5)
  np.random.seed(5)
  dataset = load_mnist1d()
  assert (random.random(), np.random.rand()) == before
  prepared = check(dataset, (4000, 40, 1), (1000, 40, 1), np.float32)
  np.testing.assert_array_equal(prepared, dataset.train[0][:3])
  both = np.concatenate([dataset.train[0], dataset.test[0]])
  assert abs(both.mean()) < 1e-4  # The package normalises the whole.
  assert abs(both.std() - 1) < 1e-4
  assert np.bincount(np.append(dataset.train[1], dataset.test[1])).tolist() == (
    [500] * 10
  )


def test_digits_have_a_fixed_split():
  dataset = data.load("digits")
  check(dataset, (1437, 8, 8, 1), (360, 8, 8, 1))
  assert dataset.train[0].max() == 16
  assert dataset.train[1][:5].tolist() == [0, 1, 2, 3, 4]
  x = dataset.prepare(dataset.train[0])
  assert abs(float(x.mean())) < 1e-3
  assert abs(float(x.std()) - 1) < 1e-3


@pytest.mark.skipif(
  not pathlib.Path(sets.DEBIAN_FASHION_MNIST).is_dir(),
  reason="needs Debian's package dataset-fashion-mnist",
)
def test_fashion_mnist_of_debian():
  dataset = data.load("fashion_mnist")
  check(dataset, (60_000, 28, 28, 1), (10_000, 28, 28, 1))
  assert np.bincount(dataset.train[1]).tolist() == [6000] * 10
  assert np.bincount(dataset.test[1]).tolist() == [1000] * 10
  pixels = dataset.train[0] / np.float32(255)
  assert pixels.mean() == pytest.approx(0.2860, abs=5e-5)
  assert pixels.std() == pytest.approx(0.3530, abs=5e-5)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_plain_and_compressed(folder, name):
  dataset = data.load(name, data_dir=str(folder))
  check(dataset, (12, 28, 28, 1), (5, 28, 28, 1))
  assert dataset.test[1].tolist() == [0, 1, 2, 3, 4]
  assert (
    dataset.train[0].tobytes()
    == (folder / "train-images-idx3-ubyte").read_bytes()[16:]
  )


def cut(path, keep):
  path.write_bytes(path.read_bytes()[:keep])


def overwrite(path, at, content):
  old = path.read_bytes()
  path.write_bytes(old[:at] + content + old[at + len(content) :])


@pytest.mark.parametrize(
  ("damage", "name", "message"),
  [
    (
      lambda p: cut(p, 1000),
      "train-images-idx3-ubyte",
      r"expected 9424 bytes for shape \(12, 28, 28\), got 1000",
    ),
    (
      lambda p: p.write_bytes(p.read_bytes() + b"x"),
      "train-images-idx3-ubyte",
      "expected 9424 bytes .* got 9425",
    ),
    (
      lambda p: cut(p, 2000),
      "t10k-images-idx3-ubyte.gz",
      r"expected 3936 bytes for shape \(5, 28, 28\), got \d",
    ),
    (
      lambda p: cut(p, 10),
      "train-images-idx3-ubyte",
      "expected a header of 16 bytes, got 10",
    ),
    (
      lambda p: overwrite(p, 0, b"\0\0\x08\x02"),
      "train-images-idx3-ubyte",
      "begins with 00000803, got 00000802",
    ),
    (lambda p: cut(p, 0), "train-labels-idx1-ubyte", "00000801, got nothing"),
    (
      lambda p: overwrite(p, 500, b"damage"),
      "t10k-images-idx3-ubyte.gz",
      "not a sound gzip file",
    ),
    (
      lambda p: p.write_bytes(idx_bytes(np.zeros(11, np.uint8))),
      "train-labels-idx1-ubyte",
      "expected 12 labels, as many as .*train-images.* got 11",
    ),
    (
      lambda p: overwrite(p, 8 + 7, b"\x0a"),
      "train-labels-idx1-ubyte",
      r"'train': label 10 at index 7 is not in \[0, 10\), 1 of 12",
    ),
  ],
)
def test_a_damaged_file_is_named(folder, damage, name, message):
  damage(folder / name)
  with pytest.raises(DataError, match=message) as caught:
    data.load("mnist", data_dir=str(folder))
  assert isinstance(caught.value, UserError)
  assert name in str(caught.value) or "index 7" in str(caught.value)


def test_gzip_files_of_several_members_are_read_whole(folder):
  """As pigz, bgzip and `cat a.gz b.gz` make them."""
  before = data.load("mnist", data_dir=str(folder)).test
  path = folder / "t10k-images-idx3-ubyte.gz"
  content = gzip.decompress(path.read_bytes())
  members = [content[:9], b"", content[9:2000], content[2000:]]
  whole = b"".join(map(gzip.compress, members))
  for end in (b"", bytes(512)):  # zeros fill up blocks of a tape
    path.write_bytes(whole + end)
    after = data.load("mnist", data_dir=str(folder)).test
    np.testing.assert_array_equal(before[0], after[0])
  path.write_bytes(whole[:-100])
  with pytest.raises(
    DataError, match=r"expected 3936 bytes .* got [23]\d\d\d;"
  ):
    data.load("mnist", data_dir=str(folder))
  path.write_bytes(whole + b"no member")
  with pytest.raises(DataError, match="not a sound gzip file"):
    data.load("mnist", data_dir=str(folder))


def test_errors_of_the_system_are_told_in_words(folder, monkeypatch):
  def fails(path):
    raise PermissionError(13, "Permission denied", str(path))

  monkeypatch.setattr(pathlib.Path, "read_bytes", fails)
  with pytest.raises(
    DataError, match=r"mnist: its data cannot be read: .*denied: .*train-images"
  ):
    data.load("mnist", data_dir=str(folder))


def test_a_missing_file_says_how_to_get_it(folder, monkeypatch):
  (folder / "t10k-labels-idx1-ubyte.gz").unlink()
  with pytest.raises(MissingDataError, match="no t10k-labels-idx1-ubyte or"):
    data.load("mnist", data_dir=str(folder))
  monkeypatch.setattr(sets, "DEBIAN_FASHION_MNIST", "/nowhere")
  with pytest.raises(MissingDataError) as caught:
    data.load("fashion_mnist")
  assert isinstance(caught.value, FileNotFoundError)
  for hint in ("/nowhere", "apt-get install dataset-fashion-mnist",
               "--config.data.data_dir"):  # fmt: skip
    assert hint in str(caught.value)
  with pytest.raises(MissingDataError, match=r"no folder given.*source=tfds"):
    data.load("mnist")


@pytest.mark.parametrize(
  ("name", "options", "shape", "num_classes"),
  [
    ("cifar10", {}, (32, 32, 3), 10),
    ("cifar10", {"normalize": "image", "pad": 0}, (32, 32, 3), 10),
    ("cifar100", {"mode": "constant"}, (32, 32, 3), 100),
    ("mnist", {"source": "tfds"}, (28, 28, 1), 10),
    ("fashion_mnist", {"source": "tfds"}, (28, 28, 1), 10),
  ],
)
def test_tfds_sets_are_read_without_tensorflow(
  name, options, shape, num_classes
):
  with tfds.testing.mock_data(num_examples=6):
    dataset = data.load(name, **options)
  assert dataset.num_classes == num_classes
  check(dataset, (6, *shape), (6, *shape))
  assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("given", [True, False])
def test_a_missing_tfds_set_says_how_to_prepare_it(
  tmp_path, given, monkeypatch
):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(MissingDataError) as caught:
    data.load("cifar10", data_dir=str(tmp_path) if given else None)
  lines = str(caught.value).splitlines()
  python, flag, program = shlex.split(lines[1])
  assert (python, flag) == ("python", "-c")
  compile(program, "command", "exec")
  assert "tfds.builder('cifar10'" in program
  assert "file_format='array_record'" in program
  assert (str(tmp_path) in program) == given
  assert "needs tensorflow" in lines[2]


def test_a_tfds_label_out_of_range_is_named():
  def source(self, split, **kwargs):
    good = {"image": np.zeros((32, 32, 3), np.uint8), "label": 3}
    return [good, {**good, "label": -1}]

  with (
    tfds.testing.mock_data(as_data_source_fn=source),
    pytest.raises(
      DataError, match=r"cifar10, split 'train': label -1 at index 1"
    ),
  ):
    data.load("cifar10")


def test_a_missing_importlib_resources_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "importlib_resources", None)
  with pytest.raises(UserError, match="pip install importlib_resources"):
    data.load("cifar10")


def test_normalisation_uses_the_stated_constants():
  with tfds.testing.mock_data(num_examples=3):
    dataset = data.load("cifar10")
  x = np.full((1, 1, 1, 3), 255, np.uint8)
  wanted = (1 - np.array([0.4914, 0.4822, 0.4465])) / [0.2470, 0.2435, 0.2616]
  np.testing.assert_allclose(dataset.prepare(x)[0, 0, 0], wanted, rtol=1e-5)


def test_standardize_each_as_tensorflow():
  x = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
  x[3] = 7  # Constant: the deviation is 1 / sqrt(192), the result 0.
  y = transforms.standardize_each(x)
  np.testing.assert_allclose(y.mean((1, 2, 3)), 0, atol=1e-5)
  np.testing.assert_allclose(y[:3].std((1, 2, 3)), 1, rtol=1e-5)
  assert not y[3].any()
  faint = np.zeros((1, 8, 8, 3), np.float32)
  faint[0, 0, 0, 0] = 0.1
  least = 192**-0.5
  np.testing.assert_allclose(
    transforms.standardize_each(faint)[0, 0, 0, 0],
    (0.1 - 0.1 / 192) / least,
    rtol=1e-5,
  )


@pytest.mark.parametrize("mode", ["symmetric", "reflect", "constant"])
def test_pad_crop_flip_gives_every_window_of_the_padded_image(mode):
  image = np.arange(5 * 5 * 2, dtype=np.uint8).reshape(5, 5, 2) + 1
  batch = np.tile(image, (400, 1, 1, 1))
  augment = jax.jit(transforms.pad_crop_flip(2, mode=mode))
  got = np.asarray(augment(jax.random.key(0, impl="rbg"), batch))
  assert got.dtype == np.uint8
  padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode=mode)
  windows = [
    padded[i : i + 5, j : j + 5][:, ::step]
    for i in range(5)
    for j in range(5)
    for step in (1, -1)
  ]
  wanted = {w.tobytes() for w in windows}
  assert {g.tobytes() for g in got} == wanted  # 400 draws of 50 windows.


def test_augmentation_is_keyed_per_example():
  augment = jax.jit(transforms.pad_crop_flip(0))
  x = np.tile(np.arange(4.0)[None, None, :, None], (64, 1, 1, 1))
  key = jax.random.key(1)  # Under vmap rbg would hide a key used twice.
  flipped = np.asarray(augment(key, x))[:, 0, 0, 0] == 3
  assert 16 < flipped.sum() < 48
  np.testing.assert_array_equal(augment(key, x)[:, 0, 0, 0] == 3, flipped)
  still = transforms.pad_crop_flip(0, flip=False)(key, x)
  np.testing.assert_array_equal(still, x)


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("cifar_10", {}, "no data set is called 'cifar_10'.*'cifar10'"),
    ("mnist-1d", {}, "mnist1d"),
    ("cifar10", {"padd": 4}, "option of data set cifar10.*'pad'"),
    ("digits", {"pad": 4}, "option of data set digits"),
    ("cifar10", {"normalize": "none"}, "dataset, image; got 'none'"),
    ("mnist", {"source": "web"}, "source must be idx or tfds; got 'web'"),
    (
      "imagenet2012",
      {"size": 64},
      "option of data set imagenet2012.*'image_size'",
    ),
  ],
)
def test_a_wrong_name_or_option_is_named(name, options, message):
  with pytest.raises(UserError, match=message):
    data.load(name, data_dir="/nowhere", **options)


@pytest.mark.parametrize("options", [{"pad": -1}, {"mode": "edge"}])
def test_a_wrong_augmentation_is_named(options):
  with pytest.raises(DataError, match=str(next(iter(options.values())))):
    transforms.pad_crop_flip(**options)
