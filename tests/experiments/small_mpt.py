"""Tiny MPT models, and their forward pass in float64 NumPy."""

import dataclasses
import math

import jax
import numpy as np

from experiments.llm.families import mpt
from tests.experiments import drawn

CONFIG = mpt.Config(
  vocab_size=260,
  dim=18,
  layers=2,
  heads=3,
  hidden=72,
  context=80,
  norm_eps=1e-2,
)
CONFIGS = {
  "mpt": CONFIG,
  "storywriter": dataclasses.replace(
    CONFIG, heads=2, clip_qkv=0.7, alibi_bias_max=16, hidden=36
  ),
}


def make_params(config):
  """Parameters large enough that everything matters."""
  return drawn.params(mpt.Network(config))


def make_tokens(*shape, seed=1):
  return np.random.default_rng(seed).integers(CONFIG.vocab_size, size=shape)


def forward(config, params, tokens, positions=None):
  """The logits float64[t, vocab] of one sequence, and the hidden states."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  if positions is None:
    positions = np.arange(len(tokens))
  x = params["embed"]["embedding"][np.asarray(tokens)]
  streams = [x]
  for i in range(config.layers):
    layer = jax.tree.map(lambda w: w[i], params["layers"])  # noqa: B023
    y = _norm(config, layer["attention_norm"], x)
    x = x + _attention(config, layer["attention"], y, positions)
    y = _norm(config, layer["mlp_norm"], x) @ layer["mlp"]["up"]["kernel"]
    y = y * np.vectorize(lambda z: (1 + math.erf(z / 2**0.5)) / 2)(y)
    x = x + y @ layer["mlp"]["down"]["kernel"]
    streams.append(x)
  x = streams[-1] = _norm(config, params["norm"], x)
  return x @ params["embed"]["embedding"].T, np.stack(streams)


def _norm(config, params, x):
  x = x - x.mean(-1, keepdims=True)
  square = (x**2).mean(-1, keepdims=True)
  return x / np.sqrt(square + config.norm_eps) * params["scale"]


def _attention(config, params, x, positions):
  y = x @ params["qkv"]["kernel"]
  if config.clip_qkv is not None:
    y = np.minimum(np.maximum(y, -config.clip_qkv), config.clip_qkv)
  d = config.dim // config.heads
  out = np.zeros_like(x)
  for head in range(config.heads):
    query, key, value = (
      y[:, part * config.dim + head * d :][:, :d] for part in range(3)
    )
    for t in range(len(x)):
      scores = key[: t + 1] @ query[t] / np.sqrt(d)
      scores -= slope(config, head) * (positions[t] - positions[: t + 1])
      scores = np.exp(scores)
      out[t, head * d :][:d] = scores / scores.sum() @ value[: t + 1]
  return out @ params["output"]["kernel"]


def slope(config, head):
  """2 to the power of -8 i / n, of n = 2 or 4 heads."""
  step = config.alibi_bias_max / {2: 2, 3: 4}[config.heads]
  return 2 ** -(step * {2: (1, 2), 3: (2, 4, 1)}[config.heads][head])
