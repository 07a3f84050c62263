"""Convolutions as products: what lax.conv_general_dilated gives."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from experiments.models import convolutions

PLAIN = [
  {"kernel_size": (5,), "strides": 2, "padding": 1},
  {"kernel_size": (3, 3), "strides": (2, 1)},
  {"kernel_size": (2, 3), "padding": "VALID", "use_bias": False},
  {"kernel_size": (1, 1), "strides": 2},
]
OTHERS = [
  {"kernel_size": (3, 3), "feature_group_count": 3},
  {"kernel_size": (3, 3), "kernel_dilation": 2},
  {"kernel_size": (3,), "padding": "CIRCULAR"},
]


def outputs(options):
  layer = nn.Conv(6, **options)
  space = (11, 8)[: len(options["kernel_size"])]
  x = jax.random.normal(jax.random.key(1), (3, *space, 6))
  variables = layer.init(jax.random.key(0), x)

  def loss(variables, x):
    return (layer.apply(variables, x) ** 2).sum()

  with nn.intercept_methods(convolutions.as_products):
    text = str(jax.make_jaxpr(layer.apply)(variables, x))
    ours = layer.apply(variables, x)
    ours_grads = jax.grad(loss, argnums=(0, 1))(variables, x)
  theirs = layer.apply(variables, x)
  grads = jax.grad(loss, argnums=(0, 1))(variables, x)
  for a, b in zip(
    *map(jax.tree.leaves, ((ours, ours_grads), (theirs, grads))), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
  return text


@pytest.mark.parametrize("options", PLAIN)
def test_plain_convolutions_become_products(options):
  text = outputs(options)
  assert "conv_general_dilated" not in text
  assert text.count("dot_general") == 1


@pytest.mark.parametrize("options", OTHERS)
def test_others_stay(options):
  assert "conv_general_dilated" in outputs(options)
