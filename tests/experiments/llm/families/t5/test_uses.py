"""T5 pruned, tested, repaired and generated from, by the code for all."""

import json

import jax
import numpy as np
import pytest

from experiments import generate
from experiments.errors import UserError
from experiments.llm.evaluate import perplexity, tasks
from experiments.llm.families import t5
from experiments.llm.io import huggingface, load, tokenizer
from experiments.llm.io.model import Model
from experiments.llm.prune import kernels, layerwise, methods, pruners
from experiments.llm.text import sources
from experiments.runs import finetune_step
from sparsejax import distill
from tests.experiments import small_llama
from tests.experiments.small_t5 import (
  CONFIG,
  CONFIGS,
  SIZES,
  forward,
  make_inputs,
  make_params,
)

HELP = {"name": "python_help"}
SPANS = {
  "name": "span_corruption",
  "train": {**HELP, "test": False},
  "test": {**HELP, "test": True},
  "length": 24,
  "test_tokens": 250,
}


@pytest.fixture(scope="module")
def random():
  return load.random(seed=0, family="t5", sentinels=4, **SIZES)


def real_inputs():
  """Inputs with padding in the tokens, too."""
  inputs = make_inputs()
  return {**inputs, "real": np.arange(15) < np.array([[9], [15]])}


def test_calibration_sees_what_is_real_through_pruned_blocks():
  """Each kernel halved, so that later inputs tell whether earlier ones were."""
  params = jax.tree.map(np.array, make_params(CONFIG))
  model = Model(CONFIG, params, tokenizer=None)
  inputs, seen = real_inputs(), []

  def halve(w, statistics, sparsity):
    del sparsity
    seen.append((w.shape, statistics))
    return w / 2

  done = []
  pruned = layerwise.prune(
    model, inputs, methods.Method(halve), [0.5] * 5, advance=done.append
  )
  assert done == [1, 2, 3, 4, 5]
  for path, kernel in kernels.by_path(params).items():
    np.testing.assert_array_equal(
      kernels.by_path(pruned.params)[path], kernel / 2
    )
  assert len(kernels.by_path(params)) == 6 + 10
  assert len(seen) == 2 * 6 + 3 * 10
  sizes = [int(s.count) for _, s in seen]
  # Of sources 19 and 11, of tokens 9 and 15; keys and values of the encoder's
  # output see the sources.
  assert sizes[:12] == [30] * 12
  assert sorted(sizes[12:22]) == [24] * 8 + [30] * 2
  read = np.concatenate(
    [
      forward(CONFIG, pruned.params, source[:n], tokens)[1][-1]
      for source, tokens, n in zip(
        inputs["source"], inputs["tokens"], (19, 11), strict=True
      )
    ]
  )
  crossed = [s for _, s in seen[12:22] if int(s.count) == 30]
  for statistics in crossed:
    np.testing.assert_allclose(statistics.mean, read.mean(0), atol=1e-4)
    np.testing.assert_allclose(statistics.variance, read.var(0), rtol=1e-3)


@pytest.mark.slow
def test_span_corruption_is_pruned_and_tested(random):
  task = tasks.make(random, SPANS)
  assert task.examples.source.shape[1:] == (24 - 4 + 1 + 1,)
  assert task.examples.tokens.shape[1:] == (1 + 4 + 1 + 1 + 1,)
  pruned = pruners.prune(
    random, task.text, {"name": "wanda", "sparsity": 0.5, "sequences": 4}
  )
  numbers = tasks.evaluate(pruned, task)
  assert numbers["nnz"] == numbers["size"] // 2
  count = 250 // 24
  assert numbers["tokens"] == count * 7
  again = sources.corrupt_spans(
    tasks._tokens(random, SPANS["test"])[: count * 24].reshape(count, 24),
    random.tokenizer,
    start=0,
    seed=1,
  )
  losses = [
    -np.take_along_axis(
      np.asarray(jax.nn.log_softmax(logits)), tokens[1:, None], axis=1
    )
    for tokens, logits in zip(
      again.tokens,
      (
        forward(pruned.config, pruned.params, s, t)[0][:-1]
        for s, t in zip(again.source, again.tokens, strict=True)
      ),
      strict=True,
    )
  ]
  wanted = np.exp(np.mean(losses))
  np.testing.assert_allclose(numbers["perplexity"], wanted, rtol=1e-4)


def test_pairs_are_read_from_a_users_files(random, tmp_path):
  rows = [{"en": "Yes", "de": "Ja"}, {"en": "No", "de": "Nein"}]
  path = tmp_path / "pairs.jsonl"
  path.write_text("\n".join(map(json.dumps, rows)))
  config = {
    **{"name": "pairs", "train_path": str(path), "test_path": str(path)},
    **{"source": "en", "target": "de", "prefix": "German: "},
  }
  task = tasks.make(random, {**config, "length": 16, "target_length": 8})
  real = task.examples.source_real
  decode = random.tokenizer.decode
  texts = [
    decode(row[kept])
    for row, kept in zip(task.examples.source, real, strict=True)
  ]
  end = decode([256])
  assert texts == [f"German: Yes{end}", f"German: No{end}"]
  numbers = task.evaluate(random.network(), random.params)
  assert numbers["tokens"] == 3 + 5
  broken = task.examples._replace(source=task.examples.source + 5)
  with pytest.raises(UserError, match="from 5 to 261, wanted 0 to 260"):
    perplexity.of_examples(random.network(), random.params, broken, batch=2)
  with pytest.raises(UserError, match="target of pair 1 has 6 tokens"):
    tasks.make(random, {**config, "length": 16, "target_length": 5})


def test_tasks_are_for_models_of_their_kind(random):
  text = {k: SPANS[k] for k in ("train", "test", "length")}
  with pytest.raises(
    UserError, match=r"got text for .* t5, wanted one of span"
  ):
    tasks.make(random, {"name": "text", **text})
  llama = random._replace(config=small_llama.CONFIG)
  with pytest.raises(UserError, match=r"got span_corruption for .* llama"):
    tasks.make(llama, SPANS)
  plain = random._replace(tokenizer=tokenizer.byte_level())
  with pytest.raises(
    UserError, match=r"0 sentinels .*config\.model\.sentinels"
  ):
    tasks.make(plain, SPANS)


def test_losses_of_both_stacks():
  """SquareHead sums over encoder and decoder, each over what is real."""
  config = CONFIGS["t5-1.1"]
  student = make_params(config)
  teacher = jax.tree.map(lambda x: 0.9 * x, student)
  inputs = real_inputs()
  counted = inputs["real"].copy()
  counted[:, 0] = False
  batch = finetune_step.Examples(
    inputs["tokens"],
    counted,
    inputs["real"],
    inputs["source"],
    inputs["source_real"],
  )
  weights = {"cross_entropy": 0.5, "kl": 2.0, "square_head": 0.25}
  network = t5.Network(config)
  losses = finetune_step._losses(weights, network, network)
  got = jax.jit(losses)(student, batch, teacher)
  made = {}
  for name, params in (("student", student), ("teacher", teacher)):
    made[name] = [
      forward(config, params, batch.source[i, :n], batch.tokens[i])
      for i, n in enumerate((19, 11))
    ]

  # What is real, of all sequences in one.
  def joined(name, part):
    rows = [row[part] for row in made[name]]
    if part == 0:
      rows = [r[:-1][w] for r, w in zip(rows, counted[:, 1:], strict=True)]
    if part == 2:
      real = inputs["real"]
      rows = [r[:, w] for r, w in zip(rows, real, strict=True)]
    return np.concatenate(rows, axis=0 if part == 0 else 1)

  every = np.array(True)
  square = sum(
    distill.square_head(
      joined("student", part)[1:], joined("teacher", part)[1:], every
    )
    for part in (1, 2)
  )
  logits, guide = joined("student", 0), joined("teacher", 0)
  targets = batch.tokens[:, 1:][counted[:, 1:]]
  np.testing.assert_allclose(got["square_head"], square, rtol=1e-3)
  np.testing.assert_allclose(
    got["cross_entropy"],
    distill.cross_entropy(logits, targets, every),
    rtol=1e-3,
  )
  np.testing.assert_allclose(
    got["kl"], distill.kl_divergence(logits, guide, every), rtol=1e-2
  )
  total = sum(weights[name] * got[name] for name in weights)
  np.testing.assert_allclose(got["loss"], total, rtol=1e-5)


def test_a_prompt_is_answered(random, tmp_path):
  huggingface.write_model(tmp_path, random)
  text = generate.run(str(tmp_path), "four score", tokens=4)
  source = [*tokenizer.byte_level().encode("four score"), 256]
  tokens = [0]
  for _ in range(4):
    logits, _, _ = forward(
      random.config, random.params, np.array(source), np.array(tokens)
    )
    tokens.append(int(np.argmax(logits[-1])))
    if tokens[-1] == 256:
      break
  wanted = [token for token in tokens[1:] if token != 256]
  assert text == random.tokenizer.decode(wanted)
