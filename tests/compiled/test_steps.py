"""Compiled for an H100, a sparse step launches little more than a dense one."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax

import sparsejax
from experiments import models
from sparsejax import xla
from tests.compiled import harness
from tests.compiled.harness import compile_for_h100, counts

KEY = jax.random.key(0)
INNER = optax.sgd(0.1, momentum=0.9)
LEAVES = {f"w{i}": jnp.ones((3, 3, 64, 64)) for i in range(8)}

rigl = functools.partial(sparsejax.rigl, INNER, 0.9, key=KEY, t_end=1000)


@functools.cache
def eight_leaves(make=None, update_masks=None):
  """Counts what a step of eight leaves launches, with donated buffers."""
  tx = make() if make else INNER
  extra = {"update_masks": update_masks} if make else {}

  def step(params, state, grads):
    updates, state = tx.update(grads, state, params, **extra)
    return optax.apply_updates(params, updates), state

  state = tx.init(LEAVES)
  return counts(
    compile_for_h100(step, LEAVES, state, LEAVES, donate_argnums=(0, 1))
  )


def test_an_ordinary_step_has_one_kernel_more():
  """The count's."""
  dense, found = eight_leaves(), eight_leaves(rigl, False)
  assert dense.kernels == 8
  assert (found.kernels - dense.kernels, found.copies) == (1, 0)


def test_a_conditional_inside_costs_four_kernels_and_no_copies():
  """Whether, what changes, the count; and nothing for each leaf."""
  found = eight_leaves(rigl)
  assert found.entry_conditionals == 1
  assert found.ordinary_kernels - eight_leaves().kernels <= 4
  assert (found.copies, found.entry_whiles) == (0, 0)


def test_a_conditional_writes_what_it_passes_on(monkeypatch):
  def naive(now, then, otherwise, old):
    del old
    return lax.cond(now, then, otherwise)

  monkeypatch.setattr(xla, "cond_of_changes", naive)
  found = eight_leaves.__wrapped__(rigl)
  gone = "XLA no longer needs it: cond_of_changes may go from sparsejax/xla.py"
  assert found.ordinary_kernels - eight_leaves().kernels > 8, gone


def test_a_conditional_inside_takes_no_more_memory_than_a_mask_update():
  weights = sum(x.size for x in jax.tree.leaves(LEAVES))
  inside, outside = eight_leaves(rigl), eight_leaves(rigl, True)
  assert inside.temporary_bytes <= outside.temporary_bytes + 2 * weights


def wide_resnet(make, depth):
  """Makes a training step of WRN-depth-2, and the shapes of its arguments."""
  net = models.create("wrn", 10, depth=depth, width=2)
  x = jax.ShapeDtypeStruct((128, 32, 32, 3), jnp.float32)
  y = jax.ShapeDtypeStruct((128,), jnp.int32)
  init = functools.partial(net.init, train=False)
  variables = jax.eval_shape(init, KEY, x)
  params, stats = variables["params"], variables["batch_stats"]
  tx = make() if make else INNER
  extra = {"update_masks": False} if make else {}

  def step(params, state, stats, x, y):
    def loss(params):
      logits, new = net.apply(
        {"params": params, "batch_stats": stats},
        x,
        train=True,
        mutable=["batch_stats"],
      )
      terms = optax.softmax_cross_entropy_with_integer_labels(logits, y)
      return terms.mean(), new["batch_stats"]

    grads, stats_ = jax.grad(loss, has_aux=True)(params)
    updates, state = tx.update(grads, state, params, **extra)
    return optax.apply_updates(params, updates), state, stats_

  return step, (params, jax.eval_shape(tx.init, params), stats, x, y)


def test_a_wide_resnet_takes_few_arguments_more():
  _, dense = wide_resnet(None, 22)
  _, sparse = wide_resnet(rigl, 22)
  assert len(jax.tree.leaves(dense)) == 164
  # A mask for each of 23 sparse leaves; budgets, count, key, refused.
  assert len(jax.tree.leaves(sparse)) == 164 + 23 + 4 <= 195


@harness.needs_cudnn
@pytest.mark.slow
def test_masks_make_no_copies_of_a_wide_resnets_kernels():
  """Updates are made in the layout of the gradients of convolutions."""
  dense, sparse = (
    counts(compile_for_h100(step, *args, donate_argnums=(0, 1, 2)))
    for step, args in (wide_resnet(make, 10) for make in (None, rigl))
  )
  assert sparse.copies <= dense.copies
  assert sparse.kernels - dense.kernels <= 6
