"""Flax Linen models by name, from inputs and a `train` flag to float32 logits.

The names of layers are stable: the first convolution is `conv1`, the output
layer `logits`, so that configs may pick layers by regular expression.
"""

import functools

from flax import linen as nn

from experiments import names
from experiments.models import (
  feedforward,
  mobilenet,
  recurrent,
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


def create(name: str, num_classes: int, **options) -> nn.Module:
  """Creates a model; its parameters come from `model.init`.

  `model.apply(variables, x, train)` gives float32[batch, num_classes]. In
  training, models with BatchNorm want `mutable=["batch_stats"]`, and models
  with dropout `rngs={"dropout": key}`.

  Args:
    name: A key of `MODELS`, or `package.module:attribute` of a module's class
      or of a function of `num_classes` and options.
    num_classes: Number of logits.
    **options: The fields of the model's class. All have `dtype`, in which it
      computes (parameters and logits stay float32), and `kernel_init`, the
      name of a function of `nn.initializers`.

  Returns:
    The module.

  Raises:
    UserError: The model, or the option, is unknown; the near ones are listed.
  """
  make = names.find("model", name, MODELS)
  accepted, others = names.keywords(make)
  fixed = getattr(make, "keywords", {})
  accepted -= {"num_classes", "parent", "name", *fixed}
  names.check_options(f"model {name}", options, accepted, others)
  return make(num_classes=num_classes, **options)
