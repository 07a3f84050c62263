"""Runs an exported image model from its packed file, by the kernels.

python -m experiments.predict --model=FILE.safetensors \
  [--inputs=X.npy --to=LOGITS.npy]

Without inputs it is judged on the test set of the run that it is of. Inputs are
an array [n, ...] as the data set holds its examples, before it prepares them;
logits are float32[n, classes].
"""

import pathlib
from collections.abc import Callable

import jax
import ml_collections
import numpy as np
from absl import flags
from flax import linen as nn

from experiments import cli
from experiments.data import Dataset
from experiments.errors import UserError
from experiments.llm.io import files, identify, packed_files
from experiments.runs.model import load
from sparsejax.linen import packed_layers

_BATCH = 1000


def read_predictor(
  path: str,
) -> tuple[Dataset, Callable[[np.ndarray], np.ndarray]]:
  """Reads a model from a packed file of `experiments.export`.

  Args:
    path: The file.

  Returns:
    The data set that it was trained on; and `x [n, ...] -> float32[n, classes]`
    of logits, some examples at a time.

  Raises:
    UserError: The file is missing, damaged, or of another kind.
  """
  variables, about = packed_files.read_tree(path)
  if "config" not in about:
    raise identify.not_wanted(path, "a packed image model")
  dataset, model = load(ml_collections.ConfigDict(about["config"]))

  @jax.jit
  def some(x: jax.Array) -> jax.Array:
    with nn.intercept_methods(packed_layers):
      return model.apply(variables, dataset.prepare(x), False)

  def logits(x: np.ndarray) -> np.ndarray:
    starts = range(0, len(x), _BATCH)
    return np.concatenate([some(x[i : i + _BATCH]) for i in starts])

  return dataset, logits


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
  dataset, logits = read_predictor(model)
  if inputs is None:
    if dataset.test is None:
      raise UserError(f"{dataset.name} does not fit in memory: give --inputs")
    x, y = dataset.test
    right = np.argmax(logits(x), axis=1) == np.asarray(y)
    print(f"accuracy {right.mean():.4f} of {len(right)} test examples")
    return
  if to is None:
    raise UserError("got --inputs without --to, the file to write logits to")
  try:
    x = np.load(inputs)
  except (OSError, ValueError) as error:
    raise UserError(f"{inputs} cannot be read: {error}") from error
  wanted = dataset.like.shape
  if x.shape[1:] != wanted or not len(x):
    raise UserError(
      f"{inputs} holds an array of shape {x.shape}; wanted [n, "
      f"{', '.join(map(str, wanted))}], as the model was trained on"
    )
  with files.replacing(pathlib.Path(to)) as part, part.open("wb") as file:
    np.save(file, logits(x))
  print(f"{to}: logits of {len(x)} inputs")


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
