"""One text, continued token by token as it is made, on a cache that stays.

`generate.greedy` is for batches of prompts, of which only the ends are wanted.
"""

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.llm.evaluate import generate
from experiments.llm.families import layers
from experiments.llm.families.protocol import EncoderDecoder, Network

# Tokens are read in pieces of these sizes, so that few programs are compiled.
_PIECES = (256, 64)
_LENGTH = 256  # the least length of a cache; longer ones are twice as long


class Sampling(NamedTuple):
  """How a token is chosen from the logits.

  Attributes:
    temperature: what logits are divided by; at 0 the most likely token is
      taken.
    top_p: the share of probability, after the temperature, of the likeliest
      tokens among which one is drawn: Holtzman et al., "The Curious Case of
      Neural Text Degeneration", arXiv 1904.09751, section 3.1.
    seed: of the draws; each depends on the seed and the position alone.
  """

  temperature: float = 0.0
  top_p: float = 1.0
  seed: int = 0


GREEDY = Sampling()


class Work(NamedTuple):
  """What one kind of work took.

  Attributes:
    tokens: how many.
    seconds: of the clock, without compiling.
  """

  tokens: int = 0
  seconds: float = 0.0

  @property
  def rate(self) -> float:
    """Tokens a second; NaN before there are any."""
    return self.tokens / self.seconds if self.tokens else float("nan")

  def plus(self, tokens: int, seconds: float) -> "Work":
    """Adds more of it."""
    return Work(self.tokens + tokens, self.seconds + seconds)


class Writer:
  """Continues texts of which each may begin as the last one did.

  A conversation grows at its end, so that a turn costs its own tokens only.

  Attributes:
    read: the work on texts that were given.
    written: the work on tokens that were made, each after the first of a text.
  """

  def __init__(
    self,
    network: Network | EncoderDecoder,
    params: Any,
    sampling: Sampling = GREEDY,
  ):
    """Makes one.

    Args:
      network: the model.
      params: its parameters, on the host or on a device.
      sampling: how tokens are chosen.
    """
    self.read = self.written = Work()
    self._network = network
    self._sampling = sampling
    # Views of arrays on the host: a stacked copy of them is not needed.
    params = layers.all_apart(jax.tree.map(np.asarray, params))
    params = layers.by_outputs(params)
    # Flattened once: to flatten hundreds of nodes takes longer than a token.
    leaves, self._treedef = jax.tree.flatten(params)
    self._leaves = jax.device_put(leaves)
    self._advance = jax.jit(
      functools.partial(_advance, network, sampling, self._treedef),
      donate_argnames="cache",
    )
    self._source: dict[str, Any] = {}
    self._length = 0
    self._cache: Any = ()
    self._known: list[int] = []  # the tokens that the cache holds
    self._compiled: set[int] = set()  # sizes of pieces

  def follow(self, source: Any, source_real: Any = None) -> None:
    """Sets the source that an encoder-decoder's texts follow from now on.

    Args:
      source: of one sequence, as `EncoderDecoder.start` takes it.
      source_real: of it.
    """
    self._source = {"source": source, "source_real": source_real}
    self._length = 0  # What the cache holds is of another source.

  def memory(self) -> dict[str, int]:
    """Counts the bytes of the weights and of the cache."""
    held = {"weights": self._leaves, "cache": self._cache}
    return {
      name: sum(x.nbytes for x in jax.tree.leaves(tree))
      for name, tree in held.items()
    }

  def write(
    self, text: Sequence[int], *, steps: int, stop: Sequence[int] = ()
  ) -> Iterator[int]:
    """Continues a text.

    Args:
      text: its tokens, at least one.
      steps: the most tokens to make.
      stop: the tokens each of which ends the continuation.

    Yields:
      Each token as it is made, without the `stop` that ends them.

    Raises:
      UserError: as `generate.greedy`.
    """
    generate.check(self._network.config, [text], steps)
    text = list(text)
    self._make_room(len(text) + steps)
    self._compile(text)
    began = time.perf_counter()
    fresh, made = self._read(text)
    token = made.item()
    now = time.perf_counter()
    self.read = self.read.plus(fresh, now - began)
    end = len(text)  # which grows, for the text is what the cache holds
    ahead = self._run(end, made) if steps > 1 else made
    for step in range(1, steps):
      if token in stop:
        return
      yield token
      self._known.append(token)
      # One step further is begun before this one's token is looked at: to start
      # a program of a thousand arrays takes a fifth of a token's time. After a
      # stop it was in vain, and what it wrote to the cache is overwritten.
      made = ahead
      if step + 1 < steps:
        ahead = self._run(end + step, made)
      token = made.item()
      began, now = now, time.perf_counter()
      self.written = self.written.plus(1, now - began)
      if token < 0:
        raise generate.not_finite()
    if token not in stop:
      yield token

  def _make_room(self, length: int) -> None:
    """Makes another cache if the text does not fit into this one."""
    if length <= self._length:
      return
    wanted = _LENGTH
    while wanted < length:
      wanted *= 2
    self._length = min(wanted, self._network.config.context)
    if self._source:
      params = jax.tree.unflatten(self._treedef, self._leaves)
      cache = _start(self._network, params, self._source, length=self._length)
    else:
      cache = self._network.init_cache(1, self._length)
    self._cache = layers.apart(cache)
    self._known, self._compiled = [], set()

  def _pieces(self, text: list[int]) -> Iterator[tuple[int, int]]:
    """Cuts what is new of a text into pieces (beginning, size)."""
    same = 0
    for one, other in zip(text, self._known, strict=False):
      if one != other:
        break
      same += 1
    at = min(same, len(text) - 1)  # the last token's logits are wanted
    while at < len(text):
      left = len(text) - at
      fits = (size for size in _PIECES if size <= left)
      # One token is as dear as a token that is made, sixty-four are not.
      size = 1 if left == 1 else min(next(fits, _PIECES[-1]), self._length)
      # At the end of the cache tokens that it holds are read once more.
      begin = min(at, self._length - size)
      yield begin, size
      at = begin + size

  def _compile(self, text: list[int]) -> None:
    """Compiles what a text needs, by running it on a cache of its own."""
    sizes = {1, *(size for _, size in self._pieces(text))} - self._compiled
    at = np.int32(0)
    for size in sizes:
      cache = jax.tree.map(jnp.zeros_like, self._cache)
      tokens = np.zeros((1, size), np.int32)
      jax.block_until_ready(self._advance(self._leaves, cache, tokens, at, at))
    self._compiled |= sizes

  def _read(self, text: list[int]) -> tuple[int, jax.Array]:
    """Reads what is new; returns how many tokens, and the one that follows."""
    pieces = list(self._pieces(text))
    for begin, size in pieces:
      tokens = np.zeros((1, size), np.int32)
      piece = text[begin : begin + size]
      tokens[0, : len(piece)] = piece
      made = self._run(begin, tokens, len(piece) - 1)
    self._known = text
    if made.item() < 0:
      raise generate.not_finite()
    return len(text) - pieces[0][0], made

  def _run(
    self,
    begin: int,
    tokens: jax.Array | np.ndarray,
    last: int = 0,
  ) -> jax.Array:
    made, self._cache = self._advance(
      *(self._leaves, self._cache, tokens, np.int32(begin), np.int32(last))
    )
    return made


@functools.partial(jax.jit, static_argnames=("network", "length"))
def _start(
  network: EncoderDecoder,
  params: Any,
  source: Mapping[str, jax.Array | None],
  *,
  length: int,
) -> Any:
  """Reads a source, and makes a cache of `length` tokens after it."""
  return network.apply(
    {"params": params}, **source, length=length, method="start"
  )


def _advance(
  network: Network,
  sampling: Sampling,
  treedef: Any,
  leaves: list[jax.Array],
  cache: Any,
  tokens: jax.Array,
  begin: jax.Array,
  last: jax.Array,
) -> tuple[jax.Array, Any]:
  """Reads tokens[1, t] from position `begin` on, and chooses the next.

  Returns:
    int32[1, 1], the token after that at index `last`, -1 if a logit is not
    finite; and the cache.
  """
  params = jax.tree.unflatten(treedef, leaves)
  run = functools.partial(network.apply, {"params": params})
  positions = begin + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
  x, cache = run(tokens, positions=positions, cache=cache, method="extend")
  x = jax.lax.dynamic_slice_in_dim(x, last, 1, axis=1)
  logits = run(x, method="logits")[0, 0]
  finite = jnp.all(jnp.isfinite(logits))
  token = _choose(logits, sampling, begin + last)
  return jnp.where(finite, token, -1).astype(jnp.int32)[None, None], cache


def _choose(
  logits: jax.Array, sampling: Sampling, position: jax.Array
) -> jax.Array:
  """Chooses a token by its logits float32[vocab_size]."""
  if not sampling.temperature:
    # jnp.argmax, by two reductions that XLA makes vectors of: a quarter of its
    # time. Of equal logits the lowest token wins, here too.
    at = jnp.arange(len(logits))
    return jnp.min(jnp.where(logits == jnp.max(logits), at, len(logits)))
  key = jax.random.fold_in(jax.random.key(sampling.seed), position)
  scaled = logits / sampling.temperature
  order = jnp.argsort(scaled, descending=True)
  shares = jax.nn.softmax(scaled[order])
  # A token stays if those before it have less than the share.
  kept = jnp.cumsum(shares) - shares < sampling.top_p
  drawn = jax.random.categorical(key, jnp.where(kept, scaled[order], -jnp.inf))
  return order[drawn]
