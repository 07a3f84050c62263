"""Arrays of which only the non-zeros are there, and trees of them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import kernels
from sparsejax import masks as masks_lib
from sparsejax.masks import HOLE, PyTree, is_hole, path_name
from sparsejax.nodes import Probe, node
from sparsejax.packed import matmul
from sparsejax.packed.formats import Formats, format_of
from sparsejax.packed.structure import Format, Structure
from sparsejax.quantize import rounding


@node("values", "structure", "probe", "scales", static=("dynamic",))
class Packed:
  """An array of which only the non-zeros are stored.

  Attributes:
    values: [..., slots], any float dtype, or int8; 0 in unused slots.
    structure: Where the values belong.
    probe: What else to read from the dense gradient; None for nothing.
    scales: float32[..., out, groups], the factor of int8 values, for each
      output and group of neighbouring inputs; None for floats.
    dynamic: For int8 values, whether products also round their inputs to INT8,
      each token by its largest number, and add up integers.
  """

  values: jax.Array
  structure: Structure
  probe: Probe | None = None
  scales: jax.Array | None = None
  dynamic: bool = False

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of the array."""
    return (*self.values.shape[:-1], *self.structure.sizes)

  @property
  def dtype(self) -> jnp.dtype:
    """The dtype of the values."""
    return self.values.dtype

  @property
  def ndim(self) -> int:
    """The number of axes of the array."""
    return len(self.shape)

  @property
  def size(self) -> int:
    """The number of elements of the array, zeros included."""
    return math.prod(self.shape)

  def __getitem__(self, index: Any) -> jax.Array:
    """Refuses an index, which only a dense array can be cut by."""
    raise TypeError(
      f"got an index into a packed array of shape {self.shape}, wanted a dense "
      "one: w.unpack()[index], or leave the leaf out of `prunable`"
    )

  def matmul(self, x: jax.Array) -> jax.Array:
    """Multiplies `x [..., in]` by the matrix: [..., out], of x's dtype.

    The gradient of the values has shape [slots]. The dense matrix and its dense
    gradient exist within this product at most.
    """
    if self.ndim != 2 or self.values.ndim != 1:
      raise ValueError(f"got an array of shape {self.shape}, wanted a matrix")
    return self.structure.product(x, self)

  def masked(self, tokens: int) -> kernels.Masked | None:
    """Returns the matrix for `sparsejax.matmul_each`; None if unsupported."""
    del tokens
    return self.structure.masked(self)

  def read(self, gradient: jax.Array) -> Any:
    """Attaches the probe, which reads the array's dense gradient."""
    return matmul.read_off(self, gradient, ())[1]

  def unpack(self) -> jax.Array:
    """Makes the dense array; its gradient is gathered at the non-zeros.

    For integers, these are the float32 numbers that they stand for, which have
    no gradient.
    """
    return matmul.unpacked(self)


def is_packed(x: Any) -> bool:
  """Tells whether `x` is a packed array."""
  return isinstance(x, Packed)


def is_structure(x: Any) -> bool:
  """Tells whether `x` is a structure of a packed array."""
  return masks_lib.stands_for_mask(x)


def pack(
  params: PyTree, masks: PyTree, *, formats: Format | Formats | None = None
) -> PyTree:
  """Packs params: only their non-zeros are kept.

  Args:
    params: A pytree of arrays.
    masks: Its masks: bool arrays of the leaves' shapes, or True where a leaf
      stays dense. Not traced, since the number of weights determines shapes.
    formats: How to store the positions of non-zeros: a format, or a function
      `(path, mask) -> format` of a leaf's key path and NumPy mask. By default
      row pointers for matrices, and linear indices for all others.

  Returns:
    The params with a `Packed` in place of each masked leaf.

  Raises:
    ValueError: If trees or shapes differ, or a format does not fit a mask.
    TypeError: If a mask is not bool.

  Example:
    >>> import jax.numpy as jnp
    >>> w = jnp.array([[0.0, 2.0], [3.0, 0.0]])
    >>> tree = pack({"w": w, "b": jnp.ones(2)}, {"w": w != 0, "b": True})
    >>> print(tree["w"].unpack())
    [[0. 2.]
     [3. 0.]]
    >>> import sparsejax
    >>> print(sparsejax.matmul(jnp.ones((1, 2)), tree["w"]))
    [[3. 2.]]
  """
  masks_lib.check_like(masks, params, "masks")

  def leaf(path, mask, p):
    if np.ndim(mask) == 0:
      return p
    host = np.asarray(mask)
    masks_lib.check_bool(path, host)
    name = path_name(path) or "the array"
    structure = format_of(formats, name, host).structure(host)
    return Packed(structure.gather(jnp.asarray(p)), structure)

  return jax.tree_util.tree_map_with_path(leaf, masks, params)


def unpack(tree: PyTree) -> PyTree:
  """Makes packed arrays dense: undoes `pack`.

  Args:
    tree: A pytree with packed arrays.

  Returns:
    The tree with dense arrays, zeros in place.
  """
  return jax.tree.map(
    lambda x: x.unpack() if is_packed(x) else x, tree, is_leaf=is_packed
  )


def quantize(
  tree: PyTree,
  *,
  scales: Callable[[jax.Array], jax.Array] = rounding.scales,
  dynamic: bool = False,
) -> PyTree:
  """Rounds packed matrices to INT8, and leaves everything else unchanged.

  Masks stay exactly the same: a small weight that becomes 0 stays packed.

  Args:
    tree: A pytree with packed arrays of floats.
    scales: `w [..., in, out] -> float32[..., out, groups]`, such as
      `functools.partial(quantize.scales, group=32)`.
    dynamic: Whether products also round their inputs to INT8, each token by its
      largest number.

  Returns:
    The tree, with packed matrices of INT8.

  Raises:
    ValueError: If a packed array is no matrix, or groups do not divide its
      inputs; with the key path.

  Example:
    >>> import jax.numpy as jnp
    >>> w = jnp.array([[0.0, 127.0], [-254.0, 0.1]])
    >>> small = quantize(pack({"w": w}, {"w": w != 0}))["w"]
    >>> print(small.values.dtype, small.values)
    int8 [-127  127    0    0    0    0    0    0]
    >>> print(small.unpack())
    [[   0.  127.]
     [-254.    0.]]
    >>> print(small.structure.mask()[1])
    [ True  True]
  """

  def leaf(path, x):
    if not is_packed(x) or x.scales is not None:
      return x
    try:
      dense = x.unpack()
      found = scales(dense)
    except ValueError as error:
      raise ValueError(f"{path_name(path) or 'the array'}: {error}") from error
    values = x.structure.gather(rounding.integers(dense, found))
    return dataclasses.replace(x, values=values, scales=found, dynamic=dynamic)

  return jax.tree_util.tree_map_with_path(leaf, tree, is_leaf=is_packed)


def split(tree: PyTree) -> tuple[PyTree, PyTree]:
  """Splits packed arrays into values and structures.

  Args:
    tree: A pytree with packed arrays.

  Returns:
    The values, a tree of the params' structure with an array [slots] in place
    of each packed one; and the structures, with `optax.MaskedNode` in place of
    all other leaves.

  Raises:
    TypeError: If an array is of INT8, which is not trained.
  """
  leaves, treedef = jax.tree.flatten(tree, is_leaf=is_packed)
  if any(is_packed(x) and x.scales is not None for x in leaves):
    raise TypeError(
      "got packed arrays of INT8, wanted floats: integers are not trained. "
      "Train floats with quantize.fake_quantize in the loss, and round at last"
    )
  values = [x.values if is_packed(x) else x for x in leaves]
  structure = [x.structure if is_packed(x) else HOLE for x in leaves]
  return treedef.unflatten(values), treedef.unflatten(structure)


def join(values: PyTree, structure: PyTree, probes: PyTree = None) -> PyTree:
  """Joins values and structures: undoes `split`.

  Args:
    values: A tree of arrays.
    structure: A tree with the structures of the packed leaves. Anything else in
      it, such as `optax.MaskedNode` or the mask True, marks a dense leaf.
    probes: What to read from dense gradients, by leaf; None for nothing.

  Returns:
    The tree with packed arrays.

  Raises:
    ValueError: If values do not have as many slots as their structure.
  """
  flat, treedef = jax.tree_util.tree_flatten_with_path(values)
  others = _leaves_like(structure, treedef)
  asked = [None] * len(flat)
  if probes is not None:
    asked = treedef.flatten_up_to(probes)

  def leaf(path, v, s, probe):
    if not is_structure(s):
      return v
    slots = slots_shape(s)
    if jnp.shape(v) != slots:
      raise ValueError(
        f"{path_name(path) or 'the array'}: got values of shape "
        f"{jnp.shape(v)} for {slots} slots: join what was split, or restored "
        "together"
      )
    return Packed(v, s, probe)

  return treedef.unflatten(
    leaf(path, v, s, probe)
    for (path, v), s, probe in zip(flat, others, asked, strict=True)
  )


def slots_shape(structure: Structure) -> tuple[int, ...]:
  """Returns the shape of the values that belong to a structure."""
  return jax.eval_shape(lambda s: s.used(), structure).shape


def _leaves_like(structure, treedef):
  leaves = jax.tree.leaves(
    structure, is_leaf=lambda x: is_structure(x) or is_hole(x)
  )
  if len(leaves) != treedef.num_leaves:
    raise ValueError(
      f"got {len(leaves)} structures or holes for {treedef.num_leaves} leaves "
      "of values: join what was split, or restored together"
    )
  return leaves
