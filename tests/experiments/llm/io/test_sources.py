"""Models and texts by the names that configs have for them."""

import jax
import jax.numpy as jnp
import pytest

from experiments.errors import UserError
from experiments.llm.families import llama
from experiments.llm.io import sources, weights

SIZES = {"dim": 16, "layers": 2, "heads": 4, "hidden": 24, "context": 32}


def test_an_untrained_model_reads_bytes():
  model = sources.random(seed=1, kv_heads=2, **SIZES)
  weights.check(model)
  tokens = jnp.array([model.tokenizer.encode("four words of text")])
  logits = llama.Llama(model.config).apply({"params": model.params}, tokens)
  assert logits.shape == (*tokens.shape, model.config.vocab_size)
  query = model.params["layers"]["attention"]["query"]["kernel"]
  key = model.params["layers"]["attention"]["key"]["kernel"]
  assert query.shape == (2, 16, 16)
  assert key.shape == (2, 16, 8)
  again = sources.random(seed=1, kv_heads=2, **SIZES)
  other = sources.random(seed=2, kv_heads=2, **SIZES)
  same = jax.tree.map(lambda a, b: (a == b).all(), model.params, again.params)
  assert all(jax.tree.leaves(same))
  assert (query != other.params["layers"]["attention"]["query"]["kernel"]).any()


def test_sizes_that_do_not_fit():
  with pytest.raises(UserError, match="dim=16 and heads=3"):
    sources.random(seed=0, **{**SIZES, "heads": 3})


def test_pythons_help_is_there_and_divided():
  train, test = (sources.python_help(test=test) for test in (False, True))
  assert sum(map(len, train)) > 300_000
  assert sum(map(len, test)) > 20_000
  assert not set(train) & set(test)


def test_years_begin_with_the_first_and_end_before_the_last(monkeypatch):
  seen = []
  monkeypatch.setattr(
    sources.corpora,
    "state_of_the_union",
    lambda folder, *, years: seen.append((folder, list(years))) or ["text"],
  )
  found = sources.TEXTS["state_of_the_union"](data_dir="x", years=(1998, 2000))
  assert found == ["text"]
  assert seen == [("x", [1998, 1999])]
