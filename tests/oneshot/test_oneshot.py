"""One-shot pruning against loops in float64, written from the formulas."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from sparsejax import oneshot, patterns, quantize
from tests.marks import slow

N_OF_M = patterns.n_of_m(2, 4)
INPUTS, OUTPUTS = 14, 5
WIDE = 42, 12  # room for swaps


def correlated(seed=0, inputs=INPUTS, positions=60):
  """Inputs that share causes, of different scales and means."""
  rng = np.random.default_rng(seed)
  causes = rng.normal(size=(positions, max(2, inputs // 3)))
  x = causes @ rng.normal(size=(causes.shape[1], inputs))
  x += 0.3 * rng.normal(size=x.shape) + rng.normal(size=inputs)
  return x * np.exp(rng.normal(size=inputs))


def kernel(seed=0, shape=(INPUTS, OUTPUTS)):
  return np.random.default_rng(seed + 100).normal(size=shape)


def seen(x, gram=True):
  return oneshot.observe(oneshot.statistics(x.shape[-1], gram=gram), x)


def size_kept(mask):
  return int(np.sum(np.asarray(mask)))


def error(x, w, new):
  """||x w - x w'||^2 in float64."""
  return float(np.sum((x @ (w - np.asarray(new, np.float64))) ** 2))


# Statistics.


def moments(x):
  x = x.reshape(-1, x.shape[-1]).astype(np.float64)
  return len(x), x.mean(0), x.var(0), x.T @ x / len(x)


def within(sequences):
  """The variance about each sequence's mean, over all positions."""
  apart = [x.astype(np.float64) - x.mean(0) for x in sequences]
  return np.mean(np.concatenate(apart) ** 2, 0)


@pytest.mark.parametrize("sizes", [[60], [1, 59], [20, 30, 10]])
def test_statistics_do_not_depend_on_the_batches(sizes):
  x = correlated() + 30.0  # means far above deviations: sums would cancel
  found = oneshot.statistics(INPUTS, gram=True)
  for batch in np.split(x, np.cumsum(sizes)[:-1]):
    found = oneshot.observe(found, batch)
  count, mean, variance, gram = moments(x)
  assert found.count.dtype == jnp.int32
  assert found.count == count
  np.testing.assert_allclose(found.mean, mean, rtol=1e-5)
  np.testing.assert_allclose(found.variance, variance, rtol=1e-4)
  np.testing.assert_allclose(found.gram, gram, rtol=1e-5)


def test_positions_that_do_not_count_may_hold_anything():
  x = correlated().reshape(4, 15, INPUTS)
  where = np.arange(15) < np.array([[15], [3], [0], [9]])
  padded = np.where(where[..., None], x, np.nan)
  start = oneshot.statistics(INPUTS, gram=True)
  found = oneshot.observe(start, padded, where=where)
  wanted = *moments(x[where]), within([x[0], x[1, :3], x[3, :9]])
  for got, want in zip(found, wanted, strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
  # A batch of nothing changes nothing, at the start either.
  nothing = np.zeros((4, 15), bool)
  for before in (start, found):
    after = oneshot.observe(before, padded, where=nothing)
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_statistics_of_halves_merge():
  x = correlated()
  both = oneshot.merge(seen(x[:13]), seen(x[13:]))
  # Of two arrays [time, inputs] each is a sequence.
  for got, want in zip(
    both, (*moments(x), within([x[:13], x[13:]])), strict=True
  ):
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_variance_within_sequences_is_as_dsnot_gathers_it():
  """Sequence by sequence, weighed by their lengths, as its code does."""
  x = correlated(positions=60).reshape(3, 20, INPUTS)
  variance, tokens = 0, 0
  for sequence in x:
    variance = (variance * tokens + sequence.var(0) * 20) / (tokens + 20)
    tokens += 20
  found = seen(x, gram=False)
  np.testing.assert_allclose(found.sequence_variance, variance, rtol=1e-4)
  assert np.all(found.sequence_variance < found.variance)
  one_by_one = oneshot.statistics(INPUTS)
  for sequence in x:
    one_by_one = oneshot.observe(one_by_one, sequence)
  np.testing.assert_allclose(one_by_one.sequence_variance, variance, rtol=1e-4)


def test_statistics_are_float32_of_any_input():
  x = correlated().astype(np.float32)
  half = seen(jnp.asarray(x, jnp.bfloat16), gram=False)
  assert half.gram is None
  assert half.mean.dtype == half.variance.dtype == jnp.float32
  rounded = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)
  np.testing.assert_allclose(half.mean, rounded.mean(0), rtol=1e-4, atol=1e-5)


# Scores.


def norms(x):
  return np.sqrt((x**2).sum(0))


def test_wanda_is_its_formula():
  x, w = correlated(), kernel()
  want = np.empty_like(w)
  for i, j in np.ndindex(w.shape):
    want[i, j] = abs(w[i, j]) * norms(x)[i]
  np.testing.assert_allclose(oneshot.wanda(w, seen(x)), want, rtol=1e-5)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_ria_is_its_formula(power):
  x, w = correlated(), kernel()
  w[3], w[:, 2] = 0, 0  # sums of nothing
  want = np.zeros_like(w)
  for i, j in np.ndindex(w.shape):
    if w[i, j]:
      of_input = abs(w[i, j]) / np.abs(w[i]).sum()
      of_output = abs(w[i, j]) / np.abs(w[:, j]).sum()
      want[i, j] = (of_input + of_output) * norms(x)[i] ** power
  got = oneshot.ria(w, seen(x), power=power)
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_scores_are_wide_and_take_the_same_arguments():
  w, found = jnp.asarray(kernel(), jnp.bfloat16), seen(correlated())
  for score in (oneshot.magnitude, oneshot.wanda, oneshot.ria):
    scores = score(w, found)
    assert scores.dtype == jnp.float32
    assert scores.shape == w.shape
  np.testing.assert_array_equal(
    oneshot.magnitude(w), np.abs(np.asarray(w, np.float32))
  )


# Masks.


def best(scores, k):
  """The k highest; ties go to the lower linear index."""
  order = np.argsort(-scores.ravel(), kind="stable")
  mask = np.zeros(scores.size, bool)
  mask[order[:k]] = True
  return mask.reshape(scores.shape)


@pytest.mark.parametrize(
  ("shape", "sparsity"), [((7, 3), 0.5), ((13, 11), 0.77)]
)
def test_budgets_are_exact_however_many_weights_are_equal(shape, sparsity):
  scores = np.abs(np.round(kernel(shape=shape)))  # four values or so
  whole = int(np.floor(np.prod(shape) * (1 - sparsity) + 0.5))
  mask = np.asarray(oneshot.prune(scores, sparsity))
  assert mask.dtype == bool
  assert mask.sum() == whole
  assert scores[mask].sum() == scores[best(scores, whole)].sum()

  each = int(np.floor(shape[0] * (1 - sparsity) + 0.5))
  mask = oneshot.prune(scores, sparsity, pattern=patterns.fan_in())
  mask = np.asarray(mask)
  for j in range(shape[1]):
    column = scores[:, j]
    assert mask[:, j].sum() == each
    assert column[mask[:, j]].sum() == column[best(column, each)].sum()


def test_masks_of_different_scores_are_those_of_the_pattern():
  scores = np.abs(kernel(shape=WIDE))
  for pattern in (patterns.unstructured(), patterns.fan_in(), N_OF_M):
    want = pattern.top_k(jnp.asarray(scores, jnp.float32), scores.size // 2)
    got = oneshot.prune(scores, 0.5, pattern=pattern)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
  "pattern",
  [None, patterns.unstructured(), patterns.fan_in()],
  ids=["none", "unstructured", "fan_in"],
)
def test_ties_favour_no_input(pattern):
  """By the lower index all of them would be of the first inputs."""
  rng = np.random.default_rng(0)
  for high in (1, 3):
    scores = rng.integers(0, high, (64, 400)).astype(np.float32)
    mask = np.asarray(oneshot.prune(scores, 0.5, pattern=pattern))
    assert mask.sum() == scores.size // 2
    share = mask.mean(1)
    assert np.abs(share - 0.5).max() < 0.1  # four standard deviations
    slope = np.corrcoef(np.arange(64), share)[0, 1]
    assert abs(slope) < 0.4


def test_n_of_m_goes_along_the_inputs():
  scores = np.abs(kernel(shape=(10, 3)))
  mask = oneshot.prune(scores, 0.5, pattern=N_OF_M)
  for j in range(3):
    for start in (0, 4, 8):
      group = scores[start : start + 4, j]
      np.testing.assert_array_equal(mask[start : start + 4, j], best(group, 2))


# SparseGPT: the inverse of what is left of the Hessian, anew for every input.


def hessian(x, damping):
  h = x.T @ x / len(x)
  added = damping * np.diag(h).mean()
  h[np.diag_indices_from(h)] += np.where(np.diag(h) == 0, 1, 0) + added
  return h


def surgeon(w, x, choose, group, damping=0.01):
  """Optimal brain surgeon, one input after the other, literally.

  `choose(scores, start)` gives the mask of the next inputs.
  """
  w, h = np.where(norms(x)[:, None] == 0, 0, w), hessian(x, damping)
  inverses = [np.linalg.inv(h[j:, j:]) for j in range(len(w))]
  scale = np.array([inverse[0, 0] for inverse in inverses])
  mask = np.zeros(w.shape, bool)
  for j, inverse in enumerate(inverses):
    if j % group == 0:
      part = slice(j, j + group)
      mask[part] = choose(w[part] ** 2 / scale[part, None], j)
    pruned = np.where(mask[j], 0, w[j])
    w[j:] -= np.outer(inverse[:, 0] / inverse[0, 0], pruned)
  return mask, np.where(mask, w, 0)


def assert_close(new, want, rtol=2e-3):
  np.testing.assert_allclose(
    new, want, rtol=rtol, atol=rtol * np.abs(want).max()
  )


@pytest.mark.parametrize("block", [4, 7, 128])
def test_sparsegpt_is_the_surgeon(block):
  x, w = correlated(), kernel()
  rows = min(block, INPUTS)
  total = round(INPUTS * OUTPUTS * 0.4)

  def choose(scores, start):
    upto = [total * i // INPUTS for i in (start, start + len(scores))]
    return best(scores, upto[1] - upto[0])

  want_mask, want = surgeon(w, x, choose, rows)
  mask, new = oneshot.sparsegpt(w, seen(x), 0.6, block=block)
  assert mask.dtype == bool
  np.testing.assert_array_equal(mask, want_mask)
  assert_close(new, want)
  assert np.all((np.asarray(new) != 0) == want_mask)


@pytest.mark.parametrize("block", [8, 128])
def test_sparsegpt_chooses_n_of_m_from_adapted_weights(block):
  """Of 42 inputs the last group of four is one of two."""
  x, w = correlated(1, WIDE[0]), kernel(1, WIDE)

  def choose(scores, start):
    groups = np.split(scores, range(4, len(scores), 4))
    columns = [[best(c, 2) for c in group.T] for group in groups]
    return np.concatenate([np.stack(c, 1) for c in columns])

  want_mask, want = surgeon(w, x, choose, 4)
  mask, new = oneshot.sparsegpt(w, seen(x), 0.5, pattern=N_OF_M, block=block)
  np.testing.assert_array_equal(mask, want_mask)
  assert bool(N_OF_M.holds(mask))
  assert_close(new, want)
  two_groups_at_once, _ = surgeon(w, x, choose, 8)
  assert np.any(want_mask != two_groups_at_once)


@pytest.mark.parametrize("block", [4, 128])
def test_reconstruct_is_the_surgeon_of_a_given_mask(block):
  x, w = correlated(2), kernel(2)
  mask = np.asarray(oneshot.prune(oneshot.wanda(w, seen(x)), 0.5))
  choose = lambda scores, start: mask[start : start + len(scores)]  # noqa: E731
  _, want = surgeon(w, x, choose, 1)
  new = oneshot.reconstruct(w, seen(x), mask, block=block)
  assert_close(new, want)
  assert np.all(np.asarray(new)[~mask] == 0)
  assert error(x, w, new) < error(x, w, np.where(mask, w, 0))


# With rounding: what a weight loses by it goes the same way.


def rounding_surgeon(w, x, choose, group, scales, damping=0.01):
  """As `surgeon`, to multiples of scales [groups of inputs, outputs]."""
  w, h = np.where(norms(x)[:, None] == 0, 0, w), hessian(x, damping)
  scale = np.array([np.linalg.inv(h[j:, j:])[0, 0] for j in range(len(w))])
  mask, integers = np.zeros(w.shape, bool), np.zeros(w.shape, int)
  for j in range(len(w)):
    if j % group == 0:
      part = slice(j, j + group)
      mask[part] = choose(w[part] ** 2 / scale[part, None], j)
    step = scales[j * len(scales) // len(w)]
    nearest = np.clip(np.rint(w[j] / step), -127, 127)
    integers[j] = np.where(mask[j], nearest, 0)
    inverse = np.linalg.inv(h[j:, j:])[:, 0]
    w[j:] -= np.outer(inverse / inverse[0], w[j] - integers[j] * step)
  return mask, integers


@pytest.mark.parametrize(
  ("block", "groups"), [(4, 1), slow(7, 2), slow(128, 7)]
)
def test_sparsegpt_rounds_as_the_surgeon(block, groups):
  x, w = correlated(), kernel()
  w[3] = 4 * w[3]  # adapted, some outgrow their scales
  scales = quantize.scales(jnp.asarray(w, jnp.float32), group=14 // groups) / 2
  total = round(INPUTS * OUTPUTS * 0.4)

  def choose(scores, start):
    upto = [total * i // INPUTS for i in (start, start + len(scores))]
    return best(scores, upto[1] - upto[0])

  want_mask, want = rounding_surgeon(
    w, x, choose, min(block, INPUTS), np.asarray(scales, np.float64).T
  )
  mask, new = oneshot.sparsegpt(w, seen(x), 0.6, block=block, scales=scales)
  np.testing.assert_array_equal(mask, want_mask)
  rounded = quantize.matrix(new, scales=scales)
  np.testing.assert_array_equal(rounded.values.T, want)
  np.testing.assert_array_equal(rounded.dequantize(), new)
  assert np.abs(want).max() == 127


@pytest.mark.parametrize("block", [4, slow(128)])
def test_gptq_rounds_on_a_mask_that_is_given(block):
  x, w = correlated(2), kernel(2)
  mask = np.asarray(oneshot.prune(oneshot.wanda(w, seen(x)), 0.5))
  pruned = np.where(mask, w, 0)
  scales = quantize.scales(jnp.asarray(pruned, jnp.float32))
  choose = lambda scores, start: mask[start : start + len(scores)]  # noqa: E731
  _, want = rounding_surgeon(
    pruned, x, choose, 1, np.asarray(scales, np.float64).T
  )
  new = oneshot.reconstruct(pruned, seen(x), mask, block=block, scales=scales)
  rounded = quantize.matrix(new, scales=scales)
  np.testing.assert_array_equal(rounded.values.T, want)
  assert np.all(np.asarray(new)[~mask] == 0)


def test_what_rounding_costs_is_less_if_later_weights_make_up_for_it():
  """On average; with as few integers as show."""
  losses = np.zeros(3)
  for seed in range(4):
    x, w = correlated(seed, WIDE[0], 80), kernel(seed, WIDE)
    found = seen(x)
    mask, sparse = oneshot.sparsegpt(w, found, 0.5)
    scales = 8 * quantize.scales(sparse)
    joint = oneshot.sparsegpt(w, found, 0.5, scales=scales)[1]
    after = oneshot.reconstruct(sparse, found, mask, scales=scales)
    nearest = quantize.matrix(sparse, scales=scales).dequantize()
    losses += [error(x, w, new) for new in (nearest, after, joint)]
  nearest, after, joint = losses
  assert after < 0.7 * nearest
  assert joint < 0.7 * nearest


def test_scales_have_to_fit():
  w, found = kernel(), seen(correlated())
  for shape in ((INPUTS, 1), (OUTPUTS, 3), (OUTPUTS,)):
    with pytest.raises(ValueError, match="got scales of shape"):
      oneshot.sparsegpt(w, found, 0.5, scales=np.ones(shape, "f"))
  with pytest.raises(ValueError, match="got scales of shape"):
    oneshot.reconstruct(w, found, w > 0, scales=np.ones((1, 1), "f"))


def test_the_last_input_kept_fits_by_least_squares():
  """With all inputs but the last ones pruned this is a regression."""
  x, w = correlated(3), kernel(3)
  mask = np.arange(INPUTS)[:, None] >= np.full(OUTPUTS, INPUTS - 3)
  new = oneshot.reconstruct(w, seen(x), mask, damping=1e-5)
  want, *_ = np.linalg.lstsq(x[:, -3:], x @ w, rcond=None)
  np.testing.assert_allclose(new[-3:], want, rtol=1e-2, atol=1e-2)


def test_less_is_lost_the_more_is_known():
  """On average; magnitude knows no inputs, Wanda no correlations."""
  losses = np.zeros(3)
  for seed in range(4):
    x, w = correlated(seed, WIDE[0], 80), kernel(seed, WIDE)
    found = seen(x)
    masks = [
      oneshot.prune(oneshot.magnitude(w, found), 0.6),
      oneshot.prune(oneshot.wanda(w, found), 0.6, pattern=patterns.fan_in()),
    ]
    news = [np.where(mask, w, 0) for mask in masks]
    news.append(oneshot.sparsegpt(w, found, 0.6)[1])
    losses += [error(x, w, new) for new in news]
  magnitude, wanda, sparsegpt = losses
  assert sparsegpt < 0.8 * wanda
  assert wanda < 0.5 * magnitude


@pytest.mark.parametrize("sparsity", [0.35, 0.93])
def test_sparsegpt_budgets_are_exact_with_equal_weights(sparsity):
  w, found = np.round(kernel()), seen(correlated())
  mask, new = oneshot.sparsegpt(w, found, sparsity, block=4)
  total = int(np.floor(INPUTS * OUTPUTS * (1 - sparsity) + 0.5))
  assert size_kept(mask) == total
  for stop in (4, 8, 12):
    assert size_kept(mask[:stop]) == total * stop // INPUTS
  assert np.all(np.asarray(new)[~np.asarray(mask)] == 0)


def test_inputs_that_were_always_zero_go_first():
  x, w = correlated(4), kernel(4)
  dead = [2, 9]
  x[:, dead] = 0
  found = seen(x)
  mask, new = oneshot.sparsegpt(w, found, 0.5)
  assert not np.any(np.asarray(mask)[dead])
  assert np.all(np.isfinite(new))
  assert size_kept(mask) == INPUTS * OUTPUTS // 2
  kept = np.ones(w.shape, bool)
  new = oneshot.reconstruct(w, found, kept)
  want = np.where(norms(x)[:, None] == 0, 0, w)
  np.testing.assert_allclose(new, want, rtol=1e-5)


def test_sparsegpt_does_not_depend_on_the_scale_of_inputs():
  x, w = correlated(5), kernel(5)
  mask, new = oneshot.sparsegpt(w, seen(x), 0.5)
  same_mask, same = oneshot.sparsegpt(w, seen(x * 2**10), 0.5)
  np.testing.assert_array_equal(mask, same_mask)
  np.testing.assert_allclose(new, same, rtol=1e-5)


def test_nothing_pruned_is_nothing_changed():
  w = jnp.asarray(kernel(), jnp.bfloat16)
  mask, new = oneshot.sparsegpt(w, seen(correlated()), 0.0)
  assert np.all(mask)
  assert new.dtype == jnp.bfloat16
  np.testing.assert_array_equal(new, w)


# OWL.


def test_outliers_are_counted_over_all_kernels_of_a_layer():
  rng = np.random.default_rng(0)
  scores = [rng.exponential(size=s) ** 2 for s in [(9, 7), (31, 5), (4,)]]
  flat = np.concatenate([s.ravel() for s in scores])
  for threshold in (2.0, 5.0):
    want = np.mean(flat > threshold * flat.mean())
    got = oneshot.outliers(scores, threshold=threshold)
    assert float(got) == pytest.approx(want, rel=1e-6)
  assert float(oneshot.outliers(scores)) == pytest.approx(want, rel=1e-6)


def test_owl_is_its_formula():
  shares = np.array([0.03, 0.011, 0.07, 0.02])
  rated = (shares - shares.min()) / (shares.max() - shares.min()) * 0.16
  want = rated - rated.mean() + 0.3
  got = oneshot.owl_densities(shares, 0.7)
  np.testing.assert_allclose(got, want, rtol=1e-12)
  assert np.mean(got) == pytest.approx(0.3, abs=1e-15)


@pytest.mark.parametrize("sparsity", [0.0, 0.02, 0.5, 0.7, 0.95, 0.99])
def test_owl_keeps_its_mean_where_densities_are_clipped(sparsity):
  rng = np.random.default_rng(1)
  shares, sizes = rng.uniform(size=9), rng.integers(1, 1000, 9)
  got = oneshot.owl_densities(shares, sparsity, sizes=sizes)
  assert np.average(got, weights=sizes) == pytest.approx(
    1 - sparsity, abs=1e-14
  )
  assert got.min() >= 0
  assert got.max() <= 1
  inside = (got > 0) & (got < 1)
  # What is not clipped is as far apart as the shares say.
  slopes = np.diff(np.sort(got[inside])) / np.diff(np.sort(shares[inside]))
  np.testing.assert_allclose(slopes, 0.16 / np.ptp(shares), rtol=1e-6)
  assert sparsity not in (0.02, 0.95, 0.99) or not inside.all()


def test_owl_of_equal_shares_is_uniform():
  np.testing.assert_allclose(
    oneshot.owl_densities([0.2, 0.2, 0.2], 0.6, sizes=[1, 2, 3]), 0.4
  )
  np.testing.assert_allclose(oneshot.owl_densities([0.2], 0.6), 0.4)


# DSnoT: sorted lists, taken from their ends.


def test_dsnot_goes_by_the_variance_within_sequences():
  """Two equal weights: the second input varies between sequences only."""
  x = np.array([[[1.0, 3.0], [3.0, 3.0]], [[3.0, 1.0], [1.0, 1.0]]])
  x = np.concatenate([x + 0.1 * x[::-1], np.full((2, 2, 1), 2.0)], -1)
  w = np.array([[1.0], [1.0], [-0.5]])
  mask = np.array([[False], [False], [True]])
  found = seen(x, gram=False)
  np.testing.assert_allclose(found.variance[0], found.variance[1], rtol=1e-5)
  got = oneshot.dsnot(w, mask, found, cycles=1)
  assert got.ravel().tolist() == [False, True, False]
  # Where it is not known, the variance over all positions has to do.
  unknown = found._replace(sequence_variance=None)
  unknown = unknown._replace(variance=found.variance.at[1].add(1))
  got = oneshot.dsnot(w, mask, unknown, cycles=1)
  assert got.ravel().tolist() == [True, False, False]


def exchange(
  w, mask, x, *, group=None, cycles=50, threshold=0.0, power=1.0, stop=False
):
  """The mask, and the error of each output before and after."""
  mean, variance = x.mean(0), x.var(0)
  mask, before, after = mask.copy(), [], []
  for j in range(w.shape[1]):
    gives = w[:, j] * mean
    dormant = [i for i in range(len(w)) if not mask[i, j]]
    active = [i for i in range(len(w)) if mask[i, j]]
    dormant.sort(key=lambda i: gives[i] / variance[i] ** power)
    active.sort(key=lambda i: abs(w[i, j]) * norms(x)[i])
    total = gives[dormant].sum()
    before.append(total)
    for _ in range(cycles):
      if abs(total) <= threshold:
        break
      sign = 1 if total > 0 else -1
      grown = dormant[-1 if total > 0 else 0] if dormant else None
      if grown is None or sign * gives[grown] <= 0:
        break
      partners = [i for i in active if sign * gives[i] < 0]
      if group:
        partners = [i for i in active if i // group == grown // group]
      if not partners and group:
        dormant.remove(grown)
        continue
      if not partners:
        break
      pruned = partners[0]
      new = total + gives[pruned] - gives[grown]
      if stop and sign * new < 0:
        break
      dormant.remove(grown)
      active.remove(pruned)
      mask[grown, j], mask[pruned, j], total = True, False, new
    after.append(total)
  return mask, np.array(before), np.array(after)


def pruned_by_wanda(seed, pattern=None, sparsity=0.5):
  x, w = correlated(seed, WIDE[0], 80), kernel(seed, WIDE)
  found = seen(x, gram=False)
  pattern = pattern or patterns.fan_in()
  mask = oneshot.prune(oneshot.wanda(w, found), sparsity, pattern=pattern)
  return x, w, found, np.asarray(mask)


@pytest.mark.parametrize(
  "options",
  [
    {"threshold": 0.0},
    {"threshold": 0.0, "cycles": 3, "power": 0.5},
    {"threshold": 0.3, "power": 0.0},
    {"threshold": 0.0, "stop": True},
  ],
  ids=str,
)
def test_dsnot_is_the_exchange_of_sorted_lists(options):
  x, w, found, mask = pruned_by_wanda(6)
  want, *_ = exchange(w, mask, x, **options)
  stop = options.pop("stop", None)
  got = oneshot.dsnot(w, mask, found, stop_at_flip=stop, **options)
  np.testing.assert_array_equal(got, want)
  assert np.any(mask != want)
  np.testing.assert_array_equal(got.sum(0), mask.sum(0))


@pytest.mark.parametrize("stop", [None, False])
def test_dsnot_swaps_within_groups(stop):
  """In N:M an output stops at a flip unless told otherwise."""
  x, w, found, mask = pruned_by_wanda(7, N_OF_M)
  want, *_ = exchange(w, mask, x, group=4, stop=stop is None)
  got = oneshot.dsnot(
    w, mask, found, pattern=N_OF_M, threshold=0.0, stop_at_flip=stop
  )
  np.testing.assert_array_equal(got, want)
  assert bool(N_OF_M.holds(got))
  assert np.any(mask != want)


def test_dsnot_lessens_the_expected_error():
  """Of each output if it stops at a flip, and of nearly all if not."""
  rng = np.random.default_rng(8)
  x = rng.normal(size=(100, 300)) + 0.3 * rng.normal(size=300)
  w, found = kernel(8, (300, 20)), seen(x, gram=False)
  mask = np.abs(w) > 0.8

  def expected(mask):
    return np.abs(x.mean(0) @ np.where(mask, 0, w))

  before = expected(mask)
  stopped = expected(oneshot.dsnot(w, mask, found, stop_at_flip=True))
  assert np.all(stopped <= before)
  assert np.sum(stopped) < 0.3 * np.sum(before)
  free = expected(oneshot.dsnot(w, mask, found))
  assert np.sum(free) < 0.3 * np.sum(before)


@pytest.mark.parametrize("kept", [0, 1, 41, 42])
def test_dsnot_of_fewer_weights_than_cycles(kept):
  x, w, found, _ = pruned_by_wanda(9)
  mask = np.broadcast_to(np.arange(WIDE[0])[:, None] < kept, WIDE)
  got = oneshot.dsnot(w, mask, found, threshold=0.0)
  want, *_ = exchange(w, mask, x)
  np.testing.assert_array_equal(got, want)
  assert np.all(np.asarray(got).sum(0) == kept)


def test_dsnot_is_unmoved_by_inputs_without_mean_or_variance():
  x, w, _, mask = pruned_by_wanda(10)
  x[:, 3], x[:, 5] = 0, 1
  got = oneshot.dsnot(w, mask, seen(x, gram=False))
  np.testing.assert_array_equal(got.sum(0), mask.sum(0))
  np.testing.assert_array_equal(got[3], mask[3])


# What is not finite, and nothing.

BAD = [np.nan, np.inf, -np.inf]


def calls(w, found, mask):
  """Everything that rates or changes a kernel by statistics."""
  score = lambda s: oneshot.prune(s, 0.5)  # noqa: E731
  return {
    "wanda": lambda: score(oneshot.wanda(w, found)),
    "ria": lambda: score(oneshot.ria(w, found)),
    "dsnot": lambda: oneshot.dsnot(w, mask, found),
    "sparsegpt": lambda: oneshot.sparsegpt(w, found, 0.5),
    "2:4": lambda: oneshot.sparsegpt(w, found, 0.5, pattern=N_OF_M),
    "reconstruct": lambda: oneshot.reconstruct(w, found, mask),
  }


@pytest.mark.parametrize("bad", BAD)
def test_an_input_that_is_not_finite_is_refused_by_its_place(bad):
  x = correlated().reshape(4, 15, INPUTS)
  x[2, 7, 3] = bad
  with pytest.raises(ValueError, match=r"1 of .* inputs .* at \(2, 7, 3\)"):
    seen(x)
  where = np.ones((4, 15), bool)
  where[2, 7] = False
  found = oneshot.observe(oneshot.statistics(INPUTS), x, where=where)
  assert np.isfinite(found.variance).all()


@pytest.mark.parametrize("bad", BAD)
def test_statistics_that_are_not_finite_are_refused_by_name(bad):
  """Gathered by a compiled program, which cannot refuse them."""
  w, mask = kernel(), np.ones((INPUTS, OUTPUTS), bool)
  x = correlated()
  x[7, 3] = bad
  found = jax.jit(seen)(x)
  for call in calls(w, found, mask).values():
    with pytest.raises(ValueError, match=r"statistics' mean are .* at \(3,\)"):
      call()
  # A Gram matrix may overflow where means do not.
  found = seen(correlated())
  found = found._replace(gram=found.gram.at[4, 2].set(bad))
  for call in calls(w, found, mask).values():
    with pytest.raises(ValueError, match=r"statistics' gram .* at \(4, 2\)"):
      call()


@pytest.mark.parametrize("bad", BAD)
def test_a_weight_that_is_not_finite_is_refused(bad):
  w, mask = kernel(), np.ones((INPUTS, OUTPUTS), bool)
  w[5, 1] = bad
  of_all = calls(w, seen(correlated()), mask)
  of_all["magnitude"] = lambda: oneshot.magnitude(w)
  for call in of_all.values():
    with pytest.raises(ValueError, match=r"1 of 70 .* kernel .* at \(5, 1\)"):
      call()
  for call in (lambda: oneshot.prune(w, 0.5), lambda: oneshot.outliers([w])):
    with pytest.raises(ValueError, match=r"1 of 70 .* scores .* at \(5, 1\)"):
      call()


def test_statistics_of_nothing_are_refused():
  w, mask = kernel(), np.ones((INPUTS, OUTPUTS), bool)
  nothing = oneshot.statistics(INPUTS, gram=True)
  unreached = oneshot.observe(
    nothing, correlated(), where=np.zeros(len(correlated()), bool)
  )
  for found in (nothing, unreached):
    for call in calls(w, found, mask).values():
      with pytest.raises(ValueError, match=r"of 0 positions.* magnitude"):
        call()
  zeros = seen(np.zeros((9, INPUTS)))
  for call in calls(w, zeros, mask).values():
    with pytest.raises(ValueError, match="inputs were 0 at all positions"):
      call()
  wrapped = seen(correlated())._replace(count=jnp.int32(-5))
  for call in calls(w, wrapped, mask).values():
    with pytest.raises(ValueError, match="more positions than an int32 counts"):
      call()


def test_new_weights_fit_their_dtype():
  x = correlated()
  x[:, 1:] = 1e-3 * x[:, :1]  # mended by one input a thousand times smaller
  w = jnp.full((INPUTS, 1), 6e4, jnp.float16)
  mask = np.arange(INPUTS)[:, None] == INPUTS - 1
  with pytest.raises(ValueError, match=r"new kernel .* float16 does not hold"):
    oneshot.reconstruct(w, seen(x), mask, damping=1e-6)


@pytest.mark.parametrize("damping", [0.0, 1e-9, 1e-7])
def test_a_singular_hessian_is_damped_more_and_says_so(damping):
  """Also where Cholesky's factor is finite, but noise."""
  x, w = correlated(0, WIDE[0], 20), kernel(0, WIDE)
  found = seen(x)
  with pytest.warns(UserWarning, match=r"damping=.* 20 positions .*=0.01 "):
    mask, new = oneshot.sparsegpt(w, found, 0.5, damping=damping)
  wanted = oneshot.sparsegpt(w, found, 0.5)
  np.testing.assert_array_equal(mask, wanted[0])
  np.testing.assert_array_equal(new, wanted[1])
  with pytest.warns(UserWarning, match=r"took damping=0.01 instead"):
    again = oneshot.reconstruct(w, found, mask, damping=damping)
  assert_close(again, oneshot.reconstruct(w, found, mask))
  assert error(x, w, new) < error(x, w, np.where(mask, w, 0))


def test_a_matrix_that_no_damping_helps_is_refused():
  found = seen(correlated())
  found = found._replace(gram=-1e6 * found.gram)
  with pytest.raises(ValueError, match="not positive definite with any"):
    oneshot.sparsegpt(kernel(), found, 0.5)


@pytest.mark.slow
def test_what_cannot_be_refused_inside_a_program_is_not_pruned():
  """Mapped over kernels: each by itself, the good ones as ever."""
  x, w = correlated(), jnp.asarray(kernel(), jnp.float32)
  good, few = seen(x), seen(x[:5])
  nothing = oneshot.statistics(INPUTS, gram=True)
  odd = jax.jit(seen)(np.where(np.arange(60)[:, None] == 9, np.inf, x))
  founds = jax.tree.map(lambda *a: jnp.stack(a), good, nothing, odd, good, few)
  ws = jnp.stack([w] * 5).at[3, 2, 1].set(jnp.nan)
  mask = oneshot.prune(oneshot.magnitude(w), 0.5)

  def everything(w, found):
    ria = oneshot.prune(oneshot.ria(w, found), 0.5)
    new = oneshot.sparsegpt(w, found, 0.5, damping=0.0)
    again = oneshot.reconstruct(w, found, mask, damping=0.0)
    return ria, oneshot.dsnot(w, mask, found), *new, again

  ria, moved, masks, new, again = jax.vmap(everything)(ws, founds)
  half = INPUTS * OUTPUTS // 2
  assert ria.sum((1, 2)).tolist() == [half, 2 * half, 2 * half, 2 * half, half]
  for i in (1, 2, 3):
    np.testing.assert_array_equal(moved[i], mask)
  assert masks.sum((1, 2)).tolist() == [half, *[2 * half] * 4]
  np.testing.assert_array_equal(new[1:], ws[1:])
  np.testing.assert_allclose(
    new[0], oneshot.sparsegpt(w, good, 0.5, damping=0.0)[1], rtol=1e-3
  )
  assert np.isfinite(again[0]).all()
  assert np.isnan(again[1:][:, mask]).all()
  assert not np.any(again[:, ~mask])


def test_checkify_tells_what_a_program_cannot_refuse():
  x, w = correlated(), jnp.asarray(kernel(), jnp.float32)

  def prune(w, x):
    found = seen(x)
    mask = oneshot.prune(oneshot.wanda(w, found), 0.5)
    return oneshot.reconstruct(w, found, mask, damping=0.0)

  checked = jax.jit(checkify.checkify(prune, errors=checkify.user_checks))
  for wrong, w_, x_ in (
    (None, w, x),
    ("the kernel: some numbers are NaN", w.at[1, 2].set(jnp.nan), x),
    (
      "the layer's inputs x: some numbers",
      w,
      np.where(x == x[3, 4], np.inf, x),
    ),
    ("all 14 inputs were 0", w, 0 * x),
    ("damping leaves the Hessian singular", w, np.concatenate([x[:5]] * 12)),
  ):
    error, _ = checked(w_, x_)
    assert (wrong is None) == (error.get() is None)
    assert wrong is None or wrong in error.get()


# Transformations and errors.


@pytest.mark.slow
def test_layers_stack():
  """Every function maps over stacked layers, inside of jit."""
  x = np.stack([correlated(seed) for seed in range(2)])
  w = np.stack([kernel(seed) for seed in range(2)])

  def everything(x, w):
    found = seen(x)
    mask = oneshot.prune(oneshot.ria(w, found), 0.5, pattern=patterns.fan_in())
    moved = oneshot.dsnot(w, mask, found)
    new = oneshot.reconstruct(w, found, moved)
    return new, *oneshot.sparsegpt(w, found, 0.5, pattern=N_OF_M)

  stacked = jax.jit(jax.vmap(everything))(x, w)
  for layer in range(2):
    alone = everything(x[layer], w[layer])
    for got, want in zip(stacked, alone, strict=True):
      np.testing.assert_allclose(got[layer], want, rtol=2e-3, atol=1e-3)


def test_kernels_are_matrices_of_the_inputs_seen():
  w, found = kernel(), seen(correlated())
  other = oneshot.statistics(OUTPUTS, gram=True)
  mask = np.ones(w.shape, bool)
  calls = {
    "wanda": oneshot.wanda,
    "ria": oneshot.ria,
    "sparsegpt": lambda w, s: oneshot.sparsegpt(w, s, 0.5),
    "reconstruct": lambda w, s: oneshot.reconstruct(w, s, mask),
    "dsnot": lambda w, s: oneshot.dsnot(w, mask, s),
  }
  for call in calls.values():
    with pytest.raises(ValueError, match=re.escape("wanted [inputs, outputs]")):
      call(w[None], found)
    with pytest.raises(ValueError, match=r"wanted \(14,\).*transpose"):
      call(w, other)
  for call in (oneshot.magnitude, lambda w: oneshot.prune(w, 0.5)):
    with pytest.raises(ValueError, match=re.escape("wanted [inputs, outputs]")):
      call(w[0])


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 50])
def test_sparsity_is_a_share(sparsity):
  w, found = kernel(), seen(correlated())
  for call in (
    lambda: oneshot.prune(np.abs(w), sparsity),
    lambda: oneshot.sparsegpt(w, found, sparsity),
    lambda: oneshot.owl_densities([0.1, 0.2], sparsity),
  ):
    with pytest.raises(ValueError, match=r"wanted the share of zeros"):
      call()


def test_what_is_refused():
  x, w = correlated(), kernel()
  found, mask = seen(x), np.ones(w.shape, bool)
  sparsegpt = functools.partial(oneshot.sparsegpt, w, found, 0.5)
  refused = {
    "at least 1": lambda: oneshot.statistics(0),
    "wanted [..., 14]": lambda: oneshot.observe(found, x.T),
    "of one layer": lambda: oneshot.merge(found, seen(x, gram=False)),
    "gram=True": lambda: oneshot.sparsegpt(w, seen(x, gram=False), 0.5),
    "settle it": lambda: oneshot.sparsegpt(w, found, 0.7, pattern=N_OF_M),
    "multiple of 4": lambda: sparsegpt(pattern=N_OF_M, block=6),
    "leaves the density open": lambda: sparsegpt(pattern=patterns.fan_in()),
    "block of 0 inputs": lambda: sparsegpt(block=0),
    "damping=-1": lambda: sparsegpt(damping=-1),
    "damping=nan": lambda: sparsegpt(damping=np.nan),
    "threshold=nan": lambda: oneshot.dsnot(w, mask, found, threshold=np.nan),
    "wanted bool[14, 5]": lambda: oneshot.dsnot(w, mask[:2], found),
    "got a mask float": lambda: oneshot.reconstruct(w, found, mask + 0.0),
    "-1 cycles": lambda: oneshot.dsnot(w, mask, found, cycles=-1),
    "power=inf": lambda: oneshot.dsnot(w, mask, found, power=np.inf),
    "no scores": lambda: oneshot.outliers({}),
    "finite number": lambda: oneshot.owl_densities([0.1, np.nan], 0.5),
    "each of 2 layers": lambda: oneshot.owl_densities([0, 1], 0.5, sizes=[1]),
    "threshold=nan,": lambda: oneshot.outliers(w, threshold=np.nan),
    "deviation=nan": lambda: oneshot.owl_densities(
      [0, 1], 0.5, deviation=np.nan
    ),
    "the sizes": lambda: oneshot.owl_densities([1], 0.5, sizes=[np.inf]),
    "deviation=-1": lambda: oneshot.owl_densities([0, 1], 0.5, deviation=-1),
  }
  for message, call in refused.items():
    with pytest.raises(ValueError, match=re.escape(message)):
      call()


@pytest.mark.slow
def test_patterns_may_be_names():
  w, found = kernel(shape=(16, 6)), seen(correlated(inputs=16))
  scores = oneshot.wanda(w, found)
  for name, pattern in (("2:4", N_OF_M), ("fan_in", patterns.fan_in())):
    np.testing.assert_array_equal(
      oneshot.prune(scores, 0.5, pattern=name),
      oneshot.prune(scores, 0.5, pattern=pattern),
    )
  mask, _ = oneshot.sparsegpt(w, found, 0.5, pattern="2:4")
  assert bool(N_OF_M.holds(mask))
  assert bool(N_OF_M.holds(oneshot.dsnot(w, mask, found, pattern="2:4")))
  with pytest.raises(ValueError, match="no pattern is called '2-4'"):
    oneshot.prune(scores, 0.5, pattern="2-4")
