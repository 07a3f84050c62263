"""What a reader of `help(sparsejax.rigl)` sees, and what a typo gets."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax
from sparsejax import algorithms

NAMES = [name for name in algorithms.__all__ if name not in ("dense", "fixed")]


@pytest.mark.parametrize("name", NAMES)
def test_keywords_are_explicit_and_a_misspelt_one_names_the_algorithm(name):
  algorithm = getattr(sparsejax, name)
  parameters = inspect.signature(algorithm).parameters
  assert all(p.kind is not p.VAR_KEYWORD for p in parameters.values())
  for keyword in parameters:
    assert f"\n  {keyword}:" in inspect.getdoc(algorithm)
  required = {
    p.name: None
    for p in parameters.values()
    if p.kind is p.KEYWORD_ONLY and p.default is p.empty
  }
  sparsity = (0.5,) if "sparsity" in parameters else ()
  with pytest.raises(TypeError, match=rf"{name}\(\).*'prunabel'"):
    algorithm(optax.sgd(1.0), *sparsity, prunabel=None, **required)


def test_rigl_shows_what_drop_and_grow_and_sparsify_take():
  shown = set(inspect.signature(sparsejax.rigl).parameters)
  taken = set(inspect.signature(sparsejax.updates.drop_and_grow).parameters)
  taken |= set(inspect.signature(sparsejax.sparsify).parameters)
  assert shown - taken == {"t_end", "delta_t", "accumulate"}
  fixed_by_rigl = {"drop", "grow", "surplus", "mask_update", "when", "enforce"}
  assert taken - shown == fixed_by_rigl


def test_rigl_hands_its_keywords_on():
  masks = {"w": jnp.eye(8, dtype=bool)}
  tx = sparsejax.rigl(
    optax.sgd(1.0),
    0.5,
    key=jax.random.key(0),
    t_end=10**6,
    delta_t=1,
    fraction=1.0,
    regrow=False,
    masks=masks,
    step_on_update=True,
    grown_values=jax.nn.initializers.constant(2.0),
  )
  params, state = sparsejax.init(tx, {"w": jnp.ones((8, 8))})
  grads = {"w": jax.random.normal(jax.random.key(1), (8, 8))}
  change, state = tx.update(grads, state, params, update_masks=True)
  grown = sparsejax.get_masks(state)["w"]
  assert sparsejax.nnz(grown) == 8
  assert not (grown & masks["w"]).any()
  wanted = jnp.where(grown, 2.0 - grads["w"], 0.0)
  np.testing.assert_allclose(params["w"] + change["w"], wanted, atol=1e-6)
