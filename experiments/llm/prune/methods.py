"""Methods that prune one kernel by statistics of its inputs."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.errors import UserError, unknown
from sparsejax import oneshot, patterns, quantize
from sparsejax.checks import refusing


class Method(NamedTuple):
  """A method of pruning one kernel.

  Attributes:
    prune: `(kernel [in, out], statistics, sparsity) -> kernel`, with zeros. It
      compiles itself, and raises a ValueError for values that it refuses.
    gram: Whether it needs the Gram matrix of the inputs.
  """

  prune: Callable[[jax.Array, oneshot.Statistics, float], jax.Array]
  gram: bool = False


SCORES = {
  "magnitude": oneshot.magnitude,
  "wanda": oneshot.wanda,
  "ria": oneshot.ria,
}
ROUNDINGS = ("nearest", "gptq", "joint")


def make(
  name: str,
  *,
  n_of_m: Sequence[int] = (),
  per_output: bool | None = None,
  dsnot: bool = False,
  length: int = 2048,
  int8: str | None = None,
  group: int | None = None,
) -> Method:
  """Makes a method from its name in configs.

  Args:
    name: "magnitude", "wanda", "ria" or "sparsegpt".
    n_of_m: (n, m): n of every m inputs are kept; empty for zeros anywhere.
    per_output: Whether every output keeps as many weights, or those of the
      whole kernel are compared; None for what the method's authors do: Wanda
      the first, magnitude and RIA the second, SparseGPT by blocks of inputs.
    dsnot: Whether to grow and prune afterwards by DSnoT.
    length: Of the calibration sequences, in tokens, for DSnoT.
    int8: How what is kept is rounded to INT8: "nearest", "gptq", which later
      weights make up for, or, by SparseGPT, "joint", while it prunes; None for
      no rounding. Kernels stay arrays, of multiples of their scales.
    group: How many neighbouring inputs share a scale; all by default.

  Returns:
    The method.

  Raises:
    UserError: If there is no such method, DSnoT or the rounding cannot follow
      it, or it allows no choice of the weights that are compared.
  """
  if int8 is not None:
    if int8 not in ROUNDINGS:
      raise unknown("rounding to INT8", int8, ROUNDINGS)
    if int8 == "joint" and name != "sparsegpt":
      raise UserError(
        f"{name}: got int8='joint', which only sparsegpt does; wanted "
        "'nearest' or 'gptq'"
      )
    options = {"n_of_m": n_of_m, "per_output": per_output, "dsnot": dsnot}
    method = make(name, **options, length=length)
    return _rounding(method, int8, group, n_of_m)
  pattern = patterns.n_of_m(*n_of_m) if n_of_m else None
  if per_output is not None and (n_of_m or name == "sparsegpt"):
    reason = f"n_of_m={tuple(n_of_m)}" if n_of_m else "sparsegpt"
    raise UserError(
      f"{name}: got per_output={per_output}, but {reason} determines which "
      "weights are compared; wanted None"
    )
  if name == "sparsegpt":
    if dsnot:
      raise UserError(
        "dsnot is set for sparsegpt, which gives the weights that it keeps new "
        "values for its own mask; wanted it with magnitude, wanda or ria"
      )

    def reconstruct(
      w: jax.Array, statistics: oneshot.Statistics, sparsity: float
    ) -> jax.Array:
      return oneshot.sparsegpt(w, statistics, sparsity, pattern=pattern)[1]

    return Method(reconstruct, gram=True)
  if name not in SCORES:
    raise unknown("one-shot method", name, [*SCORES, "sparsegpt"])
  if per_output is None:
    per_output = name == "wanda" and not n_of_m
  if per_output:
    pattern = patterns.fan_in()

  def prune(
    w: jax.Array, statistics: oneshot.Statistics, sparsity: float
  ) -> jax.Array:
    scores = SCORES[name](w, statistics)
    mask = oneshot.prune(scores, sparsity, pattern=pattern)
    if dsnot:
      mask = oneshot.dsnot(
        w, mask, statistics, pattern=pattern, threshold=0.1 / length
      )
    return jnp.where(mask, w, 0)

  @functools.cache
  def compiled(sparsity: float) -> Callable[..., jax.Array]:
    return refusing(functools.partial(prune, sparsity=sparsity))

  return Method(lambda w, seen, sparsity: compiled(sparsity)(w, seen))


def _rounding(
  method: Method, how: str, group: int | None, n_of_m: Sequence[int]
) -> Method:
  """Makes a method that rounds what another one keeps; see `make`."""

  def prune(
    w: jax.Array, statistics: oneshot.Statistics, sparsity: float
  ) -> jax.Array:
    pruned = method.prune(w, statistics, sparsity)
    scales = quantize.scales(pruned, group=group)
    if how == "gptq":
      kept = pruned != 0
      return oneshot.reconstruct(pruned, statistics, kept, scales=scales)
    if how == "joint":
      pattern = patterns.n_of_m(*n_of_m) if n_of_m else None
      options = {"pattern": pattern, "scales": scales}
      return oneshot.sparsegpt(w, statistics, sparsity, **options)[1]
    rounded = quantize.matrix(pruned, scales=scales).dequantize()
    return rounded.astype(w.dtype)

  return Method(prune, gram=method.gram or how != "nearest")
