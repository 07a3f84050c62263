"""Mask updates of packed leaves, each in its own backward pass.

A mask update needs the dense gradient of a leaf, which is there while the
product with that leaf is differentiated. So the update is made there, as a
probe, and what it finds comes out as a cotangent.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax import keys
from sparsejax.masks import PyTree, is_hole
from sparsejax.modes import slots
from sparsejax.modes.slots import PackedState
from sparsejax.nodes import Probe, node
from sparsejax.transform import Recipe, step
from sparsejax.xla import begun_after, materialised

_WORD = 16  # Bits of a mask in one float32, exactly.


class Found(NamedTuple):
  """What is read off the dense gradient of a leaf when masks move.

  Attributes:
    mask: float32[ceil(size / 16)]: the new mask, 16 bits in each.
    gradient: [slots], at the new places.
    refused: float32 scalar: whether scores were not finite.
  """

  mask: jax.Array
  gradient: jax.Array
  refused: jax.Array


@node("values")
class Replacement:
  """An update that takes the place of params instead of being added to them.

  Slots change their places when masks move, and no sum gives other values
  exactly.
  """

  values: jax.Array
  __array_ufunc__ = None  # NumPy, too, has to ask `__radd__`.

  def __radd__(self, params) -> jax.Array:
    """Returns the values."""
    del params
    return self.values


def probes(
  recipe: Recipe,
  values: PyTree,
  state: PackedState,
  update_masks: bool = True,
) -> PyTree | None:
  """Makes the probe of each packed leaf, for a step that moves masks."""
  if not update_masks:
    return None
  mask_state = state.mask_state
  rows, treedef = slots.aligned(mask_state.masks, values)
  shapes = [
    jax.ShapeDtypeStruct(v.shape if s is None else s.sizes, v.dtype)
    for _, s, v in rows
  ]
  rest = mask_state._replace(masks=None)

  def probe(index, structure, values):
    def whole(leaf):
      """Makes a tree in which nothing but this leaf costs anything."""
      zeros = [jnp.zeros(x.shape, x.dtype) for x in shapes]
      zeros[index] = leaf
      return treedef.unflatten(zeros)

    def read(gradient, weights, rest):
      values, structure = weights
      values = begun_after(gradient, values)
      masks = [jnp.array(True)] * len(shapes)
      masks[index] = structure.mask()
      old = rest._replace(masks=treedef.unflatten(masks))
      new = recipe.mask_update.update(
        whole(gradient), old, whole(structure.expand(values)), True
      )
      mask = jax.tree.leaves(new.masks)[index]
      return Found(
        mask=_words(mask),
        gradient=structure.moved(mask).gather(gradient),
        refused=(new.refused - old.refused).astype(jnp.float32),
      )

    zeros = Found(
      mask=jnp.zeros(-(-shapes[index].size // _WORD), jnp.float32),
      gradient=jnp.zeros_like(values),
      refused=jnp.float32(0),
    )
    return Probe(zeros, rest, read, shapes[index])

  return treedef.unflatten(
    None if s is None else probe(i, s, v) for i, (_, s, v) in enumerate(rows)
  )


def _words(mask):
  """Packs a mask into floats of 16 bits, which a cotangent can be."""
  bits = jnp.pad(mask.reshape(-1), (0, -mask.size % _WORD))
  bits = bits.reshape(-1, _WORD).astype(jnp.uint32)
  shifts = jnp.arange(_WORD, dtype=jnp.uint32)
  words = jnp.sum(bits << shifts, axis=1, dtype=jnp.uint32)
  return words.astype(jnp.float32)


def _mask_of(words, sizes):
  bits = words.astype(jnp.int32)[:, None] >> jnp.arange(_WORD) & 1
  return bits.reshape(-1)[: int(np.prod(sizes))].reshape(sizes).astype(bool)


class _Move(NamedTuple):
  """How a leaf's slots move.

  Attributes:
    new: The structure.
    source: int32[slots]: which old slot a new one continues; -1 for none.
    values: [slots], in the new order.
    gradient: [slots], in the new order.
    used: Which new slots are used.
  """

  new: Any
  source: jax.Array
  values: jax.Array
  gradient: jax.Array
  used: jax.Array


def moved(
  recipe: Recipe,
  grads: PyTree,
  state: PackedState,
  values: PyTree,
  extra: dict[str, Any],
) -> tuple[PyTree, PackedState]:
  """Takes a step in which masks move."""
  mask_state = state.mask_state
  masks = mask_state.masks
  rows, treedef = slots.aligned(masks, masks, values, grads)
  refused, after = mask_state.refused, []
  for path, structure, mask, v, g in rows:
    if structure is None:
      after.append((mask, v, g, None))
      continue
    # One leaf after the other, for what is dense in between.
    move, refused = materialised(
      functools.partial(_move, recipe, mask_state, path=path),
      *(refused, structure, v, g),
    )
    after.append((move.new, move.values, move.gradient, move))
  structure, v, g, moves = map(treedef.unflatten, zip(*after, strict=True))
  inner_state = _moved_moments(recipe, mask_state, state.inner_state, moves)
  v, g = slots.with_axes(v, structure), slots.with_axes(g, structure)
  updates, stepped = recipe.inner.update(g, inner_state, v, **extra)
  if not recipe.step_on_update:
    updates, stepped = step.without_step(
      True, recipe.inner, inner_state, stepped, updates, v
    )
  v = slots.without_axes(v, structure)
  updates = slots.without_axes(updates, structure)
  updates = step.exact_updates(updates, v, slots.used(structure))
  after = optax.apply_updates(v, updates)
  updates = treedef.unflatten(
    u if s is None else Replacement(a)
    for _, s, u, a in slots.aligned(structure, updates, after)[0]
  )
  mask_state = mask_state._replace(masks=structure, refused=refused)
  return updates, PackedState(step.with_next_count(mask_state), stepped)


def _move(recipe, mask_state, refused, old, values, grads, *, path):
  """Moves a leaf's slots; counts how often that has been refused so far."""
  found = grads.found
  mask = _mask_of(found.mask, old.sizes)
  # No slot may get lost.
  good = jnp.sum(mask, dtype=jnp.int32) <= values.shape[0]
  new = old.moved(jnp.where(good, mask, old.mask()))
  numbers = jnp.arange(1, values.shape[0] + 1, dtype=jnp.int32)
  source = new.gather(old.expand(begun_after(refused, numbers))) - 1
  first = jnp.zeros_like(values)
  if recipe.grown_values is not jax.nn.initializers.zeros:
    key = keys.of_grown(mask_state.key, mask_state.count, path)
    first = new.gather(recipe.grown_values(key, old.sizes, values.dtype))
  values = jnp.where(source < 0, first, values[source])
  gradient = jnp.where(good, found.gradient, 0).astype(values.dtype)
  refused += jnp.where(good, found.refused.astype(jnp.int32), 1)
  return _Move(new, source, values, gradient, new.used()), refused


def _moved_moments(recipe, mask_state, inner_state, moves):
  """Moves moments to new slots; zero, or their first value, where grown."""
  again = recipe.restart(mask_state.count)

  def leaf(moment, move):
    if is_hole(moment) or moment.ndim == 0:
      return moment
    if move is None:
      return jnp.where(again, jnp.zeros_like(moment), moment)
    shape, moment = moment.shape, moment.reshape(-1)
    there = jnp.where(move.source < 0, 0, moment[move.source])
    first = jnp.zeros_like(there)
    if recipe.grown_moments is not None:
      first = recipe.grown_moments(there, move.gradient).astype(there.dtype)
      first = jnp.where(move.used, first, 0)
    fresh = (move.source < 0) | again
    return jnp.where(fresh, first, there).reshape(shape)

  return optax.tree.map_params(
    recipe.inner, leaf, inner_state, moves, is_leaf=is_hole
  )
