"""Reads roles off key paths and shapes.

What is not certain is read as [..., in, out], and the role says so.
"""

import functools
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.masks import PyTree, is_hole, path_name
from sparsejax.roles.base import Role

# Names in words, `LayerNorm_0` as layer_norm_0. Of leaves:
_WEIGHT = re.compile(r"^(kernel|weights?|w)(_|\d|$)")
_SHORT_WEIGHT = re.compile(r"^w[a-z]$")  # wq, wo
_BIAS = re.compile(r"(^|_)bias(es)?(_|\d|$)|^offset$")
_SHORT_BIAS = re.compile(r"^b_?\d*$")
_SCALE = re.compile(r"(^|_)(scale|gamma|beta)(_?\d+)?$|^ls_?\d*$")
_STATISTIC = re.compile(r"^((running|moving|ema)_)?(mean|var|std|variance)$")
_STATE_SPACE = re.compile(
  r"^a_log$"
)  # of state-space models, [channels, states]
# Of leaves and of the modules around them:
_EMBEDDING = re.compile(
  r"(?<!un)embed|(^|_)(wte|wpe|emb|pe|pos|codebook)(_\d+)?$"
  r"|(^|_)pos(ition(al)?)?_?(emb|enc)|^position(s|al)?$|^relative_position"
  r"|^cls$|^latents?$|(^|_)(cls|class|mask|register|dist|distillation|prefix|prompt|sep)"
  r"_?tokens?$"
)
_NORM = re.compile(r"norm(_?\d+)?$|(^|_)(ln|bn|gn)(_|\d|$)|layer_norm|rms_norm")
_CONVOLUTION = re.compile(r"conv")
_LINEAR = re.compile(r"^(linear|dense|conv)")
_TO_HEADS = re.compile(
  r"^(to_|w_?|c_)?(q|k|v|qkv|kv|query|key|value)(_proj)?(_?\d+)?$"
)
# Of what stacks its layers in one array:
_STACK = re.compile(
  r"(^|_)(layers|blocks|stack|stacked|experts|ensemble)$|layer_stack"
)
_TRANSFORMS = re.compile(r"^((?:scan|vmap|checkpoint|remat)_?)+")
_LARGEST_KERNEL = 16  # along one axis; more are hardly places


class Leaf(NamedTuple):
  """A leaf and where it is.

  Attributes:
    path: Its key path, as `masks.path_name` gives it.
    names: The names of that path.
    types: For each name that is an attribute's, the name of the type that has
      it, such as Linear, and None for others; may be empty.
    array: The leaf.
  """

  path: str
  names: tuple[str, ...]
  types: tuple[str | None, ...]
  array: Any

  @property
  def shape(self) -> tuple[int, ...]:
    """The leaf's shape."""
    return tuple(np.shape(self.array))

  @property
  def floating(self) -> bool:
    """Whether the leaf holds floats."""
    return jnp.issubdtype(jnp.result_type(self.array), jnp.floating)

  @property
  def unknown(self) -> bool:
    """Whether it is the mask True, which does not tell its leaf's shape."""
    return not self.shape and jnp.result_type(self.array) == jnp.bool_

  @property
  def name(self) -> str:
    """The last name, in words."""
    return _words(self.names[-1]) if self.names else ""

  @property
  def module(self) -> tuple[str, ...]:
    """The names of what holds the leaf."""
    return self.names[:-1]

  @property
  def is_called_weight(self) -> bool:
    """Whether it has one of the names that weights have."""
    return bool(_WEIGHT.search(self.name) or _SHORT_WEIGHT.search(self.name))

  @property
  def is_convolution(self) -> bool:
    """Whether it is called so, or what holds it."""
    return any(map(_CONVOLUTION.search, (self.name, *self.holders)))

  @property
  def holders(self) -> list[str]:
    """What holds the leaf is called, and is of type, in words."""
    found = [self.names[-2]] if len(self.names) > 1 else []
    found += [self.types[-1]] if self.types and self.types[-1] else []
    return [_words(name) for name in found]


def leaves_of(params: PyTree) -> list[Leaf]:
  """Lists the leaves of a tree, without its holes."""
  leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_hole)
  found = []
  for path, x in leaves:
    if is_hole(x):
      continue
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
      path = path[:-1]  # in which a variable of Flax NNX holds its array
    names, types, node = [], [], params
    for key in path:
      attribute = isinstance(key, jax.tree_util.GetAttrKey)
      names.append(jax.tree_util.keystr((key,), simple=True))
      types.append(type(node).__name__ if attribute else None)
      node = _child(node, key)
    found.append(Leaf(path_name(path), tuple(names), tuple(types), x))
  return found


def _child(node, key):
  """Follows a key; None where that cannot be done."""
  try:
    match key:
      case jax.tree_util.GetAttrKey():
        return getattr(node, key.name)
      case jax.tree_util.DictKey():
        return node[key.key]
      case jax.tree_util.SequenceKey():
        return node[key.idx]
  except (AttributeError, KeyError, IndexError, TypeError):
    pass
  return None


@functools.cache
def _words(name: str) -> str:
  return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


class _Fit(NamedTuple):
  """A reading of a weight by which the bias beside it fits.

  Attributes:
    stacked: How many of the first axes are stacked.
    outputs: How many axes outputs have.
    outputs_first: Whether they come first, as in Equinox and PyTorch.
  """

  stacked: int
  outputs: int
  outputs_first: bool


def read(leaves: Sequence[Leaf]) -> dict[str, Role]:
  """Reads the roles of all leaves of a tree, by key path."""
  tree = _Tree(leaves)
  return {leaf.path: tree.role(leaf) for leaf in leaves}


class _Tree:
  """The leaves of a tree, what each is, and how they go together."""

  def __init__(self, leaves):
    self.subtrees, self.modules = defaultdict(list), defaultdict(dict)
    for leaf in leaves:
      self.modules[leaf.module][leaf.names[-1] if leaf.names else ""] = leaf
      for depth in range(len(leaf.names)):
        self.subtrees[leaf.names[:depth]].append(leaf)
    self.fits = {leaf.path: self._fits(leaf) for leaf in leaves}
    self.biases = {b: w for w, (b, found) in self.fits.items() if found}
    self.kinds = {leaf.path: self._kind(leaf) for leaf in leaves}
    self.shared, self.told = {}, {}
    self.by_path = {leaf.path: leaf for leaf in leaves}

  def role(self, leaf: Leaf) -> Role:
    """Reads the role of one leaf."""
    kind, ndim = self.kinds[leaf.path], len(leaf.shape)
    if kind != "weight":
      partner = self.by_path[self.biases.get(leaf.path, leaf.path)]
      stacked = tuple(range(min(self._stacked(partner)[0], ndim)))
      return Role(kind, stacked, spatial=tuple(range(len(stacked), ndim)))
    stacked, doubt = self._stacked(leaf)
    own = list(range(stacked, ndim))
    if len(own) < 2:
      return Role("other", tuple(range(stacked)), outputs=tuple(own))
    inputs, outputs, more = self._features(leaf, own)
    spatial = tuple(a for a in own if a not in (*inputs, *outputs))
    return Role(
      kind, tuple(range(stacked)), inputs, outputs, spatial, doubt or more
    )

  def _fits(self, leaf) -> tuple[str, list[_Fit]]:
    """Finds the bias beside a weight, and how the two go together."""
    beside = self.modules[leaf.module]
    names = []
    if leaf.is_called_weight:
      own = leaf.names[-1]
      names = [
        re.sub("^(kernel|weights?)", "bias", own),
        re.sub("^[wW]", "b", own),
        "bias",
        "b",
      ]
    elif leaf.names and leaf.names[-1] == "0" and len(beside) == 2:  # (w, b)
      names = ["1"]
    for name in names:
      bias = beside.get(name)
      if bias is not None and bias is not leaf and not bias.unknown:
        return bias.path, _fitting(leaf, bias.shape)
    return "", []

  def _kind(self, leaf) -> str:
    name, holders = leaf.name, leaf.holders
    in_norm = any(map(_NORM.search, holders))
    if "batch_stats" in leaf.names or (in_norm and _STATISTIC.search(name)):
      return "other"
    if _STATE_SPACE.search(name):
      return "other"
    if _BIAS.search(name) and not _EMBEDDING.search(name):
      return "bias"
    if leaf.path in self.biases:  # called b, or the second of a pair
      return "bias"
    if _SHORT_BIAS.search(name) and len(leaf.shape) < 2:
      return "bias"
    if _SCALE.search(name):
      return "norm"
    has_bias = bool(self.fits[leaf.path][1])
    if name.startswith("kernel") or has_bias or self._is_linear(leaf):
      return "weight"
    if in_norm:
      return "norm"
    if _EMBEDDING.search(name) or any(map(_EMBEDDING.search, holders)):
      return "weight" if "patch" in "".join(holders) else "embedding"
    return "weight"

  def _is_linear(self, leaf) -> bool:
    return bool(leaf.types and _LINEAR.search(_words(leaf.types[-1] or "")))

  def _stacked(self, leaf) -> tuple[int, str]:
    """Counts the axes along which layers are stacked; and doubts."""
    hinted = self._hinted(leaf) or self._as_neighbours(leaf)
    found = {fit.stacked for fit in self.fits[leaf.path][1]}
    if not found:
      return hinted, ""
    if hinted in found:
      return hinted, ""
    stacked, *others = sorted(found)
    doubt = ""
    if others:
      doubt = f"the first {others[0]} may as well stack layers"
    return stacked, doubt

  def _hinted(self, leaf) -> int:
    """Counts stacked axes by the names of what holds a leaf."""
    counts = [0]
    for name, after in zip(leaf.names, (*leaf.names[1:], ""), strict=False):
      counts.append(counts[-1] + _axes_by_name(name, after))
    for stacked in range(counts[-1], 0, -1):
      depth = next(i for i, n in enumerate(counts) if n >= stacked)
      around = leaf.names[: min(depth, len(leaf.names) - 1)]
      if depth == len(leaf.names):  # by the leaf's own name
        fits = len(leaf.shape) >= stacked + 2 and self._can_be(stacked, leaf)
      else:
        fits = self._share(stacked, around)
      if fits:
        return stacked
    return 0

  def _as_neighbours(self, leaf) -> int:
    """Counts stacked axes by leaves that tell, under one roof with this one."""
    roofs = (leaf.names[:depth] for depth in range(len(leaf.names)))
    return next(filter(None, map(self._told, roofs)), 0)

  def _told(self, around) -> int:
    """Counts the axes that some leaf of a subtree says are stacked in all."""
    if around not in self.told:
      leaves = self.subtrees[around]
      known = any(self.kinds[x.path] == "weight" for x in leaves)
      self.told[around] = next(
        (
          stacked
          for stacked in (2, 1)
          if known
          and any(self._tells(stacked, x) for x in leaves)
          and self._share(stacked, around)
        ),
        0,
      )
    return self.told[around]

  def _share(self, stacked, around) -> bool:
    """Returns whether all leaves of a subtree can be stacks of one length."""
    key = stacked, around
    if key not in self.shared:
      leaves = [x for x in self.subtrees[around] if not x.unknown]
      lengths = {x.shape[:stacked] for x in leaves}
      self.shared[key] = (
        len(lengths) == 1
        and all(self._can_be(stacked, x) for x in leaves)
        and any(len(x.shape) >= stacked + 2 for x in leaves)
      )
    return self.shared[key]

  def _can_be(self, stacked, leaf) -> bool:
    """Returns whether a leaf can be a stack of that many axes."""
    least = {"weight": 2, "bias": 1, "norm": 1}.get(self.kinds[leaf.path], 0)
    if not leaf.is_called_weight:
      least = min(least, 1)
    if leaf.is_convolution and least == 2:
      least = 3
    bias, found = self.fits[leaf.path]
    return len(leaf.shape) >= stacked + least and (
      not bias or any(fit.stacked == stacked for fit in found)
    )

  def _tells(self, stacked, leaf) -> bool:
    """Returns whether nothing but a stack of that many axes explains it."""
    found = self.fits[leaf.path][1]
    if found:
      return all(fit.stacked == stacked for fit in found)
    return self.kinds[leaf.path] == "norm" and len(leaf.shape) == stacked + 1

  def _features(self, leaf, own):
    """Finds a weight's inputs and outputs among its own axes; and doubts."""
    stacked = own[0]
    first = _has_outputs_first(leaf)
    fits = [f for f in self.fits[leaf.path][1] if f.stacked == stacked]
    fits.sort(key=lambda fit: fit.outputs_first != first)
    if (fits and fits[0].outputs_first) or (not fits and first):
      return (own[1],), (own[0],), ""
    name = _words(leaf.names[-1]) if leaf.names else ""
    if _WEIGHT.search(name):
      name = "".join(leaf.holders[:1])
    if fits and fits[0].outputs > 1:
      split = len(own) - fits[0].outputs
      return tuple(own[:split]), tuple(own[split:]), ""
    if len(own) > 2 and not fits and _TO_HEADS.search(name):
      return (own[0],), tuple(own[1:]), ""
    if len(own) > 2 and self._behind_attention(leaf):
      return tuple(own[:-1]), (own[-1],), ""
    places = [leaf.shape[a] for a in own[:-2]]
    known = fits or stacked or leaf.is_convolution
    square = len(places) > 1 and len(set(places)) == 1
    sure = known or not places or (square and places[0] <= _LARGEST_KERNEL)
    doubt = "" if sure else "its first axes may as well stack layers"
    return (own[-2],), (own[-1],), doubt

  def _behind_attention(self, leaf) -> bool:
    """Returns whether a weight [heads, size, out] follows queries beside it."""
    if _WEIGHT.search(leaf.name):
      around, depth = leaf.names[:-2], len(leaf.names) - 2
    else:
      around, depth = leaf.names[:-1], len(leaf.names) - 1
    return any(
      len(x.names) > depth
      and _TO_HEADS.search(_words(x.names[depth]))
      and x.shape[-2:] == leaf.shape[-3:-1]
      for x in self.subtrees[around]
    )


def _has_outputs_first(leaf) -> bool:
  """Returns whether a leaf is named as those of Equinox are, [out, in, ...]."""
  attribute = bool(leaf.types and leaf.types[-1])
  return attribute and leaf.name.startswith("weight")


def _fitting(leaf, bias) -> list[_Fit]:
  """Lists the readings of a weight by which a bias of that shape fits."""
  weight, found = leaf.shape, []
  for stacked in range(len(weight) - 1):
    own, axes = weight[stacked:], bias[stacked:]
    if bias[:stacked] != weight[:stacked] or not axes:
      continue
    if len(axes) < len(own) and own[len(own) - len(axes) :] == axes:
      found.append(_Fit(stacked, len(axes), False))
    ones = (1,) * (len(axes) - 1)
    known = leaf.name.startswith("weight") and len(axes) in (1, len(own) - 1)
    if known and axes == (own[0], *ones):
      found.append(_Fit(stacked, 1, True))
  if len(bias) == len(weight) == 2 and bias == (1, weight[1]):
    found.append(_Fit(0, 1, False))  # a row, kept so to be added to a batch
  return found


def _axes_by_name(name: str, after: str) -> int:
  """Counts the axes that what is called so stacks, by its name."""
  words = _words(name)
  if after.isdigit():  # layers/0: a list of layers, each in arrays of its own
    return 0
  transforms = _TRANSFORMS.match(words)
  if transforms:
    return len(re.findall("scan|vmap", transforms[0]))
  return int(_STACK.search(words) is not None)
