"""The skin over optax in which pretrained weights are fine-tuned.

What is trained is a tree of `values`, each in the place of its leaf of the
params: deltas, factors, non-zeros, or a whole array. What they belong to
travels in the optimizer state.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparsejax import scores
from sparsejax.distributions import Prunable
from sparsejax.finetune import optimizers
from sparsejax.finetune.matrices import in_place
from sparsejax.finetune.moving import Evolution, Phase
from sparsejax.finetune.sm3 import Sm3
from sparsejax.masks import PyTree, is_hole, path_name
from sparsejax.transform import step as steps
from sparsejax.updates.base import own_key

HOLE = optax.MaskedNode()
Begin = Callable[[str, jax.Array, jax.Array], tuple[Any, Any, Any]]


class FineTuneState(NamedTuple):
  """The state of a fine-tuning transformation.

  Attributes:
    base: The weights that values are not, in a tree like the params; a hole
      where the values are all there is.
    parts: How values and base make a matrix, by leaf: a node that has
      `matrix`, `merged` and `settled`; a hole where one of the two is all.
    harvest: What is gathered to move places by, and with `spiel_sm3` to scale
      steps by too; holes where places stay.
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
    """The params that the model is to be run with: `join`."""
    return join(values, self, probes)


class FineTuning(optax.GradientTransformationExtraArgs):
  """An optax transformation of values that belong to pretrained params.

  Its `update` takes, besides gradients, state and values, the step's `phase`,
  and as `signal` the gradient of the probes, if the step has a phase. It may
  do without a signal where probes are empty.

  Attributes:
    start: `params -> (values, state)`; `sparsejax.init` does the same.
    phase: `step -> Phase`, or None: what the step, a Python int, does besides
      its gradient step. It is a constant of the compiled step.
    probes: `(state, phase) -> probes` for `join`; None without a phase.
  """

  start: Callable[[PyTree], tuple[PyTree, FineTuneState]]
  phase: Callable[[int], Phase | None]
  probes: Callable[[FineTuneState, Phase | None], PyTree]

  def __new__(cls, start, update, phase, probes):
    """Makes one of four functions."""
    self = super().__new__(cls, lambda params: start(params)[1], update)
    self.start, self.phase, self.probes = start, phase, probes
    return self


def fine_tune(
  inner: optax.GradientTransformation,
  begin: Begin,
  *,
  key: jax.Array,
  prunable: Prunable,
  rest: bool = False,
  evolution: Evolution | Sm3 | None = None,
) -> FineTuning:
  """Fine-tunes matrices in one way, and other weights as they are or not.

  Args:
    inner: Any optax optimizer, which sees the values only.
    begin: `(path, leaf, key) -> (base, values, part)`, of a leaf's key path as
      text, the leaf [..., in, out] and a key of its own.
    key: PRNG key of all draws.
    prunable: Which leaves to fine-tune so.
    rest: Whether all other leaves are trained, as they are; frozen if not.
    evolution: How the places of `support.Slots` move; None if they stay.

  Returns:
    The transformation.

  Raises:
    ValueError: From `start`, if no leaf is to be fine-tuned, or one is no
      matrix.
  """
  inner = optax.with_extra_args_support(inner)

  def start(params):
    own = own_key(key)
    rows, treedef = _aligned(params)
    begun = []
    for path, leaf in rows:
      if prunable(path_name(path), leaf):
        _check_matrix(path, leaf)
        leaf_key = scores.fold_in_path(_wrapped(own), path)
        begun.append(begin(path_name(path), leaf, leaf_key))
      else:
        begun.append((HOLE, leaf, HOLE) if rest else (leaf, HOLE, HOLE))
    if not any(prunable(path_name(path), leaf) for path, leaf in rows):
      raise ValueError(
        "nothing is fine-tuned: `prunable` picks no leaf of "
        f"{', '.join(path_name(path) for path, _ in rows[:5])}, ..."
      )
    harvest = [
      HOLE
      if evolution is None or is_hole(part)
      else evolution.nothing(base, values.shape[-1])
      for base, values, part in begun
    ]
    base, values, parts = map(treedef.unflatten, zip(*begun, strict=True))
    return values, FineTuneState(
      base=base,
      parts=parts,
      harvest=treedef.unflatten(harvest),
      count=jnp.zeros([], jnp.int32),
      key=own,
      inner_state=inner.init(values),
    )

  def update(grads, state, values, *, phase=None, signal=None, **extra):
    if evolution is not None:
      state, grads = _gathered(evolution, state, grads, phase, signal)
    updates, inner_state = inner.update(
      grads, state.inner_state, values, **extra
    )
    stepped = optax.apply_updates(values, updates)
    state = _settled(state._replace(inner_state=inner_state), stepped)
    if phase is not None and phase.last:
      state, kept = _moved(evolution, inner, state, stepped)
      # To exactly 0 where a slot has a new place, for v + -v is.
      updates = jax.tree.map(
        lambda keep, u, v: jnp.where(keep, u, -v), kept, updates, values
      )
    return updates, state._replace(count=state.count + 1)

  def probes(state, phase):
    if phase is None:
      return None
    rows, treedef = _aligned(state.base, state.parts, state.harvest)
    return treedef.unflatten(
      None if is_hole(harvest) else evolution.asked(base, slots, phase)
      for _, base, slots, harvest in rows
    )

  phase = _no_phase if evolution is None else evolution.schedule.phase
  return FineTuning(start, update, phase, probes)


def join(values: PyTree, state: FineTuneState, probes: PyTree = None) -> PyTree:
  """The params that a model is to be run with, of which values are trained.

  Args:
    values: What is trained.
    state: The state that goes with it.
    probes: As the transformation makes them for a step that has a phase.

  Returns:
    A tree like the params. A matrix that is fine-tuned is a node with
    `matmul`, which `sparsejax.matmul` takes for an array.
  """
  probes = _by_leaf(probes, state)
  step_key = _step_key(state)

  def leaf(path, base, part, harvest, values, asked):
    if is_hole(part):
      return values if is_hole(base) else base
    probe = None
    if asked is not None:
      key = scores.fold_in_path(step_key, path)
      probe = asked.evolution.probe(asked, harvest, key)
    return part.matrix(base, values, probe)

  rows, treedef = _aligned(
    state.base, state.parts, state.harvest, values, probes
  )
  return treedef.unflatten(leaf(*row) for row in rows)


def merge(values: PyTree, state: FineTuneState) -> PyTree:
  """The params as plain arrays, with what was learned.

  Args:
    values: What was trained.
    state: The state that goes with it.

  Returns:
    A tree like the params; zeros that are not trained are exactly 0.
  """

  def leaf(base, part, values):
    if is_hole(part):
      return values if is_hole(base) else base
    return part.merged(base, values)

  rows, treedef = _aligned(state.base, state.parts, values)
  return treedef.unflatten(leaf(*row) for _, *row in rows)


def _settled(state, values):
  """The state whose base agrees with the values."""

  def leaf(base, part, values):
    return base if is_hole(part) else part.settled(base, values)

  rows, treedef = _aligned(state.base, state.parts, values)
  return state._replace(base=treedef.unflatten(leaf(*row) for _, *row in rows))


def _gathered(evolution, state, grads, phase, signal):
  """The state with what a step has found, and the gradients to train by."""

  def leaf(base, slots, harvest, grad, answer):
    if is_hole(harvest):
      return harvest, grad
    return evolution.gathered(
      harvest, slots, grad, base.shape[-1], phase=phase, answer=answer
    )

  rows, treedef = _aligned(
    state.base, state.parts, state.harvest, grads, _by_leaf(signal, state)
  )
  gathered = zip(*(leaf(*row) for _, *row in rows), strict=True)
  harvest, grads = map(treedef.unflatten, gathered)
  return state._replace(harvest=harvest), grads


def _moved(evolution, inner, state, values):
  """The state with slots at new places, and which slots are as they were."""
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

    key = scores.fold_in_path(step_key, path)
    keys = jax.random.key_data(jax.random.split(key, base.shape[:-2]))
    base, slots, kept, seeds = in_place(one)(base, slots, harvest, deltas, keys)
    return base, slots, evolution.lasting(harvest), kept, seeds

  rows, treedef = _aligned(state.base, state.parts, state.harvest, values)
  moved = zip(*(leaf(*row) for row in rows), strict=True)
  base, parts, harvest, kept, seeds = map(treedef.unflatten, moved)
  inner_state = steps.reset(inner, state.inner_state, kept, kept, values, None)
  inner_state = optimizers.seeded(inner_state, kept, seeds)
  state = state._replace(
    base=base, parts=parts, harvest=harvest, inner_state=inner_state
  )
  return state, kept


def _by_leaf(tree, state):
  """A tree like the params; one of None for None."""
  if tree is not None:
    return tree
  return jax.tree.map(lambda _: None, state.base, is_leaf=is_hole)


def _aligned(tree, *others):
  """Rows (path, leaf, what others have there), of a tree that may have holes.

  And the tree's definition, of which holes are leaves.
  """
  flat, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_hole)
  columns = [treedef.flatten_up_to(other) for other in others]
  rows = zip(flat, *columns, strict=True)
  return [(path, leaf, *more) for (path, leaf), *more in rows], treedef


def _no_phase(step):
  del step


def _step_key(state):
  return jax.random.fold_in(_wrapped(state.key), state.count)


def _wrapped(key):
  return jax.random.wrap_key_data(key, impl="threefry2x32")


def _check_matrix(path, leaf):
  if leaf.ndim < 2:
    raise ValueError(
      f"{path_name(path)}: got {leaf.shape}, wanted a matrix [in, out], or "
      "several stacked: choose other leaves by `prunable`"
    )
