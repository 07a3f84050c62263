"""Gradients of a loss, together with what mask updates need.

If a matrix is packed, or only some of its weights are trained, its dense
gradient exists only within its own backward pass. A `nodes.Probe` reads there
what a step needs, and passes it to `tx.update` within the gradients. A choice
by the gradient, such as the positions of its largest entries, cannot be made
product by product and then added up. So for a matrix that is used in several
products, the whole dense gradient is passed on.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax.masks import PyTree, is_hole, path_name
from sparsejax.nodes import Probe, aligned, node
from sparsejax.transform.state import check_params, forward_params


@runtime_checkable
class Probing(Protocol):
  """A transformation that needs more than the gradients of its values."""

  def probes(
    self, values: PyTree, opt_state: optax.OptState, update_masks: Hashable
  ) -> PyTree | None:
    """Makes the probes of a step.

    Args:
      values: The trained values.
      opt_state: Their state, whose `forward(values, probes)` passes the probes
        on to the matrices.
      update_masks: The result of `tx.moves(step)`; a constant at trace time.

    Returns:
      A tree like the values, with a `Probe` or None in place of each leaf; None
      if nothing has to be read, as on ordinary steps.
    """


@node("values", "found", "count")
class Gradient:
  """The gradient of one leaf, in a step that moves masks or places.

  Attributes:
    values: The gradient of the leaf's values.
    found: What a probe has read from the leaf's dense gradient.
    count: An int32 scalar, 1: how many gradients this is the sum of. None if
      what the probe reads may be added up.
  """

  values: Any
  found: Any
  count: Any


@node("values", "dense")
class DenseGradient:
  """The gradient of one leaf that no probe has read yet.

  Gradients of several batches may be added or averaged.

  Attributes:
    values: The gradient of the leaf's values.
    dense: The gradient of the whole leaf.
  """

  values: Any
  dense: jax.Array


def value_and_grad(
  loss: Callable[..., Any],
  tx: optax.GradientTransformation,
  *,
  has_aux: bool = False,
  summable: bool = False,
) -> Callable[..., tuple[Any, PyTree]]:
  """Makes a function that computes a loss and its gradients, in any mode.

  At steps that change masks, the loss is traced twice to find out which
  matrices are used in exactly one product. For these, the mask update reads
  what it needs during their backward pass. For a matrix that is used in several
  products, as in a loss over microbatches or in layers that share weights,
  these steps compute the whole dense gradient.

  Args:
    loss: `(params, *args) -> value`: takes the model's params, returns a float
      scalar; with `has_aux`, `-> (value, anything)`.
    tx: The transformation that the gradients are for.
    has_aux: Whether the loss returns something besides its value.
    summable: Whether the gradients of several calls may be added or averaged
      before `tx.update`, for example in a loop over microbatches around this
      function or by `jax.lax.pmean` (packed arrays need `check_vma=False` in
      `shard_map`). If so, steps that change masks compute the whole dense
      gradients of packed and fine-tuned matrices. Nothing else changes.

  Returns:
    `(params, opt_state, *args, update_masks=False) -> (value, grads)`, where
    `params` are what is trained and `opt_state` is its state. `update_masks` is
    the result of `tx.moves(step)`: a Python bool or a phase of fine-tuning,
    constant at trace time. Pass the gradients to `tx.update` with the same
    `update_masks`.

  Example:
    >>> import jax.numpy as jnp, sparsejax
    >>> tx = sparsejax.static(optax.sgd(1.0), 0.75, key=jax.random.key(0))
    >>> params, state = sparsejax.init(tx, jnp.ones((4, 4)))
    >>> def loss(params, x):
    ...   return jnp.sum(sparsejax.matmul(x, params))
    >>> value, grads = value_and_grad(loss, tx)(params, state, jnp.eye(4))
    >>> print(value, grads.shape)
    4.0 (4, 4)
  """
  probing = isinstance(tx, Probing)

  def function(
    params: PyTree,
    opt_state: optax.OptState,
    *args: Any,
    update_masks: Hashable = False,
  ) -> tuple[Any, PyTree]:
    check_params(params)

    def of(params: PyTree, zeros: PyTree, probes: PyTree) -> Any:
      asked = with_zeros(probes, zeros)
      return loss(forward_params(params, opt_state, asked), *args)

    def value_of(zeros: PyTree, probes: PyTree) -> jax.Array:
      result = of(params, zeros, probes)
      return result[0] if has_aux else result

    probes = tx.probes(params, opt_state, update_masks) if probing else None
    if probes is not None and summable:
      probes = whole(probes)
    elif probes is not None:
      once = _met_once(value_of, probes)
      probes = jax.tree.map(
        lambda probe, once: probe if once else whole(probe),
        probes,
        once,
        is_leaf=_is_probe,
      )
    value, (grads, found) = jax.value_and_grad(
      of, argnums=(0, 1), has_aux=has_aux
    )(params, zeros_of(probes), probes)
    return value, attached(grads, probes, found)

  return function


def zeros_of(probes: PyTree) -> PyTree:
  """Takes out the zeros of probes, whose cotangents are what is read."""
  return jax.tree.map(lambda p: p.zeros, probes, is_leaf=_is_probe)


def with_zeros(probes: PyTree, zeros: PyTree) -> PyTree:
  """Puts the arrays that a loss is differentiated by into probes."""
  return jax.tree.map(
    lambda p, z: dataclasses.replace(p, zeros=z),
    probes,
    zeros,
    is_leaf=_is_probe,
  )


def whole(probes: PyTree) -> PyTree:
  """Makes probes of dense gradients in place of those that do not add up."""
  return _replaced(probes, _dense_gradient, lambda probe: probe)


def _replaced(probes, read, otherwise):
  """Puts `read` in place of what does not add up; changes the other probes."""

  def leaf(probe):
    if probe.dense is None:
      return otherwise(probe)
    return Probe(jnp.zeros(probe.dense.shape, probe.dense.dtype), None, read)

  return jax.tree.map(leaf, probes, is_leaf=_is_probe)


def _dense_gradient(gradient, weights, operands):
  del weights, operands
  return gradient


@jax.jit
def _sparsejax_one_product(gradient):
  # Not the gradient itself: JAX leaves out a function of what it is given.
  return -gradient


def _marked(gradient, weights, operands):
  del weights, operands
  return _sparsejax_one_product(gradient)


def _met_once(
  loss: Callable[[PyTree, PyTree], jax.Array], probes: PyTree
) -> PyTree:
  """Tells which matrices meet exactly one product in a loss.

  The backward pass of a product marks what it gives to a probe. Where a matrix
  meets one product, its cotangent is that mark, whatever the data. It is not
  where several are added up: over products, turns of a loop, or a batch.

  Args:
    loss: `(zeros, probes) -> value`.
    probes: The probes.

  Returns:
    A tree of bools like the probes; True as well where what is read adds up.
  """
  marked = _replaced(probes, _marked, lambda probe: None)
  zeros = zeros_of(marked)
  if not jax.tree.leaves(zeros):
    return jax.tree.map(lambda _: True, probes, is_leaf=_is_probe)
  jaxpr = jax.make_jaxpr(jax.grad(loss))(zeros, marked).jaxpr
  makers = functools.cache(_makers)
  outputs = iter(jaxpr.outvars)
  return jax.tree.map(
    lambda probe: probe.dense is None or _is_mark(jaxpr, next(outputs), makers),
    probes,
    is_leaf=_is_probe,
  )


def _is_mark(jaxpr: Any, variable: Any, makers: Callable[[Any], dict]) -> bool:
  """Tells whether a variable of a jaxpr is a mark that nothing was added to."""
  made = makers(jaxpr).get(id(variable))
  if made is None:
    return False
  eqn, i = made
  if eqn.params.get("name") == _sparsejax_one_product.__name__:
    return True
  inner = ()
  match eqn.primitive.name:
    case "optimization_barrier":
      return _is_mark(jaxpr, eqn.invars[i], makers)
    case "jit" | "pjit" | "checkpoint" | "remat2":
      inner = (eqn.params["jaxpr"],)
    case "scan":
      body = getattr(eqn.params["jaxpr"], "jaxpr", eqn.params["jaxpr"])
      # Where all turns' marks are stacked; what is carried has no more axes.
      if eqn.outvars[i].aval.ndim > body.outvars[i].aval.ndim:
        inner = (body,)
    case "while":  # of one turn: no other loop has a gradient
      inner = (eqn.params["body_jaxpr"],)
    case "cond":
      inner = eqn.params["branches"]
  bodies = [getattr(j, "jaxpr", j) for j in inner]
  return bool(bodies) and all(
    _is_mark(body, body.outvars[i], makers) for body in bodies
  )


def _makers(jaxpr: Any) -> dict[int, tuple[Any, int]]:
  """Finds which output of which equation each variable is."""
  return {
    id(v): (eqn, i) for eqn in jaxpr.eqns for i, v in enumerate(eqn.outvars)
  }


def attached(grads: PyTree, probes: PyTree, found: PyTree) -> PyTree:
  """Puts what probes have read beside gradients.

  Args:
    grads: Gradients.
    probes: The probes; None if there are none, or for leaves without.
    found: The cotangents of their zeros.

  Returns:
    The gradients, with a `Gradient` or a `DenseGradient` where a probe was.
  """
  if probes is None:
    return grads

  def leaf(gradient, probe, found):
    if probe is None:
      return gradient
    if probe.read is _dense_gradient:
      return DenseGradient(gradient, found)
    # Of NumPy, so that it stays a constant where `tx.update` is traced along:
    # whether gradients were added up is then known while tracing.
    count = None if probe.dense is None else np.int32(1)
    return Gradient(gradient, found, count)

  return jax.tree.map(leaf, grads, probes, found, is_leaf=is_hole)


def read_off(
  probes: PyTree | None,
  grads: PyTree,
  values: PyTree,
  opt_state: optax.OptState,
  update_masks: Hashable,
) -> PyTree:
  """Checks gradients, and reads what probes ask for off dense ones.

  Args:
    probes: The probes of the step; None if it has none.
    grads: What `value_and_grad` gave, sums or means of several where these are
      of dense gradients.
    values: What is trained.
    opt_state: Its state.
    update_masks: What the update is told.

  Returns:
    The gradients, with a `Gradient` for each probe.

  Raises:
    ValueError: If they are of another kind of step than the update, or were
      added or averaged where that cannot be.
  """
  if probes is None:
    probes = matrices = jax.tree.map(lambda _: None, grads, is_leaf=_is_probed)
  else:
    matrices = forward_params(values, opt_state, probes)

  def leaf(path, probe, gradient, matrix):
    name = path_name(path) or "the array"
    _check_same_step(name, gradient, probe, update_masks)
    if isinstance(gradient, DenseGradient):
      found = matrix.read(gradient.dense)
      return Gradient(gradient.values, found, np.int32(1))
    if isinstance(gradient, Gradient) and gradient.count is not None:
      _check_not_added(name, gradient.count)
    return gradient

  rows, treedef = aligned(
    probes, grads, matrices, is_leaf=lambda x: x is None or _is_probe(x)
  )
  return treedef.unflatten(leaf(*row) for row in rows)


def _check_same_step(name, gradient, probe, update_masks):
  """Refuses a gradient that is not of the step that an update is for."""
  probed = _is_probed(gradient)
  if probed != (probe is not None):
    step = "a step that moves masks" if probed else "an ordinary step"
  elif isinstance(gradient, Gradient) and _shapes(gradient.found) != _shapes(
    probe.zeros
  ):
    step = "another step"
  else:
    return
  raise ValueError(
    f"{name}: got update_masks={update_masks} with gradients of {step}, wanted "
    "those of sparsejax.value_and_grad(loss, tx)(..., "
    f"update_masks={update_masks})"
  )


def _shapes(tree):
  return [jnp.shape(x) for x in jax.tree.leaves(tree)]


def _check_not_added(name, count):
  """Refuses a gradient that is not the one of `value_and_grad`."""
  if isinstance(count, jax.core.Tracer) and count.dtype == jnp.int32:
    jax.debug.callback(functools.partial(_refuse_unless_one, name), count)
  else:
    _refuse_unless_one(name, count)


def _refuse_unless_one(name, count):
  if isinstance(count, jax.core.Tracer) or count.dtype != jnp.int32:
    what = "a mean or another multiple of gradients"
  elif np.any(count != 1):
    what = f"the sum of {np.max(count)} gradients"
  else:
    return
  raise ValueError(
    f"{name}: got {what} in a step that moves masks, wanted the gradients of "
    "one call of value_and_grad, since places chosen by several gradients "
    "cannot be added: take the mean over microbatches within the loss, or make "
    "gradients that can by sparsejax.value_and_grad(loss, tx, summable=True)"
  )


def _is_probe(x: Any) -> bool:
  return isinstance(x, Probe)


def _is_probed(x: Any) -> bool:
  return isinstance(x, Gradient | DenseGradient)
