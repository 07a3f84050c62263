"""Models whose layers have other widths than their class gives them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import models
from experiments.errors import UserError

X = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
NET = {"name": "resnet", "depth": 8, "width": 4, "shortcut": "B"}


def shapes(**options):
  net = models.create(num_classes=3, **NET, **options)
  made = jax.eval_shape(lambda: net.init(jax.random.key(0), X, False))
  return jax.tree.map(lambda x: x.shape, made["params"])


def test_a_layer_of_another_width_changes_what_is_behind_it_too():
  whole = shapes()
  small = shapes(widths={"stage2_block1/conv1": 3})
  block = whole["stage2_block1"]
  block["conv1"]["kernel"] = (3, 3, 4, 3)
  block["bn1"] = {"bias": (3,), "scale": (3,)}
  block["conv2"]["kernel"] = (3, 3, 3, 8)
  assert small == whole


def test_a_dense_net_is_the_net_of_its_slices():
  options = {"name": "lenet_300_100", "num_classes": 3}
  whole = models.create(hidden=(6, 5), **options)
  params = whole.init(jax.random.key(0), X, False)["params"]
  kept = np.array([0, 2, 5])
  first, second = params["dense1"], params["dense2"]
  small = {
    **params,
    "dense1": jax.tree.map(lambda w: w[..., kept], first),
    "dense2": {**second, "kernel": second["kernel"][kept]},
  }
  hidden = jax.nn.relu(X.reshape(2, -1) @ first["kernel"] + first["bias"])
  hidden = jnp.where(np.isin(np.arange(6), kept), hidden, 0)
  hidden = jax.nn.relu(hidden @ second["kernel"] + second["bias"])
  wanted = hidden @ params["logits"]["kernel"] + params["logits"]["bias"]
  got = models.create(hidden=(6, 5), widths={"dense1": 3}, **options).apply(
    {"params": small}, X, False
  )
  np.testing.assert_allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize(
  ("widths", "message"),
  [
    ({"stage1_block1/conv7": 2}, "no layer of the model is called"),
    ({"conv1": 0}, "wanted positive numbers"),
  ],
)
def test_what_cannot_be_resized_is_refused(widths, message):
  with pytest.raises(UserError, match=message):
    shapes(widths=widths)


def test_groups_of_convolutions_cannot_be_resized():
  net = models.create(
    "mobilenet_v1", num_classes=3, widths={"block1/depthwise": 4}
  )
  with pytest.raises(UserError, match="groups"):
    jax.eval_shape(lambda: net.init(jax.random.key(0), X, False))
