"""Writes what a finished run has trained to one file.

python -m experiments.export --workdir=DIR --to=FILE.safetensors \
  [--format=packed|dense] [--run=NAME]

`packed` holds the non-zeros only; packed_files.py tells its layout, and
`experiments.predict` runs it. `dense` is a plain safetensors file with zeros in
place. Both hold the run's config in their metadata, under `about`. Language
models are saved as Hugging Face folders by their own driver.
"""

import json
import pathlib
import sys

import jax
import numpy as np
import safetensors.numpy
from absl import app, flags, logging

from experiments import finished, named, packed_files, train
from experiments.errors import UserError, unknown
from experiments.llm import files
from sparsejax import packed
from sparsejax.masks import path_name

FORMATS = ("packed", "dense")


def run(workdir: str, to: str, *, form: str, name: str | None = None) -> None:
  """Writes the file, and prints what it takes.

  Args:
    workdir: Where finished runs are.
    to: The file.
    form: One of FORMATS.
    name: The run in there; the last sparse one if None.

  Raises:
    UserError: If there is no such run or format.
  """
  if form not in FORMATS:
    raise unknown("format", form, FORMATS)
  one = finished.chosen(finished.find(pathlib.Path(workdir)), name)
  result = train.train(one.config, one.folder)
  variables = {"params": result.params, "batch_stats": result.batch_stats}
  about = {"config": named.plain(one.config)}
  path = pathlib.Path(to)
  path.parent.mkdir(parents=True, exist_ok=True)
  if form == "packed":
    masks = {
      "params": result.masks,
      "batch_stats": jax.tree.map(lambda _: True, result.batch_stats),
    }
    tree = packed.pack(variables, masks, formats=_format)
    packed_files.write(path, tree, about)
  else:
    tensors = {
      path_name(key): np.asarray(x)
      for key, x in jax.tree_util.tree_leaves_with_path(variables)
    }
    metadata = {"about": json.dumps(about)}
    with files.whole(path) as part:
      safetensors.numpy.save_file(tensors, part, metadata=metadata)
  dense = sum(x.nbytes for x in jax.tree.leaves(variables))
  print(
    f"{path}: {path.stat().st_size:,} bytes, of {dense:,} of the arrays with "
    f"their zeros, of {one.title}"
  )


def _format(name, mask):
  """For kernels where there are some: matrices of moderate size."""
  del name
  wanted = (packed.n_of_m(2, 4), packed.rows(kernel=True))
  return packed.fitting(mask, wanted=wanted)


def main(argv: list[str]) -> None:
  """Hands the flags on."""
  if len(argv) > 1:
    raise UserError(f"unknown arguments: {' '.join(argv[1:])}")
  logging.set_verbosity(logging.WARNING)  # Orbax tells a lot
  given = flags.FLAGS
  run(given.workdir, given.to, form=given.format, name=given.run)


def _define_flags() -> None:
  """Not on import, since another command has a --workdir too."""
  flags.DEFINE_string("workdir", None, "Where finished runs are.")
  flags.DEFINE_string("to", None, "The file to write.")
  flags.DEFINE_string("format", "packed", f"One of {', '.join(FORMATS)}.")
  flags.DEFINE_string("run", None, "The run: its directory in there.")
  flags.mark_flags_as_required(["workdir", "to"])


if __name__ == "__main__":
  try:
    _define_flags()
    app.run(main)
  except UserError as error:
    print(f"Error: {error}", file=sys.stderr)
    sys.exit(getattr(error, "exit_code", 1))
  except KeyboardInterrupt:
    sys.exit("Interrupted")
