"""Compiles a run's functions, for all seeds of a config.

Seed and data are arguments. What the programs compute is in model.py and
step.py; what happens when, in loop.py.
"""

import functools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from jax import lax

import sparsejax
from experiments.config import calling, parts
from experiments.errors import UserError
from experiments.runs import devices, step
from experiments.runs.model import Batches, Keys, Model, Scores, drawing
from experiments.runs.step import State
from sparsejax import lottery
from sparsejax.checks import refusing
from sparsejax.keys import wrapped


class Steps(NamedTuple):
  """Training steps of one kind; both programs donate the state.

  Attributes:
    one: `(State, Batches) -> State`.
    many: `(State, Batches, until, numbers=None) -> State`: steps up to
      `until`, which is traced: one program serves all lengths. The numbers are
      those of `parts.NUMBERS`, by their keys, that are not the config's.
  """

  one: Callable[..., State]
  many: Callable[..., State]


class Programs(NamedTuple):
  """The jitted functions of one config.

  Attributes:
    draw: `(keys) -> variables` of the model. Models share it, whatever the
      algorithm.
    initial: `(keys, variables, Batches) -> masks` of the method that the
      config names, from the batches of the first step.
    begin: `(keys, variables, masks=None) -> State`: with masks drawn by the
      algorithm, or with those given.
    rewind: `(State, params, batch_stats, masks, keys) -> State`: starts again
      at the step of a state, from these params and with these masks.
    ordinary: Steps on which masks stay.
    moving: Steps on which they move.
    evaluate: `(Scores, variables, x, y) -> Scores`: adds a batch of the test
      set; a label of -1 marks what only fills it up.
    inspect: `(State) -> (dict, seen_masks)`: where the zeros are now.
    pack: `(State) -> State`: from what checkpoints hold, and `begin` and
      `rewind` give, to what steps take; the same in masked mode.
    unpack: Back.
    trim: `(State) -> State`: leaves out slots that masks no longer use, which
      has steps compiled anew; where none are, the same state.
  """

  draw: Callable[[Keys], Any]
  initial: Callable[..., Any]
  begin: Callable[..., State]
  rewind: Callable[..., State]
  ordinary: Steps
  moving: Steps
  evaluate: Callable[..., Scores]
  inspect: Callable[[State], tuple[dict, Any]]
  pack: Callable[[State], State]
  unpack: Callable[[State], State]
  trim: Callable[[State], State]


# How many steps a GPU takes before the host looks whether these are all. It
# waits for the device to look, which takes as long as a few kernels do.
_AT_A_TIME = 32
# With fewer parameters than these, waiting is a good part of a step.
_SMALL = 10**6
# The keys of a config whose values programs are compiled for.
_BAKED = (
  *("steps", "augment", "label_smoothing", "data", "model"),
  *("optimizer", "schedule", "algorithm", "mode", "initial"),
)


def get(
  config: ml_collections.ConfigDict, *, products: bool = False
) -> Programs:
  """Returns the programs of a config, from memory if there are any.

  Args:
    config: A checked config. Only what is compiled in distinguishes programs:
      the seed does not.
    products: Whether to run convolutions as products of matrices; see
      `models.convolutions`.

  Returns:
    The programs.
  """
  compiled_in = {k: v for k, v in calling.plain(config).items() if k in _BAKED}
  return _get(json.dumps(compiled_in), products)


@functools.lru_cache(maxsize=16)
def _get(text: str, products: bool) -> Programs:
  config = ml_collections.ConfigDict(json.loads(text))
  config.mode = config.get("mode", "masked")
  model = Model(config, products=products)
  begin, rewind = _starts(config)
  convolves = not products and _convolves(config)
  jit = functools.partial(devices.jit, convolves=convolves)
  return Programs(
    draw=drawing(config),
    initial=refusing(model.initial_masks),
    begin=begin,
    rewind=rewind,
    ordinary=_steps(model, jit, update_masks=False),
    moving=_steps(model, jit, update_masks=True),
    evaluate=jit(model.evaluate),
    inspect=devices.jit(step.inspect),
    pack=_packing(config, lambda tx, *state: tx.pack(*state)),
    unpack=_packing(config, lambda tx, *state: tx.unpack(*state)),
    trim=_packing(config, sparsejax.modes.trimmed),
  )


def _params(config: ml_collections.ConfigDict) -> list[jax.ShapeDtypeStruct]:
  """Computes the shapes of a model's parameters."""
  keys = jax.eval_shape(lambda: parts.streams(0))
  return jax.tree.leaves(jax.eval_shape(drawing(config), keys)["params"])


def _convolves(config: ml_collections.ConfigDict) -> bool:
  """Whether a GPU computes convolutions for a model."""
  gpu = jax.default_backend() == "gpu"
  return gpu and any(p.ndim > 2 for p in _params(config))


def _steps(
  model: Model, jit: Callable[..., Any], *, update_masks: bool
) -> Steps:
  one = functools.partial(step.step, model, update_masks=update_masks)
  at_a_time = _at_a_time(model.config, update_masks=update_masks)
  donating = functools.partial(jit, donate_argnames="state")
  return Steps(donating(one), donating(repeated(one, at_a_time)))


def _at_a_time(config: ml_collections.ConfigDict, *, update_masks: bool) -> int:
  """Chooses how many steps to take in a loop of known length; 1 for none."""
  if jax.default_backend() != "gpu":
    return 1
  moves = parts.transformation(config, jax.random.key(0)).moves
  in_turn = any(moves(s) and moves(s + 1) for s in range(config.steps))
  # Where a step takes long, or masks move now and then, a second loop would
  # only take longer to compile.
  small = sum(p.size for p in _params(config)) < _SMALL
  return _AT_A_TIME if small and (in_turn or not update_masks) else 1


def repeated(one: Callable[..., State], at_a_time: int) -> Callable[..., State]:
  """Makes of a step the `many` of `Steps`.

  Args:
    one: `(State, Batches, numbers) -> State`.
    at_a_time: How many steps to take in a loop of known length, as long as
      there are so many left. Of any other loop a GPU tells the host after
      every turn, and waits, whether there is another.

  Returns:
    The function.
  """

  def many(
    state: State, batches: Batches, until: jax.Array, numbers: Any = None
  ) -> State:
    def next_one(state: State) -> State:
      return one(state, batches, numbers)

    def several(state: State) -> State:
      return lax.fori_loop(0, at_a_time, lambda _, s: next_one(s), state)

    if at_a_time > 1:
      state = lax.while_loop(
        lambda s: s.step + at_a_time <= until, several, state
      )
    return lax.while_loop(lambda s: s.step < until, next_one, state)

  return many


def _starts(
  config: ml_collections.ConfigDict,
) -> tuple[Callable[..., State], Callable[..., State]]:
  """Compiles what begins a run, and what starts it again.

  Both give the state that checkpoints hold, which is masked in all modes.
  """
  masked = config.copy_and_resolve_references()
  masked.mode = "masked"

  def transformation(keys: Keys, masks: Any = None) -> Any:
    return parts.transformation(masked, wrapped(keys["masks"]), masks)

  def begin(keys: Keys, variables: dict[str, Any], masks: Any = None) -> State:
    params, opt_state = sparsejax.init(
      transformation(keys, masks), variables["params"]
    )
    zero = jnp.zeros([], jnp.int32)
    stats = variables.get("batch_stats", {})
    return step.start(zero, params, stats, opt_state, keys)

  def rewind(
    state: State, params: Any, batch_stats: Any, masks: Any, keys: Keys
  ) -> State:
    params, opt_state = lottery.rewind(
      transformation(state.keys), params, state.opt_state, masks
    )
    return step.start(state.step, params, batch_stats, opt_state, keys)

  return jax.jit(begin), jax.jit(rewind)


def _packing(
  config: ml_collections.ConfigDict, change: Callable[..., tuple[Any, Any]]
) -> Callable[[State], State]:
  """Lifts a change of params and optimizer state to states; none if masked."""
  if config.mode == "masked":
    return lambda state: state

  def function(state: State) -> State:
    tx = parts.transformation(config, wrapped(state.keys["masks"]))
    try:
      params, opt_state = change(tx, state.params, state.opt_state)
    except ValueError as error:
      raise UserError(f"config.mode is {config.mode!r}: {error}") from error
    return state._replace(params=params, opt_state=opt_state)

  return function
