"""MPT against float64 NumPy, with a cache, and through the whole chain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.errors import UserError
from experiments.llm.evaluate import generate
from experiments.llm.families import mpt
from experiments.llm.io import huggingface, load, packed_model
from experiments.llm.prune import kernels, pruners
from experiments.runs import finetune
from tests.experiments import small_finetune
from tests.experiments.small_mpt import (
  CONFIG,
  CONFIGS,
  forward,
  make_params,
  make_tokens,
)

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5)


# What runs here is tiny, and takes longer to compile than to run.
jit = functools.partial(
  jax.jit,
  compiler_options={
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
  },
)


def apply(model, params, *args, **kwargs):
  return model.apply({"params": params}, *args, **kwargs)


run = jit(apply, static_argnames=("model", "method"))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_streams_are_those_of_numpy(name):
  config = CONFIGS[name]
  params, tokens = make_params(config), make_tokens(2, 7)
  model = mpt.Network(config)
  positions = np.array([np.arange(7), [0, 1, 2, 9, 3, 30, 79]])
  logits, hidden = run(
    model, params, tokens, positions=positions, method="with_hidden"
  )
  assert logits.dtype == jnp.float32
  for row in range(2):
    wanted, streams = forward(config, params, tokens[row], positions[row])
    assert np.ptp(wanted) > 3  # There is something to see.
    close(logits[row], wanted)
    close(hidden[:, row], streams)
  close(run(model, params, tokens[:1]), logits[:1])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_cache_step_by_step_on_ragged_rows(name):
  """Rows of 3 and 5 tokens, padded to 6, then one token at a time."""
  config = CONFIGS[name]
  model, params = mpt.Network(config), make_params(config)
  rows = make_tokens(2, 8)
  wanted = np.stack([forward(config, params, row)[0] for row in rows])
  lengths = np.array([3, 5])
  padded = np.where(np.arange(6) < lengths[:, None], rows[:, :6], 17)
  positions = np.tile(np.arange(6), (2, 1))
  cache = model.init_cache(2, 9)

  @jit
  def extend(tokens, positions, cache):
    x, cache = apply(
      model, params, tokens, positions=positions, cache=cache, method="extend"
    )
    return apply(model, params, x, method="logits"), cache

  logits, cache = extend(padded, positions, cache)
  for row, length in enumerate(lengths):
    close(logits[row, :length], wanted[row, :length])
  for step in range(3):
    at = lengths + step
    logits, cache = extend(rows[[0, 1], at][:, None], at[:, None], cache)
    close(logits[:, 0], wanted[[0, 1], at])


def test_slopes_of_heads_that_are_no_power_of_two():
  sizes = {**vars(CONFIG), "dim": 24, "heads": 6}
  slopes = mpt.config.alibi_slopes(mpt.Config(**sizes))
  assert slopes.tolist() == [2.0**-n for n in (2, 4, 6, 8, 1, 3)]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"heads": 4}, "dim must be a multiple of heads, got 18 and 4"),
    ({"layers": 0}, "layers must be positive, got 0"),
    ({"clip_qkv": -1.0}, "clip_qkv must be positive, got -1.0"),
  ],
)
def test_sizes_that_do_not_fit(changes, message):
  with pytest.raises(UserError, match=message):
    mpt.Config(**{**vars(CONFIG), **changes})


SIZES = {"dim": 16, "layers": 2, "heads": 2, "hidden": 32, "context": 32}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"kv_heads": 1}, "kv_heads=1 and heads=2, wanted as many"),
    ({"hidden": 40}, "hidden=40 and dim=16, wanted a multiple"),
  ],
)
def test_sizes_of_a_model_from_scratch_that_do_not_fit(changes, message):
  with pytest.raises(UserError, match=message):
    load.random(seed=0, family="mpt", **SIZES | changes)


@pytest.mark.slow
def test_a_model_from_scratch_is_pruned_packed_and_continued(tmp_path):
  model = load.random(seed=0, family="mpt", **SIZES)
  text = np.asarray(model.tokenizer.encode(20 * "some words "), np.int32)
  options = {"name": "wanda", "sparsity": 0.5, "sequences": 2, "length": 16}
  pruned = pruners.prune(model, text, options)
  size = 2 * (4 * 16 * 16 + 2 * 16 * 32)
  assert kernels.count(pruned.params) == (size // 2, size)
  # As many weights of each row, of queries, keys and values alike.
  qkv = np.asarray(pruned.params["layers"]["attention"]["qkv"]["kernel"])
  assert qkv.shape == (2, 16, 48)
  assert (np.count_nonzero(qkv, axis=1) == 8).all()
  packed_model.write_model(tmp_path / "packed", packed_model.pack(pruned))
  again = packed_model.read_model(tmp_path / "packed")
  assert again.config == model.config
  made = [
    generate.greedy(m.network(), m.params, [text[:5], text[:3]], steps=3)
    for m in (pruned, again)
  ]
  assert made[0] == made[1]
  logits = run(pruned.network(), pruned.params, text[None, :5])
  assert made[0][0][0] == np.argmax(logits[0, -1])


@pytest.mark.slow
def test_a_pruned_model_is_repaired(tmp_path):
  sizes = {**small_finetune.SIZES, "family": "mpt"}
  config = small_finetune.make(
    model={"name": "random", "seed": 0, **sizes},
    method={"name": "fixed"},
    loss={"cross_entropy": 1.0, "square_head": 1.0},
    teacher={"name": "random", "seed": 0, **sizes},
  )
  result = finetune.train(config, tmp_path)
  first, *_, last = (r for r in result.history if r["split"] == "test")
  assert last["perplexity"] < first["perplexity"]
  assert result.metrics["nnz"] == result.metrics["size"] // 2
  saved = huggingface.read_model(tmp_path / "model")
  assert saved.family is mpt
  assert kernels.count(saved.params)[0] == result.metrics["nnz"]
