"""Normalisation and augmentation of batches on the device.

Pure functions, for use under jit. Photos are cropped on the host, in stream.py.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from experiments.data.failures import DataError


def normalize(
  mean: float | Sequence[float],
  std: float | Sequence[float],
  *,
  scale: float = 255.0,
) -> Callable[[jax.Array], jax.Array]:
  """Returns x -> (x / scale - mean) / std.

  Args:
    mean: Of x / scale; one number, or one a channel.
    std: As mean.
    scale: The largest value that x may take.

  Returns:
    A function from a batch [..., channels] of any dtype to float32.
  """

  def prepare(x: jax.Array) -> jax.Array:
    x = jnp.asarray(x, jnp.float32) / scale
    return (x - jnp.asarray(mean)) / jnp.asarray(std)

  return prepare


def standardize_each(x: jax.Array) -> jax.Array:
  """Gives each image of a batch zero mean and unit deviation.

  As TensorFlow's `per_image_standardization`, which the released CIFAR code
  of RigL uses: the deviation is at least 1 / sqrt(pixels).

  Args:
    x: A batch [b, h, w, c] of pixels in [0, 255].

  Returns:
    float32[b, h, w, c].
  """
  x = jnp.asarray(x, jnp.float32)
  mean = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
  std = jnp.std(x, axis=(1, 2, 3), keepdims=True)
  return (x - mean) / jnp.maximum(std, x[0].size ** -0.5)


def as_float(x: jax.Array) -> jax.Array:
  """Casts x to float32."""
  return jnp.asarray(x, jnp.float32)


def keep(key: jax.Array, x: jax.Array) -> jax.Array:
  """Returns x unchanged: no augmentation."""
  del key
  return x


def pad_crop_flip(
  pad: int = 4, *, mode: str = "symmetric", flip: bool = True
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """Returns the usual augmentation of CIFAR: pad, crop at random, flip.

  Args:
    pad: Pixels added on every side; 0 leaves the crop out.
    mode: of `jnp.pad`. "symmetric" repeats the border, as the code of RigL
      (google-research/rigl, cifar_resnet/data_helper.py); "reflect" does
      not, as Wide ResNet's; "constant" is zero, as in He et al. 2015.
    flip: Mirror left and right with probability 1/2.

  Returns:
    A function (key, x[b, h, w, c]) -> x of the same shape and dtype. Each
    example has a key of its own, split from `key`.

  Raises:
    DataError: pad is negative, or the mode is another.
  """
  if pad < 0 or mode not in ("symmetric", "reflect", "constant"):
    raise DataError(
      "pad_crop_flip: pad must be >= 0 and mode symmetric, reflect or "
      f"constant; got pad={pad}, mode={mode!r}."
    )

  def one(key: jax.Array, image: jax.Array) -> jax.Array:
    crop_key, flip_key = jax.random.split(key)
    if pad:
      widths = ((pad, pad), (pad, pad), (0, 0))
      corner = jax.random.randint(crop_key, (2,), 0, 2 * pad + 1)
      image = jax.lax.dynamic_slice(
        jnp.pad(image, widths, mode=mode), (*corner, 0), image.shape
      )
    if flip:
      mirrored = jax.random.bernoulli(flip_key)
      image = jnp.where(mirrored, image[:, ::-1], image)
    return image

  def augment(key: jax.Array, x: jax.Array) -> jax.Array:
    return jax.vmap(one)(jax.random.split(key, x.shape[0]), x)

  return augment
