"""What the trainer's programs launch on an H100."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import (
  Mesh,
  NamedSharding,
  PartitionSpec,
  SingleDeviceSharding,
)

from experiments.config import grid, parts
from experiments.runs import devices, programs, step, train
from experiments.runs.model import Batches, Model
from experiments.sweep import population
from tests.compiled import harness
from tests.experiments import small

STEPS = 1000
MEMBERS = 48


@pytest.fixture(autouse=True)
def for_a_gpu(monkeypatch):
  """Programs as a process with a GPU has them."""
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  programs._get.cache_clear()
  yield
  programs._get.cache_clear()


def quickstart(method="rigl"):
  """The config of the quickstart's run of a method."""
  config = grid.module("configs/quickstart.py").get_config("")
  base = config.base.copy_and_resolve_references()
  base.algorithm = config.algorithms[method]
  return base


def _launches(loop):
  return loop.kernels.total()


def shapes(config, *axes):
  """Of a run's state and batches; or of members', along these axes."""
  program = programs.get(config)
  state = train.state_shapes(config, program)
  x, y = parts.dataset(config.data.to_dict()).train
  i32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
  batches = Batches(
    jax.ShapeDtypeStruct(x.shape, x.dtype),
    jax.ShapeDtypeStruct(y.shape, y.dtype),
    i32((*axes, STEPS, config.batch_size)),
    i32(()),
  )
  rest = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((*axes, *x.shape), x.dtype), state
  )
  return rest._replace(step=state.step), batches, i32(())


@harness.needs_cudnn
def test_a_stretch_asks_the_host_every_32_steps():
  config = quickstart()
  model = Model(config)
  one = functools.partial(step.step, model, update_masks=False)
  compiled = harness.compile_for_h100(
    programs.repeated(one, programs._AT_A_TIME),
    *shapes(config),
    donate_argnums=0,
  )
  loops = harness.loops(compiled)
  (known,) = [loop for loop in loops if loop.turns]
  outer, rest = sorted(
    (loop for loop in loops if not loop.turns), key=_launches
  )
  assert known.turns == 32
  assert outer.kernels.total() <= 4
  # The same kernels wherever a stretch is cut: the same bits.
  assert known.kernels == rest.kernels
  assert known.kernels["custom-call"] == 8  # convolutions
  assert known.kernels["copy"] == 0
  assert known.kernels.total() <= 38
  assert harness.counts(compiled).conditionals == 0


@pytest.mark.parametrize(
  ("kind", "turns", "most"),
  [("ordinary", [32, None, None], 33), ("moving", [None], 125)],
)
def test_members_of_a_population_share_their_kernels(kind, turns, most):
  config = quickstart()
  mesh = Mesh(np.array([harness.h100()]), ("members",))
  state, batches, until = shapes(config, MEMBERS)
  rates = jax.ShapeDtypeStruct((MEMBERS,), jnp.float32)
  numbers = dict.fromkeys(parts.NUMBERS, rates)

  def placed(tree, *spec):
    place = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree
    )

  single = programs.get(config, products=True)
  stretch = getattr(population._compiled(single, mesh, config.batch_size), kind)
  traced = stretch.trace(
    placed(state._replace(step=None), "members")._replace(step=placed(until)),
    placed(batches)._replace(order=placed(batches.order, "members")),
    placed(until),
    placed(numbers, "members"),
  )
  compiled = traced.lower(lowering_platforms=("cuda",)).compile()
  assert harness.counts(compiled).conditionals == 0
  loops = harness.loops(compiled)
  assert sorted((loop.turns for loop in loops), key=str) == turns
  kernels = max((loop.kernels for loop in loops), key=lambda c: c.total())
  assert kernels["custom-call"] == 0  # of no library
  assert kernels.total() <= most


def test_sums_of_a_run_have_one_order():
  """As of the gradient of an embedding, which has atomic additions else."""

  def gradient(table, rows):
    return jax.grad(lambda table: (table[rows] ** 2).sum())(table)

  shape = functools.partial(
    jax.ShapeDtypeStruct, sharding=SingleDeviceSharding(harness.h100())
  )
  table, rows = shape((1000, 64), jnp.float32), shape((512,), jnp.int32)

  def kernels(jit):
    traced = jit(gradient).trace(table, rows)
    text = traced.lower(lowering_platforms=("cuda",)).compile().as_text()
    return {kind for kind in ("sort", "while") if f" {kind}(" in text}

  assert kernels(jax.jit) == set()
  assert kernels(devices.jit) == {"sort"}


def test_loops_are_compiled_twice_for_small_nets_only():
  wide = grid.module("configs/wrn_fashion_mnist.py").get_config("")
  wide.steps, wide.data = 100, {"name": "digits"}
  assert programs._at_a_time(wide, update_masks=False) == 1
  net = quickstart()
  assert programs._at_a_time(net, update_masks=False) == 32
  assert programs._at_a_time(net, update_masks=True) == 1


def test_convolutions_are_known_by_their_kernels():
  assert programs._convolves(quickstart())
  assert not programs._convolves(small.get_config())
