"""Models of an encoder's blocks and a decoder's, to float32 logits."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.llm.families import cross, layers, protocol
from experiments.llm.families.cache import Cache
from experiments.llm.families.cross import CrossCache
from experiments.llm.families.protocol import check_length

# A stream x[batch, t, dim], and what the blocks take beside it, by name.
Entered = tuple[jax.Array, dict[str, Any]]


class Blocks(nn.Module):
  """A base class: blocks on a leading axis, `layers`, and the `norm` after.

  A family adds `parts`, and what makes the first x.

  Attributes:
    config: the model's.
    remat: what the backward pass recomputes; see `Family.Network`.
    dtype: in which to compute.
    parts: what the blocks are made of.
  """

  config: Any
  remat: str = "none"
  dtype: jax.typing.DTypeLike = jnp.float32
  parts: ClassVar[cross.Parts]

  def setup(self) -> None:
    """Makes the layers."""
    self.layers = self.block()
    self.norm = self.parts.norm(self)

  @nn.nowrap
  def depth(self) -> int:
    """Returns the number of blocks."""
    raise NotImplementedError

  @nn.nowrap
  def block(self) -> nn.Module:
    """Returns the module of one block, which runs alone."""
    raise NotImplementedError

  def __call__(self, x: jax.Array, **beside: Any) -> jax.Array:
    """Maps x before the first block to x after the last, not yet normed."""

    def body(block: nn.Module, x: jax.Array, _) -> tuple[jax.Array, None]:
      return block(x, **beside), None

    return self._scan(body, x)[0]

  def with_hidden(self, x: jax.Array, **beside: Any) -> jax.Array:
    """Maps x to [depth + 1, batch, t, dim]: before each block, and normed."""

    def body(block: nn.Module, x: jax.Array, _) -> tuple[jax.Array, jax.Array]:
      return block(x, **beside), x

    x, before = self._scan(body, x)
    return jnp.concatenate([before, self.norm(x)[None]])

  def _scan(
    self, body: Callable[..., Any], x: Any, xs: Any = None
  ) -> tuple[Any, Any]:
    """Runs body(block, x, xs of that layer) -> (x, ys) over the layers."""
    return layers.scan(self, body, x, xs, length=self.depth())


class Encoder(Blocks):
  """A base class: an encoder's blocks, which see the whole source."""

  @nn.nowrap
  def depth(self) -> int:
    """Returns the number of blocks."""
    return self.config.encoder_layers

  @nn.nowrap
  def block(self) -> cross.EncoderBlock:
    """Returns the module of one block, which runs alone."""
    return cross.EncoderBlock(self.parts, self.config, self.dtype)


class Decoder(Blocks):
  """A base class: a decoder's blocks, which see past tokens and the source."""

  @nn.nowrap
  def depth(self) -> int:
    """Returns the number of blocks."""
    return self.config.decoder_layers

  @nn.nowrap
  def block(self) -> cross.DecoderBlock:
    """Returns the module of one block, which runs alone."""
    return cross.DecoderBlock(self.parts, self.config, self.dtype)

  def extend(
    self, x: jax.Array, cache: Any, **beside: Any
  ) -> tuple[jax.Array, Any]:
    """Runs the blocks' `extend`, each with its layer of the cache."""

    def body(block: nn.Module, x: jax.Array, cache: Any) -> tuple[Any, Any]:
      return block.extend(x, cache, **beside)

    return self._scan(body, x, cache)

  def remember(self, memory: jax.Array) -> Cache:
    """Computes the keys and values of the source of every block, once."""

    def body(block: nn.Module, x: jax.Array, _) -> tuple[jax.Array, Cache]:
      return x, block.remember(x)

    found = self._scan(body, memory)[1]
    if isinstance(found, Cache):
      return found
    return jax.tree.map(lambda *parts: jnp.stack(parts), *found)


class EncoderDecoder(nn.Module):
  """What the networks of encoder-decoders have in common: a base class.

  A family adds `read`, `embed`, `blank` and the attributes of its class. A
  block of the encoder takes what `read` gives beside x, one of the decoder what
  `embed` gives; see `cross.EncoderBlock` and `cross.DecoderBlock`.

  Attributes:
    config: the model's, with what `Config` has and dim, encoder_layers,
      decoder_layers, heads, head_dim and decoder_start.
    remat: what the backward pass recomputes; see `Family.Network`.
    dtype: in which to compute; logits are float32, and so is what norms and
      softmax reduce.
    encoder_class: the family's `Encoder`.
    decoder_class: the family's `Decoder`.
    source_kind: what the encoder reads; see `protocol.EncoderDecoder`.
    embedding_init: what draws the first table of tokens.
  """

  config: Any
  remat: str = "none"
  dtype: jax.typing.DTypeLike = jnp.float32
  encoder_class: ClassVar[type[Encoder]]
  decoder_class: ClassVar[type[Decoder]]
  source_kind: ClassVar[str]
  embedding_init: ClassVar[nn.initializers.Initializer] = staticmethod(
    layers.INIT
  )

  def setup(self) -> None:
    """Makes the layers."""
    c = self.config
    self.embedding = layers.Embed(
      c.vocab_size,
      c.dim,
      embedding_init=self.embedding_init,
      dtype=self.dtype,
      name="embed",
    )
    self.encoder = self.encoder_blocks()
    self.decoder = self.decoder_blocks()

  def read(self, source: jax.Array, source_real: jax.Array | None) -> Entered:
    """Makes the encoder's first x of a source, and what its blocks need."""
    raise NotImplementedError

  def embed(
    self, tokens: jax.Array, *, positions: jax.Array, length: int
  ) -> Entered:
    """Makes the decoder's first x of tokens, and what its blocks need.

    Args:
      tokens: int32[batch, t].
      positions: int32[batch, t] or [1, t], of the tokens.
      length: the number of positions that they attend to, from 0 on.
    """
    raise NotImplementedError

  def logits(self, x: jax.Array) -> jax.Array:
    """Maps [..., dim] after the last block to float32[..., vocab_size]."""
    return self.unembed(self.decoder.norm(x))

  def unembed(self, x: jax.Array) -> jax.Array:
    """Maps normed [..., dim] to logits float32[..., vocab_size]."""
    return self.embedding.attend(x).astype(jnp.float32)

  @nn.nowrap
  def encoder_blocks(self) -> Encoder:
    """Returns the module `encoder`."""
    return self.encoder_class(self.config, self.remat, self.dtype)

  @nn.nowrap
  def decoder_blocks(self) -> Decoder:
    """Returns the module `decoder`."""
    return self.decoder_class(self.config, self.remat, self.dtype)

  def __call__(
    self,
    tokens: jax.Array,
    *,
    source: jax.Array,
    source_real: jax.Array | None = None,
    real: jax.Array | None = None,
  ) -> jax.Array:
    """Maps a source and tokens to the logits of the tokens that follow.

    Args:
      tokens: int32[batch, t], of which the first is `decoder_start`.
      source: what the family's encoder reads, [batch, ...].
      source_real: bool[batch, s], what of it is no padding; all if None.
      real: bool[batch, t], the tokens that are not padding on the right.

    Returns:
      float32[batch, t, vocab_size].

    Raises:
      UserError: a length is beyond the context, or `remat` is unknown.
    """
    x, beside = self.read(source, source_real)
    memory = self.encoder.norm(self.encoder(x, **beside))
    x, beside = self._enter(tokens, memory, source_real, real)
    return self.logits(self.decoder(x, **beside))

  def with_hidden(
    self,
    tokens: jax.Array,
    *,
    source: jax.Array,
    source_real: jax.Array | None = None,
    real: jax.Array | None = None,
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Maps to logits, and to the streams around every block of both stacks.

    Args:
      tokens: as in `__call__`.
      source: as in `__call__`.
      source_real: as in `__call__`.
      real: as in `__call__`.

    Returns:
      The logits; and of encoder and decoder the stream before the first block
      and after each, the last one normed: [encoder_layers + 1, batch, s, dim]
      and [decoder_layers + 1, batch, t, dim].

    Raises:
      UserError: as `__call__`.
    """
    x, beside = self.read(source, source_real)
    read = self.encoder.with_hidden(x, **beside)
    x, beside = self._enter(tokens, read[-1], source_real, real)
    written = self.decoder.with_hidden(x, **beside)
    return self.unembed(written[-1]), (read, written)

  def start(
    self,
    source: jax.Array,
    *,
    source_real: jax.Array | None = None,
    length: int,
    dtype: jax.typing.DTypeLike | None = None,
  ) -> CrossCache:
    """Runs the encoder, and makes a cache for `extend`.

    Args:
      source: as in `__call__`.
      source_real: as in `__call__`.
      length: the most tokens that each sequence can have.
      dtype: of the keys and values; by default the compute dtype.

    Returns:
      The cache.

    Raises:
      UserError: a length is beyond the context.
    """
    c, dtype = self.config, dtype or self.dtype
    check_length(c, length)
    x, beside = self.read(source, source_real)
    x = self.encoder.norm(self.encoder(x, **beside))
    memory = jax.tree.map(lambda x: x.astype(dtype), self.decoder.remember(x))
    shape = (c.decoder_layers, len(x) * c.heads, length, c.head_dim)
    past = Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
    if source_real is not None:
      every = (c.decoder_layers, *x.shape[:2])
      source_real = jnp.broadcast_to(source_real, every)
    return CrossCache(past, memory, source_real)

  def extend(
    self, tokens: jax.Array, *, positions: jax.Array, cache: CrossCache
  ) -> tuple[jax.Array, CrossCache]:
    """Runs tokens that follow those in a cache, and adds them to it.

    Args:
      tokens: int32[batch, t].
      positions: int32[batch, t]; a token sees the cache up to its own.
      cache: from `start`, or from the last call.

    Returns:
      The stream after the last block [batch, t, dim], from which `logits`
      computes logits where they are needed; and the new cache.

    Raises:
      UserError: t is beyond the context.
    """
    # A tuple of each layer's, if `layers.apart` took them apart.
    first = cache if isinstance(cache, CrossCache) else cache[0]
    x, beside = self.embed(
      tokens, positions=positions, length=first.past.length
    )
    return self.decoder.extend(x, cache, positions=positions, **beside)

  @nn.nowrap
  def stacks(self) -> tuple[protocol.Stack, protocol.Stack]:
    """Returns the encoder's blocks and the decoder's, as pruning walks them."""
    read, write = self.encoder_blocks(), self.decoder_blocks()
    name = protocol.LAYERS
    return (
      protocol.Stack(
        f"encoder/{name}", read.depth(), read.block(), _enter_encoder
      ),
      protocol.Stack(
        f"decoder/{name}", write.depth(), write.block(), _enter_decoder
      ),
    )

  def _enter(
    self,
    tokens: jax.Array,
    memory: jax.Array,
    source_real: jax.Array | None,
    real: jax.Array | None,
  ) -> Entered:
    """Makes the decoder's first x, and all that its blocks take beside it."""
    t = tokens.shape[1]
    x, beside = self.embed(tokens, positions=jnp.arange(t)[None], length=t)
    given = {"memory": memory, "source_real": source_real, "real": real}
    return x, {**beside, **given}


def _enter_encoder(
  network: EncoderDecoder, inputs: Mapping[str, jax.Array], before: None
) -> Entered:
  """Enters the first stack; see `protocol.Stack.enter`."""
  del before
  return network.read(inputs["source"], inputs.get("source_real"))


def _enter_decoder(
  network: EncoderDecoder, inputs: Mapping[str, jax.Array], before: jax.Array
) -> Entered:
  """Enters the second stack, after the last block of the encoder."""
  return network._enter(
    inputs["tokens"],
    network.encoder.norm(before),
    inputs.get("source_real"),
    inputs.get("real"),
  )
