"""Data, nets and smoke tests that config files of images share.

Batch sizes, learning rates and schedules of papers stand in the config files.
"""

from collections.abc import Callable
from typing import Any

import ml_collections

from experiments.config import algorithms, defaults
from experiments.config.algorithms import ALGORITHMS, Timing

# Algorithms that `algorithm` makes; the first is the default of config files.
_COMMON = [name for name, row in ALGORITHMS.items() if row.timing]
COMMON = tuple(sorted(_COMMON, key=lambda name: name != "rigl"))


def algorithm(
  name: str,
  *,
  sparsity: float,
  delta_t: int,
  t_end: Any,
  fraction: float,
  distribution: str,
  begin: Any = 0,
  end: Any = None,
  prune_every: int | None = None,
) -> dict[str, Any]:
  """Makes a config's `algorithm`, with those of the keywords that it takes.

  Args:
    name: One of COMMON.
    sparsity: The share of zeros; `dense` ignores it.
    delta_t: Steps between mask updates of dynamic sparse training.
    t_end: The step from which its masks stay, or a reference to one.
    fraction: The drop fraction of dynamic sparse training at its start.
    distribution: How non-zeros are divided among layers.
    begin: The first step that prunes, in `gmp`, or a reference.
    end: The last step that prunes, or a reference; None for `t_end`.
    prune_every: Steps between two that prune; None for `delta_t`.

  Returns:
    The mapping.
  """
  row = algorithms.find(name)
  if not row.takes("sparsity"):
    return {"name": name}
  config = {"name": name, "sparsity": sparsity, "distribution": distribution}
  end = t_end if end is None else end
  every = prune_every or delta_t
  return config | row.timing(
    Timing(delta_t, t_end, fraction, begin, end, every)
  )


def algorithm_by_shares(
  name: str, *, steps: int, every: int, output: str
) -> dict[str, Any]:
  """Makes a config's `algorithm` from its paper's shares of training.

  Papers differ in how long they train; what carries over is the share of
  training that comes before, during and after mask updates. The registry holds
  each paper's.

  Args:
    name: The algorithm; `rigl_itop` and `mest_s` (EM&S) among them.
    steps: Training steps, 40 times `every` or a multiple of that.
    every: Steps between mask updates of the methods that make some hundreds
      of them.
    output: A regular expression for the key path of the output layer.

  Returns:
    The mapping, of ERK where a distribution is asked for, but without sparsity.
  """
  if name == "rigl_itop":  # few updates of many weights, to the end
    config = {"delta_t": 4 * every, "t_end": steps, "fraction": 0.5}
    return {"name": "rigl", **config, "step_on_update": True}
  if name == "mest_s":
    return {
      **algorithm_by_shares("mest", steps=steps, every=every, output=output),
      "fraction": 0.0,
      "surplus": 0.5,
    }
  config = {"name": name, **algorithms.by_shares(name, steps, every)}
  if algorithms.find(name).takes("never_ablate"):
    config["never_ablate"] = output
  return config


def fashion_mnist(
  net: str, steps: int, *, times: int = 1, smoke: bool
) -> ml_collections.ConfigDict:
  """Makes the config of a run on Fashion-MNIST.

  Args:
    net: "lenet" for LeNet-300-100, "conv" for a small convolutional net.
    steps: Training steps; 40 in a smoke test.
    times: Factor by which training is longer than that.
    smoke: Whether this is a test of seconds.

  Returns:
    The config, without batch size, optimizer, schedule and algorithm.
  """
  config = defaults.training_run()
  config.steps = 40 if smoke else steps
  config.data = fashion_mnist_files()
  conv = {"name": "small_conv", "features": (8, 16), "hidden": (64,)}
  config.model = conv if net == "conv" else {"name": "lenet_300_100"}
  config.log_every = 20 if smoke else steps // 8
  config.eval_every = 20 if smoke else steps // 8
  config.checkpoint_every = 20 if smoke else steps
  config.tensorboard = False
  for key in ("steps", "log_every", "eval_every", "checkpoint_every"):
    config[key] *= times
  return config


def fashion_mnist_files() -> dict[str, Any]:
  """Makes a config's `data`: Fashion-MNIST as IDX files, Debian's if unset."""
  folder = ml_collections.config_dict.placeholder(str)
  return {"name": "fashion_mnist", "data_dir": folder, "source": "idx"}


def imagenet(
  steps: int, *, batch_size: int, times: int = 1, smoke: bool
) -> ml_collections.ConfigDict:
  """Makes the config of a ResNet-50 on ImageNet, cropped and mirrored randomly.

  Args:
    steps: Training steps; 20 in a smoke test.
    batch_size: Images in each; 8 in a smoke test.
    times: Factor by which training is longer than that.
    smoke: Whether this is a test of seconds, of a small net on small images.

  Returns:
    The config, without optimizer, schedule and algorithm.
  """
  config = defaults.training_run()
  config.steps = 20 if smoke else steps
  config.batch_size = 8 if smoke else batch_size
  config.data = {
    "name": "imagenet2012",
    "data_dir": ml_collections.config_dict.placeholder(str),  # TFDS's own
    "image_size": 16 if smoke else 224,
  }
  config.model = {"name": "resnet50"}
  if smoke:
    config.model = {"name": "resnet50", "blocks": (1, 1), "width": 8}
  _evaluate(config, 100, smoke=smoke)
  for key in ("steps", "eval_every", "checkpoint_every"):
    config[key] *= times
  return config


def cifar10(
  steps: int, *, batch_size: int, padding: str, smoke: bool
) -> ml_collections.ConfigDict:
  """Makes the config of a run on CIFAR-10, cropped and mirrored randomly.

  Args:
    steps: Training steps; 20 in a smoke test.
    batch_size: Images in each; 8 in a smoke test.
    padding: How images are padded before they are cropped, "reflect" or
      "constant" (zeros).
    smoke: Whether this is a test of seconds.

  Returns:
    The config, without model, optimizer, schedule and algorithm.
  """
  config = defaults.training_run()
  config.steps = 20 if smoke else steps
  config.batch_size = 8 if smoke else batch_size
  config.augment = True
  config.data = {
    "name": "cifar10",
    "data_dir": ml_collections.config_dict.placeholder(str),  # TFDS's own
    "mode": padding,
  }
  _evaluate(config, 50, smoke=smoke)
  return config


def _evaluate(
  config: ml_collections.ConfigDict, times: int, *, smoke: bool
) -> None:
  """Sets how often a run logs, is evaluated and saved."""
  config.log_every = 10 if smoke else 500
  config.eval_every = 10 if smoke else config.steps // times
  config.eval_batch_size = 8 if smoke else 1000
  config.checkpoint_every = 20 if smoke else config.steps // times


def epoch_to_step(
  config: ml_collections.ConfigDict, epochs: float
) -> Callable[[float], int]:
  """Makes the function from an epoch to the training step at which it begins.

  A smoke test's few steps are divided among as many epochs, so that its
  schedules have the shape of the whole run's.

  Args:
    config: The config, whose `steps` are set.
    epochs: Number of epochs in those steps.

  Returns:
    `(epoch) -> step`, both counted from 0.
  """
  return lambda epoch: int(epoch * config.steps // epochs)
