"""Whisper against float64 NumPy, with a cache, and pruned."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from experiments.config import defaults
from experiments.errors import UserError
from experiments.llm.families import whisper
from experiments.llm.io import packed_model, tokenizer
from experiments.llm.io.model import Model
from experiments.llm.prune import kernels, layerwise, methods
from experiments.llm.text.examples import Examples
from experiments.runs import finetune_step
from sparsejax import distill
from tests.experiments.small_whisper import (
  CONFIG,
  forward,
  make_params,
  make_source,
  make_tokens,
)

NETWORK = whisper.Network(CONFIG)
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5)


# What runs here is tiny, and takes longer to compile than to run.
jit = functools.partial(
  jax.jit,
  compiler_options={
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
  },
)


def apply(params, *args, **kwargs):
  return NETWORK.apply({"params": params}, *args, **kwargs)


run = jit(apply, static_argnames=("method", "length"))


def test_logits_and_streams_are_those_of_numpy():
  params, tokens, source = make_params(), make_tokens(2, 7), make_source(2)
  logits, (read, written) = run(
    params, tokens, source=source, method="with_hidden"
  )
  assert logits.dtype == jnp.float32
  for row in range(2):
    wanted = forward(CONFIG, params, tokens[row], source[row])
    assert np.ptp(wanted[0]) > 3  # There is something to see.
    close(logits[row], wanted[0])
    close(read[:, row], wanted[1])
    close(written[:, row], wanted[2])
  close(run(params, tokens, source=source), logits)


def test_a_cache_step_by_step_on_ragged_rows():
  """Rows of 2 and 4 tokens, padded to 5, then one token at a time."""
  params, source, rows = make_params(), make_source(2), make_tokens(2, 7)
  wanted = np.stack(
    [forward(CONFIG, params, *row)[0] for row in zip(rows, source, strict=True)]
  )
  lengths = np.array([2, 4])
  padded = np.where(np.arange(5) < lengths[:, None], rows[:, :5], 17)

  @jit
  def extend(tokens, positions, cache):
    x, cache = apply(
      params, tokens, positions=positions, cache=cache, method="extend"
    )
    return apply(params, x, method="logits"), cache

  cache = run(params, source, length=8, method="start")
  logits, cache = extend(padded, np.tile(np.arange(5), (2, 1)), cache)
  for row, length in enumerate(lengths):
    close(logits[row, :length], wanted[row, :length])
  for step in range(3):
    at = lengths + step
    logits, cache = extend(rows[[0, 1], at][:, None], at[:, None], cache)
    close(logits[:, 0], wanted[[0, 1], at])


def test_positions_of_the_encoder():
  x = whisper.config.sinusoids(8, 12)
  assert x[5, 2] == np.float32(np.sin(5 / 10_000 ** (2 / 5)))
  assert x[5, 8] == np.float32(np.cos(5 / 10_000 ** (2 / 5)))


@pytest.mark.slow
def test_positions_of_the_encoder_are_not_learned():
  params, tokens, source = make_params(), make_tokens(1, 4), make_source(1)
  slopes = jit(
    jax.grad(lambda p: jnp.sum(apply(p, tokens, source=source) ** 2))
  )(params)
  slopes = traverse_util.flatten_dict(slopes, sep="/")
  assert {path for path, x in slopes.items() if not x.any()} == {*whisper.FIXED}


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (
      {"source": np.zeros((1, 15, 5))},
      r"shape \(1, 15, 5\), wanted .* 16, 5\]",
    ),
    (
      {"source": make_source(1), "source_real": np.ones((1, 8), bool)},
      "got source_real, wanted None",
    ),
  ],
)
def test_what_the_encoder_does_not_read(options, message):
  with pytest.raises(UserError, match=message):
    run(make_params(), make_tokens(1, 2), **options)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"heads": 5}, "multiple of heads, got 12 and 5"),
    ({"decoder_start": 260}, "must be a token, 0 to 259, got 260"),
    ({"mels": 0}, "mels must be positive, got 0"),
  ],
)
def test_sizes_that_do_not_fit(changes, message):
  with pytest.raises(UserError, match=message):
    whisper.Config(**{**vars(CONFIG), **changes})


def test_sizes_from_scratch():
  sizes = {"dim": 12, "layers": 2, "heads": 3, "hidden": 20, "context": 9}
  config = whisper.from_sizes(vocab_size=260, kv_heads=3, **sizes)
  assert (config.frames, config.mels, config.layers) == (3000, 80, 4)
  with pytest.raises(UserError, match="kv_heads=1 and heads=3"):
    whisper.from_sizes(vocab_size=260, kv_heads=1, **sizes)


@pytest.mark.slow
def test_encoder_and_decoder_are_pruned_and_packed(tmp_path):
  model = Model(CONFIG, make_params(), tokenizer.byte_level())
  inputs = {"tokens": make_tokens(9, 7), "source": make_source(9)}
  method = methods.make("wanda")
  pruned = layerwise.prune(model, inputs, method, [0.5] * CONFIG.layers)
  attention, mlp = 4 * 12 * 12, 2 * 12 * 20
  size = 3 * (attention + mlp) + 2 * (2 * attention + mlp)
  assert kernels.count(pruned.params) == (size // 2, size)
  positions = model.params["encoder"]["positions"]
  np.testing.assert_array_equal(
    pruned.params["encoder"]["positions"], positions
  )
  # Convolutions are no matrices.
  for conv in ("conv1", "conv2"):
    assert pruned.params["encoder"][conv]["weight"].all()
  hear = {"source": make_source(1)}
  wanted = run(pruned.params, make_tokens(1, 5), **hear)
  for dtype, atol in (("float32", 2e-5), ("int8", 0.02 * np.ptp(wanted))):
    packed = packed_model.pack(pruned, dtype=dtype)
    packed_model.write_model(tmp_path / dtype, packed)
    again = packed_model.read_model(tmp_path / dtype)
    assert again.config == CONFIG
    np.testing.assert_array_equal(
      again.params["encoder"]["positions"], positions
    )
    close(run(again.params, make_tokens(1, 5), **hear), wanted, atol=atol)


@pytest.mark.slow
def test_a_pruned_model_learns_from_the_dense_one():
  """SquareHead on the streams of both stacks, as its paper has it."""
  teacher = Model(CONFIG, make_params(), tokenizer.byte_level())
  tokens, source = make_tokens(4, 7), make_source(4)
  inputs = {"tokens": tokens, "source": source}
  student = layerwise.prune(
    teacher, inputs, methods.make("magnitude"), [0.5] * CONFIG.layers
  )
  streams = functools.partial(apply, method="with_hidden")
  _, features = jit(streams)(teacher.params, tokens, source=source)

  @jit
  @jax.value_and_grad
  def loss(params):
    _, hidden = streams(params, tokens, source=source)
    return sum(
      distill.square_head(mine[1:], theirs[1:], np.ones(mine.shape[1:3], bool))
      for mine, theirs in zip(hidden, features, strict=True)
    )

  masks = jax.tree.map(lambda w: w != 0, student.params)
  params, values = student.params, []
  for _ in range(20):
    value, slopes = loss(params)
    values.append(float(value))
    params = jax.tree.map(
      lambda w, g, mask: w - 0.03 * g * mask, params, slopes, masks
    )
  assert values[-1] < 0.7 * values[0]
  assert kernels.count(params) == kernels.count(student.params)


@pytest.mark.slow
def test_fixed_parameters_do_not_move():
  """AdamW decays what has no gradient, too."""
  params = jax.tree.map(jnp.asarray, make_params())
  config = defaults.fine_tuning_run().copy_and_resolve_references()
  with config.unlocked():
    config.optimizer = {"name": "adamw", "weight_decay": 0.5}
    config.schedule = {"name": "constant", "learning_rate": 0.1}
  state = finetune_step.begin(config, params)
  program = finetune_step.get(config, CONFIG)
  every = np.ones((2, 7), bool)
  batch = Examples(make_tokens(2, 7), every, every, make_source(2))
  for step in range(2):
    state = program.step(state, batch, None, program.moves(step))
  after = program.merged(state.values, state.tuned)
  after, before = (traverse_util.flatten_dict(x) for x in (after, params))
  still = {"/".join(p) for p in before if (before[p] == after[p]).all()}
  assert still == {*whisper.FIXED}
