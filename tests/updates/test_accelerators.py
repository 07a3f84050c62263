"""Mask updates as accelerators do them, run on a CPU: the same masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax
from tests.conformance import table as conformance
from tests.marks import few
from tests.select.test_accelerators import as_on_an_accelerator

KEY = jax.random.key(0)


def params():
  """Leaves of few values, and so of many ties."""
  rng = np.random.default_rng(0)

  def leaf(*shape):
    return jnp.asarray(rng.integers(-4, 5, shape) / 4, jnp.float32)

  return {"a": leaf(24, 12), "layers": {"kernel": leaf(3, 6, 12)}}


def moved(make, scores):
  """Moves the masks once, by these gradients."""
  tx = make(optax.sgd(0.1))
  weights, state = sparsejax.init(tx, params())
  step = jax.jit(lambda g, s, p: tx.update(g, s, p, update_masks=True)[1])
  return jax.device_get(step(scores, state, weights))


def check_alike(make, gradients):
  wanted = moved(make, gradients)
  with as_on_an_accelerator():
    got = moved(make, gradients)
  assert conformance.same(got, wanted)
  return got


@pytest.mark.parametrize("name", few(sorted(conformance.PATTERNS), []))
def test_patterns(name):
  pattern, sparsity = conformance.PATTERNS[name]
  check_alike(
    lambda inner: sparsejax.rigl(
      inner, sparsity, key=KEY, t_end=9, fraction=0.6, pattern=pattern
    ),
    jax.tree.map(lambda p: p[..., ::-1], params()),
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", ["srigl", "granet", "soft_movement", "top_kast"]
)
def test_algorithms(name):
  make = conformance.ROWS[name].make
  check_alike(make, jax.tree.map(lambda p: p[..., ::-1], params()))


@pytest.mark.slow
def test_a_layer_of_scores_that_are_not_finite_stays_as_it_is():
  gradients = params()
  kernel = gradients["layers"]["kernel"]
  gradients["layers"]["kernel"] = kernel.at[1, 3, 5].set(jnp.nan)
  gradients["a"] = gradients["a"].at[23, 11].set(jnp.inf)

  def make(inner):
    return sparsejax.rigl(inner, 0.5, key=KEY, t_end=9, fraction=0.9)

  state = check_alike(make, gradients)
  _, first = sparsejax.init(make(optax.sgd(0.1)), params())
  first = sparsejax.get_masks(first)
  masks = sparsejax.get_masks(state)
  same = [
    np.array_equal(x, y)
    for x, y in zip(
      masks["layers"]["kernel"], first["layers"]["kernel"], strict=True
    )
  ]
  assert same == [False, True, False]
  np.testing.assert_array_equal(masks["a"], first["a"])
  assert int(state.mask_state.refused) == 2
