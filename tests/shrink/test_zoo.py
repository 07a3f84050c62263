"""Models of many kinds compute the same when they are smaller."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import shrink
from tests.marks import few
from tests.shrink import zoo

QUICK = ("decoder, gqa by einsum", "equinox mlp", "resnet, padded shortcut")

# How many params stay at half the units of each group, and in how many groups.
EXPECTED = {
  "mlp": (245, 2),
  "lenet": (742, 4),
  "resnet": (5382, 6),
  "resnet, training": (5382, 6),
  "resnet, padded shortcut": (5126, 6),
  "depthwise": (629, 4),
  "concat, groups": (757, 3),
  "squeeze and excite": (544, 3),
  "decoder": (1304, 5),
  "decoder, layer norm": (1304, 5),
  "decoder, qkv in heads": (1304, 5),
  "decoder, heads in qkv": (1304, 5),
  "decoder, gqa by repeat": (1176, 5),
  "decoder, gqa by einsum": (1176, 5),
  "decoder, head axes": (1048, 9),
  "decoder, tied": (1216, 5),
  "decoder, scanned": (1856, 3),
  "decoder, scanned, gqa": (1664, 3),
  "vit": (1269, 9),
  "vit, dropout": (1269, 9),
  "nnx cnn": (385, 2),
  "equinox mlp": (139, 2),
  "equinox attention": (185, 2),
  "lstm": (443, 1),
  "gru": (347, 1),
}


# Of models that are alike, one.
SEEN = {name for name in zoo.MODELS if not name.startswith(("decoder", "vit"))}
SEEN = (SEEN | {*QUICK, "decoder, heads in qkv"}) - {
  "resnet",
  "lstm",
  "nnx cnn",
}


@pytest.mark.parametrize("name", few(zoo.MODELS, SEEN))
def test_groups_are_found(name):
  apply, params, inputs = zoo.MODELS[name]()
  plan = shrink.trace(apply, params, *inputs)
  remove = plan.lowest(params, 0.5)
  assert (plan.params(remove), len(plan.groups)) == EXPECTED[name]


@pytest.mark.parametrize("name", few(zoo.MODELS, QUICK))
def test_half_of_every_group_leaves_exactly(name):
  apply, params, inputs = zoo.MODELS[name]()
  plan = shrink.trace(apply, params, *inputs)
  remove = plan.lowest(jax.tree.map(jnp.abs, params), 0.5)
  shrink.verify(plan, params, remove, *inputs, tolerance=1e-5)


FUZZED = (
  "concat, groups",
  "decoder, gqa by repeat",
  "decoder, head axes",
  "decoder, heads in qkv",
  "decoder, scanned",
  "depthwise",
  "equinox mlp",
  "gru",
  "lenet",
  "resnet, training",
  "squeeze and excite",
  "vit, dropout",
)


@pytest.mark.parametrize("name", few(FUZZED, ["equinox mlp"]))
def test_any_removal_is_exact(name):
  apply, params, inputs = zoo.MODELS[name]()
  plan = shrink.trace(apply, params, *inputs)
  rng = np.random.default_rng(sum(map(ord, name)))
  for _ in range(3):
    units = []
    for group in plan.groups.values():
      count = rng.integers(0, len(group))
      units += rng.choice(group.units, count, replace=False).tolist()
    remove = plan.remove(units)
    shrink.verify(plan, params, remove, *inputs, tolerance=1e-5)
