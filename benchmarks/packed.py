"""What training only the non-zeros saves on a CPU: ratios in one process.

Run `python -m benchmarks.packed`, on a machine that does nothing else. Memory
is what a compiled step takes in all: params, gradients, optimizer state,
structure. With sparselab installed (and torch, which it needs) its sparse
linear layer is timed, too, in the same rounds.
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
  "parts", ["layers", "one", "step", "selection"], "What to measure."
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
  """Forward and backward passes of one layer: packed, dense, sparselab's."""
  tree, w = matrix(shape, sparsity)
  values, structure = packed.split(tree)
  # By example, or by feature, as another packed layer leaves its activations.
  x = jax.random.normal(jax.random.key(2), (BATCH, shape[0]))
  g = jax.random.normal(jax.random.key(3), (BATCH, shape[1]))
  turned = (lambda a: a.T) if by_feature else (lambda a: a)

  @jax.jit
  def sparse(values, structure, x, g):
    def product(values, x):
      return turned(sparsejax.matmul(turned(x), packed.join(values, structure)))

    y, pull = jax.vjp(product, values, x)
    return y, *pull(g)

  @jax.jit
  def dense(w, x, g):
    y, pull = jax.vjp(lambda w, x: x @ w, w, x)
    return y, *pull(g)

  there = jax.block_until_ready((turned(x), turned(g)))
  found = sparse(values, structure, *there)
  wanted = dense(w, x, g)
  np.testing.assert_allclose(turned(found[0]), wanted[0], rtol=1e-3, atol=1e-2)
  functions = [
    lambda: sparse(values, structure, *there),
    lambda: dense(w, x, g),
  ]
  if not by_feature and _has_sparselab():
    functions.append(_sparselab(np.array(w), np.array(x), np.array(g)))
  return functions


def _has_sparselab():
  return importlib.util.find_spec("sparselab") is not None


def _sparselab(w, x, g):
  """Forward and backward pass of sparselab's layer with the same weights."""
  import sparselab
  import torch

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  sparsity = 1 - np.count_nonzero(w) / w.size
  layer = sparselab.SparseLinear(*w.shape, sparsity=sparsity, bias=False)
  x = torch.tensor(x, requires_grad=True)
  g = torch.tensor(g)

  def run():
    layer.zero_grad()
    x.grad = None
    layer(x).backward(g)

  return run


def layer_rows(rounds):
  """Forward and backward of a layer, batch 128."""
  rows, theirs = [], []
  for sparsity, (worst, best) in LAYERS.items():
    for by_feature in (True, False):
      ratios = []
      for shape in SHAPES:
        functions = products(shape, sparsity, by_feature=by_feature)
        times = measure.interleave(functions, rounds)
        ratios.append(measure.ratio(times, 1, 0))
        if len(functions) > 2:
          theirs.append((sparsity, shape, measure.ratio(times, 2, 0)))
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
  for sparsity, (a, b), ratio in theirs:
    what = f"layer, {100 * sparsity:g} %, {a}x{b}: sparselab 0.2.2 / ours"
    rows.append(measure.row(what, ratio, ">= 2", ratio >= 2))
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


def perceptron(hidden=2):
  """Params of 784-1024-...-1024-10, and the loss of a batch."""
  sizes = (784, *(1024,) * hidden, 10)
  keys = jax.random.split(jax.random.key(0), hidden + 1)
  params = {
    f"dense{i}": {
      "kernel": jax.random.normal(key, (a, b)) * (2 / a) ** 0.5,
      "bias": jnp.zeros(b),
    }
    for i, (key, a, b) in enumerate(
      zip(keys, sizes[:-1], sizes[1:], strict=True)
    )
  }

  def loss(params, x, y):
    for i in range(hidden + 1):
      layer = params[f"dense{i}"]
      x = sparsejax.matmul(x, layer["kernel"]) + layer["bias"]
      x = jax.nn.relu(x) if i < hidden else x
    losses = optax.softmax_cross_entropy_with_integer_labels(x, y)
    return losses.mean()

  return params, loss


def trainer(tx, params, loss):
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


def rigl(sparsity):
  """RigL with Adam, its masks moving every 100 steps."""
  return sparsejax.rigl(
    optax.adam(1e-3),
    sparsity,
    key=jax.random.key(1),
    t_end=10**6,
    delta_t=100,
    prunable=lambda path, p: p.ndim == 2 and p.shape[1] > 10,
  )


def step_rows(rounds):
  """Whole training steps of a perceptron, and what they take."""
  params, loss = perceptron()
  x = jax.random.normal(jax.random.key(2), (BATCH, 784))
  y = jax.random.randint(jax.random.key(3), (BATCH,), 0, 10)
  optimizer = optax.adam(1e-3)

  def dense_step(params, state):
    grads = jax.grad(loss)(params, x, y)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state

  dense = jax.jit(dense_step, donate_argnums=(0, 1))
  first = jax.tree.map(jnp.copy, params)
  dense_state = first, optimizer.init(first)

  steps, state = trainer(
    modes.kernels(rigl(0.95)), jax.tree.map(jnp.copy, params), loss
  )

  def dense_hundred():
    nonlocal dense_state
    for _ in range(100):
      dense_state = dense(*dense_state)
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
  params, loss = perceptron(hidden)
  x, y = jnp.zeros((BATCH, 784)), jnp.zeros(BATCH, jnp.int32)
  optimizer = optax.adam(1e-3)

  def dense_step(params, state):
    grads = jax.grad(loss)(params, x, y)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state

  dense = params, optimizer.init(params)
  program = jax.jit(dense_step, donate_argnums=(0, 1)).lower(*dense).compile()
  whole, held = measure.peak(program), _nbytes(dense) + _nbytes(params)
  rows = []
  for mode in (modes.packed, modes.kernels):
    steps, state = trainer(mode(rigl(0.9)), params, loss)
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


def main(argv):
  """Prints the table."""
  del argv
  rounds = measure.ROUNDS.value
  parts = {
    "layers": layer_rows,
    "one": one_rows,
    "step": step_rows,
    "selection": lambda rounds: [selection_row(rounds)],
  }
  rows = [row for name in _PARTS.value for row in parts[name](rounds)]
  measure.show("only the non-zeros", "benchmarks.packed", rows)


if __name__ == "__main__":
  app.run(main)
