"""The skin over optax in which pretrained weights are fine-tuned.

What is trained is a tree of `values`, each in the place of its leaf of the
params: deltas, factors, non-zeros, or a whole array. What they belong to
travels in the optimizer state.
"""

import functools
from collections.abc import Callable, Hashable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax import keys, roles
from sparsejax.distributions import Prunable
from sparsejax.finetune import deprecated, optimizers
from sparsejax.finetune.matrices import in_place
from sparsejax.finetune.moving import Phase
from sparsejax.finetune.protocols import Begin, Evolution
from sparsejax.gradients import Gradient, read_off
from sparsejax.masks import HOLE, PyTree, is_hole, path_name
from sparsejax.nodes import aligned
from sparsejax.schedules import never
from sparsejax.scores import check_transformation
from sparsejax.transform import step as steps
from sparsejax.transform.checks import check_type


class FineTuneState(NamedTuple):
  """The state of a fine-tuning transformation.

  Attributes:
    base: The weights besides the values, in a tree like the params;
      `optax.MaskedNode` where there are only values.
    parts: How values and base make a matrix, by leaf: a `protocols.Part`, or
      `optax.MaskedNode` where there is only one of the two.
    harvest: What is gathered to choose new positions, and, in `spiel_sm3`, to
      scale steps; `optax.MaskedNode` where positions never move.
    count: int32 scalar: steps so far.
    key: uint32 [2], raw data of the key that all draws are folded from.
    inner_state: The state of the inner optimizer.
  """

  base: PyTree
  parts: PyTree
  harvest: PyTree
  count: jax.Array
  key: jax.Array
  inner_state: Any

  def forward(self, values: PyTree, probes: PyTree = None) -> PyTree:
    """Joins values and base for the model: `sparsejax.forward_params`.

    Args:
      values: The trained values.
      probes: A `Probe` or None for each leaf; None for no probes at all.

    Returns:
      A tree like the params. A fine-tuned matrix is a node with a method
      `matmul`; `sparsejax.matmul` multiplies by it as by an array.
    """
    if probes is None:
      probes = jax.tree.map(lambda _: None, self.base, is_leaf=is_hole)

    def leaf(base, part, values, probe):
      if is_hole(part):
        return values if is_hole(base) else base
      return part.matrix(base, values, probe)

    rows, treedef = _aligned(self.base, self.parts, values, probes)
    return treedef.unflatten(leaf(*row) for _, *row in rows)


class FineTuning(optax.GradientTransformationExtraArgs):
  """An optax transformation of values that belong to pretrained params.

  Its `update` takes `update_masks`, the result of `moves` for the step, and
  gradients that `sparsejax.value_and_grad` has computed with the same
  `update_masks`.

  Attributes:
    start: `params -> (values, state)`; `sparsejax.init` calls it.
    moves: `step -> Phase`, or False: what the step, a Python int counted from
      0, does besides its gradient step. It is a constant of the compiled step.
    probes: `(values, state, update_masks) -> probes`: what to read from dense
      gradients; see `gradients.Probing`.
  """

  start: Callable[[PyTree], tuple[PyTree, FineTuneState]]
  moves: Callable[[int], Phase | Literal[False]]
  probes: Callable[..., PyTree | None]

  def __new__(cls, start, update, moves, probes):
    """Makes one of four functions."""
    update, probes = deprecated.accepting_phases(update, probes)
    self = super().__new__(cls, lambda params: start(params)[1], update)
    self.start, self.moves, self.probes = start, moves, probes
    return self

  @property
  def phase(self) -> Callable[[int], Phase | None]:
    """The old name of `moves`; None on ordinary steps."""
    return deprecated.phases(self.moves)


def fine_tune(
  inner: optax.GradientTransformation,
  begin: Begin,
  *,
  key: jax.Array,
  prunable: Prunable,
  rest: bool = False,
  evolution: Evolution | None = None,
) -> FineTuning:
  """Fine-tunes matrices by one method; trains or freezes all other weights.

  Args:
    inner: Any optax optimizer; it sees only the values.
    begin: How to split a leaf [..., in, out] into frozen and trained arrays;
      see `protocols.Begin`.
    key: PRNG key of all draws.
    prunable: Which leaves to fine-tune by this method.
    rest: Whether to train all other leaves as a whole; if not, they are frozen.
    evolution: How the positions of `slots.Slots` move; None if they do not.

  Returns:
    The transformation.

  Raises:
    TypeError: If `inner` is no optimizer; from `update`, if the state is not a
      fine-tuning state.
    ValueError: From `start`, if there is no leaf to fine-tune, or one is no
      matrix.
  """
  check_transformation(inner, "inner")
  inner = optax.with_extra_args_support(inner)

  def start(params: PyTree) -> tuple[PyTree, FineTuneState]:
    own = keys.raw(key)
    treedef, columns = _parted(begin, own, prunable, rest, params)
    base, values, parts = map(treedef.unflatten, columns)
    harvest = treedef.unflatten(
      HOLE
      if evolution is None or is_hole(part)
      else evolution.empty(base, values.shape[-1])
      for base, values, part in zip(*columns, strict=True)
    )
    return values, FineTuneState(
      base=base,
      parts=parts,
      harvest=harvest,
      count=jnp.zeros([], jnp.int32),
      key=own,
      inner_state=inner.init(values),
    )

  def update(
    grads: PyTree,
    state: FineTuneState,
    values: PyTree,
    *,
    update_masks: Hashable = None,
    **extra: Any,
  ) -> tuple[PyTree, FineTuneState]:
    check_type(state, FineTuneState)
    phase = _phase(evolution, update_masks)
    asked = probes(values, state, update_masks)
    grads = read_off(asked, grads, values, state, update_masks)
    if evolution is not None:
      state, grads = _gathered(evolution, state, grads, phase)
    updates, inner_state = inner.update(
      grads, state.inner_state, values, **extra
    )
    stepped = optax.apply_updates(values, updates)
    state = _rebased(state._replace(inner_state=inner_state), stepped)
    if phase and phase.last:
      state, kept = _moved(evolution, inner, state, stepped)
      # To exactly 0 where a slot has a new place, for v + -v is.
      updates = jax.tree.map(
        lambda keep, u, v: jnp.where(keep, u, -v), kept, updates, values
      )
    return updates, state._replace(count=state.count + 1)

  def probes(
    values: PyTree, state: FineTuneState, update_masks: Hashable
  ) -> PyTree | None:
    del values
    phase = _phase(evolution, update_masks)
    if not phase:
      return None
    check_type(state, FineTuneState)
    step_key = _step_key(state)

    def leaf(path, base, slots, harvest):
      if is_hole(harvest):
        return None
      leaf_key = keys.of_leaf(step_key, path)
      return evolution.probe(base, slots, harvest, phase, leaf_key)

    rows, treedef = _aligned(state.base, state.parts, state.harvest)
    return treedef.unflatten(leaf(*row) for row in rows)

  moves = never if evolution is None else evolution.schedule.phase
  return FineTuning(start, update, moves, probes)


def merge(values: PyTree, state: FineTuneState) -> PyTree:
  """Merges the trained values into plain arrays.

  Args:
    values: The trained values.
    state: Their optimizer state.

  Returns:
    A tree like the params; zeros that are not trained are exactly 0.
  """

  def leaf(base, part, values):
    if is_hole(part):
      return values if is_hole(base) else base
    return part.merged(base, values)

  rows, treedef = _aligned(state.base, state.parts, values)
  return treedef.unflatten(leaf(*row) for _, *row in rows)


def _phase(evolution, update_masks):
  """Checks `update_masks`; returns its phase, False where places stay."""
  if evolution is None:
    return False
  if isinstance(update_masks, Phase):
    return update_masks
  if update_masks is None:
    deprecated.warn("finetune's tx.update without update_masks", stacklevel=5)
    return False
  if isinstance(update_masks, bool | np.bool_) and not update_masks:
    return False
  raise ValueError(
    f"got update_masks={update_masks!r}, wanted what tx.moves(step) gives, "
    "False or a Phase: compile a step for each"
  )


def _parted(begin, key, prunable, rest, params):
  """Parts the leaves: their tree, and lists of bases, values and parts."""
  rows, treedef = _aligned(params)
  sparse = roles.sparse(params, prunable)
  chosen = [path_name(path) in sparse for path, _ in rows]
  if not any(chosen):
    raise ValueError(
      "nothing is fine-tuned: `prunable` picks no leaf of "
      f"{', '.join(path_name(path) for path, _ in rows[:5])}, ..."
    )
  begun = []
  for (path, leaf), fine_tuned in zip(rows, chosen, strict=True):
    if fine_tuned:
      _check_matrix(path, leaf)
      leaf_key = keys.of_leaf(keys.wrapped(key), path)
      begun.append(begin(path_name(path), leaf, leaf_key))
    else:
      begun.append((HOLE, leaf, HOLE) if rest else (leaf, HOLE, HOLE))
  return treedef, list(zip(*begun, strict=True))


def _rebased(state, values):
  """Writes the values into the state's base."""

  def leaf(base, part, values):
    return base if is_hole(part) else part.rebased(base, values)

  rows, treedef = _aligned(state.base, state.parts, values)
  return state._replace(base=treedef.unflatten(leaf(*row) for _, *row in rows))


def _gathered(evolution, state, grads, phase):
  """Adds a step's gradients to the harvest; returns those to train by."""

  def leaf(base, slots, harvest, grad):
    if is_hole(harvest):
      return harvest, grad
    found = None
    if isinstance(grad, Gradient):
      grad, found = grad.values, grad.found
    return evolution.gathered(
      harvest, slots, grad, base.shape[-1], phase=phase, found=found
    )

  rows, treedef = _aligned(state.base, state.parts, state.harvest, grads)
  gathered = zip(*(leaf(*row) for _, *row in rows), strict=True)
  harvest, grads = map(treedef.unflatten, gathered)
  return state._replace(harvest=harvest), grads


def _moved(evolution, inner, state, values):
  """Moves slots; returns the state, and which slots are as they were."""
  share = evolution.schedule.fraction(state.count + 1)
  step_key = jax.random.fold_in(_step_key(state), 1)

  def leaf(path, base, slots, harvest, deltas):
    if is_hole(harvest):
      untouched = HOLE if is_hole(deltas) else True
      return base, slots, harvest, untouched, untouched
    n = jnp.floor(share * deltas.shape[-1]).astype(jnp.int32)

    def one(base, slots, harvest, deltas, key):
      swap = evolution.move(base, slots, deltas, harvest, n, key)
      return swap.base, swap.slots, swap.kept, evolution.seeds(harvest, swap)

    key = keys.of_leaf(step_key, path)
    leaf_keys = jax.random.key_data(jax.random.split(key, base.shape[:-2]))
    base, slots, kept, seeds = in_place(one)(
      base, slots, harvest, deltas, leaf_keys
    )
    return base, slots, evolution.after_move(harvest), kept, seeds

  rows, treedef = _aligned(state.base, state.parts, state.harvest, values)
  moved = zip(*(leaf(*row) for row in rows), strict=True)
  base, parts, harvest, kept, seeds = map(treedef.unflatten, moved)
  inner_state = steps.reset_moments(
    inner, state.inner_state, kept, kept, values, None
  )
  inner_state = optimizers.seeded(inner_state, kept, seeds)
  state = state._replace(
    base=base, parts=parts, harvest=harvest, inner_state=inner_state
  )
  return state, kept


_aligned = functools.partial(aligned, is_leaf=is_hole)


def _step_key(state):
  return keys.of_step(state.key, state.count)


def _check_matrix(path, leaf):
  if leaf.ndim < 2:
    raise ValueError(
      f"{path_name(path)}: got {leaf.shape}, wanted a matrix [in, out], or "
      "several stacked: choose other leaves by `prunable`"
    )
