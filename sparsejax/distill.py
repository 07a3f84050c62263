"""Losses for fine-tuning a sparse student with a dense teacher."""

import jax
import jax.numpy as jnp

__all__ = ["cross_entropy", "kl_divergence", "square_head"]

BFLOAT16_EPS = 2.0**-7


def cross_entropy(
  logits: jax.Array, targets: jax.Array, where: jax.Array
) -> jax.Array:
  """Computes the mean negative log-likelihood of tokens, in nats.

  Args:
    logits: float[..., vocabulary].
    targets: int32[...], the tokens to predict.
    where: bool[...], which of them count; at least one.

  Returns:
    A float32 scalar.

  Example:
    >>> logits = jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5]]))
    >>> where = jnp.array([True, False])
    >>> loss = cross_entropy(logits, jnp.array([1, 0]), where)
    >>> round(float(jnp.exp(-loss)), 4)
    0.75
  """
  logs = jax.nn.log_softmax(logits.astype(jnp.float32))
  chosen = jnp.take_along_axis(logs, targets[..., None], axis=-1)[..., 0]
  return -jnp.mean(chosen, where=where)


def kl_divergence(
  logits: jax.Array,
  teacher_logits: jax.Array,
  where: jax.Array,
  *,
  temperature: float = 1.0,
) -> jax.Array:
  """Computes T^2 KL(teacher || student), the mean over tokens, in nats.

  The temperature T softens both predictions. The factor T^2 keeps the size of
  the gradients.

  Args:
    logits: The student's logits, float[..., vocabulary].
    teacher_logits: The teacher's logits, of the same shape.
    where: bool[...], which tokens count; at least one.
    temperature: Both logits are divided by it; above 0.

  Returns:
    A float32 scalar, in nats.

  Raises:
    ValueError: If the temperature is not above 0.

  References:
    Hinton et al., Distilling the Knowledge in a Neural Network,
    arXiv:1503.02531, 2015, section 2.

  Example:
    >>> teacher = jnp.log(jnp.array([[0.5, 0.5]]))
    >>> float(kl_divergence(teacher, teacher, jnp.array([True])))
    0.0
  """
  if temperature <= 0:
    raise ValueError(f"got temperature={temperature}, wanted more than 0")
  student, teacher = (
    jax.nn.log_softmax(x.astype(jnp.float32) / temperature)
    for x in (logits, teacher_logits)
  )
  divergence = jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)
  return jnp.mean(divergence, where=where) * temperature**2


def square_head(
  features: jax.Array,
  teacher_features: jax.Array,
  where: jax.Array,
  *,
  eps: float = BFLOAT16_EPS,
) -> jax.Array:
  """Computes SquareHead, the distance of features from the teacher's.

  For each layer, this is the mean squared difference divided by the mean square
  of the teacher's features, with means over tokens and features. The result is
  the sum over layers. Since each layer has its own ratio, layers with large
  features do not outweigh the others.

  Args:
    features: The student's features, float[layers, ..., width], one per block,
      without the embedding.
    teacher_features: The teacher's features, of the same shape.
    where: bool[...], which tokens count: all except padding, including prompts.
    eps: A number to add to the teacher's mean square; the released code uses
      the eps of bfloat16.

  Returns:
    A float32 scalar.

  Raises:
    ValueError: If student and teacher differ in layers or width.

  References:
    Kurtic et al., Sparse Fine-tuning for Inference Acceleration of Large
    Language Models, arXiv:2310.06927, 2023, section 2; its released code.

  Example:
    >>> teacher = jnp.ones((2, 1, 4))
    >>> float(square_head(teacher * 3, teacher, jnp.array([True]), eps=0))
    8.0
  """
  if features.shape != teacher_features.shape:
    raise ValueError(
      f"got features of {features.shape} and the teacher's of "
      f"{teacher_features.shape}, wanted the same: layers, tokens, width. A "
      "teacher has the student's architecture"
    )
  student, teacher = (
    x.astype(jnp.float32) for x in (features, teacher_features)
  )

  def mean(x):
    per_token = jnp.mean(x, axis=-1)
    axes = tuple(range(1, per_token.ndim))
    return jnp.mean(per_token, axis=axes, where=where)

  return jnp.sum(mean((student - teacher) ** 2) / (mean(teacher**2) + eps))
