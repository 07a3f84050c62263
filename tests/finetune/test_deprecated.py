"""The old loop of fine-tuning warns, and trains to the same bits."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax
from sparsejax import finetune
from tests.finetune.regression import (
  KEY,
  X,
  Y,
  everything,
  sparse_base,
  trained,
)
from tests.marks import few

COMMON = {"key": KEY, "t_end": 12, "k": 12, "prunable": everything}
METHODS = {
  "seft": lambda: finetune.seft(finetune.adamw(0.1), every=4, **COMMON),
  "spiel": lambda: finetune.spiel(
    finetune.adamw(0.1), every=4, accumulate=2, **COMMON
  ),
  "spiel_sm3": lambda: finetune.spiel_sm3(0.1, first=2, every=4, **COMMON),
}


@pytest.mark.parametrize("name", few(METHODS, ["seft"]))
def test_the_old_loop_gives_the_bits_of_the_new(name):
  tx = METHODS[name]()
  values, state = sparsejax.init(tx, sparse_base())

  def loss_of(values, probes, state, t):
    params = finetune.join(values, state, probes)
    product = sparsejax.matmul(jnp.asarray(X)[t], params)
    return 0.5 * jnp.sum((product - jnp.asarray(Y)[t]) ** 2)

  @functools.partial(jax.jit, static_argnums=3)
  def step(values, state, t, phase):
    probes = tx.probes(state, phase)
    grads, signal = jax.grad(loss_of, (0, 1))(values, probes, state, t)
    updates, state = tx.update(grads, state, values, phase=phase, signal=signal)
    return optax.apply_updates(values, updates), state

  with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    for t in range(12):
      values, state = step(values, state, t, tx.phase(t))
  told = " ".join(str(w.message) for w in warned)
  for old in ("tx.phase", "tx.probes", "finetune.join", "signal=signal"):
    assert old in told
  assert "update_masks=now" in told
  assert "sparsejax.forward_params" in told
  assert all(w.category is DeprecationWarning for w in warned)
  assert all(w.filename == __file__ for w in warned)
  wanted = trained(tx, sparse_base(), 12)
  jax.tree.map(np.testing.assert_array_equal, (values, state), wanted)


def test_an_update_that_is_not_told_of_moves_warns():
  tx = METHODS["seft"]()
  values, state = sparsejax.init(tx, sparse_base())
  with pytest.warns(DeprecationWarning, match="without update_masks") as warned:
    got = tx.update(values, state, values)
  assert warned[0].filename == __file__
  wanted = tx.update(values, state, values, update_masks=False)
  jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_where_nothing_moves_update_masks_may_be_left_out():
  tx = finetune.lora(optax.sgd(0.1), key=KEY, rank=2, prunable=everything)
  values, state = sparsejax.init(tx, sparse_base())
  assert tx.moves(0) is False
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    tx.update(values, state, values)
