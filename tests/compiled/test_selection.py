"""Selection on an H100: without loops, by few kernels for all leaves."""

import math
import re

import jax
import jax.numpy as jnp
import optax
import pytest

import sparsejax
from sparsejax import select, xla
from tests.compiled.harness import compile_for_h100, counts
from tests.conformance import table as conformance

KEY = jax.random.key(0)
K = jax.ShapeDtypeStruct((), jnp.int32)
DENSE = 8  # kernels of a dense step of eight leaves: one each


def scores(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def _group(inputs, outputs):
  """The convolutions of three blocks of a Wide ResNet, a projection first."""
  first = [(1, 1, inputs, outputs), (3, 3, inputs, outputs)]
  return first + [(3, 3, outputs, outputs)] * 5


WRN_22_2 = [
  (3, 3, 3, 16),
  *_group(16, 32),
  *_group(32, 64),
  *_group(64, 128),
  (128, 10),
]


@select.together
def of_each(leaves, ks):
  return [select.top_k_mask(x, k) for x, k in zip(leaves, ks, strict=True)]


@select.together
def dropped_and_grown(weights, gradients, masks, kept, grown):
  """The two selections of one update of RigL."""
  keep = map(select.top_k_mask, map(jnp.abs, weights), kept, masks)
  return [
    mask | select.top_k_mask(jnp.abs(g), n, ~mask)
    for mask, g, n in zip(keep, gradients, grown, strict=True)
  ]


def check(compiled, kernels, megabytes=None):
  found = counts(compiled)
  assert (found.whiles, found.conditionals, found.copies) == (0, 0, 0)
  assert found.kernels <= kernels
  if megabytes is not None:
    assert found.temporary_bytes <= megabytes * 2**20


def test_all_leaves_of_a_wide_resnet_together():
  leaves = [scores(*s) for s in WRN_22_2]
  ks = [K] * len(leaves)
  assert len(leaves) == 23
  check(compile_for_h100(of_each, leaves, ks), kernels=62, megabytes=8)
  masks = [scores(*s, dtype=bool) for s in WRN_22_2]
  compiled = compile_for_h100(dropped_and_grown, leaves, leaves, masks, ks, ks)
  check(compiled, kernels=99, megabytes=12)
  # The members of a population, too.
  members = [scores(48, *s) for s in WRN_22_2]
  ks = [jax.ShapeDtypeStruct((48,), jnp.int32)] * len(leaves)
  check(compile_for_h100(jax.vmap(of_each), members, ks), kernels=130)


@pytest.mark.parametrize(
  ("shape", "dtype", "kernels"),
  [
    ((3, 3, 32, 32), jnp.float32, 36),
    ((4096, 4096), jnp.float32, 52),
    ((4096, 4096), jnp.bfloat16, 36),
    ((16384, 8192), jnp.float32, 66),
  ],
)
def test_one_leaf(shape, dtype, kernels):
  """What is kept in memory is the keys, once."""
  x = scores(*shape, dtype=dtype)
  compiled = compile_for_h100(select.top_k_mask, x, K)
  keys = x.size * x.dtype.itemsize / 2**20
  check(compiled, kernels=kernels, megabytes=1.01 * keys + 1)
  # Keys are read once in each pass and for the mask; what is between sees
  # counts, but for the tile of the last tie.
  if x.size >= 2**24:
    passes = -(-8 * x.dtype.itemsize // 3)
    assert _readers(compiled, x.size) <= passes + 3


def _readers(compiled, size):
  """Counts the kernels that are given unsigned integers of that number."""
  entry = compiled.as_text().split("\nENTRY ")[1]
  found = re.findall(r"(%\S+) = u\d+\[([\d,]+)\]", entry)
  keys = {
    name for name, s in found if math.prod(map(int, s.split(","))) == size
  }
  kernels = re.findall(r" fusion\(([^)]*)\)", entry)
  return sum(bool(keys & set(re.findall(r"%[\w.\-]+", k))) for k in kernels)


def test_a_slice_of_each_output():
  compiled = compile_for_h100(
    lambda x: select.top_k_of_each(x, 7, -1), scores(3, 3, 32, 64)
  )
  check(compiled, kernels=28, megabytes=1)


def test_slices_take_more_memory_if_not_laid_out_in_order(monkeypatch):
  def taken():
    each = jax.jit(lambda x: select.top_k_of_each(x, 7, -1))
    compiled = compile_for_h100(each, scores(3, 3, 32, 64))
    return compiled.memory_analysis().temp_size_in_bytes

  with_it = taken()
  with monkeypatch.context() as patch:
    patch.setattr(xla, "in_memory", lambda x: x)
    jax.clear_caches()
    without = taken()
  jax.clear_caches()
  assert without > 2 * with_it, "XLA no longer needs xla.in_memory"


def _step(make, leaves=8):
  tx = make(optax.sgd(0.1, momentum=0.9))
  params = {f"l{i}": {"kernel": scores(3, 3, 64, 64)} for i in range(leaves)}
  params, state = jax.eval_shape(lambda p: sparsejax.init(tx, p), params)

  def step(params, state, grads):
    updates, state = tx.update(grads, state, params, update_masks=True)
    return optax.apply_updates(params, updates), state

  return counts(
    compile_for_h100(step, params, state, params, donate_argnums=(0, 1))
  )


@pytest.mark.parametrize(
  ("make", "kernels"),
  [
    (lambda i: sparsejax.rigl(i, 0.9, key=KEY, t_end=1000), 70),
    (lambda i: sparsejax.ste(i, 0.9, key=KEY), 42),
    (lambda i: sparsejax.sr_ste(i, 0.5, key=KEY), 12),
    (
      lambda i: sparsejax.top_kast(i, 0.9, key=KEY, backward_sparsity=0.5),
      46,
    ),
  ],
  ids=["rigl", "ste", "sr_ste", "top_kast"],
)
def test_a_step_that_moves_masks(make, kernels):
  found = _step(make)
  assert (found.whiles, found.conditionals) == (0, 0)
  assert found.kernels - DENSE <= kernels


def _lowered(tx, params):
  state = jax.eval_shape(tx.init, params)

  def step(grads, state, params):
    return tx.update(grads, state, params, update_masks=True)

  traced = jax.jit(step).trace(params, state, params)
  return traced.lower(lowering_platforms=("cuda",)).as_text()


def _loops_and_conditionals(text):
  """Counts those of a program before XLA.

  Conditionals that choose by platform have a constant for an index, and XLA
  resolves them: that is so in the compiled programs above.
  """
  chosen = r"(%\S+?)(?::\d+)? = \"stablehlo.case\"\((%\w+)"
  found = text.count("stablehlo.while")
  constant = set()
  for result, index in re.findall(chosen, text):
    if index.startswith("%c") or index in constant:
      constant.add(result)
    else:
      found += 1
  return found


@pytest.mark.parametrize("name", conformance.ROWS)
def test_no_algorithm_has_loops_or_conditionals(name):
  row = conformance.ROWS[name]
  text = _lowered(row.make(optax.sgd(0.1)), conformance.small_params())
  assert not _loops_and_conditionals(text)


@pytest.mark.parametrize("algorithm", ["rigl", "gmp", "ste"])
@pytest.mark.parametrize("name", conformance.PATTERNS)
def test_no_pattern_has_loops_or_conditionals(name, algorithm):
  pattern, sparsity = conformance.PATTERNS[name]
  tx = conformance.ROWS[algorithm].make(
    optax.sgd(0.1), sparsity=sparsity, pattern=pattern
  )
  text = _lowered(tx, {"kernel": jnp.ones((24, 12))})
  assert not _loops_and_conditionals(text)


def test_a_barrier_is_enough_for_results_to_have_one_value():
  """On a GPU; `xla.materialised` needs a loop on a CPU."""

  def used_twice(compute):
    def function(x, y, z):
      product = compute(lambda x, y, z: x * y + z, x, y, z)
      return jnp.sum(product > 1), product > 1.5

    return compile_for_h100(function, *[scores(1024, 1024)] * 3).as_text()

  def with_products(text):
    """Computations in which the product is computed and compared."""
    parts = [part for part in text.split("\n}") if "multiply(" in part]
    return [part for part in parts if "compare(" in part]

  assert with_products(used_twice(lambda function, *xs: function(*xs)))
  assert not with_products(used_twice(xla.materialised))
