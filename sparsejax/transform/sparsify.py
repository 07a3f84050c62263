"""The one skin over optax: an inner optimizer on sparse params.

Params hold the zeros: the update of an inactive weight is what brings it to
exactly 0. So the loss needs no masks, and its gradient is the dense one.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax.nn.initializers import zeros

from sparsejax import masks as masks_lib
from sparsejax.masks import PyTree
from sparsejax.schedules import When, never
from sparsejax.scores import check_transformation
from sparsejax.transform import checks
from sparsejax.transform import step as steps
from sparsejax.transform.state import (
  Forward,
  ForwardMaskedState,
  SparseState,
  find,
  get_masks,
)
from sparsejax.transform.takeover import taken_over
from sparsejax.updates import MaskState, MaskUpdate


class Recipe(NamedTuple):
  """The arguments of `sparsify`, which documents them."""

  inner: optax.GradientTransformationExtraArgs
  mask_update: MaskUpdate
  key: jax.Array | None
  step_on_update: bool
  grown_values: jax.nn.initializers.Initializer
  grown_moments: Callable[[jax.Array, jax.Array], jax.Array] | None
  restart: When


class SparseTransformation(optax.GradientTransformationExtraArgs):
  """An optax transformation that knows at which steps its masks change.

  Attributes:
    moves: `step -> bool`: whether masks change at a step, counted from 0; for
      loops that pass `update_masks` themselves.
    recipe: The arguments it was made from, if it holds inactive params at zero;
      else None.
    mask_update: How masks begin and change.
  """

  moves: When
  recipe: Recipe | None
  mask_update: MaskUpdate | None

  def __new__(cls, init, update, moves, recipe=None, mask_update=None):
    """Makes one of `init` and `update`, with the schedule of its masks."""
    self = super().__new__(cls, init, update)
    self.moves, self.recipe = moves, recipe
    self.mask_update = recipe.mask_update if recipe else mask_update
    return self


def sparsify(
  inner: optax.GradientTransformation,
  mask_update: MaskUpdate,
  *,
  when: When,
  key: jax.Array | None,
  enforce: bool = True,
  step_on_update: bool = False,
  grown_values: jax.nn.initializers.Initializer = zeros,
  grown_moments=None,
  restart: When = never,
) -> SparseTransformation:
  """Makes `inner` train only the weights that a mask update leaves active.

  Put everything that shapes the update inside: `sparsify(chain(clip, adamw),
  ...)`. It then sees only masked gradients, so norms and moments count only
  active weights, and nothing scales the updates that make zeros.

  The state holds masks and moments. If you checkpoint it, the run resumes with
  the same bits. The state also holds each leaf's budget: how many weights it
  keeps in the end. Training continues with these budgets, whatever algorithm
  and sparsity the transformation that takes over the state was made with. If
  its sparsity asks for other budgets, it refuses the state, but only where it
  can see their values, which is outside `jax.jit`. After you restored a
  checkpoint, `sparsejax.check(params, opt_state, tx)` compares them. A sparsity
  of 0 and masks that you pass ask for no budgets. Schedules are those of the
  transformation, not of the state.

  Args:
    inner: Any optax optimizer.
    mask_update: How masks begin and change.
    when: `step -> bool`: the steps at which masks change, counted from 0.
    key: PRNG key of all random draws; None only if there are none.
    enforce: Whether inactive params are held at exactly 0. If not, this is
      `straight_through`, which has more options.
    step_on_update: Whether params also take a gradient step when masks change.
      In RigL they do not: the moments stay the same, but schedules keep
      counting, so the learning rate follows the global step.
    grown_values: jax initializer `(key, shape, dtype) -> values` of newly grown
      weights; zeros in the papers. Weights that one update drops and grows
      again keep their values.
    grown_moments: `(moment, grad) -> moment`: the moment of a newly grown
      weight, from the inner optimizer's old moment and the dense gradient; zero
      by default.
    restart: `step -> bool`: the mask updates that reset the moments of all
      weights to zero, not only those of newly grown weights.

  Returns:
    A gradient transformation, whose attribute `moves` is `when`. Its `update`
    takes dense gradients and needs the params. An extra argument `update_masks`
    overrides `when`. A Python bool is decided at trace time, so the compiled
    step holds no selection (False) or no condition (True). None evaluates
    `when` inside a `lax.cond`. All other extra arguments go to `inner`.

  Raises:
    TypeError: If `inner` is no optimizer; from `update`, if the state does not
      have the types that `init` gives.
    ValueError: From `update`, if params are missing, gradients do not fit, or
      the state has other budgets.

  Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> from sparsejax import schedules, updates
    >>> tx = sparsify(optax.sgd(0.1), updates.static(sparsity=0.5),
    ...               when=schedules.never, key=jax.random.key(0))
    >>> params, state = init(tx, jnp.ones((2, 4)))
    >>> change, state = tx.update(jnp.ones((2, 4)), state, params)
    >>> int((optax.apply_updates(params, change) != 0).sum())
    4
  """
  if not enforce:
    if grown_values is not zeros or grown_moments or restart is not never:
      raise ValueError(
        "got enforce=False with grown_values, grown_moments or restart, which "
        "are about weights that were zero: wanted none of them"
      )
    return straight_through(
      inner, mask_update, when=when, key=key, step_on_update=step_on_update
    )
  check_transformation(inner, "inner")
  inner = optax.with_extra_args_support(inner)
  recipe = Recipe(
    inner,
    mask_update,
    key,
    step_on_update,
    grown_values,
    grown_moments,
    restart,
  )

  def init_fn(params):
    mask_state, params = first_masks(mask_update, key, params)
    return SparseState(mask_state, inner.init(params))

  def update_fn(grads, state, params=None, *, update_masks=None, **extra):
    checks.check_state(state, SparseState)
    old = state.mask_state
    checks.check_inputs(grads, params, old.masks)
    checks.check_budgets(mask_update, old, params)
    now = steps.moves_now(update_masks, when, old.count)
    new = steps.next_state(
      now, old, functools.partial(mask_update.update, grads, old, params)
    )
    masks, values, inner_state = new.masks, None, state.inner_state
    if now is not False:
      values = steps.grown_params(grown_values, old, masks, params)
      kept = steps.kept_moments(old, masks, now, restart)
      inner_state = steps.reset_moments(
        inner, inner_state, kept, masks, grads, grown_moments
      )
    updates, stepped = inner.update(
      masks_lib.apply_masks(grads, masks),
      inner_state,
      params if values is None else values,
      **extra,
    )
    if now is not False and not step_on_update:
      updates, stepped = steps.without_step(
        now, inner, inner_state, stepped, updates, params
      )
    updates = steps.exact_updates(updates, params, masks, values)
    return updates, SparseState(steps.with_next_count(new), stepped)

  return SparseTransformation(init_fn, update_fn, when, recipe)


def first_masks(
  mask_update: MaskUpdate, key: jax.Array | None, params: PyTree
) -> tuple[MaskState, PyTree]:
  """Returns the first mask state, and params with its zeros."""
  if (mask_state := taken_over()) is not None:
    return mask_state, params  # which have them already
  mask_state = mask_update.init(key, params)
  return mask_state, masks_lib.apply_masks(params, mask_state.masks)


def straight_through(
  inner: optax.GradientTransformation,
  mask_update: MaskUpdate,
  *,
  when: When,
  key: jax.Array | None,
  gradients: Callable[[PyTree, PyTree, MaskState], PyTree] | None = None,
  trained: Callable[[MaskState], PyTree] | None = None,
  step_on_update: bool = True,
) -> SparseTransformation:
  """Trains dense weights; the forward pass sees only the active ones.

  The loss has to use `forward_params`, whose gradient reaches all weights. At
  the end of a step, the new weights decide the masks of the next forward pass.

  Args:
    inner: Any optax optimizer.
    mask_update: How masks begin and change.
    when: `step -> bool`: the steps whose forward pass sees new masks. Steps
      count from 0, and step 0 sees the initial masks.
    key: PRNG key of all random draws; None only if there are none.
    gradients: `(grads, params, mask_state) -> grads`: the gradients that
      `inner` sees; the dense gradients by default.
    trained: `mask_state -> masks`: the weights that are trained; by default all
      of them. The others keep their values, and have no moments.
    step_on_update: Whether params also take a gradient step when masks change.

  Returns:
    A gradient transformation like that of `sparsify`, except that
    `update_masks` says whether the masks of the next step are new.

  Raises:
    TypeError: As in `sparsify`.
    ValueError: As in `sparsify`.

  References:
    Bengio et al., Estimating or Propagating Gradients Through Stochastic
    Neurons for Conditional Computation, arXiv:1308.3432, 2013, section 4.

  Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> from sparsejax import forward_params, schedules, scores, updates
    >>> tx = straight_through(
    ...   optax.sgd(1.0), updates.best(sparsity=0.5, score=scores.magnitude()),
    ...   when=schedules.always, key=jax.random.key(0))
    >>> w = jnp.array([[3.0, 2.0], [1.0, 0.5]])
    >>> params, state = init(tx, w)
    >>> print(forward_params(params, state))
    [[3. 2.]
     [0. 0.]]
    >>> grads = jax.grad(lambda w: forward_params(w, state)[1, 0] * -4)(params)
    >>> change, state = tx.update(grads, state, params)
    >>> print(forward_params(optax.apply_updates(params, change), state))
    [[3. 0.]
     [5. 0.]]
  """
  check_transformation(inner, "inner")
  inner = optax.with_extra_args_support(inner)

  def init_fn(params):
    if (mask_state := taken_over()) is None:
      mask_state = mask_update.init(key, params)
    return ForwardMaskedState(mask_state, inner.init(params))

  def update_fn(grads, state, params=None, *, update_masks=None, **extra):
    checks.check_state(state, ForwardMaskedState)
    old = state.mask_state
    checks.check_inputs(grads, params, old.masks)
    checks.check_budgets(mask_update, old, params)
    coming = steps.with_next_count(old)
    now = steps.moves_now(update_masks, when, coming.count)
    seen = grads if gradients is None else gradients(grads, params, old)
    held = params
    if trained is not None:
      # Of the others weight decay, too, would make moments.
      seen = masks_lib.apply_masks(seen, trained(old))
      held = masks_lib.apply_masks(params, trained(old))
    updates, stepped = inner.update(seen, state.inner_state, held, **extra)
    if trained is not None:
      updates = masks_lib.apply_masks(updates, trained(old))
    if now is not False and not step_on_update:
      updates, stepped = steps.without_step(
        now, inner, state.inner_state, stepped, updates, params
      )
    after = optax.apply_updates(params, updates)
    update = functools.partial(
      mask_update.update, grads, coming, params, after=after
    )
    new = steps.next_state(now, coming, update)
    if trained is not None and now is not False:
      masks = trained(new)
      kept = jax.tree.map(
        lambda m: m | jnp.logical_not(now) if jnp.ndim(m) else True, masks
      )
      stepped = steps.reset_moments(inner, stepped, kept, masks, grads, None)
    return updates, ForwardMaskedState(new, stepped)

  return SparseTransformation(
    init_fn,
    update_fn,
    lambda step: when(step + 1),
    mask_update=mask_update,
  )


@runtime_checkable
class OwnStart(Protocol):
  """A transformation that trains something other than the params."""

  def start(self, params: PyTree) -> tuple[PyTree, optax.OptState]:
    """Returns the values to train in place of the params, and the state."""
    ...


def init(
  tx: optax.GradientTransformation, params: PyTree
) -> tuple[PyTree, optax.OptState]:
  """Draws the masks and applies them once, before the first step.

  Args:
    tx: A transformation that contains `sparsify`, at any depth; or one from
      `sparsejax.finetune` or `sparsejax.modes`.
    params: The params, finite.

  Returns:
    The params with exact zeros where inactive, and the optimizer state.
    If the algorithm masks params only in the forward pass, they come back
    unchanged. In fine-tuning and in packed mode, the values that are trained
    come back in place of the params.

  Raises:
    ValueError: If a param is not finite, there are no masks in the state, or
      an optax transformation around or after the sparse one loses the zeros.
    TypeError: If a leaf of the params is no array.

  Warns:
    UserWarning: If a transformation around or after the sparse one is not known
      to keep the zeros.

  Example:
    >>> import jax, optax, sparsejax
    >>> tx = sparsejax.static(optax.adam(1e-3), 0.9, key=jax.random.key(0))
    >>> params, state = init(tx, {"w": jnp.ones((10, 10)), "b": jnp.ones(10)})
    >>> int(params["w"].sum()), int(params["b"].sum())
    (10, 10)
  """
  check_transformation(tx, "tx")
  checks.check_finite(params)
  if isinstance(tx, OwnStart):
    return tx.start(params)
  opt_state = tx.init(params)
  if inner := find(opt_state, Forward):
    raise ValueError(
      f"got something around a transformation with {type(inner[0]).__name__}, "
      "which trains other values than the params: wanted that one outermost, "
      "and all else of optax within, such as "
      "modes.packed(sparsejax.rigl(optax.chain(clip, adamw), ...)). To gather "
      "gradients of microbatches, take the mean within the loss, or make them "
      "by value_and_grad(..., summable=True) and add them up"
    )
  get_masks(opt_state)
  checks.check_surroundings(opt_state)
  for state in find(opt_state, SparseState):
    if not isinstance(state, ForwardMaskedState):
      params = masks_lib.apply_masks(params, state.mask_state.masks)
  return params, opt_state
