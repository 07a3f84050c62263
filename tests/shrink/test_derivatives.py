"""Derivatives of smaller models are those of the whole ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import shrink
from tests.shrink import zoo

SHAPES = {"a": (3, 8), "c": (8, 2)}


def model(activation):
  def apply(params, x):
    return activation(x @ params["a"]) @ params["c"]

  params = {"a": jnp.zeros((3, 8)), "c": jnp.ones((8, 2))}
  return apply, params, jnp.ones((4, 3))


def smaller(activation):
  apply, params, x = model(activation)
  plan = shrink.trace(apply, params, x)
  remove = plan.remove([0, 1, 2])
  small, whole = plan.take(params, remove), plan.mask(params, remove)
  return plan.apply_fn(remove), small, apply, whole, x, plan, remove


@jax.custom_jvp
def odd(x):
  return jnp.sin(x)


@odd.defjvp
def _(primals, tangents):
  (x,), (dx,) = primals, tangents
  return odd(x), 7.0 * dx


@pytest.mark.parametrize(
  ("activation", "value"), [(jax.nn.relu, 0.0), (odd, 7.0 * 4 * 2)]
)
def test_custom_rules_are_kept(activation, value):
  small_apply, small, apply, whole, x, plan, remove = smaller(activation)
  got = jax.grad(lambda p: small_apply(p, x).sum())(small)
  wanted = jax.grad(lambda p: apply(p, x).sum())(whole)
  wanted = plan.take(wanted, remove)
  assert (got["a"] == value).all()  # relu at exactly 0: 0, and not 1/2
  np.testing.assert_array_equal(got["a"], wanted["a"])


@jax.custom_jvp
def scaled(x, by):
  return x * by


@scaled.defjvp
def _(primals, tangents):
  (x, by), (dx, dby) = primals, tangents
  return scaled(x, by), dx * by + x * jnp.broadcast_to(dby, x.shape)


def test_a_constant_has_no_tangent():
  """Nor is it taken for the constant itself, which is one number too."""
  small_apply, small, apply, whole, x, plan, remove = smaller(
    lambda x: scaled(x + 1, jnp.float32(3))
  )
  ones = plan.mask(jax.tree.map(jnp.ones_like, whole), remove)
  _, got = jax.jvp(
    lambda p: small_apply(p, x), (small,), (plan.take(ones, remove),)
  )
  _, wanted = jax.jvp(lambda p: apply(p, x), (whole,), (ones,))
  np.testing.assert_array_equal(got, wanted)


def test_second_derivatives_are_kept():
  small_apply, small, apply, whole, x, plan, remove = smaller(jax.nn.relu)

  def hvp(f, p):
    ones = jax.tree.map(jnp.ones_like, p)
    grad = jax.grad(lambda p: (f(p, x) ** 2).sum())
    return jax.jvp(grad, (p,), (ones,))[1]

  got, wanted = hvp(small_apply, small), hvp(apply, whole)
  np.testing.assert_array_equal(got["a"], plan.take(wanted, remove)["a"])


@jax.custom_vjp
def rounded(x):
  return jnp.round(x)


rounded.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))


def test_a_rule_that_cannot_be_kept_is_not_replaced():
  small_apply, small, apply, whole, x, *_ = smaller(rounded)
  np.testing.assert_array_equal(small_apply(small, x), apply(whole, x))
  with pytest.raises(NotImplementedError, match=r"custom_vjp_call at .*\.py:"):
    jax.grad(lambda p: small_apply(p, x).sum())(small)


def test_rematerialization_stays():
  apply, params, inputs = zoo.scanned()
  plan = shrink.trace(apply, params, *inputs)
  remove = plan.lowest(params, 0.5)
  small = plan.take(params, remove)
  jaxpr = jax.make_jaxpr(plan.apply_fn(remove))(small, *inputs)
  assert "remat" in str(jaxpr) or "checkpoint" in str(jaxpr)
