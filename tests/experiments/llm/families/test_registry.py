"""Another architecture, a few lines of this file, goes through all the code."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments.errors import UserError
from experiments.llm.evaluate import generate, perplexity
from experiments.llm.families import layers, llama, registry
from experiments.llm.io import huggingface, load, packed_model
from experiments.llm.prune import kernels, pruners
from tests.experiments import small_llama


@dataclasses.dataclass(frozen=True)
class Config:
  vocab_size: int
  layers: int
  context: int
  dim: int
  reach: tuple[float, ...]  # of no use but to be a tuple


class Block(nn.Module):
  config: Config
  dtype: jax.typing.DTypeLike

  @nn.compact
  def __call__(self, x):
    y = layers.Linear(self.config.dim, dtype=self.dtype, name="mix")(x)
    return x + jnp.tanh(y)


class Network(nn.Module):
  """Maps each token, without regard to those before it, through blocks."""

  config: Config
  remat: str = "none"
  dtype: jax.typing.DTypeLike = jnp.float32

  def setup(self):
    c = self.config
    self.embedding = nn.Embed(c.vocab_size, c.dim, name="embed")
    self.layers = self.block()

  def __call__(self, tokens):
    return self.logits(self._run(self.embed(tokens)))

  def _run(self, x):
    scan = nn.scan(
      lambda block, x, _: (block(x), None),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=self.config.layers,
    )
    return scan(self.layers, x, None)[0]

  def embed(self, tokens):
    return self.embedding(tokens)

  def logits(self, x):
    return self.embedding.attend(x)

  def extend(self, tokens, *, positions, cache):
    del positions
    return self._run(self.embed(tokens)), cache + tokens.shape[1]

  @nn.nowrap
  def block(self):
    return Block(self.config, self.dtype)

  @nn.nowrap
  def init_cache(self, batch, length, dtype=None):
    del batch, length, dtype
    return jnp.int32(0)


def from_sizes(*, vocab_size, dim, layers, context, **others):
  del others
  return Config(vocab_size, layers, context, dim, (1.0, 2.0))


files = types.SimpleNamespace(
  MODEL_TYPES=("mixer",),
  IGNORED=(),
  TENSORS={"embed/embedding": "e", "layers/mix/kernel": "l.{}.w"},
  read_config=lambda raw, *, path: Config(**raw["config"] | {"reach": (1.0,)}),
  config_json=lambda config: {
    "model_type": "mixer",
    "config": dataclasses.asdict(config),
  },
  duplicates=lambda config: {},
)
family = types.SimpleNamespace(
  NAME="mixer",
  Config=Config,
  Network=Network,
  from_sizes=from_sizes,
  huggingface=files,
)


@pytest.fixture
def model(monkeypatch):
  monkeypatch.setitem(registry.FAMILIES, "mixer", family)
  sizes = {"dim": 8, "layers": 3, "heads": 1, "hidden": 1, "context": 32}
  model = load.random(seed=0, family="mixer", **sizes)
  assert model.family is family
  return model


def test_it_is_pruned_evaluated_and_continued(model):
  text = np.asarray(model.tokenizer.encode(20 * "some words "), np.int32)
  options = {"name": "wanda", "sparsity": 0.5, "sequences": 2, "length": 16}
  pruned = pruners.prune(model, text, options)
  assert kernels.count(pruned.params) == (3 * 32, 3 * 64)
  value, scored = perplexity.perplexity(
    pruned.network(), pruned.params, text, window=16, stride=16, batch=2
  )
  assert scored == len(text) - 1
  logits = pruned.network().apply({"params": pruned.params}, text[None, :-1])
  losses = -jax.nn.log_softmax(logits)[0, np.arange(scored), text[1:]]
  np.testing.assert_allclose(value, np.exp(losses.mean()), rtol=1e-5)
  (found,) = generate.greedy(
    pruned.network(), pruned.params, [text[:5]], steps=3
  )
  token, wanted = text[4], []
  for _ in range(3):
    logits = pruned.network().apply(
      {"params": pruned.params}, token[None, None]
    )
    token = np.argmax(logits[0, 0]).astype(np.int32)
    wanted.append(int(token))
  assert found == wanted


def test_it_is_written_and_read(model, tmp_path):
  kept = functools.partial(jax.tree.map, np.testing.assert_array_equal)
  packed_model.write_model(tmp_path / "packed", packed_model.pack(model))
  again = load.model_at(str(tmp_path / "packed"))
  assert again.config == model.config
  kept(again.params, model.params)
  huggingface.write_model(tmp_path / "folder", model)
  again = load.model_at(str(tmp_path / "folder"))
  assert again.config == dataclasses.replace(model.config, reach=(1.0,))
  kept(again.params, model.params)


def test_a_config_has_its_family():
  assert registry.of(small_llama.CONFIG) is llama
  with pytest.raises(UserError, match=r"no family is called 'lama'.*'llama'"):
    load.random(
      seed=0, family="lama", dim=2, layers=1, heads=1, hidden=1, context=4
    )
