"""Language models as exported functions: StableHLO, parameters, tokenizer.

For models that no config describes, such as one whose layers differ in their
widths. The file is a packed file (packed_files.py) of `params`, arrays by path,
and `function`, the bytes of `jax.export`, which needs none of the code that the
function was traced from. `about` has one key, `function`, which holds the
fields of the whole model's config and the tokenizer, as packed models do.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from experiments.errors import UserError
from experiments.llm import optional
from experiments.llm.families import protocol, registry
from experiments.llm.families.protocol import Config, Family
from experiments.llm.io import identify, packed_files, packed_model
from experiments.llm.io.extras import Extras
from experiments.llm.io.model import Model
from experiments.llm.io.tokenizer import Tokenizer
from sparsejax.masks import path_name

PLATFORMS = ("cpu", "cuda", "tpu")


@dataclasses.dataclass(frozen=True, eq=False)
class Function:
  """A language model that is a function of inputs of fixed shapes.

  It stands for a `Model` and for its network: what tests and generates takes
  it. There is no cache: each token that is generated costs a whole sequence.

  Attributes:
    config: The whole model's, whose context is the function's length.
    params: Arrays by path.
    tokenizer: Its tokenizer.
    extras: What else the model's files hold.
    exported: `(params, inputs by name) -> logits`.
  """

  config: Config
  params: Mapping[str, Any]
  tokenizer: Tokenizer
  extras: Extras
  exported: Any

  stop_tokens = Model.stop_tokens

  @property
  def family(self) -> Family:
    """The architecture of the whole model."""
    return registry.of(self.config)

  @property
  def source_kind(self) -> str | None:
    """What it reads before its tokens; see `protocol.source_kind`."""
    return protocol.source_kind(self.family.Network)

  @property
  def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the inputs, by name."""
    exported = self.exported
    avals = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    return avals[0][1]

  def network(self) -> "Function":
    """Returns what has the methods of a network: itself."""
    return self

  def apply(
    self,
    variables: Mapping[str, Any],
    *args: Any,
    method: str = "full",
    **options: Any,
  ) -> Any:
    """Calls a method of a network, as Linen's `apply` does.

    Args:
      variables: `params`, as in the attribute.
      *args: The method's.
      method: One of a network's; by default it computes all logits.
      **options: The method's.

    Returns:
      What the method returns.

    Raises:
      UserError: An input does not fit.
    """
    return getattr(self, f"_{method}")(variables["params"], *args, **options)

  def init_cache(self, batch: int, length: int) -> dict[str, jax.Array]:
    """Makes an empty cache: the tokens so far, [1, batch, length]."""
    return {"tokens": jnp.zeros((1, batch, length), jnp.int32)}

  def _start(
    self,
    params: Any,
    source: jax.Array,
    *,
    source_real: jax.Array | None = None,
    length: int,
  ) -> dict[str, jax.Array]:
    """Makes a cache of a source, which is read again for every token."""
    del params
    cache = {**self.init_cache(len(source), length), "source": source[None]}
    if source_real is not None:
      cache["source_real"] = source_real[None]
    return cache

  def _extend(
    self, params: Any, tokens: jax.Array, *, positions: jax.Array, cache: Any
  ) -> tuple[jax.Array, Any]:
    """Runs tokens that follow those in a cache; returns logits for streams."""
    apart = isinstance(cache, tuple)  # see `layers.apart`
    held = cache[0] if apart else jax.tree.map(lambda x: x[0], cache)
    rows = jnp.arange(len(tokens))[:, None]
    held = {**held, "tokens": held["tokens"].at[rows, positions].set(tokens)}
    logits = self._full(params, **held)
    logits = jnp.take_along_axis(logits, positions[..., None], axis=1)
    return logits, (held,) if apart else jax.tree.map(lambda x: x[None], held)

  def _logits(self, params: Any, x: jax.Array) -> jax.Array:
    """Returns what `_extend` gave."""
    del params
    return x

  def _full(
    self, params: Any, tokens: jax.Array, **source: jax.Array | None
  ) -> jax.Array:
    """Computes logits [n, t, vocab_size], so many sequences at a time."""
    shapes, n = self.shapes, len(tokens)
    batch = shapes["tokens"].shape[0]
    if "source_real" in shapes and source.get("source_real") is None:
      source["source_real"] = jnp.ones(source["source"].shape[:2], bool)
    inputs = {"tokens": tokens, **source}
    made = []
    for first in range(0, n, batch):
      part = {
        # Padding is on the right, where causal attention does not see it.
        name: _filled(name, inputs[name][first : first + batch], wanted)
        for name, wanted in shapes.items()
      }
      made.append(self.exported.call(params, part))
    return jnp.concatenate(made)[:n, : tokens.shape[1]]


def _filled(name: str, x: jax.Array, wanted: jax.ShapeDtypeStruct) -> jax.Array:
  """Pads an input with zeros to the function's shape."""
  if len(x.shape) != len(wanted.shape) or any(
    got > most for got, most in zip(x.shape, wanted.shape, strict=True)
  ):
    raise UserError(
      f"function: got {name} of shape {x.shape}, wanted at most "
      f"{wanted.shape}, for which it was exported; cut it, or export again."
    )
  missing = [
    (0, most - got) for got, most in zip(x.shape, wanted.shape, strict=True)
  ]
  return jnp.pad(x, missing).astype(wanted.dtype)


def export(
  apply: Callable[[Any, Mapping[str, jax.Array]], jax.Array],
  params: Any,
  inputs: Mapping[str, Any],
  model: Model,
) -> Function:
  """Exports a function that computes logits.

  Args:
    apply: `(params, inputs by name) -> float32[batch, length, vocab_size]`.
    params: A tree of arrays.
    inputs: `tokens` int32[batch, length], and a source if the family has one:
      arrays of the shapes that it is exported for.
    model: The model that it was made of.

  Returns:
    The function.
  """
  optional.load("flatbuffers")  # or writing the file would fail, at last
  from jax import export as jax_export

  leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
  names = [path_name(path) for path, _ in leaves]

  def call(params: Mapping[str, Any], inputs: Any) -> jax.Array:
    return apply(treedef.unflatten([params[name] for name in names]), inputs)

  flat = {path_name(path): np.asarray(leaf) for path, leaf in leaves}
  exported = jax_export.export(jax.jit(call), platforms=PLATFORMS)(flat, inputs)
  length = inputs["tokens"].shape[1]
  config = dataclasses.replace(model.config, context=length)
  return Function(config, flat, model.tokenizer, model.extras, exported)


def write(path: str | pathlib.Path, function: Function) -> None:
  """Writes a function to one file.

  Args:
    path: The file.
    function: The function.
  """
  code = np.frombuffer(function.exported.serialize(), np.uint8)
  params = traverse_util.unflatten_dict(dict(function.params), sep="/")
  tree = {"params": params, "function": code}
  about = {"function": packed_model.about(function)}
  packed_files.write_tree(path, tree, about)


def read(path: str | pathlib.Path) -> Function:
  """Reads a function that `write` wrote.

  Args:
    path: The file.

  Returns:
    The function, which runs on the machine's CPU, GPU or TPU.

  Raises:
    UserError: The file is missing, damaged, or of another kind.
  """
  optional.load("flatbuffers")
  from jax import export as jax_export

  if not identify.is_function(path):
    raise identify.not_wanted(path, "an exported language model")
  tree, about = packed_files.read_tree(path)
  config, words, extras = packed_model.described(about["function"], path)
  params = traverse_util.flatten_dict(tree["params"], sep="/")
  try:
    code = bytearray(np.asarray(tree["function"]).tobytes())
    exported = jax_export.deserialize(code)
  except (KeyError, ValueError) as error:
    raise UserError(f"{path} is damaged: {error}") from error
  return Function(config, params, words, extras, exported)
