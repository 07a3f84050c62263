"""What training only the non-zeros saves on a CPU.

Run `python -m benchmarks.packed` on an idle machine. Memory is all that a
compiled step takes: params, gradients, optimizer state, structure. If sparselab
(and torch, which it needs) is installed, our layer is timed against its sparse
linear layer. This comes last, since torch's threads stay.
"""

import functools
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import sparsejax
from benchmarks import measure
from sparsejax import modes, packed, select
from sparsejax.select import counting

_PARTS = flags.DEFINE_list(
  "parts",
  ["layers", "one", "step", "selection", "sparselab"],
  "What to measure.",
)
BATCH = 128
BATCHES = (64, BATCH, 200)
SHAPES = ((1536, 640), (640, 2560), (2304, 2304))
# Goals by sparsity, for the worst of SHAPES; and for one example.
LAYERS = {0.8: None, 0.9: 2.4, 0.95: 4.5, 0.98: 10.0}
ONE = {0.8: 4.0, 0.9: 7.0, 0.95: 11.0}
FORMAT = packed.rows(kernel=True, back=True)


def random_matrix(
  shape: tuple[int, int], sparsity: float
) -> tuple[Any, jax.Array]:
  """Draws a sparse matrix; returns it packed, and dense with zeros."""
  noise = jax.random.uniform(jax.random.key(0), shape)
  count = round((1 - sparsity) * noise.size)
  mask = np.asarray(select.top_k_mask(noise, count))
  w = jnp.where(mask, jax.random.normal(jax.random.key(1), shape), 0)
  return packed.pack(w, mask, formats=FORMAT), w


def layers(
  shape: tuple[int, int], sparsity: float, batch: int = BATCH
) -> list[Callable]:
  """Makes the functions to time: a layer's passes, packed and dense."""
  tree, w = random_matrix(shape, sparsity)
  values, structure = packed.split(tree)
  x = jax.random.normal(jax.random.key(2), (batch, shape[0]))
  g = jax.random.normal(jax.random.key(3), (batch, shape[1]))

  def product(values, structure, x):
    return sparsejax.matmul(x, packed.join(values, structure))

  sparse = measure.forward_and_backward(product)
  dense = measure.forward_and_backward(lambda w, _, x: x @ w)
  found = sparse(values, structure, x, g)
  wanted = dense(w, None, x, g)
  np.testing.assert_allclose(found[0], wanted[0], rtol=1e-3, atol=1e-2)
  return [
    lambda: sparse(values, structure, x, g),
    lambda: dense(w, None, x, g),
  ]


def layer_rows(rounds: int) -> list[measure.Row]:
  """Compares the forward and backward pass of a layer."""
  rows = []
  for sparsity, least in LAYERS.items():
    for batch in BATCHES:
      ratios = [
        measure.gain(*layers(shape, sparsity, batch), rounds)
        for shape in SHAPES
      ]
      each = ", ".join(
        f"{a}x{b} {r:.3g}" for (a, b), r in zip(SHAPES, ratios, strict=True)
      )
      what = f"layer, {100 * sparsity:g} %, batch {batch}: dense / ours, worst"
      rows.append(measure.row(what, min(ratios), least=least, memory=each))
  return rows


def one_example_rows(rounds: int) -> list[measure.Row]:
  """Compares the forward pass of a single example."""
  rows = []
  for sparsity, wanted in ONE.items():
    tree, w = random_matrix((4096, 4096), sparsity)
    x = jax.random.normal(jax.random.key(2), (1, 4096))
    sparse = jax.jit(lambda tree, x: sparsejax.matmul(x, tree))
    dense = jax.jit(lambda w, x: x @ w)
    ratio = measure.gain(
      functools.partial(sparse, tree, x),
      functools.partial(dense, w, x),
      5 * rounds,
    )
    what = f"one example, 4096x4096, {100 * sparsity:g} %: dense / ours"
    rows.append(measure.row(what, ratio, least=wanted))
  return rows


def perceptron(hidden: int = 2, seed: int = 0) -> dict[str, Any]:
  """Draws the params of a perceptron 784-1024-...-1024-10."""
  sizes = (784, *(1024,) * hidden, 10)
  keys = jax.random.split(jax.random.key(seed), hidden + 1)
  return {
    f"dense{i}": {
      "kernel": jax.random.normal(key, (a, b)) * (2 / a) ** 0.5,
      "bias": jnp.zeros(b),
    }
    for i, (key, a, b) in enumerate(
      zip(keys, sizes[:-1], sizes[1:], strict=True)
    )
  }


def logits(params: dict[str, Any], x: jax.Array) -> jax.Array:
  """Computes a perceptron's logits of a batch."""
  for i in range(len(params)):
    layer = params[f"dense{i}"]
    x = sparsejax.matmul(x, layer["kernel"]) + layer["bias"]
    x = jax.nn.relu(x) if i + 1 < len(params) else x
  return x


def loss(params: dict[str, Any], x: jax.Array, y: jax.Array) -> jax.Array:
  """Computes the mean cross-entropy of a batch."""
  losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y)
  return losses.mean()


def dense_step(
  params: dict[str, Any], state: Any, x: jax.Array, y: jax.Array
) -> tuple[dict[str, Any], Any]:
  """Takes a step of Adam, without sparsejax."""
  grads = jax.grad(loss)(params, x, y)
  updates, state = optax.adam(1e-3).update(grads, state)
  return optax.apply_updates(params, updates), state


def trainer(
  tx: sparsejax.SparseTransformation, params: dict[str, Any]
) -> tuple[dict[bool, Callable], tuple[Any, Any]]:
  """Makes the steps without and with a mask update, and the first state."""
  params, state = sparsejax.init(tx, params)
  value_and_grad = sparsejax.value_and_grad(loss, tx)

  def step(params, state, x, y, now):
    _, grads = value_and_grad(params, state, x, y, update_masks=now)
    updates, state = tx.update(grads, state, params, update_masks=now)
    return optax.apply_updates(params, updates), state

  steps = {
    now: jax.jit(functools.partial(step, now=now), donate_argnums=(0, 1))
    for now in (False, True)
  }
  return steps, (params, state)


def rigl(
  sparsity: float, *, seed: int = 1, t_end: int = 10**6
) -> sparsejax.SparseTransformation:
  """Makes RigL with Adam, an update every 100 steps, a dense last layer."""
  return sparsejax.rigl(
    optax.adam(1e-3),
    sparsity,
    key=jax.random.key(seed),
    t_end=t_end,
    delta_t=100,
    prunable=lambda path, p: p.ndim == 2 and p.shape[1] > 10,
  )


def step_rows(rounds: int) -> list[measure.Row]:
  """Compares training steps of a perceptron in time and memory."""
  x = jax.random.normal(jax.random.key(2), (BATCH, 784))
  y = jax.random.randint(jax.random.key(3), (BATCH,), 0, 10)
  dense = jax.jit(dense_step, donate_argnums=(0, 1))
  params = perceptron()
  dense_state = params, optax.adam(1e-3).init(params)
  steps, state = trainer(modes.kernels(rigl(0.95)), perceptron())

  def dense_hundred():
    nonlocal dense_state
    for _ in range(100):
      dense_state = dense(*dense_state, x, y)
    return dense_state

  def sparse_hundred():
    nonlocal state
    for i in range(100):
      state = steps[i == 0](*state, x, y)
    return state

  row = measure.row(
    "step, MLP 784-1024-1024-10, Adam, RigL 95 %: dense / ours",
    measure.gain(sparse_hundred, dense_hundred, rounds),
    least=2.5,
  )
  return [row, *_memory_rows(2), *_memory_rows(8)]


def _memory_rows(hidden: int) -> list[measure.Row]:
  """Compares the memory of steps at 90 %, by the number of hidden layers."""
  params = perceptron(hidden)
  x, y = jnp.zeros((BATCH, 784)), jnp.zeros(BATCH, jnp.int32)
  dense = params, optax.adam(1e-3).init(params)
  step = jax.jit(dense_step, donate_argnums=(0, 1))
  program = step.lower(*dense, x, y).compile()
  whole, held = measure.peak_bytes(program), _nbytes(dense) + _nbytes(params)
  rows = []
  for mode in (modes.packed, modes.kernels):
    steps, state = trainer(mode(rigl(0.9)), params)
    name = f"{mode.__name__}, 90 %, {hidden} hidden layers"
    share = (_nbytes(state) + _nbytes(state[0])) / held
    what = f"{name}: weights, gradients, optimizer state / dense"
    rows.append(measure.row(what, share, most=0.3))
    for now, kind, most in ((False, "ordinary", 0.3), (True, "moving", 1)):
      program = steps[now].lower(*state, x, y).compile()
      peak = measure.peak_bytes(program) / whole
      if mode is modes.packed and not now:
        most = None  # a matrix is dense within its product
      what = f"{name}: peak of a step, {kind} / dense"
      rows.append(measure.row(what, peak, most=most))
  return rows


def _nbytes(tree: Any) -> int:
  return sum(x.nbytes for x in jax.tree.leaves(tree))


def selection_row(rounds: int) -> measure.Row:
  """Compares the selection of a tenth of 16 M with sorting, on one device."""
  scores = jax.random.normal(jax.random.key(0), (4096, 4096))
  k = scores.size // 10
  assert counting.for_kernel(scores)

  kernel = jax.jit(lambda scores: select.top_k_mask(scores, k))
  sorting = jax.jit(lambda scores: measure.ranks_by_sorting(scores) < k)
  assert bool(jnp.all(kernel(scores) == sorting(scores)))
  ratio = measure.gain(
    lambda: kernel(scores), lambda: sorting(scores), max(3, rounds // 3)
  )
  return measure.row("selection, 10 % of 16 M: argsort / ours", ratio, least=30)


def sparselab_rows(rounds: int) -> list[measure.Row]:
  """Compares the passes of a layer with those of another library for CPUs."""
  if importlib.util.find_spec("sparselab") is None:
    return []
  rows = []
  for sparsity in (0.95, 0.98):
    for shape in SHAPES:
      ours, _ = layers(shape, sparsity)
      theirs = _sparselab(shape, sparsity)
      ratio = measure.gain(ours, theirs, rounds, pause=0.03)
      a, b = shape
      what = f"layer, {100 * sparsity:g} %, {a}x{b}: sparselab / ours"
      rows.append(measure.row(what, ratio, least=2))
  return rows


def _sparselab(shape: tuple[int, int], sparsity: float) -> Callable[[], None]:
  """Makes the function to time: both passes of sparselab's layer."""
  import sparselab
  import torch

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  layer = sparselab.SparseLinear(*shape, sparsity=sparsity, bias=False)
  x = torch.randn(BATCH, shape[0], requires_grad=True)
  g = torch.randn(BATCH, shape[1])

  def run():
    layer.zero_grad()
    x.grad = None
    layer(x).backward(g)

  return run


def main(argv: Sequence[str]) -> None:
  """Prints the table."""
  del argv
  rounds = measure.ROUNDS.value
  parts = {
    "layers": layer_rows,
    "one": one_example_rows,
    "step": step_rows,
    "selection": lambda rounds: [selection_row(rounds)],
    "sparselab": sparselab_rows,
  }
  rows = [row for name in _PARTS.value for row in parts[name](rounds)]
  columns = (*measure.COLUMNS[:-1], "of each shape")
  measure.show("only the non-zeros", "benchmarks.packed", rows, columns=columns)


if __name__ == "__main__":
  app.run(main)
