"""Models by the names that configs have for them."""

import jax
import jax.numpy as jnp
import pytest

from experiments.errors import UserError
from experiments.llm.io import load
from experiments.llm.io.model import check_vocabulary

SIZES = {"dim": 16, "layers": 2, "heads": 4, "hidden": 24, "context": 32}


@pytest.mark.slow
def test_an_untrained_model_reads_bytes():
  model = load.random(seed=1, kv_heads=2, **SIZES)
  check_vocabulary(model)
  tokens = jnp.array([model.tokenizer.encode("four words of text")])
  logits = model.network().apply({"params": model.params}, tokens)
  assert logits.shape == (*tokens.shape, model.config.vocab_size)
  query = model.params["layers"]["attention"]["query"]["kernel"]
  key = model.params["layers"]["attention"]["key"]["kernel"]
  assert query.shape == (2, 16, 16)
  assert key.shape == (2, 16, 8)
  again = load.random(seed=1, kv_heads=2, **SIZES)
  other = load.random(seed=2, kv_heads=2, **SIZES)
  same = jax.tree.map(lambda a, b: (a == b).all(), model.params, again.params)
  assert all(jax.tree.leaves(same))
  assert (query != other.params["layers"]["attention"]["query"]["kernel"]).any()


def test_sizes_that_do_not_fit():
  with pytest.raises(UserError, match="dim=16 and heads=3"):
    load.random(seed=0, **{**SIZES, "heads": 3})
