"""A tiny Whisper model, and its forward pass in float64 NumPy."""

import math
import wave

import jax
import numpy as np

from experiments.llm.families import whisper
from experiments.llm.io import tokenizer
from experiments.llm.io.model import Model
from tests.experiments import drawn

CONFIG = whisper.Config(
  vocab_size=260,
  dim=12,
  encoder_layers=3,
  decoder_layers=2,
  heads=3,
  hidden=20,
  context=16,
  decoder_start=257,
  mels=5,
  source_context=8,
)


def make_params(config=CONFIG):
  """Parameters large enough that everything matters."""
  made = drawn.params(whisper.Network(config))
  sizes = made["encoder"]["positions"].shape
  made["encoder"]["positions"] = whisper.config.sinusoids(*sizes)
  return made


def make_model(config=CONFIG):
  """A model with the tokens that Whisper is told what to write by."""
  words = tokenizer.byte_level()
  for name in ("startoftranscript", "notimestamps", "fr"):
    words.backend.add_special_tokens([f"<|{name}|>"])
  return Model(config, make_params(config), words)


def make_tokens(*shape, seed=1):
  return np.random.default_rng(seed).integers(CONFIG.vocab_size, size=shape)


def make_source(batch, seed=2):
  shape = (batch, CONFIG.frames, CONFIG.mels)
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def write_wav(path, channels, *, width=2, rate=16_000):
  """Writes channels of floats as integers of `width` bytes."""
  scaled = np.round(np.stack(channels, 1).ravel() * 2 ** (8 * width - 1))
  numbers = scaled.astype(np.int64) + (128 if width == 1 else 0)
  content = b"".join(
    int(x).to_bytes(width, "little", signed=width > 1) for x in numbers
  )
  with wave.open(str(path), "wb") as file:
    file.setnchannels(len(channels))
    file.setsampwidth(width)
    file.setframerate(rate)
    file.writeframes(content)
  return path


def forward(config, params, tokens, source):
  """The logits [t, vocab] of one sequence, and the streams of both stacks."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  encoder, decoder = params["encoder"], params["decoder"]
  x = _gelu(_convolve(encoder["conv1"], source, 1))
  x = _gelu(_convolve(encoder["conv2"], x, 2))
  x = x + encoder["positions"]
  read = [x]
  for layer in _layers(encoder, config.encoder_layers):
    y = _norm(layer["attention_norm"], x)
    x = x + _attend(config, layer["attention"], y, y)
    x = x + _mlp(layer, x)
    read.append(x)
  memory = read[-1] = _norm(encoder["norm"], x)
  embedding = params["embed"]["embedding"]
  x = embedding[np.asarray(tokens)] + decoder["positions"][: len(tokens)]
  written = [x]
  for layer in _layers(decoder, config.decoder_layers):
    y = _norm(layer["attention_norm"], x)
    x = x + _attend(config, layer["attention"], y, y, causal=True)
    y = _norm(layer["cross_norm"], x)
    x = x + _attend(config, layer["cross_attention"], y, memory)
    x = x + _mlp(layer, x)
    written.append(x)
  x = written[-1] = _norm(decoder["norm"], x)
  return x @ embedding.T, np.stack(read), np.stack(written)


def _layers(stack, count):
  for i in range(count):
    yield jax.tree.map(lambda w: w[i], stack["layers"])  # noqa: B023


def _convolve(params, x, stride):
  """Three frames at a time, by hand, with a zero at either end."""
  zero = np.zeros((1, x.shape[1]))
  x = np.concatenate([zero, x, zero])
  return np.stack(
    [
      sum(x[t + k] @ params["weight"][..., k].T for k in range(3))
      + params["bias"]
      for t in range(0, len(x) - 2, stride)
    ]
  )


def _gelu(x):
  return x * np.vectorize(lambda z: (1 + math.erf(z / 2**0.5)) / 2)(x)


def _norm(params, x):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
  return x * params["scale"] + params["bias"]


def _mlp(layer, x):
  y = _norm(layer["mlp_norm"], x)
  up, down = layer["mlp"]["up"], layer["mlp"]["down"]
  return _gelu(y @ up["kernel"] + up["bias"]) @ down["kernel"] + down["bias"]


def _attend(config, params, x, memory, causal=False):
  query = x @ params["query"]["kernel"] + params["query"]["bias"]
  key = memory @ params["key"]["kernel"]
  value = memory @ params["value"]["kernel"] + params["value"]["bias"]
  d = config.dim // config.heads
  out = np.zeros_like(query)
  for first in range(0, config.dim, d):
    at = slice(first, first + d)
    for t in range(len(x)):
      end = t + 1 if causal else len(key)
      scores = np.exp(key[:end, at] @ query[t, at] / np.sqrt(d))
      out[t, at] = scores / scores.sum() @ value[:end, at]
  return out @ params["output"]["kernel"] + params["output"]["bias"]
