"""Runs an exported image model from its packed file, by the kernels.

python -m experiments.predict --model=FILE.safetensors \
  [--inputs=X.npy --to=LOGITS.npy]

Without inputs it is judged on the test set of the run that it is of. Inputs are
an array [n, ...] as the data set holds its examples, before it prepares them;
logits are float32[n, classes].
"""

import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from flax import linen as nn

from experiments import cli
from experiments.errors import UserError
from experiments.llm.io import files, packed_files
from experiments.runs.model import load
from sparsejax.linen import packed_layers

_BATCH = 1000


class Predictor:
  """A model in memory, packed.

  Attributes:
    dataset: The data set that it was trained on.
    logits: `x [n, ...] -> float32[n, classes]`.
  """

  def __init__(self, path: pathlib.Path):
    """Reads it from a packed file of `experiments.export`."""
    variables, about = packed_files.read_tree(path)
    config = ml_collections.ConfigDict(about["config"])
    self.dataset, model = load(config)

    @jax.jit
    def logits(x: jax.Array) -> jax.Array:
      with nn.intercept_methods(packed_layers):
        return model.apply(variables, self.dataset.prepare(x), False)

    self.logits = logits


def run(
  model: str, *, inputs: str | None = None, to: str | None = None
) -> None:
  """Writes logits of inputs, or prints the accuracy on the test set.

  Args:
    model: The packed file.
    inputs: A NumPy file; None for the test set.
    to: Where to write logits.

  Raises:
    UserError: If a file is missing or does not fit.
  """
  predictor = Predictor(pathlib.Path(model))
  if inputs is None:
    if predictor.dataset.test is None:
      raise UserError(
        f"{predictor.dataset.name} does not fit in memory: give --inputs"
      )
    x, y = predictor.dataset.test
    right = np.argmax(_in_batches(predictor, x), axis=1) == np.asarray(y)
    print(f"accuracy {right.mean():.4f} of {len(right)} test examples")
    return
  if to is None:
    raise UserError("got --inputs without --to, the file to write logits to")
  try:
    x = np.load(inputs)
  except (OSError, ValueError) as error:
    raise UserError(f"{inputs} cannot be read: {error}") from error
  wanted = predictor.dataset.like.shape
  if x.shape[1:] != wanted:
    raise UserError(
      f"{inputs} holds an array of shape {x.shape}; wanted [n, "
      f"{', '.join(map(str, wanted))}], as the model was trained on"
    )
  with files.replacing(pathlib.Path(to)) as part, part.open("wb") as file:
    np.save(file, _in_batches(predictor, x))
  print(f"{to}: logits of {len(x)} inputs")


def _in_batches(predictor: Predictor, x: np.ndarray) -> np.ndarray:
  """Computes the logits of all inputs, some at a time."""
  parts = [
    np.asarray(predictor.logits(jnp.asarray(x[i : i + _BATCH])))
    for i in range(0, len(x), _BATCH)
  ]
  return np.concatenate(parts)


def main() -> None:
  """Predicts or tests, as the flags say."""
  values = flags.FLAGS
  run(values.model, inputs=values.inputs, to=values.to)


def _define_flags() -> None:
  flags.DEFINE_string("model", None, "The packed file.")
  flags.DEFINE_string("inputs", None, "Inputs, a NumPy file.")
  flags.DEFINE_string("to", None, "Where to write logits.")
  flags.mark_flag_as_required("model")


if __name__ == "__main__":
  cli.run(main, _define_flags)
