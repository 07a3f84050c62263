"""The role of a leaf."""

from typing import NamedTuple

KINDS = ("weight", "bias", "norm", "embedding", "other")


class Role(NamedTuple):
  """What a leaf is, and what its axes are.

  Attributes:
    kind: One of KINDS.
    stacked: The axes along which independent layers are stacked, as
      `flax.linen.scan` and `jax.vmap` stack them.
    inputs: The axes of input features: one axis, except in the output
      projection of attention, [heads, head size, out].
    outputs: The axes of output features: one axis, except in Flax's queries,
      keys and values, [in, heads, head size].
    spatial: All other axes: the positions in a convolution's kernel.
    doubt: What suggests another reading; empty if nothing does.
  """

  kind: str = "weight"
  stacked: tuple[int, ...] = ()
  inputs: tuple[int, ...] = ()
  outputs: tuple[int, ...] = ()
  spatial: tuple[int, ...] = ()
  doubt: str = ""

  @property
  def layer_axes(self) -> tuple[int, ...]:
    """All axes but those that are stacked, in order."""
    return tuple(sorted((*self.inputs, *self.outputs, *self.spatial)))


def complete(path: str, shape: tuple[int, ...], role: Role) -> Role:
  """Counts a role's axes from 0, and finds those that are not given.

  Args:
    path: The leaf's key path, for the message.
    shape: Its shape.
    role: The role. Where a weight's inputs or outputs are not given, they are
      the last of the axes that are left, outputs behind inputs.

  Returns:
    The role, in which every axis is something.

  Raises:
    ValueError: If an axis is none of the shape's, or is two things.
  """
  ndim = len(shape)
  given = (role.stacked, role.inputs, role.outputs, role.spatial)
  flat = [axis for axes in given for axis in axes]
  in_range = all(-ndim <= axis < ndim for axis in flat)
  if not in_range or len({axis % ndim for axis in flat}) < len(flat):
    raise ValueError(
      f"{path or 'the array'}: got the role {role} for the shape {shape}, "
      f"wanted each axis once, from {-ndim} to {ndim - 1}"
    )
  stacked, inputs, outputs, spatial = (
    tuple(axis % ndim for axis in axes) for axes in given
  )
  left = [a for a in range(ndim) if a not in {axis % ndim for axis in flat}]
  if left and not outputs:
    outputs = (left.pop(),)
  if left and not inputs:
    inputs = (left.pop(),)
  return Role(
    role.kind, stacked, inputs, outputs, (*spatial, *left), role.doubt
  )


def reading(role: Role, shape: tuple[int, ...]) -> str:
  """Says in words what a leaf's axes are.

  Args:
    role: Its role, of axes from 0 on.
    shape: Its shape.

  Returns:
    Sizes of layers, inputs and outputs.

  Example:
    >>> reading(Role("weight", (0,), (1,), (2, 3)), (6, 32, 4, 8))
    '6 layers of 32 -> 4 x 8'
  """

  def sizes(axes):
    return " x ".join(str(shape[a]) for a in axes)

  words = sizes(role.layer_axes) or "scalars"
  if role.inputs and role.kind == "weight":
    words = f"{sizes(role.inputs)} -> {sizes(role.outputs)}"
    if role.spatial:
      words = f"kernel {sizes(role.spatial)}, {words}"
  return f"{sizes(role.stacked)} layers of {words}" if role.stacked else words
