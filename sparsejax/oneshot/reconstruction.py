"""SparseGPT: kept weights make up for pruned ones, input by input.

Inputs are pruned in order. What pruning the weights of one changes in the
layer's outputs is made up for, as well as least squares can, by the weights of
the inputs that follow.
"""

import functools
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular

from sparsejax import patterns
from sparsejax.checks import refuse_unless
from sparsejax.oneshot import calibration, pruning
from sparsejax.oneshot.calibration import Statistics
from sparsejax.patterns import Patterns
from sparsejax.quantize import rounding
from sparsejax.scores import wide

_MOST_DAMPING = 1000.0  # of the Hessian's mean diagonal


def sparsegpt(
  w: jax.Array,
  statistics: Statistics,
  sparsity: float,
  *,
  pattern: Patterns | None = None,
  block: int = 128,
  damping: float = 0.01,
  scales: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Prunes a kernel block by block, and adapts the weights that it keeps.

  Args:
    w: Kernel [inputs, outputs].
    statistics: The statistics of its inputs, with their Gram matrix.
    sparsity: The share of zeros, in [0, 1).
    pattern: None to compare all weights of a block of inputs;
      `patterns.n_of_m(n, m)` to choose m inputs at a time, after the weights
      were adapted to all earlier pruning.
    block: The number of neighbouring inputs to prune at once, before the
      weights of all later inputs are adapted; for N:M a multiple of m. The last
      block is shorter if the inputs do not divide by it.
    damping: A number to add to the diagonal of the Hessian, in units of the
      diagonal's mean. If the Hessian is then still singular in float32, for
      example without damping and with few positions, ten times as much is
      added, at least 0.01, with a warning.
    scales: float32[outputs, groups] to also round the kept weights to INT8.
      Later weights then make up for both pruning and rounding. The best scales
      are those of the kernel pruned without rounding,
      `quantize.scales(sparsegpt(...)[1])`, since adapted weights may be larger
      than the old ones.

  Returns:
    The bool mask, with the budget of `prune`. Each block of inputs has its
    share of the budget: the first j inputs keep j / inputs of it, rounded down.
    And the new kernel of w's dtype, computed in float32. Pruned weights are
    exactly 0, and so are all weights of inputs that were always 0, which are
    pruned first. With scales, kept weights are multiples of them, by at most
    127, and may be 0; `quantize.matrix(new, scales=scales)` makes the integers.
    Inside `jax.jit` and `jax.vmap`, where no error or warning is possible, a
    kernel that would cause one comes back unchanged, with a mask that is all
    True.

  Raises:
    ValueError: If w is no matrix, the statistics are of other inputs or of no
      position or have no Gram matrix, something is not finite, the sparsity is
      out of range or leaves no weight, the blocks do not fit the pattern, the
      pattern does not fix the density or fixes another one, the damping is
      negative, or the scales do not fit.

  References:
    Frantar and Alistarh, SparseGPT: Massive Language Models Can Be Accurately
    Pruned in One-Shot, arXiv:2301.00774, 2023, algorithm 1; section 3.5 for
    rounding.

  Example:
    >>> from sparsejax import oneshot
    >>> x = jnp.array([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    >>> seen = oneshot.observe(oneshot.statistics(2, gram=True), x)
    >>> mask, new = sparsegpt(jnp.array([[1.0], [2.0]]), seen, 0.5, damping=0)
    >>> print(mask.ravel(), [f"{x:.2f}" for x in new.ravel()])
    [False  True] ['0.00', '3.00']
  """
  w = jnp.asarray(w)
  usable = _check(w, statistics, block, damping, scales)
  inputs, outputs = w.shape
  block = min(block, inputs)
  pattern = pruning.single(pattern)
  if pattern is not None and pattern.density is None:
    raise ValueError(
      "got a pattern that leaves the density open, wanted None or "
      "patterns.n_of_m(n, m): blocks of inputs are chosen one by one"
    )
  group = pruning.group(w.shape, pattern) or block
  if block < inputs and block % group:
    raise ValueError(
      f"got a block of {block} inputs for a pattern that is chosen {group} at "
      f"a time, wanted a multiple of {group}"
    )
  pattern = pattern or patterns.unstructured()
  total = pruning.budget(w.shape, sparsity, pattern)
  counts = []
  for start in range(0, inputs, group):
    stop = min(start + group, inputs)
    share = total * stop // inputs - sum(counts)
    counts.append(pattern.budget((stop - start, outputs), share))
  factor, definite = _damped_factor(statistics, damping)
  mask, new = _sparsegpt(
    w,
    statistics.gram,
    factor,
    jnp.array(counts, jnp.int32),
    scales,
    top_k=pattern.top_k,
    block=block,
    group=group,
  )
  usable &= definite & _check_new(new)
  return mask | ~usable, jnp.where(usable, new, w)


def reconstruct(
  w: jax.Array,
  statistics: Statistics,
  mask: jax.Array,
  *,
  block: int = 128,
  damping: float = 0.01,
  scales: jax.Array | None = None,
) -> jax.Array:
  """Adapts the weights that a mask keeps, as SparseGPT and GPTQ do.

  Args:
    w: Kernel [inputs, outputs], as it was before pruning.
    statistics: The statistics of its inputs, with their Gram matrix.
    mask: Bool array of w's shape, from any method.
    block: The number of inputs after which the weights of all later inputs are
      adapted. It affects the speed, not the result.
    damping: As in `sparsegpt`.
    scales: As in `sparsegpt`. To round a kernel that has been pruned before,
      and make up for nothing else, pass the pruned kernel and its mask.

  Returns:
    The new kernel of w's dtype, exactly 0 outside the mask and for inputs that
    were always 0. With scales, its weights are multiples of them. Inside
    `jax.jit` and `jax.vmap`, where no error or warning is possible, a kernel
    that would cause one has NaN wherever the mask keeps a weight.

  Raises:
    ValueError: If w is no matrix, the statistics are of other inputs or of no
      position or have no Gram matrix, something is not finite, the mask is no
      bool array of w's shape, the block is empty, the damping is negative, or
      the scales do not fit.

  References:
    Frantar and Alistarh, SparseGPT: Massive Language Models Can Be Accurately
    Pruned in One-Shot, arXiv:2301.00774, 2023; its released code.
    Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative
    Pre-trained Transformers, arXiv:2210.17323, 2023, algorithm 1.

  Example:
    >>> from sparsejax import oneshot
    >>> x = jnp.array([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    >>> seen = oneshot.observe(oneshot.statistics(2, gram=True), x)
    >>> w, mask = jnp.array([[1.0], [2.0]]), jnp.array([[False], [True]])
    >>> new = reconstruct(w, seen, mask, damping=0)
    >>> print([f"{x:.2f}" for x in new.ravel()])
    ['0.00', '3.00']
  """
  w = jnp.asarray(w)
  usable = _check(w, statistics, block, damping, scales)
  calibration.check_mask(mask, w)
  factor, definite = _damped_factor(statistics, damping)
  block = min(block, w.shape[0])
  new = _reconstruct(w, statistics.gram, factor, mask, scales, block=block)
  usable &= definite & _check_new(new)
  return jnp.where(mask & ~usable, jnp.nan, new)


@functools.partial(jax.jit, static_argnames=("top_k", "block", "group"))
def _sparsegpt(w, gram, factor, counts, scales, *, top_k, block, group):
  def choose(scores, start):
    return top_k(scores, counts[start // group])

  return _sweep(w, gram, factor, choose, scales, block, group)


@functools.partial(jax.jit, static_argnames=("block",))
def _reconstruct(w, gram, factor, mask, scales, *, block):
  def choose(scores, start):
    return lax.dynamic_slice_in_dim(mask, start, len(scores))

  return _sweep(w, gram, factor, choose, scales, block, block)[1]


def _sweep(w, gram, factor, choose: Callable, scales, block: int, group: int):
  """Prunes, rounds and adapts the weights of one input after the other.

  `choose(scores, start)` gives the mask of a group of inputs from the first one
  on. Errors reach the block at once, and all later inputs when it is through.
  """
  steps = None if scales is None else rounding.of_weights(scales, len(w))

  def stored(x, step):
    """What weights become that are kept."""
    return x if step is None else rounding.nearest(x, step) * step

  new = jnp.where(jnp.diagonal(gram)[:, None] == 0, 0, wide(w))
  part_of = lax.dynamic_slice_in_dim
  put = functools.partial(lax.dynamic_update_slice_in_dim, axis=0)

  def prune_block(start, size, carry):
    new, mask = carry
    reach = part_of(factor, start, size)
    inside = part_of(reach, start, size, axis=1)
    part = part_of(new, start, size)

    def prune_group(first, size, carry):
      part, errors, kept = carry
      scale = part_of(jnp.diagonal(inside), first, size)[:, None]
      scores = jnp.abs(part_of(part, first, size)) / scale
      kept = put(kept, choose(scores, start + first), first)

      def adapt_to_input(i, carry):
        part, errors = carry
        step = None if steps is None else steps[(start + i) % len(steps)]
        left = jnp.where(kept[i], stored(part[i], step), 0)
        error = (part[i] - left) / inside[i, i]
        return part - inside[i][:, None] * error, errors.at[i].set(error)

      part, errors = lax.fori_loop(
        first, first + size, adapt_to_input, (part, errors)
      )
      return part, errors, kept

    nothing = jnp.zeros_like(part), jnp.zeros(part.shape, bool)
    part, errors, kept = _each(size, group, prune_group, (part, *nothing))
    # None of it reaches what came before; the block itself is put in anew.
    new = new - jnp.dot(reach.T, errors, precision=lax.Precision.HIGHEST)
    return put(new, jnp.where(kept, part, 0), start), put(mask, kept, start)

  carry = new, jnp.zeros(new.shape, bool)
  new, mask = _each(len(w), block, prune_block, carry)
  # Again: what is not finite in a later block reaches the zeros of all, and
  # what was rounded is next to its multiple.
  return mask, jnp.where(mask, stored(new, steps), 0).astype(w.dtype)


def _each(total, size, body, carry):
  """Runs `body(start, size, carry)` part by part; the last may be shorter."""
  whole, rest = divmod(total, size)
  if whole:  # a loop of no turns would be traced too
    carry = lax.fori_loop(
      0, whole, lambda i, carry: body(i * size, size, carry), carry
    )
  return body(whole * size, rest, carry) if rest else carry


def _damped_factor(statistics, damping):
  """Computes `_factor`, with more damping, and a warning, if that is needed."""
  factor, definite = _factor(statistics.gram, damping)
  if isinstance(definite, jax.core.Tracer):
    too_little = "damping leaves the Hessian singular in float32; take more"
    return factor, refuse_unless(definite, too_little)
  more = damping
  while not definite:
    more = max(10 * more, 0.01)  # the authors' value
    if more > _MOST_DAMPING:
      raise ValueError(
        "the statistics' gram is not positive definite with any damping up to "
        f"{_MOST_DAMPING}, wanted the mean of x x^T as `observe` makes it"
      )
    factor, definite = _factor(statistics.gram, more)
  if more != damping:
    warnings.warn(
      f"damping={damping} leaves the Hessian of {len(statistics.gram)} inputs "
      f"at {statistics.count} positions singular in float32: took damping="
      f"{more:g} instead",
      stacklevel=3,
    )
  return factor, definite


@jax.jit
def _factor(gram, damping):
  """Computes the upper triangular U of U^T U = (H + damping)^-1.

  Row j of it, divided by its diagonal element, says how later weights answer
  the removal of a weight of input j when all earlier ones stand still. With
  both axes turned round, the inverse of the Hessian's Cholesky factor is U: no
  inverse is factored.

  Returns:
    U, and whether H + damping is positive definite in its precision.
  """
  diagonal = jnp.diagonal(gram)
  # An input that was always 0 stands by itself.
  added = jnp.where(diagonal == 0, 1, 0) + damping * jnp.mean(diagonal)
  damped = gram + jnp.diag(added)
  lower = jnp.linalg.cholesky(jnp.flip(damped))
  # What is left of each input by those after it. Where that is 30 times what
  # rounding leaves, weights are right to some per cent.
  rest, whole = jnp.diagonal(lower) ** 2, jnp.flip(jnp.diagonal(damped))
  definite = jnp.all(rest > 30 * jnp.finfo(gram.dtype).eps * whole)
  identity = jnp.eye(len(gram), dtype=gram.dtype)
  return jnp.flip(solve_triangular(lower, identity, lower=True)), definite


def _check_new(new):
  """Refuses new weights that are beyond their dtype."""
  hint = f"{new.dtype} does not hold them, prune in float32"
  return calibration.check_finite(new, "the new kernel", hint)


def _check(w, statistics, block, damping, scales):
  if scales is not None:
    outputs, groups = w.shape[-1], jnp.shape(scales)[-1:]
    if jnp.shape(scales) != (outputs, *groups) or w.shape[0] % groups[0]:
      raise ValueError(
        f"got scales of shape {jnp.shape(scales)} for a kernel of shape "
        f"{w.shape}, wanted {(outputs,)} and a number of groups that divides "
        "the inputs, as quantize.scales(w, group=...) makes them"
      )
  usable = calibration.check_kernel(w, statistics)
  if statistics.gram is None:
    raise ValueError(
      "the statistics have no Gram matrix, wanted one: gather them with "
      "statistics(inputs, gram=True)"
    )
  if block < 1:
    raise ValueError(f"got a block of {block} inputs, wanted at least 1")
  if not 0 <= damping < jnp.inf:
    raise ValueError(f"got damping={damping}, wanted a number, at least 0")
  return usable
