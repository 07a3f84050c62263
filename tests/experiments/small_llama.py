"""Tiny language models, and their forward pass in float64 NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.llm.families import llama
from tests.experiments import drawn

CONFIG = llama.Config(
  vocab_size=23,
  dim=16,
  layers=2,
  heads=4,
  kv_heads=2,
  head_dim=6,
  hidden=20,
  context=80,
  rope_theta=100.0,
  norm_eps=1e-2,
  tied=True,
)
# With head_dim 6 and 30 positions, the pairs turn 4.8, 1.0 and 0.2 times: one
# frequency stays, one is between, one becomes slower.
SCALED = dataclasses.replace(CONFIG, rope_scaling=(8.0, 0.5, 2.0, 30.0))
CONFIGS = {
  "llama": CONFIG,
  "llama3": dataclasses.replace(SCALED, tied=False),
  "mistral": dataclasses.replace(CONFIG, window=3, kv_heads=1),
  "qwen2": dataclasses.replace(CONFIG, qkv_bias=True, kv_heads=4),
}


def make_params(config):
  """Parameters large enough that everything matters."""
  made = drawn.params(llama.Network(config), lambda names: 0.4)
  return jax.tree.map(jnp.asarray, made)


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
    x = x + _attention(
      config,
      layer["attention"],
      _norm(config, layer["attention_norm"], x),
      positions,
    )
    y = _norm(config, layer["mlp_norm"], x)
    gate = y @ layer["mlp"]["gate"]["kernel"]
    up = y @ layer["mlp"]["up"]["kernel"]
    x = x + (gate / (1 + np.exp(-gate)) * up) @ layer["mlp"]["down"]["kernel"]
    streams.append(x)
  x = streams[-1] = _norm(config, params["norm"], x)
  if config.tied:
    return x @ params["embed"]["embedding"].T, np.stack(streams)
  return x @ params["head"]["kernel"], np.stack(streams)


def _norm(config, params, x):
  square = (x**2).sum(-1, keepdims=True) / config.dim
  return x / np.sqrt(square + config.norm_eps) * params["scale"]


def _attention(config, params, x, positions):
  def project(name):
    y = x @ params[name]["kernel"]
    if config.qkv_bias and name != "output":
      y = y + params[name]["bias"]
    return y.reshape(len(x), -1, config.head_dim)

  groups = config.heads // config.kv_heads
  query = _turn(config, project("query"), positions)
  key = np.repeat(_turn(config, project("key"), positions), groups, axis=1)
  value = np.repeat(project("value"), groups, axis=1)
  out = np.zeros((len(x), config.heads, config.head_dim))
  for t in range(len(x)):
    first = 0 if config.window is None else max(0, t + 1 - config.window)
    for head in range(config.heads):
      scores = key[first : t + 1, head] @ query[t, head]
      scores = np.exp(scores / np.sqrt(config.head_dim))
      out[t, head] = scores / scores.sum() @ value[first : t + 1, head]
  return out.reshape(len(x), -1) @ params["output"]["kernel"]


def _turn(config, x, positions):
  """RoPE by complex numbers: the halves are real and imaginary parts."""
  half = config.head_dim // 2
  frequency = np.array([turning(config, i) for i in range(half)])
  z = x[..., :half] + 1j * x[..., half:]
  z = z * np.exp(1j * np.asarray(positions)[:, None, None] * frequency)
  return np.concatenate([z.real, z.imag], axis=-1)


def turning(config, i):
  """The frequency of one pair, with LLaMA 3.1's cases told by wavelengths."""
  frequency = 1 / config.rope_theta ** (2 * i / config.head_dim)
  if config.rope_scaling is None:
    return frequency
  factor, low, high, original = config.rope_scaling
  wavelength = 2 * np.pi / frequency
  if wavelength < original / high:
    return frequency
  if wavelength > original / low:
    return frequency / factor
  smooth = (original / wavelength - low) / (high - low)
  return (1 - smooth) * frequency / factor + smooth * frequency
