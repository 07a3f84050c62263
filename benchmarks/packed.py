"""What training only the non-zeros saves on a CPU: ratios in one process.

Run `python -m benchmarks.packed`, on a machine that does nothing else. Memory
is what a compiled step takes in all: params, gradients, optimizer state,
structure. With sparselab installed (and torch, which it needs) our layer is
timed against its sparse linear layer, at the end: torch's threads stay.
"""

import functools
import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import sparsejax
from benchmarks import measure
from sparsejax import modes, packed, select

_PARTS = flags.DEFINE_list(
  "parts",
  ["layers", "one", "step", "selection", "sparselab"],
  "What to measure.",
)
BATCH = 128
SHAPES = ((1024, 1024), (768, 3072), (4096, 4096))
# The worst and the best of the three shapes, by sparsity.
LAYERS = {0.9: (2.4, 3.5), 0.95: (5.0, 6.8), 0.98: (14.0, 18.0)}
ONE = {0.8: 4.0, 0.9: 7.0, 0.95: 11.0}
FORM = packed.rows(kernel=True, back=True)


def matrix(shape, sparsity):
  """A random packed matrix, and the same dense with zeros."""
  noise = jax.random.uniform(jax.random.key(0), shape)
  count = round((1 - sparsity) * noise.size)
  mask = np.asarray(select.top_k_mask(noise, count))
  w = jnp.where(mask, jax.random.normal(jax.random.key(1), shape), 0)
  return packed.pack(w, mask, formats=FORM), w


def products(shape, sparsity, *, by_feature):
  """Forward and backward passes of one layer: packed, dense."""
  tree, w = matrix(shape, sparsity)
  values, structure = packed.split(tree)
  # By example, or by feature, as another packed layer leaves its activations.
  x = jax.random.normal(jax.random.key(2), (BATCH, shape[0]))
  g = jax.random.normal(jax.random.key(3), (BATCH, shape[1]))
  turned = (lambda a: a.T) if by_feature else (lambda a: a)

  def product(values, structure, x):
    return turned(sparsejax.matmul(turned(x), packed.join(values, structure)))

  sparse = measure.passes(product)
  dense = measure.passes(lambda w, _, x: x @ w)
  there = jax.block_until_ready((turned(x), turned(g)))
  found = sparse(values, structure, *there)
  wanted = dense(w, None, x, g)
  np.testing.assert_allclose(turned(found[0]), wanted[0], rtol=1e-3, atol=1e-2)
  return [
    lambda: sparse(values, structure, *there),
    lambda: dense(w, None, x, g),
  ]


def layer_rows(rounds):
  """Forward and backward of a layer, batch 128."""
  rows = []
  for sparsity, (worst, best) in LAYERS.items():
    for by_feature in (True, False):
      ratios = []
      for shape in SHAPES:
        functions = products(shape, sparsity, by_feature=by_feature)
        times = measure.interleave(functions, rounds)
        ratios.append(measure.ratio(times, 1, 0))
      names = [f"{a}x{b}" for a, b in SHAPES]
      each = ", ".join(
        f"{n} {r:.3g}" for n, r in zip(names, ratios, strict=True)
      )
      order = "feature" if by_feature else "example"
      what = f"layer, {100 * sparsity:g} %, by {order}: dense / ours"
      goals = (f">= {worst}", f">= {best}") if by_feature else ("-", "-")
      verdicts = (
        (min(ratios) >= worst, max(ratios) >= best)
        if by_feature
        else (None, None)
      )
      rows += [
        measure.row(f"{what}, worst", min(ratios), goals[0], verdicts[0], each),
        measure.row(f"{what}, best", max(ratios), goals[1], verdicts[1], each),
      ]
  return rows


def one_rows(rounds):
  """The forward pass of one example."""
  rows = []
  for sparsity, wanted in ONE.items():
    tree, w = matrix((4096, 4096), sparsity)
    x = jax.random.normal(jax.random.key(2), (1, 4096))
    sparse = jax.jit(lambda tree, x: sparsejax.matmul(x, tree))
    dense = jax.jit(lambda w, x: x @ w)
    times = measure.interleave(
      [
        functools.partial(sparse, tree, x),
        functools.partial(dense, w, x),
      ],
      5 * rounds,
    )
    ratio = measure.ratio(times, 1, 0)
    what = f"one example, 4096x4096, {100 * sparsity:g} %: dense / ours"
    rows.append(measure.row(what, ratio, f">= {wanted:g}", ratio >= wanted))
  return rows


def perceptron(hidden=2, seed=0):
  """Params of 784-1024-...-1024-10."""
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


def logits(params, x):
  """What a perceptron says of a batch."""
  for i in range(len(params)):
    layer = params[f"dense{i}"]
    x = sparsejax.matmul(x, layer["kernel"]) + layer["bias"]
    x = jax.nn.relu(x) if i + 1 < len(params) else x
  return x


def loss(params, x, y):
  """Cross-entropy of a batch."""
  losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y)
  return losses.mean()


def dense_step(params, state, x, y):
  """A step of Adam, without sparsejax."""
  grads = jax.grad(loss)(params, x, y)
  updates, state = optax.adam(1e-3).update(grads, state)
  return optax.apply_updates(params, updates), state


def trainer(tx, params):
  """A step of either kind, and the state to begin with."""
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


def rigl(sparsity, *, seed=1, t_end=10**6):
  """RigL with Adam, its masks moving every 100 steps; the last layer dense."""
  return sparsejax.rigl(
    optax.adam(1e-3),
    sparsity,
    key=jax.random.key(seed),
    t_end=t_end,
    delta_t=100,
    prunable=lambda path, p: p.ndim == 2 and p.shape[1] > 10,
  )


def step_rows(rounds):
  """Whole training steps of a perceptron, and what they take."""
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

  times = measure.interleave([sparse_hundred, dense_hundred], rounds)
  ratio = measure.ratio(times, 1, 0)
  rows = [
    measure.row(
      "step, MLP 784-1024-1024-10, Adam, RigL 95 %: dense / ours",
      ratio,
      ">= 2.5",
      ratio >= 2.5,
    )
  ]
  return [*rows, *_memory_rows(2), *_memory_rows(8)]


def _memory_rows(hidden):
  """What a step takes at 90 %, of perceptrons of some depth."""
  params = perceptron(hidden)
  x, y = jnp.zeros((BATCH, 784)), jnp.zeros(BATCH, jnp.int32)
  dense = params, optax.adam(1e-3).init(params)
  step = jax.jit(dense_step, donate_argnums=(0, 1))
  program = step.lower(*dense, x, y).compile()
  whole, held = measure.peak(program), _nbytes(dense) + _nbytes(params)
  rows = []
  for mode in (modes.packed, modes.kernels):
    steps, state = trainer(mode(rigl(0.9)), params)
    name = f"{mode.__name__}, 90 %, {hidden} hidden layers"
    share = (_nbytes(state) + _nbytes(state[0])) / held
    what = f"{name}: weights, gradients, optimizer state / dense"
    rows.append(measure.row(what, share, "<= 0.3", share <= 0.3))
    for now, kind, most in ((False, "ordinary", 0.3), (True, "moving", 1)):
      program = steps[now].lower(*state, x, y).compile()
      peak = measure.peak(program) / whole
      goal = (f"<= {most}", peak <= most)
      if mode is modes.packed and not now:
        goal = ("-", None)  # A matrix is dense within its product.
      what = f"{name}: peak of a step, {kind} / dense"
      rows.append(measure.row(what, peak, *goal))
  return rows


def _nbytes(tree):
  return sum(x.nbytes for x in jax.tree.leaves(tree))


def selection_row(rounds):
  """K of 16 M on one device, against sorting."""
  scores = jax.random.normal(jax.random.key(0), (4096, 4096))
  k = scores.size // 10
  assert select._for_kernel(scores)

  def by_sorting(scores):
    order = jnp.argsort(-scores.reshape(-1))
    ranks = jnp.zeros(scores.size, jnp.int32)
    ranks = ranks.at[order].set(jnp.arange(scores.size))
    return (ranks < k).reshape(scores.shape)

  kernel = jax.jit(lambda scores: select.top_k_mask(scores, k))
  sorting = jax.jit(by_sorting)
  assert bool(jnp.all(kernel(scores) == sorting(scores)))
  times = measure.interleave(
    [lambda: kernel(scores), lambda: sorting(scores)], max(3, rounds // 3)
  )
  ratio = measure.ratio(times, 1, 0)
  return measure.row(
    "selection, 10 % of 16 M: argsort / ours", ratio, ">= 30", ratio >= 30
  )


def sparselab_rows(rounds):
  """Forward and backward of a layer, against another library's for CPUs."""
  if importlib.util.find_spec("sparselab") is None:
    return []
  rows = []
  for sparsity in LAYERS:
    for shape in SHAPES:
      ours, _ = products(shape, sparsity, by_feature=False)
      functions = [ours, _sparselab(shape, sparsity)]
      times = measure.interleave(functions, rounds, pause=0.03)
      ratio = measure.ratio(times, 1, 0)
      a, b = shape
      what = f"layer, {100 * sparsity:g} %, {a}x{b}: sparselab / ours"
      rows.append(measure.row(what, ratio, ">= 2", ratio >= 2))
  return rows


def _sparselab(shape, sparsity):
  """Forward and backward pass of sparselab's layer."""
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


def main(argv):
  """Prints the table."""
  del argv
  rounds = measure.ROUNDS.value
  parts = {
    "layers": layer_rows,
    "one": one_rows,
    "step": step_rows,
    "selection": lambda rounds: [selection_row(rounds)],
    "sparselab": sparselab_rows,
  }
  rows = [row for name in _PARTS.value for row in parts[name](rounds)]
  columns = (*measure.COLUMNS[:-1], "of each shape")
  measure.show("only the non-zeros", "benchmarks.packed", rows, columns=columns)


if __name__ == "__main__":
  app.run(main)
