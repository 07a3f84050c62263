"""Models of many kinds, to shrink: each a function, random params, inputs."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from experiments.models.resnet import cifar_resnet

T, E, H, D, F, V = 6, 16, 4, 4, 24, 11  # a decoder's sizes


def randomized(tree, seed=0):
  """Random arrays in place of all leaves; variances are positive."""
  rng = np.random.default_rng(seed)

  def leaf(path, x):
    if not jnp.issubdtype(x.dtype, jnp.floating):
      return x
    scale = 0.3 if len(x.shape) < 2 else math.prod(x.shape[:-1]) ** -0.5
    drawn = rng.normal(size=x.shape) * scale
    if "var" in jax.tree_util.keystr(path):
      drawn = np.abs(drawn) + 0.5
    return jnp.asarray(drawn, x.dtype)

  return jax.tree_util.tree_map_with_path(leaf, tree)


def images(*shape, seed=1):
  return np.float32(np.random.default_rng(seed).normal(size=shape))


def linen(module, x, *args, **kwargs):
  """A Linen module's function; all its collections are params."""
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, *args))
  apply = functools.partial(_apply, module, args, kwargs)
  return apply, randomized(shapes), (x,)


def _apply(module, args, kwargs, variables, x):
  out = module.apply(variables, x, *args, **kwargs)
  return out


class Mlp(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.gelu(nn.Dense(24)(x))
    return nn.Dense(5)(nn.tanh(nn.Dense(16)(x)))


class LeNet(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.max_pool(nn.relu(nn.Conv(6, (5, 5))(x)), (2, 2), (2, 2))
    x = nn.avg_pool(nn.relu(nn.Conv(8, (5, 5), padding="VALID")(x)), (2, 2))
    x = x.reshape(x.shape[0], -1)
    return nn.Dense(10)(nn.relu(nn.Dense(20)(nn.relu(nn.Dense(32)(x)))))


class Depthwise(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu6(nn.BatchNorm(True)(nn.Conv(8, (3, 3))(x)))
    for features in (8, 12):
      y = nn.Conv(2 * x.shape[-1], (1, 1), use_bias=False)(x)
      y = nn.relu6(nn.BatchNorm(True)(y))
      n = y.shape[-1]
      y = nn.Conv(n, (3, 3), feature_group_count=n, use_bias=False)(y)
      y = nn.relu6(nn.BatchNorm(True)(y))
      y = nn.BatchNorm(True)(nn.Conv(features, (1, 1))(y))
      x = x + y if x.shape == y.shape else y
    return nn.Dense(5)(x.mean((1, 2)))


class Grouped(nn.Module):
  @nn.compact
  def __call__(self, x):
    a, b = nn.Conv(8, (3, 3))(x), nn.Conv(8, (1, 1))(x)
    x = nn.relu(nn.GroupNorm(8)(jnp.concatenate([a, b], -1)))
    x = nn.relu(nn.Conv(16, (3, 3), feature_group_count=4)(x))
    x = nn.Conv(8, (3, 3), strides=2)(x)
    return nn.Dense(5)(nn.silu(x).mean((1, 2)))


class SqueezeExcite(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(12, (3, 3))(x))
    gate = nn.sigmoid(nn.Dense(12)(nn.relu(nn.Dense(6)(x.mean((1, 2))))))
    x = x * gate[:, None, None]
    return nn.ConvTranspose(3, (3, 3), strides=(2, 2))(
      nn.relu(nn.ConvTranspose(8, (3, 3))(x))
    )


class Vit(nn.Module):
  dropout: bool = False

  @nn.compact
  def __call__(self, x, key=None):
    x = nn.Conv(E, (4, 4), strides=(4, 4))(x)
    x = x.reshape(x.shape[0], -1, E)
    x = x + self.param("position", nn.initializers.ones, (1, x.shape[1], E))
    for _ in range(2):
      y = nn.LayerNorm()(x)
      x = x + nn.MultiHeadDotProductAttention(H, qkv_features=E)(y, y)
      y = nn.gelu(nn.Dense(F)(nn.LayerNorm()(x)))
      if self.dropout:
        y = nn.Dropout(0.5, deterministic=False)(y, rng=key)
      x = x + nn.Dense(E)(y)
    return nn.Dense(5)(nn.LayerNorm()(x).mean(1))


class Recurrent(nn.Module):
  cell: str

  @nn.compact
  def __call__(self, x):
    cell = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}[self.cell]
    return nn.Dense(3)(nn.RNN(cell(16))(x))


def vit(dropout):
  module, x = Vit(dropout), images(2, 8, 8, 3)
  key = jax.random.key(3)
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, key))
  return module.apply, randomized(shapes), (x, key)


def resnet(shortcut="B", train=False, width=8, depth=8):
  module = cifar_resnet(10, depth=depth, width=width, shortcut=shortcut)
  apply, variables, inputs = linen(module, images(2, 8, 8, 3), False)
  if train:

    def apply(variables, x):
      return module.apply(variables, x, True, mutable=["batch_stats"])

  return apply, variables, inputs


# Decoders, as functions.


def rms_norm(scale, x):
  mean = jnp.mean(x * x, -1, keepdims=True)
  return x * jax.lax.rsqrt(mean + 1e-6) * scale


def layer_norm(scale, x):
  """E[x^2] - E[x]^2, as Flax does it: exact."""
  mean = jnp.mean(x, -1, keepdims=True)
  var = jnp.mean(x * x, -1, keepdims=True) - mean**2
  return (x - mean) * jax.lax.rsqrt(var + 1e-6) * scale


def rope(x):
  """Rotates pairs of halves: x[B, T, H, D]."""
  half = x.shape[-1] // 2
  angle = jnp.arange(x.shape[1])[:, None] / 10 ** jnp.arange(half)
  sin, cos = jnp.sin(angle)[:, None], jnp.cos(angle)[:, None]
  a, b = jnp.split(x, 2, -1)
  return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def projections(p, x, kind):
  """Queries, keys and values [B, T, H, D] of an attention."""
  b, t, _ = x.shape
  if kind == "general":
    q, k, v = (jnp.einsum("bte,ehd->bthd", x, p[n]) for n in "qkv")
  elif kind == "h3d":
    q, k, v = jnp.moveaxis((x @ p["qkv"]).reshape(b, t, H, 3, D), 3, 0)
  elif kind == "3hd":
    q, k, v = jnp.moveaxis((x @ p["qkv"]).reshape(b, t, 3, H, D), 2, 0)
  else:
    q, k, v = ((x @ p[n]).reshape(b, t, -1, D) for n in "qkv")
  return rope(q), rope(k), v


def attention(p, x, kind):
  b, t, _ = x.shape
  q, k, v = projections(p, x, kind)
  causal = jnp.tril(jnp.ones((t, t), bool))
  if kind == "gqa_einsum":
    q = q.reshape(b, t, k.shape[2], -1, D)
    s = jnp.einsum("btkgd,bskd->bkgts", q, k) / D**0.5
    w = jax.nn.softmax(jnp.where(causal, s, -1e9))
    out = jnp.einsum("bkgts,bskd->btkgd", w, v)
    return out.reshape(b, t, -1) @ p["o"]
  if kind == "gqa_repeat":
    k, v = (jnp.repeat(y, H // y.shape[2], axis=2) for y in (k, v))
  s = jnp.einsum("bthd,bshd->bhts", q, k) / D**0.5
  w = jax.nn.softmax(jnp.where(causal, s, -1e9))
  out = jnp.einsum("bhts,bshd->bthd", w, v)
  if kind == "general":
    return jnp.einsum("bthd,hde->bte", out, p["o"])
  return out.reshape(b, t, -1) @ p["o"]


def block(p, x, kind, norm):
  x = x + attention(p, norm(p["norm1"], x), kind)
  y = norm(p["norm2"], x)
  return x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]


def block_shapes(kind):
  kv = H // 2 if kind.startswith("gqa") else H
  shapes = {"q": (E, H * D), "k": (E, kv * D), "v": (E, kv * D)}
  if kind == "general":
    shapes = dict.fromkeys("qkv", (E, H, D))
  elif kind in ("h3d", "3hd"):
    shapes = {"qkv": (E, 3 * H * D)}
  return {
    **shapes,
    "o": (H, D, E) if kind == "general" else (H * D, E),
    "norm1": (E,),
    "norm2": (E,),
    "gate": (E, F),
    "up": (E, F),
    "down": (F, E),
  }


def arrays(shapes, lead=()):
  return jax.tree.map(
    lambda s: jax.ShapeDtypeStruct((*lead, *s), jnp.float32),
    shapes,
    is_leaf=lambda s: isinstance(s, tuple),
  )


def decoder(kind="plain", norm=rms_norm, tied=False):
  shapes = {
    "embed": (V, E),
    "blocks": [block_shapes(kind)] * 2,
    "norm": (E,),
    "head": (E, V),
  }
  if tied:
    del shapes["head"]

  def apply(p, tokens):
    x = p["embed"][tokens]
    for each in p["blocks"]:
      x = block(each, x, kind, norm)
    return norm(p["norm"], x) @ (p["embed"].T if tied else p["head"])

  tokens = np.arange(2 * T).reshape(2, T) % V
  return apply, randomized(arrays(shapes)), (tokens,)


def scanned(kind="plain"):
  params = {
    "embed": arrays((V, E)),
    "blocks": arrays(block_shapes(kind), (3,)),
    "head": arrays((E, V)),
  }

  def apply(p, tokens):
    step = jax.checkpoint(lambda x, b: (block(b, x, kind, rms_norm), None))
    x, _ = jax.lax.scan(step, p["embed"][tokens], p["blocks"])
    return x @ p["head"]

  tokens = np.arange(2 * T).reshape(2, T) % V
  return apply, randomized(params), (tokens,)


class NnxCnn(nnx.Module):
  def __init__(self, rngs):
    self.conv1 = nnx.Conv(3, 8, (3, 3), rngs=rngs)
    self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
    self.conv2 = nnx.Conv(8, 12, (3, 3), rngs=rngs)
    self.head = nnx.Linear(12, 5, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.norm(self.conv1(x)))
    return self.head(nnx.relu(self.conv2(x)).mean((1, 2)))


def nnx_cnn():
  graph, state = nnx.split(NnxCnn(nnx.Rngs(0)))
  apply = lambda state, x: nnx.merge(graph, state)(x)  # noqa: E731
  return apply, randomized(state), (images(2, 8, 8, 3),)


def equinox(module, x):
  params, static = eqx.partition(module, eqx.is_inexact_array)

  def apply(params, x):
    return jax.vmap(eqx.combine(params, static))(x)

  return apply, randomized(params), (x,)


class EqxAttention(eqx.Module):
  conv: eqx.nn.Conv1d
  norm: eqx.nn.LayerNorm
  attention: eqx.nn.MultiheadAttention
  head: eqx.nn.Linear

  def __init__(self, key):
    a, b, c = jax.random.split(key, 3)
    self.conv = eqx.nn.Conv1d(3, 8, 1, key=a)
    self.norm = eqx.nn.LayerNorm(8)
    self.attention = eqx.nn.MultiheadAttention(4, 8, key=b)
    self.head = eqx.nn.Linear(8, 5, key=c)

  def __call__(self, x):
    x = jax.vmap(self.norm)(self.conv(x).T)
    return self.head(self.attention(x, x, x).mean(0))


MODELS = {
  "mlp": lambda: linen(Mlp(), images(2, 7)),
  "lenet": lambda: linen(LeNet(), images(2, 12, 12, 1)),
  "resnet": resnet,
  "resnet, training": lambda: resnet(train=True),
  "resnet, padded shortcut": lambda: resnet("A"),
  "depthwise": lambda: linen(Depthwise(), images(2, 8, 8, 3)),
  "concat, groups": lambda: linen(Grouped(), images(2, 8, 8, 3)),
  "squeeze and excite": lambda: linen(SqueezeExcite(), images(2, 6, 6, 3)),
  "decoder": decoder,
  "decoder, layer norm": lambda: decoder(norm=layer_norm),
  "decoder, qkv in heads": lambda: decoder("h3d"),
  "decoder, heads in qkv": lambda: decoder("3hd"),
  "decoder, gqa by repeat": lambda: decoder("gqa_repeat"),
  "decoder, gqa by einsum": lambda: decoder("gqa_einsum"),
  "decoder, head axes": lambda: decoder("general"),
  "decoder, tied": lambda: decoder(tied=True),
  "decoder, scanned": scanned,
  "decoder, scanned, gqa": lambda: scanned("gqa_repeat"),
  "vit": lambda: vit(False),
  "vit, dropout": lambda: vit(True),
  "nnx cnn": nnx_cnn,
  "equinox mlp": lambda: equinox(
    eqx.nn.MLP(4, 3, 16, 2, key=jax.random.key(0)), images(2, 4)
  ),
  "equinox attention": lambda: equinox(
    EqxAttention(jax.random.key(0)), images(2, 3, 6)
  ),
  "lstm": lambda: linen(Recurrent("lstm"), images(2, 5, 4)),
  "gru": lambda: linen(Recurrent("gru"), images(2, 5, 4)),
}
