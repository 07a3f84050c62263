"""2:4 models in the layout of compressed-tensors, which vLLM reads.

A matrix `P.weight` [out, in] is three tensors: `P.compressed` [out, in / 2],
two weights of every four inputs, in order; `P.bitmask`, uint8
[out, ceil(in / 8)], which inputs have them, lowest bit first; and `P.shape`,
int64 [2, 1].
compressed-tensors calls this sparse-24-bitmask up to its version 0.12; later
versions, and vLLM since 2026, no longer read it.
"""

import pathlib

import jax.numpy as jnp
import numpy as np

from experiments.errors import UserError
from experiments.llm.io import huggingface
from experiments.llm.io.model import Model
from experiments.llm.io.tensors import kernel_names, listed
from sparsejax import patterns

_PATTERN = patterns.n_of_m(2, 4, axis=-1)


def write_model(
  folder: pathlib.Path, model: Model, *, dtype: str = "float32"
) -> None:
  """Writes a model whose layers' kernels are 2:4 along their inputs.

  Args:
    folder: Of the files; made if need be.
    model: The model, with zeros in place.
    dtype: Of the weights: float32, float16 or bfloat16.

  Raises:
    UserError: If a kernel has more than two non-zeros among four inputs, or the
      dtype is unknown.
  """
  tensors, config = huggingface.tensors_and_config(model, dtype)
  names = kernel_names(model.config, model.family.huggingface.TENSORS)
  wrong = [n for n in names if not _is_two_of_four(tensors[n])]
  if wrong:
    raise UserError(
      f"these matrices are not 2:4: {listed(wrong)}. Prune with n_of_m=(2, 4), "
      "or export with --format=packed."
    )
  size = sum(x.size for x in tensors.values())
  zeros = sum(np.count_nonzero(x == 0) for x in tensors.values())
  for name in names:
    w, prefix = tensors.pop(name), name.removesuffix(".weight")
    scores = jnp.abs(jnp.asarray(w, jnp.float32))
    kept = np.asarray(_PATTERN.top_k(scores, w.size // 2))
    tensors[f"{prefix}.compressed"] = w[kept].reshape(len(w), -1)
    tensors[f"{prefix}.bitmask"] = np.packbits(kept, axis=1, bitorder="little")
    tensors[f"{prefix}.shape"] = np.array(w.shape, np.int64)[:, None]
  config["quantization_config"] = {
    "quant_method": "compressed-tensors",
    "sparsity_config": {
      "format": "sparse-24-bitmask",
      "global_sparsity": zeros / size,
      "ignore": ["lm_head"],
      "sparsity_structure": "2:4",
      "targets": ["Linear"],
    },
  }
  huggingface.write_folder(folder, tensors, config, model)


def _is_two_of_four(w: np.ndarray) -> bool:
  """Returns whether w[out, in] has at most 2 non-zeros in every 4 inputs."""
  if w.shape[1] % 4:
    return False
  return (np.count_nonzero(w.reshape(-1, 4), axis=1) <= 2).all()
