"""Flax Linen models by name, from inputs and a `train` flag to float32 logits.

The names of layers are stable: the first convolution is `conv1`, the output
layer `logits`, so that configs may pick layers by regular expression.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from experiments import names
from experiments.errors import UserError, check_known
from experiments.models import (
  feedforward,
  mobilenet,
  recurrent,
  resizing,
  resnet,
  vgg,
)

__all__ = ["MODELS", "OUTPUT", "create"]

OUTPUT = "logits"  # the name of the output layer

MODELS = {
  "lenet_300_100": feedforward.MLP,
  "lenet5": feedforward.LeNet5,
  "mnist1d_conv": feedforward.SignalConv,
  "small_conv": feedforward.SmallConv,
  "wrn": resnet.WideResNet,
  "resnet": resnet.cifar_resnet,
  "resnet20": functools.partial(resnet.cifar_resnet, depth=20),
  "resnet32": functools.partial(resnet.cifar_resnet, depth=32),
  "resnet56": functools.partial(resnet.cifar_resnet, depth=56),
  "resnet18": functools.partial(
    resnet.ResNet, blocks=(2, 2, 2, 2), bottleneck=False
  ),
  "resnet50": resnet.ResNet,
  "mobilenet_v1": mobilenet.MobileNet,
  "character_gru": recurrent.CharacterGRU,
  "vgg16": vgg.VGG,
  "vgg19": functools.partial(vgg.VGG, stages=vgg.STAGES_19),
}


def create(
  name: str,
  num_classes: int,
  *,
  widths: Mapping[str, int] | None = None,
  **options,
) -> nn.Module:
  """Creates a model; its parameters come from `model.init`.

  `model.apply(variables, x, train)` gives float32[batch, num_classes]. In
  training, models with BatchNorm want `mutable=["batch_stats"]`, and models
  with dropout `rngs={"dropout": key}`.

  Args:
    name: A key of `MODELS`, or `package.module:attribute` of a module's class
      or of a function of `num_classes` and options.
    num_classes: Number of logits.
    widths: Features of layers by their paths, in place of the class's: what
      structured pruning leaves.
    **options: The fields of the model's class. All have `dtype`, in which it
      computes (parameters and logits stay float32), and `kernel_init`, the
      name of a function of `nn.initializers`.

  Returns:
    The module.

  Raises:
    UserError: The model, the option or the dtype is unknown; the near ones are
      listed. Or a size is not positive.
  """
  make = names.find("model", name, MODELS)
  accepted, others = names.keywords(make)
  fixed = getattr(make, "keywords", {})
  accepted -= {"num_classes", "parent", "name", *fixed}
  names.check_options(f"model {name}", options, accepted, others)
  if name in MODELS:
    _check_values(name, {**options, "widths": widths})
  model = make(num_classes=num_classes, **options)
  return resizing.Resized(model, widths) if widths else model


def _check_values(name: str, options: Mapping[str, Any]) -> None:
  """Refuses what would be a fault somewhere inside of Flax."""
  for option, value in options.items():
    known = _WORDS.get(option, (value,))
    if isinstance(value, str):
      check_known(f"{option} of model {name}", value, known)
    if option == "dropout":
      wrong, wanted = not 0 <= value < 1, "a share in [0, 1)"
    else:
      leaves = [x for x in jax.tree.leaves(value) if type(x) in (int, float)]
      wrong, wanted = min(leaves, default=1) <= 0, "positive numbers"
    if wrong:
      raise UserError(f"{option} of model {name} is {value!r}; wanted {wanted}")


# What some options may be; kernel initializers are checked where they are made.
_WORDS = {
  "dtype": ("bfloat16", "float16", "float32"),
  "padding": ("SAME", "VALID"),
}
