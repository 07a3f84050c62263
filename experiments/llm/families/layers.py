"""Linen layers that families share, and rematerialization by name."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import PartitionSpec

from experiments import errors
from experiments.errors import UserError
from experiments.llm.families.protocol import EMBEDDING, LAYERS, is_kernel
from sparsejax import kernels, linear, nodes
from sparsejax.masks import path_name

INIT = nn.initializers.normal(0.02)
# The attributes of jax.checkpoint_policies that are policies themselves; the
# others make one from arguments.
_POLICIES = (
  "dots_saveable",
  "dots_with_no_batch_dims_saveable",
  "everything_saveable",
  "nothing_saveable",
)


def split_batch(x: jax.Array) -> jax.Array:
  """Shares out x [batch, ...] among the devices of the mesh that is set.

  What is computed of it is shared out alike, by XLA. Without a mesh
  (`jax.set_mesh`), or where the batch does not divide by its devices, x stays
  where it is.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or x.shape[0] % mesh.size:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(mesh.axis_names))


class Linear(nn.Module):
  """A product with a `kernel` [in, features], plus a `bias` if there is one.

  The kernel may be any node that `sparsejax.matmul` takes, such as a packed
  matrix, instead of an array.

  Attributes:
    features: the size of the output's last axis.
    use_bias: whether to add a bias.
    dtype: in which to compute.
    kernel_init: what draws the first kernel.
  """

  features: int
  use_bias: bool = False
  dtype: jax.typing.DTypeLike = jnp.float32
  kernel_init: nn.initializers.Initializer = INIT

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    where: jax.Array | None = None,
    product: jax.Array | None = None,
  ) -> jax.Array:
    """Maps x[..., in] to [..., features].

    Args:
      x: the input.
      where: bool[...], the positions that are not padding, for whoever observes
        the inputs; it changes nothing here.
      product: that of x and the kernel, if it is known; see `together`.

    Returns:
      The output, of the compute dtype.

    Raises:
      UserError: the kernel has another shape.
    """
    del where
    shape = (x.shape[-1], self.features)
    if self.has_variable("params", "kernel"):
      # Not by self.param, which takes a node's first leaf for the kernel.
      kernel = self.get_variable("params", "kernel")
    else:
      kernel = self.param("kernel", self.kernel_init, shape)
    if kernel.shape != shape:
      raise UserError(
        f"model: the kernel of {'/'.join(self.path)} has shape {kernel.shape}, "
        f"wanted {shape}; these parameters belong to another config."
      )
    y = product
    if y is None:
      y = linear.matmul(x.astype(self.dtype), kernel)
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, shape[1:])
      y += bias.astype(y.dtype)
    return y


def together(
  x: jax.Array, *layers: Linear, where: jax.Array | None = None
) -> list[jax.Array]:
  """Runs several layers on the same input, in one call of a kernel's.

  Args:
    x: of shape [..., in].
    *layers: bound to their parameters, and of one dtype.
    where: as `Linear` takes it.

  Returns:
    What each gives alone, to the bit.
  """
  path = "params", "kernel"
  found = [a.get_variable(*path) for a in layers if a.has_variable(*path)]
  # A layer makes its own product with an array, as whoever observes it expects.
  if len(found) < len(layers) or not all(map(nodes.is_matrix, found)):
    return [layer(x, where) for layer in layers]
  products = linear.matmul_each(x.astype(layers[0].dtype), found)
  return [
    layer(x, where, product)
    for layer, product in zip(layers, products, strict=True)
  ]


def apart(stacked: Any) -> tuple[Any, ...]:
  """Takes layers apart, so that a program reads each where it lies.

  A scan over stacked layers copies what a kernel of C++ reads of them, and the
  cache twice, at every token.

  Args:
    stacked: a decoder's parameters below `layers`, arrays or packed, or its
      cache.

  Returns:
    Those of each layer; `Network.extend` takes both so as well.
  """
  leaves, treedef = jax.tree.flatten(stacked)
  return tuple(map(treedef.unflatten, zip(*leaves, strict=True)))


def all_apart(params: Any) -> Any:
  """Takes the layers of a model apart, those of each of its stacks.

  Args:
    params: a model's, arrays or packed.

  Returns:
    The parameters with a tuple wherever there is a `layers`; see `apart`.
  """
  if not isinstance(params, dict):
    return params
  return {
    name: apart(tree) if name == LAYERS else all_apart(tree)
    for name, tree in params.items()
  }


def by_outputs(params: Any) -> Any:
  """Turns matrices of bfloat16 over, if kernels for CPUs are to multiply them.

  XLA takes ten times as long for a token's product with one.

  Args:
    params: a model's, on the host, as `all_apart` leaves them.

  Returns:
    The parameters with a `sparsejax.linear.ByOutputs` for each kernel and
    table of bfloat16; the same where there are no such kernels.
  """
  if jax.default_backend() != "cpu" or not kernels.available(quiet=True):
    return params

  def leaf(path: tuple[Any, ...], x: Any) -> Any:
    name = path_name(path)
    if nodes.is_matrix(x) or x.dtype != jnp.bfloat16 or x.ndim != 2:
      return x
    if is_kernel(name):
      return linear.ByOutputs(np.ascontiguousarray(x.T))
    return linear.ByOutputs(x) if name == EMBEDDING else x

  return jax.tree_util.tree_map_with_path(leaf, params, is_leaf=nodes.is_matrix)


def each(
  run: Callable[..., Any], layers: tuple[Any, ...], x: jax.Array, xs: Any
) -> tuple[jax.Array, tuple[Any, ...]]:
  """Runs layers that were taken apart, one after another.

  Args:
    run: `(variables of a layer, x, xs of that layer) -> (x, ys)`.
    layers: the parameters of each.
    x: what the first layer gets.
    xs: what each layer gets besides, or None.

  Returns:
    What the last layer gives, and a tuple of every layer's ys.
  """
  ys = []
  for params, at in zip(layers, xs or len(layers) * [None], strict=True):
    x, y = run({"params": params}, x, at)
    ys.append(y)
  return x, tuple(ys)


def scan(
  stack: nn.Module,
  body: Callable[..., Any],
  x: Any,
  xs: Any = None,
  *,
  length: int,
) -> tuple[Any, Any]:
  """Runs body(block, x, xs of that layer) -> (x, ys) over a stack's layers.

  Args:
    stack: a module, with its block as `layers` and `remat`; its parameters may
      be apart.
    body: the function.
    x: what the first layer gets.
    xs: what each layer gets besides.
    length: the number of layers.

  Returns:
    What the last layer gives, and every layer's ys: a tuple if the layers are
    apart, stacked if not.
  """
  params = stack.variables.get("params", {}).get(LAYERS)
  if isinstance(params, tuple):
    run = nn.apply(body, stack.layers.clone(parent=None))
    return each(run, params, x, xs)
  run = nn.scan(
    rematerialized(body, stack.remat),
    variable_axes={"params": 0},
    split_rngs={"params": True},
    length=length,
  )
  return run(stack.layers, x, xs)


class Embed(nn.Embed):
  """A table of a vector for each token, an array or a node by outputs.

  A node is a `sparsejax.quantize.Quantized`, or a `sparsejax.linear.ByOutputs`,
  of shape [features, tokens].
  """

  def setup(self) -> None:
    """Makes the table, or takes it as it is."""
    table = None
    if self.has_variable("params", "embedding"):
      table = self.get_variable("params", "embedding")
    if nodes.is_matrix(table):
      self.embedding = table
    else:
      super().setup()

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Maps tokens int[...] to their vectors [..., features]."""
    if nodes.is_matrix(self.embedding):
      return self.embedding.take(inputs).astype(self.dtype)
    return super().__call__(inputs)

  def attend(self, query: jax.Array) -> jax.Array:
    """Multiplies query [..., features] by all vectors: [..., tokens]."""
    if nodes.is_matrix(self.embedding):
      return linear.matmul(query.astype(self.dtype), self.embedding)
    return super().attend(query)


def rematerialized(body: Callable[..., Any], remat: str) -> Callable[..., Any]:
  """Wraps a scanned function so that its backward pass recomputes it.

  Args:
    body: `(module, carry, x) -> (carry, y)`.
    remat: "none", "full" or a policy's name, as in `Family.Network`.

  Returns:
    The function.

  Raises:
    UserError: `remat` is unknown.
  """
  if remat == "none":
    return body
  if remat not in ("full", *_POLICIES):
    raise errors.unknown("remat", remat, ("none", "full", *_POLICIES))
  policy = None if remat == "full" else getattr(jax.checkpoint_policies, remat)
  # In a loop's body XLA has nothing outside to merge the recomputed part with.
  return nn.remat(body, policy=policy, prevent_cse=False)
