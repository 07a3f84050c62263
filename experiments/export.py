"""Writes what has been trained to files that others read, or that run fast.

python -m experiments.export --workdir=DIR --to=FILE.safetensors \
  [--format=packed|dense] [--run=NAME]
python -m experiments.export --model=PATH --to=PATH \
  [--format=packed|dense|2:4] [--dtype=float32|float16|bfloat16|int8] \
  [--group=INPUTS] [--activations=float|int8] [--head=float32|bfloat16]

The first is for finished runs of image models, the second for language models:
Hugging Face folders, such as DIR/model of a fine-tuning run, or packed files.

`packed` is one file of the non-zeros, laid out as in llm/io/packed_files.py;
`experiments.predict` and `experiments.generate` run it. `dense` is a plain
safetensors file with zeros in place; of language models, a Hugging Face folder.
`2:4` is a folder in the layout of compressed-tensors: llm/io/two_of_four.py.
Files that lie beside a language model are handed through: llm/io/extras.py.
Files of runs hold the run's config in their metadata, under `about`.
"""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from absl import flags

from experiments import cli
from experiments.config import calling
from experiments.errors import UserError, unknown
from experiments.llm.io import (
  files,
  huggingface,
  load,
  packed_files,
  packed_model,
  two_of_four,
)
from experiments.llm.io.tensors import DTYPES, cast, listed
from experiments.runs import finished, train
from sparsejax import packed
from sparsejax.masks import path_name

FORMATS = ("packed", "dense", "2:4")


def run(workdir: str, to: str, *, form: str, name: str | None = None) -> None:
  """Writes a finished run's file, and prints what it takes.

  Args:
    workdir: Where finished runs are.
    to: The file.
    form: "packed" or "dense".
    name: The run in there; the last sparse one if None.

  Raises:
    UserError: If there is no such run or format.
  """
  if form not in FORMATS[:2]:
    raise unknown("format of runs", form, FORMATS[:2])
  one = finished.select(_finished(pathlib.Path(workdir)), name)
  result = train.train(one.config, one.folder)
  variables = jax.tree_util.tree_map_with_path(
    lambda key, x: cast(np.asarray(x), x.dtype, path_name(key)),
    {"params": result.params, "batch_stats": result.batch_stats},
  )
  about = {"config": calling.plain(one.config)}
  path = pathlib.Path(to)
  if form == "packed":
    masks = {
      "params": result.masks,
      "batch_stats": jax.tree.map(lambda _: True, result.batch_stats),
    }
    tree = packed.pack(variables, masks, formats=_format)
    packed_files.write_tree(path, tree, about)
  else:
    tensors = {
      path_name(key): np.asarray(x)
      for key, x in jax.tree_util.tree_leaves_with_path(variables)
    }
    metadata = {"about": json.dumps(about)}
    with files.replacing(path) as part:
      safetensors.numpy.save_file(tensors, part, metadata=metadata)
  _print_sizes(path, variables, one.title)


def _finished(root: pathlib.Path) -> list[finished.Run]:
  """Finds finished runs of image models, or says where other models are."""
  try:
    return finished.find(root)
  except UserError as error:
    folders = sorted(file.parent for file in root.rglob("model.safetensors"))
    if not folders:
      raise
    raise UserError(
      f"{root} holds no finished run of an image model, but language models; "
      f"export one of them with --model: {listed(list(map(str, folders)))}"
    ) from error


def run_model(
  model: str,
  to: str,
  *,
  form: str,
  dtype: str,
  group: int | None = None,
  activations: str = "float",
  head: str | None = None,
) -> None:
  """Writes a language model, and prints what it takes.

  Args:
    model: Where it is: a Hugging Face folder, a GGUF or a packed file.
    to: The file, if packed, else the folder.
    form: One of FORMATS.
    dtype: Of the weights: float32, float16 or bfloat16; int8 if packed.
    group: Of int8, how many neighbouring inputs share a scale; all by default.
    activations: Of int8, what the kernels multiply, float or int8.
    head: If packed, the dtype of embedding and head; that of the rest if None.

  Raises:
    UserError: If there is no such model, format or dtype, or the model's zeros
      do not fit the format.
  """
  if form not in FORMATS:
    raise unknown("format", form, FORMATS)
  dtypes = packed_model.DTYPES if form == "packed" else DTYPES
  if dtype not in dtypes:
    raise unknown(f"dtype of {form} models", dtype, dtypes)
  if activations not in packed_model.ACTIVATIONS:
    raise unknown("activations", activations, packed_model.ACTIVATIONS)
  whole = packed_model.unpack(load.model_at(model))
  path = pathlib.Path(to)
  if form == "packed":
    small = packed_model.pack(
      whole, dtype=dtype, group=group, activations=activations, head=head
    )
    packed_model.write_model(path, small)
  elif form == "dense":
    huggingface.write_model(path, whole, dtype=dtype)
  else:
    two_of_four.write_model(path, whole, dtype=dtype)
  _print_sizes(path, whole.params, model)
  if whole.extras.files:
    print(f"Handed through as they are: {', '.join(whole.extras.files)}")


def _print_sizes(path: pathlib.Path, variables: Any, title: str) -> None:
  file = path / "model.safetensors" if path.is_dir() else path
  dense = sum(x.nbytes for x in jax.tree.leaves(variables))
  print(
    f"{file}: {file.stat().st_size:,} bytes, of {dense:,} of the arrays with "
    f"their zeros, of {title}"
  )


def _format(name: str, mask: Any) -> Any:
  """Picks the format that has a kernel, for matrices of moderate size."""
  del name
  wanted = (packed.n_of_m(2, 4), packed.rows(kernel=True))
  return packed.fitting(mask, wanted=wanted)


def main() -> None:
  """Exports a run or a language model, as the flags say."""
  values = flags.FLAGS
  if (values.workdir is None) == (values.model is None):
    raise UserError("give either --workdir, of a run, or --model")
  if values.workdir is None:
    run_model(
      values.model,
      values.to,
      form=values.format,
      dtype=values.dtype,
      group=values.group,
      activations=values.activations,
      head=values.head,
    )
  else:
    run(values.workdir, values.to, form=values.format, name=values.run)


def _define_flags() -> None:
  flags.DEFINE_string("workdir", None, "Where finished runs are.")
  flags.DEFINE_string("run", None, "The run: its directory in there.")
  flags.DEFINE_string(
    "model", None, "A language model: a Hugging Face folder or a packed file."
  )
  flags.DEFINE_string("to", None, "The file or folder to write.")
  flags.DEFINE_string("format", "packed", f"One of {', '.join(FORMATS)}.")
  flags.DEFINE_string("dtype", "float32", "Of a language model's weights.")
  flags.DEFINE_integer(
    "group", None, "Of int8: how many inputs share a scale; all by default."
  )
  flags.DEFINE_string(
    "activations", "float", "Of int8: what is multiplied; float or int8."
  )
  flags.DEFINE_string(
    "head", None, "Of packed floats: the dtype of embedding and head."
  )
  flags.mark_flag_as_required("to")


if __name__ == "__main__":
  cli.run(main, _define_flags)
