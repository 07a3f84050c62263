"""Parameters, packed or dense, in one safetensors file.

The layout: a dense leaf is a tensor named by its key path, joined by slashes. A
packed leaf P is `P:values`, [slots], and a tensor `P:NAME` for each array of
its structure, with dots between nested fields. The header's metadata hold
`format` ("sparsejax-packed"), `version` ("1"), `structures`, a JSON object from
P to `kind`, the name of the structure's class in `sparsejax.packed`, and its
other fields (`sizes` is the array's shape), and `about`, a JSON object that
describes the parameters. The classes document their arrays.

Version 2 has INT8 besides. Of packed leaves the values are int8 then, and
`P:scales` are float32[..., out, groups]. A leaf whose `kind` is `Quantized`,
the class in `sparsejax.quantize`, is `P:values`, int8[..., out, in], and such
scales; `dynamic` tells whether its products round activations to INT8.

Version 3 has `dynamic` of packed leaves besides.
"""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from experiments.errors import UserError
from experiments.llm.io import files, identify
from experiments.llm.io.tensors import cast
from sparsejax import packed, quantize
from sparsejax.masks import path_name
from sparsejax.packed.formats import Back

VERSIONS = ("1", "2", "3")
_KINDS = {
  kind.__name__: kind
  for kind in (
    packed.Flat,
    packed.Rows,
    packed.FanIn,
    packed.NOfM,
    packed.Bits,
    packed.RowBits,
    packed.Blocks,
  )
}
_QUANTIZED = quantize.Quantized.__name__


def write_tree(
  path: str | pathlib.Path, tree: Any, about: dict[str, Any]
) -> None:
  """Writes parameters to a file, which is replaced when complete.

  Args:
    path: The file.
    tree: Nested dicts of arrays, packed leaves and matrices of INT8.
    about: Describes them; what JSON can hold.
  """
  tensors, structures, version = {}, {}, VERSIONS[0]
  for key, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_node):
    name = path_name(key)
    if not _is_node(leaf):
      tensors[name] = np.asarray(leaf)
      continue
    tensors[f"{name}:values"] = np.asarray(leaf.values)
    if leaf.scales is not None:
      tensors[f"{name}:scales"] = np.asarray(leaf.scales)
      version = max(version, VERSIONS[1])
    if quantize.is_quantized(leaf):
      structures[name] = {"kind": _QUANTIZED, "dynamic": leaf.dynamic}
      continue
    arrays = {
      path_name(at).replace("/", "."): x
      for at, x in jax.tree_util.tree_leaves_with_path(leaf.structure)
    }
    for field, x in arrays.items():
      tensors[f"{name}:{field}"] = np.asarray(x)
    of_arrays = {field.partition(".")[0] for field in arrays}
    structures[name] = {"kind": type(leaf.structure).__name__} | {
      field.name: getattr(leaf.structure, field.name)
      for field in dataclasses.fields(leaf.structure)
      if field.name not in of_arrays
    }
    if leaf.dynamic:
      structures[name]["dynamic"], version = True, VERSIONS[2]
  metadata = {
    "format": identify.FORMAT,
    "version": version,
    "structures": json.dumps(structures),
    "about": json.dumps(about),
  }
  with files.replacing(pathlib.Path(path)) as part:
    safetensors.numpy.save_file(tensors, part, metadata=metadata)


def read_tree(
  path: str | pathlib.Path,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads parameters that `write_tree` wrote, and checks their structures.

  Args:
    path: The file.

  Returns:
    Nested dicts of arrays, packed leaves and matrices of INT8; and `about`.

  Raises:
    UserError: If the file is missing, damaged, or of another format.
  """
  wanted = "a packed file, as `python -m experiments.export` writes it"
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      metadata = file.metadata() or {}
      if metadata.get("format") != identify.FORMAT:
        raise identify.not_wanted(path, wanted)
      tensors = {name: file.get_tensor(name) for name in list(file.keys())}
  except (OSError, safetensors.SafetensorError) as error:
    raise identify.not_wanted(path, wanted) from error
  if metadata.get("version") not in VERSIONS:
    raise UserError(
      f"{path} is of version {metadata.get('version')} of its format; wanted "
      f"version {', '.join(VERSIONS)}: export the model again, or read the "
      "file with the version of the project that wrote it."
    )
  try:
    structures = json.loads(metadata["structures"])
    leaves, arrays = {}, {name: {} for name in structures}
    for key, x in tensors.items():
      if jnp.issubdtype(x.dtype, jnp.floating):
        cast(x, x.dtype, f"{path}: tensor {key}")
      name, _, field = key.partition(":")
      (arrays[name] if field else leaves)[field or name] = jnp.asarray(x)
    for name, fields in structures.items():
      leaves[name] = _packed(fields, arrays[name])
    tree = traverse_util.unflatten_dict(leaves, sep="/")
    packed.check(tree)
    return tree, json.loads(metadata["about"])
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(f"{path} is damaged: {error}") from error


def _is_node(x: Any) -> bool:
  return packed.is_packed(x) or quantize.is_quantized(x)


def _packed(fields: dict[str, Any], arrays: dict[str, jax.Array]) -> Any:
  """Makes a leaf from its fields and its arrays by name in the file."""
  if fields["kind"] == _QUANTIZED:
    return quantize.Quantized(**arrays, dynamic=fields["dynamic"])
  arrays = traverse_util.unflatten_dict(arrays, sep=".")
  if "back" in arrays:
    arrays["back"] = Back(**arrays["back"])
  values, scales = (arrays.pop(name, None) for name in ("values", "scales"))
  kind, dynamic = _KINDS[fields.pop("kind")], fields.pop("dynamic", False)
  fields["sizes"] = tuple(fields["sizes"])
  structure = kind(**arrays, **fields)
  return packed.Packed(values, structure, scales=scales, dynamic=dynamic)
