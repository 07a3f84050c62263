"""Language models of the LLaMA family, from tokens to float32 logits.

LLaMA 1 to 3, Mistral, Qwen2 and models distilled into them differ by their
`Config` alone. Kernels are [in, out], and those of all layers are stacked.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments import errors
from experiments.errors import UserError
from sparsejax import linear

_INIT = nn.initializers.normal(0.02)
# Those policies of JAX that are policies as they are, and need no arguments.
_POLICIES = (
  "dots_saveable",
  "dots_with_no_batch_dims_saveable",
  "everything_saveable",
  "nothing_saveable",
)


@dataclasses.dataclass(frozen=True)
class Config:
  """What one model of the family differs by from another.

  Attributes:
    vocab_size: how many tokens there are.
    dim: width of the residual stream.
    layers: how many blocks.
    heads: of the queries.
    kv_heads: of keys and values; a divisor of `heads`, whose queries share
      them in groups.
    head_dim: width of one head, even.
    hidden: units of the feed-forward layer.
    context: the most tokens of a sequence.
    rope_theta: base of the rotary embedding's wavelengths.
    norm_eps: what RMSNorm adds to the mean square.
    tied: the output layer is the embedding.
    qkv_bias: queries, keys and values have biases, as in Qwen2.
    window: how many tokens a query sees, the last of which is its own, as in
      Mistral; None for all.
    rope_scaling: LLaMA 3.1's (factor, low_freq_factor, high_freq_factor,
      original_context), or None; see `rope_frequencies`.

  Raises:
    UserError: a value is out of range, or does not fit another.
  """

  vocab_size: int
  dim: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  hidden: int
  context: int
  rope_theta: float
  norm_eps: float
  tied: bool
  qkv_bias: bool = False
  window: int | None = None
  rope_scaling: tuple[float, float, float, float] | None = None

  def __post_init__(self):
    for name, value in vars(self).items():
      if name in ("tied", "qkv_bias", "rope_scaling") or value is None:
        continue
      if not value > 0:
        raise UserError(f"llama: {name} must be positive, got {value!r}.")
    if self.heads % self.kv_heads:
      raise UserError(
        f"llama: heads must be a multiple of kv_heads, got {self.heads} and "
        f"{self.kv_heads}."
      )
    if self.head_dim % 2:
      raise UserError(
        "llama: head_dim must be even, since the rotary embedding turns pairs, "
        f"got {self.head_dim}."
      )
    scaling = self.rope_scaling
    if scaling is not None and not (
      isinstance(scaling, tuple)
      and len(scaling) == 4
      and min(scaling) > 0
      and scaling[1] < scaling[2]
    ):
      raise UserError(
        "llama: rope_scaling must be a tuple of four positive numbers, factor, "
        "low_freq_factor, a higher high_freq_factor and original_context, got "
        f"{scaling!r}."
      )


class Cache(NamedTuple):
  """Keys and values of the tokens so far; a token's slot is its position.

  Attributes:
    key: of shape [layers, batch, length, kv_heads, head_dim].
    value: of the same shape.
  """

  key: jax.Array
  value: jax.Array


def init_cache(
  config: Config,
  batch: int,
  length: int,
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> Cache:
  """Makes an empty cache, for `Llama.extend`.

  Args:
    config: the model's.
    batch: how many sequences.
    length: how many tokens of each it can hold.
    dtype: of the keys and values.

  Returns:
    The cache.

  Raises:
    UserError: length is beyond the model's context.
  """
  _check_length(config, length)
  shape = (config.layers, batch, length, config.kv_heads, config.head_dim)
  return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def check_tokens(config: Config, tokens: np.ndarray) -> None:
  """Refuses tokens that the model does not know, for which it gives NaN.

  Args:
    config: the model's.
    tokens: any number of them, on the host.

  Raises:
    UserError: one is outside 0 to vocab_size - 1.
  """
  low, high = np.min(tokens), np.max(tokens)
  if low < 0 or high >= config.vocab_size:
    raise UserError(
      f"llama: got tokens from {low} to {high}, wanted 0 to "
      f"{config.vocab_size - 1}; use the tokenizer that belongs to the model."
    )


def rope_frequencies(config: Config) -> np.ndarray:
  """The angles, in radians a position, by which RoPE turns the pairs of a head.

  Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding",
  arXiv 2104.09864, section 3.2.2. With `rope_scaling`, LLaMA 3.1's change of
  them for long contexts (meta-llama/llama-models, `apply_scaling`): those that
  turn fewer than low_freq_factor times in original_context positions become
  slower by `factor`, those that turn more than high_freq_factor times stay,
  and between the two the share of each is linear in the number of turns.

  Args:
    config: the model's.

  Returns:
    float64[head_dim / 2].
  """
  frequencies = config.rope_theta ** (
    -np.arange(0, config.head_dim, 2) / config.head_dim
  )
  if config.rope_scaling is None:
    return frequencies
  factor, low, high, original_context = config.rope_scaling
  turns = original_context * frequencies / (2 * np.pi)
  kept = np.clip((turns - low) / (high - low), 0, 1)
  return kept * frequencies + (1 - kept) * frequencies / factor


class Linear(nn.Module):
  """A product with a `kernel` [in, features], plus a `bias` if there is one.

  Instead of an array the kernel may be any node that `sparsejax.matmul` takes.

  Attributes:
    features: how many come out.
    use_bias: add a bias.
    dtype: in which to compute.
  """

  features: int
  use_bias: bool = False
  dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps x[..., in] to [..., features].

    Args:
      x: the input.

    Returns:
      The output, of the compute dtype.

    Raises:
      UserError: the kernel has another shape.
    """
    shape = (x.shape[-1], self.features)
    if self.has_variable("params", "kernel"):
      # Not by self.param, which holds a node's first leaf to be the kernel.
      kernel = self.get_variable("params", "kernel")
    else:
      kernel = self.param("kernel", _INIT, shape)
    if kernel.shape != shape:
      raise UserError(
        f"llama: the kernel of {'/'.join(self.path)} has shape {kernel.shape}, "
        f"wanted {shape}; these parameters belong to another config."
      )
    y = linear.matmul(x.astype(self.dtype), kernel)
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, shape[1:])
      y += bias.astype(y.dtype)
    return y


class Attention(nn.Module):
  """Causal self-attention with rotary positions and grouped queries.

  Layers: `query`, `key`, `value`, `output`.

  Attributes:
    config: the model's.
    dtype: in which to compute; the softmax is in float32.
  """

  config: Config
  dtype: jax.typing.DTypeLike = jnp.float32

  def setup(self):
    """Makes the layers."""
    c = self.config
    project = functools.partial(Linear, use_bias=c.qkv_bias, dtype=self.dtype)
    self.query = project(c.heads * c.head_dim)
    self.key = project(c.kv_heads * c.head_dim)
    self.value = project(c.kv_heads * c.head_dim)
    self.output = Linear(c.dim, dtype=self.dtype)

  def __call__(self, x: jax.Array, positions: jax.Array) -> jax.Array:
    """Attends within x[batch, t, dim], whose order is that of time."""
    query, key, value = self._project(x, positions)
    window = self.config.window
    y = jax.nn.dot_product_attention(
      query,
      key,
      value,
      is_causal=True,
      local_window_size=None if window is None else (window - 1, 0),
    )
    return self.output(y.reshape(*x.shape[:2], -1))

  def extend(
    self, x: jax.Array, positions: jax.Array, cache: Cache
  ) -> tuple[jax.Array, Cache]:
    """Puts x[batch, t, dim] into this layer's cache, and attends to that."""
    query, key, value = self._project(x, positions)
    rows = jnp.arange(len(x))[:, None]
    cache = Cache(
      cache.key.at[rows, positions].set(key.astype(cache.key.dtype)),
      cache.value.at[rows, positions].set(value.astype(cache.value.dtype)),
    )
    past = positions[:, :, None] - jnp.arange(cache.key.shape[1])
    seen = past >= 0
    if self.config.window is not None:
      seen &= past < self.config.window
    y = jax.nn.dot_product_attention(
      query,
      cache.key.astype(query.dtype),
      cache.value.astype(query.dtype),
      mask=seen[:, None],
    )
    return self.output(y.reshape(*x.shape[:2], -1)), cache

  def _project(self, x, positions):
    """The queries, keys and values [batch, t, heads, head_dim] of x."""
    c = self.config
    heads = (*x.shape[:2], -1, c.head_dim)
    angles = positions[..., None] * jnp.asarray(
      rope_frequencies(c), jnp.float32
    )
    query = _rotate(self.query(x).reshape(heads), angles)
    key = _rotate(self.key(x).reshape(heads), angles)
    return query, key, self.value(x).reshape(heads)


def _rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
  """Turns the pairs (i, i + d / 2) of x[b, t, heads, d] by angles[b, t, d / 2].

  In the layout of Hugging Face's models; Meta's own have pairs (2 i, 2 i + 1).
  """
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
  turned = [first * cos - second * sin, first * sin + second * cos]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class MLP(nn.Module):
  """The feed-forward layer `down`(silu(`gate`(x)) `up`(x)).

  Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202: SwiGLU.

  Attributes:
    config: the model's.
    dtype: in which to compute.
  """

  config: Config
  dtype: jax.typing.DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps x[..., dim] to [..., dim]."""
    gate = Linear(self.config.hidden, dtype=self.dtype, name="gate")(x)
    up = Linear(self.config.hidden, dtype=self.dtype, name="up")(x)
    down = Linear(self.config.dim, dtype=self.dtype, name="down")
    return down(nn.silu(gate) * up)


class Block(nn.Module):
  """One layer of the model, which also runs alone, on its own parameters.

      layer = jax.tree.map(lambda w: w[i], params["layers"])
      x = Block(config).apply({"params": layer}, x)

  Layers: `attention_norm`, `attention/{query, key, value, output}`,
  `mlp_norm`, `mlp/{gate, up, down}`.

  Attributes:
    config: the model's.
    dtype: in which to compute.
  """

  config: Config
  dtype: jax.typing.DTypeLike = jnp.float32

  def setup(self):
    """Makes the layers."""
    self.attention_norm = _norm(self)
    self.attention = Attention(self.config, self.dtype)
    self.mlp_norm = _norm(self)
    self.mlp = MLP(self.config, self.dtype)

  def __call__(
    self, x: jax.Array, positions: jax.Array | None = None
  ) -> jax.Array:
    """Maps the residual stream before the layer to that after it.

    Args:
      x: of shape [batch, t, dim].
      positions: int32[batch, t], by default 0, 1, ... in every row.

    Returns:
      Of shape [batch, t, dim].
    """
    if positions is None:
      positions = jnp.arange(x.shape[1])[None]
    x = x + self.attention(self.attention_norm(x), positions)
    return x + self.mlp(self.mlp_norm(x))

  def extend(
    self, x: jax.Array, positions: jax.Array, cache: Cache
  ) -> tuple[jax.Array, Cache]:
    """As `Llama.extend`, for this layer's x, with this layer's cache."""
    y, cache = self.attention.extend(self.attention_norm(x), positions, cache)
    x = x + y
    return x + self.mlp(self.mlp_norm(x)), cache


class Llama(nn.Module):
  """The model.

  Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", arXiv
  2302.13971; Grattafiori et al., "The Llama 3 Herd of Models", arXiv
  2407.21783; Jiang et al., "Mistral 7B", arXiv 2310.06825; Yang et al., "Qwen2
  Technical Report", arXiv 2407.10671.

  Beside `__call__` there are, for `model.apply(..., method=...)`, `with_hidden`
  for the residual stream between the layers, `extend` for tokens that follow
  those in a cache, and `embed` and `logits`, between which a caller may run the
  layers one by one; see `Block`.

  Layers: `embed`, `layers`, which are `Block`s stacked on a leading axis,
  `norm` and, unless tied, `head`. Parameters are float32 when made; given ones
  may have any float dtype.

  Attributes:
    config: which model.
    remat: what the backward pass computes anew instead of keeping it: "none",
      "full", which keeps only what enters each layer, or the name of one of
      `jax.checkpoint_policies` that takes no arguments.
    dtype: in which to compute; logits are float32, and so is what norms and
      softmax reduce.
  """

  config: Config
  remat: str = "none"
  dtype: jax.typing.DTypeLike = jnp.float32

  def setup(self):
    """Makes the layers."""
    c = self.config
    self.embedding = nn.Embed(
      c.vocab_size,
      c.dim,
      embedding_init=_INIT,
      dtype=self.dtype,
      name="embed",
    )
    self.layers = Block(c, self.dtype)
    self.norm = _norm(self)
    if not c.tied:
      self.head = Linear(c.vocab_size, dtype=self.dtype)

  def __call__(
    self, tokens: jax.Array, *, positions: jax.Array | None = None
  ) -> jax.Array:
    """Maps tokens to the logits of the tokens that follow them.

    Args:
      tokens: int32[batch, t].
      positions: int32[batch, t], by default 0, 1, ... in every row. They turn
        queries and keys; who sees whom goes by the order of the tokens.

    Returns:
      float32[batch, t, vocab_size].

    Raises:
      UserError: t is beyond the model's context, or `remat` is unknown.
    """

    def body(block, x, _):
      return block(x, positions), None

    x, _ = self._scan(body, self.embed(tokens))
    return self.logits(x)

  def with_hidden(
    self, tokens: jax.Array, *, positions: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """As `__call__`, with the residual stream around every layer.

    Args:
      tokens: int32[batch, t].
      positions: as in `__call__`.

    Returns:
      The logits; and the stream before the first layer and after each, the
      last one normed, of shape [layers + 1, batch, t, dim]: what transformers
      calls hidden states.

    Raises:
      UserError: as `__call__`.
    """

    def body(block, x, _):
      return block(x, positions), x

    x, before = self._scan(body, self.embed(tokens))
    x = self.norm(x)
    return self._unembed(x), jnp.concatenate([before, x[None]])

  def extend(
    self, tokens: jax.Array, *, positions: jax.Array, cache: Cache
  ) -> tuple[jax.Array, Cache]:
    """Runs tokens that follow those in a cache, and adds them to it.

    A token sees the slots of the cache up to its own position. So a padded
    batch of ragged sequences needs no mask: what was computed for padding on
    the right lies behind all that is seen, until it is overwritten. Tokens at
    positions beyond the cache's length are not stored.

    Args:
      tokens: int32[batch, t].
      positions: int32[batch, t].
      cache: from `init_cache`, or from the last call.

    Returns:
      The residual stream after the last layer, of shape [batch, t, dim], of
      which `logits` makes logits where they are needed; and the new cache.

    Raises:
      UserError: as `__call__`.
    """

    def body(block, x, cache):
      return block.extend(x, positions, cache)

    return self._scan(body, self.embed(tokens), cache)

  def embed(self, tokens: jax.Array) -> jax.Array:
    """Maps tokens int32[batch, t] to [batch, t, dim], what layer 0 takes.

    Args:
      tokens: from 0 to vocab_size - 1.

    Returns:
      Of the compute dtype.

    Raises:
      UserError: t is beyond the model's context.
    """
    _check_length(self.config, tokens.shape[1])
    return self.embedding(tokens)

  def logits(self, x: jax.Array) -> jax.Array:
    """Maps [..., dim] after the last layer to float32[..., vocab_size]."""
    return self._unembed(self.norm(x))

  def _unembed(self, x: jax.Array) -> jax.Array:
    y = self.embedding.attend(x) if self.config.tied else self.head(x)
    return y.astype(jnp.float32)

  def _scan(self, body: Callable[..., Any], x: jax.Array, xs: Any = None):
    """Runs body(block, x, xs of that layer) -> (x, ys) over the layers."""
    if self.remat != "none":
      # Inside a loop nothing outside can be merged with what is computed anew.
      body = nn.remat(body, policy=_policy(self.remat), prevent_cse=False)
    scan = nn.scan(
      body,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=self.config.layers,
    )
    return scan(self.layers, x, xs)


def _norm(module: nn.Module) -> nn.RMSNorm:
  return nn.RMSNorm(epsilon=module.config.norm_eps, dtype=module.dtype)


def _policy(remat: str) -> Callable[..., bool] | None:
  if remat == "full":
    return None
  if remat not in _POLICIES:
    raise errors.unknown("remat", remat, ("none", "full", *_POLICIES))
  return getattr(jax.checkpoint_policies, remat)


def _check_length(config: Config, length: int) -> None:
  if length > config.context:
    raise UserError(
      f"llama: got sequences of {length} tokens, wanted at most "
      f"{config.context}, the model's context; cut them, or choose a model "
      "whose context is longer."
    )
