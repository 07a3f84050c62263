"""Tiny T5 models, and their forward pass in float64 NumPy."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from experiments.llm.families import t5
from tests.experiments import drawn

CONFIG = t5.Config(
  vocab_size=23,
  dim=16,
  encoder_layers=2,
  decoder_layers=3,
  heads=3,
  head_dim=6,
  hidden=20,
  context=40,
  buckets=8,
  max_distance=12,
  norm_eps=1e-2,
  gated=False,
  tied=True,
)
CONFIGS = {
  "t5": CONFIG,
  "t5-1.1": dataclasses.replace(CONFIG, gated=True, tied=False),
}
SIZES = {"dim": 16, "layers": 2, "heads": 2, "hidden": 24, "context": 64}


def make_params(config):
  """Parameters large enough that everything matters."""
  made = drawn.params(
    t5.Network(config),
    # Scores are not divided by anything: large ones would leave one position.
    lambda names: 0.1 if "query" in names else 0.4,
  )
  return jax.tree.map(jnp.asarray, made)


def make_inputs(config=CONFIG, seed=1):
  """Two sources, the second one padded, and the tokens after them."""
  rng = np.random.default_rng(seed)
  source = rng.integers(config.vocab_size, size=(2, 19))
  tokens = rng.integers(config.vocab_size, size=(2, 15))
  tokens[:, 0] = config.decoder_start
  real = np.arange(19) < np.array([[19], [11]])
  return {"tokens": tokens, "source": source, "source_real": real}


def forward(config, params, source, tokens):
  """The logits float64[t, vocab] after one source, and both stacks' streams."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  embedding = params["embed"]["embedding"]
  read = _stack(config, params["encoder"], embedding[source], None)
  written = _stack(config, params["decoder"], embedding[tokens], read[-1])
  x = written[-1]
  if config.tied:
    return x / math.sqrt(config.dim) @ embedding.T, read, written
  return x @ params["head"]["kernel"], read, written


def _stack(config, params, x, memory):
  """The streams of encoder (memory None) or decoder."""
  table = params["relative_bias"]["embedding"]
  bias = np.empty((config.heads, len(x), len(x)))
  for i in range(len(x)):
    for j in range(len(x)):
      ahead = j - i
      if memory is not None:
        bias[:, i, j] = table[bucket(config, config.buckets, -ahead)]
        if ahead > 0:
          bias[:, i, j] = -np.inf
      else:
        half = config.buckets // 2
        found = bucket(config, half, abs(ahead)) + half * (ahead > 0)
        bias[:, i, j] = table[found]
  streams = [x]
  depth = len(params["layers"]["mlp_norm"]["scale"])
  for layer in range(depth):
    one = jax.tree.map(lambda w: w[layer], params["layers"])  # noqa: B023
    y = _norm(config, one["attention_norm"], x)
    x = x + _attention(config, one["attention"], y, y, bias)
    if memory is not None:
      y = _norm(config, one["cross_norm"], x)
      x = x + _attention(config, one["cross_attention"], y, memory, 0.0)
    y = _norm(config, one["mlp_norm"], x)
    x = x + _mlp(one["mlp"], y)
    streams.append(x)
  streams[-1] = _norm(config, params["norm"], x)
  return np.stack(streams)


def bucket(config, buckets, distance):
  """The bucket of a distance in one direction, told by its boundaries."""
  if distance <= 0:
    return 0
  near = buckets // 2
  if distance < near:
    return distance
  ratio = config.max_distance / near
  found = near
  for k in range(1, buckets - near):
    # Where bucket near + k begins.
    if distance >= near * ratio ** (k / (buckets - near)) - 1e-9:
      found = near + k
  return found


def _norm(config, params, x):
  square = (x**2).sum(-1, keepdims=True) / config.dim
  return x / np.sqrt(square + config.norm_eps) * params["scale"]


def _mlp(params, x):
  kernel = {name: leaf["kernel"] for name, leaf in params.items()}
  if "up" in kernel:
    return np.maximum(x @ kernel["up"], 0) @ kernel["down"]
  gate = x @ kernel["gate"]
  inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
  gate = 0.5 * gate * (1 + np.tanh(inner))
  return (gate * (x @ kernel["linear"])) @ kernel["down"]


def _attention(config, params, x, memory, bias):
  query, key, value = (
    (at @ params[name]["kernel"]).reshape(len(at), config.heads, -1)
    for name, at in (("query", x), ("key", memory), ("value", memory))
  )
  scores = np.einsum("thd,shd->hts", query, key) + bias
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  y = np.einsum("hts,shd->thd", weights, value).reshape(len(x), -1)
  return y @ params["output"]["kernel"]
