"""Gradients of a loss, and with them what masks or places move by.

Where a matrix is packed, or only some of its weights are trained, its dense
gradient exists within its own backward pass only. What a step needs of it is
read off there by a `nodes.Probe`, and travels within the gradients to
`tx.update`.
"""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, Protocol, runtime_checkable

import jax
import optax

from sparsejax.masks import PyTree, is_hole
from sparsejax.nodes import Probe, node
from sparsejax.transform.state import check_params, forward_params


@runtime_checkable
class Probing(Protocol):
  """A transformation that needs more of a loss than its values' gradients."""

  def probes(
    self, values: PyTree, opt_state: optax.OptState, update_masks: Hashable
  ) -> PyTree | None:
    """Makes the probes of a step.

    Args:
      values: What is trained.
      opt_state: Its state, whose `forward(values, probes)` hands them on to the
        matrices.
      update_masks: What `tx.moves(step)` gives; a constant at trace time.

    Returns:
      A tree like the values, a `Probe` or None in place of each leaf; None if
      nothing is to be read off, as on ordinary steps.
    """


@node("values", "found")
class Gradient:
  """The gradient of one leaf, in a step that moves masks or places.

  Attributes:
    values: The gradient of the leaf's values.
    found: What a probe has read off the leaf's dense gradient.
  """

  values: Any
  found: Any


def value_and_grad(
  loss: Callable[..., Any],
  tx: optax.GradientTransformation,
  *,
  has_aux: bool = False,
) -> Callable[..., tuple[Any, PyTree]]:
  """Makes a function of a loss's value and gradients, for any transformation.

  Args:
    loss: `(params, *args) -> value`, of params as the model takes them, float
      scalar; with `has_aux`, `-> (value, anything)`.
    tx: The transformation that the gradients are for.
    has_aux: Whether the loss gives something besides its value.

  Returns:
    `(params, opt_state, *args, update_masks=False) -> (value, grads)`, of what
    is trained and its state. `update_masks` is what `tx.moves(step)` gives: a
    Python bool or a phase of fine-tuning, a constant at trace time. Hand the
    gradients to `tx.update` with the same `update_masks`.

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
    probes = tx.probes(params, opt_state, update_masks) if probing else None

    def of(params: PyTree, zeros: PyTree) -> Any:
      asked = with_zeros(probes, zeros)
      return loss(forward_params(params, opt_state, asked), *args)

    value, (grads, found) = jax.value_and_grad(
      of, argnums=(0, 1), has_aux=has_aux
    )(params, zeros_of(probes))
    return value, attached(grads, found)

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


def attached(grads: PyTree, found: PyTree | None) -> PyTree:
  """Puts what probes have read beside gradients: a `Gradient` there."""
  if found is None:
    return grads
  return jax.tree.map(
    lambda g, f: g if f is None else Gradient(g, f),
    grads,
    found,
    is_leaf=is_hole,
  )


def check_same_step(
  update_masks: Hashable, probed: bool, where: str = ""
) -> None:
  """Refuses gradients that are not of the step that an update is for.

  Args:
    update_masks: What the update is told.
    probed: Whether the gradients hold what probes have read.
    where: The leaf's key path and a colon, if it is one leaf's fault.

  Raises:
    ValueError: If they do and it moves nothing, or the other way round.
  """
  if bool(update_masks) != probed:
    step = "a step that moves masks" if probed else "an ordinary step"
    raise ValueError(
      f"{where}got update_masks={update_masks} with gradients of {step}, "
      "wanted those of sparsejax.value_and_grad(loss, tx)(..., "
      f"update_masks={update_masks})"
    )


def _is_probe(x: Any) -> bool:
  return isinstance(x, Probe)
