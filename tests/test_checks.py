"""Refusals of values, in and outside of compiled functions."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import checkify

from sparsejax.checks import refuse_unless, refusing


def positive(x):
  return refuse_unless(x > 0, "a/{b}: got no positive number", lambda: f"{x}")


def test_what_is_known_is_refused_at_once():
  assert positive(jnp.float32(2))
  with pytest.raises(ValueError, match=r"^-2.0$"):
    positive(jnp.float32(-2))
  with pytest.raises(ValueError, match="no detail"):
    refuse_unless(jnp.array(False), "no detail")


def test_what_is_traced_is_for_checkify():
  xs = jnp.array([3.0, -1.0])
  assert jax.jit(jax.vmap(positive))(xs).tolist() == [True, False]
  checked = jax.jit(
    checkify.checkify(jax.vmap(positive), errors=checkify.user_checks)
  )
  error, ok = checked(xs)
  assert ok.tolist() == [True, False]
  assert "a/{b}: got no positive number" in error.get()
  assert checked(xs[:1])[0].get() is None


def test_a_compiled_function_raises_what_it_refuses():
  square = refusing(lambda x: (positive(x), x * x))
  ok, four = square(jnp.float32(2))
  assert ok
  assert four == 4
  with pytest.raises(ValueError, match=r"^a/{b}: got no positive number$"):
    square(jnp.float32(-2))
