"""What config files share: keywords of algorithms, recipes."""

from collections.abc import Callable, Sequence
from typing import Any

import ml_collections

from experiments.config import algorithms, calling, defaults
from experiments.config.algorithms import ALGORITHMS, Timing

# What `algorithm` has keywords for; the first is the default of config files.
_COMMON = [name for name, row in ALGORITHMS.items() if row.timing]
COMMON = tuple(sorted(_COMMON, key=lambda name: name != "rigl"))


def algorithm(
  name: str,
  *,
  sparsity: float,
  delta_t: int,
  t_end: Any,
  begin: Any,
  end: Any,
  prune_every: int,
  fraction: float = 0.3,
  distribution: str = "erdos_renyi_kernel",
) -> dict[str, Any]:
  """The part `algorithm` of a config, from the keywords of all of them.

  Args:
    name: The algorithm.
    sparsity: The share of zeros; of no use to `dense`.
    delta_t: Steps between mask updates of dynamic sparse training.
    t_end: Its step from which masks stay, or a reference to one.
    begin: First step that prunes, of `gmp`, or a reference.
    end: Last step that prunes, or a reference.
    prune_every: Steps between two of them.
    fraction: The share of active weights that moves at first.
    distribution: How weights are shared out among layers.

  Returns:
    The mapping.
  """
  row = algorithms.find(name)
  if not row.has_sparsity:
    return {"name": name}
  config = {"name": name, "sparsity": sparsity, "distribution": distribution}
  return config | row.timing(
    Timing(delta_t, t_end, fraction, begin, end, prune_every)
  )


def family(name: str, *, steps: int, every: int, output: str) -> dict[str, Any]:
  """The part `algorithm` of a config, by each paper's shares of training.

  Papers differ in how long they train; what carries over is which share of
  it comes before, between and after.

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
      **family("mest", steps=steps, every=every, output=output),
      "fraction": 0.0,
      "surplus": 0.5,
    }
  row = algorithms.find(name)
  config = {"name": name}
  if row.shares:
    config |= row.shares(steps, every)
  elif row.timing:
    begin, end = steps // 4, steps * 3 // 4
    config |= row.timing(Timing(every, end, 0.3, begin, end, every))
  if "never_ablate" in calling.keywords(row.function):
    config["never_ablate"] = output
  return config


def fashion_mnist(
  net: str, steps: int, smoke: bool
) -> ml_collections.ConfigDict:
  """A run on Fashion-MNIST of as many steps as methods are compared with.

  Args:
    net: "lenet" for LeNet-300-100, "conv" for a small convolutional net.
    steps: Training steps, of 128 images.
    smoke: Whether this is a test of seconds.

  Returns:
    The config of a run, without an algorithm.
  """
  config = defaults.training_run()
  config.steps = steps
  config.batch_size = 128
  config.data = {
    "name": "fashion_mnist",
    "data_dir": ml_collections.config_dict.placeholder(str),  # Debian's
    "source": "idx",
  }
  conv = {"name": "small_conv", "features": (8, 16), "hidden": (64,)}
  config.model = conv if net == "conv" else {"name": "lenet_300_100"}
  config.optimizer = {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4}
  config.schedule = {"name": "cosine", "learning_rate": 0.05}
  config.log_every = 20 if smoke else steps // 8
  config.eval_every = 20 if smoke else steps // 8
  config.checkpoint_every = 20 if smoke else steps
  config.tensorboard = False
  return config


def imagenet(
  steps: int, *, batch_size: int, smoke: bool
) -> ml_collections.ConfigDict:
  """ResNet-50 on ImageNet, cropped and mirrored at random.

  Args:
    steps: Training steps.
    batch_size: Images of each.
    smoke: Whether to take a few steps only, of a small net on small images.

  Returns:
    The config of a run, without optimizer, schedule and algorithm.
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
  _look(config, 100, smoke=smoke)
  return config


def rigl_imagenet(
  name: str,
  distribution: str = "uniform",
  times: int = 1,
  *,
  rise: float = 5,
  drops: Sequence[float] = (30, 70, 90),
  smoke: bool,
) -> ml_collections.ConfigDict:
  """RigL's recipe for ImageNet (Evci et al., arXiv:1911.11134, section 4.1).

  Args:
    name: Of the algorithm, one of `COMMON`.
    distribution: How weights are shared out among layers.
    times: How many times the steps of the paper.
    rise: Epochs in which the learning rate rises, however many there are.
    drops: Epochs, of those of one time, at which it is divided by ten.
    smoke: Whether to take a few steps only, of a small net on small images.

  Returns:
    The config of a run of ResNet-50, all its layers prunable.
  """
  config = imagenet(32_000, batch_size=4096, smoke=smoke)
  for key in ("steps", "eval_every", "checkpoint_every"):
    config[key] *= times
  at = epochs(config, 32_000 * 4096 / 1_281_167)
  config.label_smoothing = 0.1
  config.optimizer = {
    "name": "sgd",
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 1e-4,
  }
  config.schedule = {
    "name": "piecewise",
    "learning_rate": 1.6,
    "warmup": at(rise / times),
    "boundaries": tuple(map(at, drops)),
    "factor": 0.1,
  }
  config.algorithm = algorithm(
    name,
    sparsity=0.8,
    delta_t=4 if smoke else 100,
    t_end=config.steps * 25 // 32,
    # Pruning of Gale et al., arXiv:1902.09574, is another recipe; these are
    # the shares of training in which RigL moves weights.
    begin=config.steps // 8,
    end=config.steps * 25 // 32,
    prune_every=1 if smoke else 100,
    distribution=distribution,
  )
  return config


def jaxpruner(smoke: bool) -> ml_collections.ConfigDict:
  """JaxPruner's recipe for ImageNet: 100 epochs of Scenic's ResNet-50.

  Args:
    smoke: Whether to take a few steps only, of a small net on small images.

  Returns:
    The config of a run, without an algorithm.
  """
  config = imagenet(31_200, batch_size=4096, smoke=smoke)
  at = epochs(config, 100)
  config.model = {
    **config.model,
    "zero_init": True,
    "kernel_init": "lecun_normal",
  }
  config.optimizer = {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4}
  config.schedule = {"name": "cosine", "learning_rate": 1.6, "warmup": at(5)}
  return config


def cifar10(
  steps: int, *, batch_size: int, smoke: bool
) -> ml_collections.ConfigDict:
  """CIFAR-10, padded, cropped and mirrored at random.

  Args:
    steps: Training steps.
    batch_size: Images of each.
    smoke: Whether to take a few steps only.

  Returns:
    The config of a run, without model, optimizer, schedule and algorithm.
  """
  config = defaults.training_run()
  config.steps = 20 if smoke else steps
  config.batch_size = 8 if smoke else batch_size
  config.augment = True
  config.data = {
    "name": "cifar10",
    "data_dir": ml_collections.config_dict.placeholder(str),  # TFDS's own
    "mode": "reflect",
  }
  _look(config, 50, smoke=smoke)
  return config


def rigl_cifar10(
  name: str,
  distribution: str = "erdos_renyi_kernel",
  times: int = 1,
  *,
  smoke: bool,
) -> ml_collections.ConfigDict:
  """RigL's recipe for CIFAR-10 (Evci et al., arXiv:1911.11134, section 4.3).

  Args:
    name: Of the algorithm, one of `COMMON`.
    distribution: How weights are shared out among layers.
    times: How many times the steps of the paper.
    smoke: Whether to take a few steps of a small net only.

  Returns:
    The config of a run.
  """
  config = defaults.training_run()
  config.name = f"{name}_cifar10"
  config.steps = times * (6 if smoke else 97_656)
  config.batch_size = 8 if smoke else 128
  config.augment = True
  config.data = {
    "name": "cifar10",
    "data_dir": ml_collections.config_dict.placeholder(str),  # TFDS's own
    "normalize": "image",
  }
  config.model = wide_resnet(22, "glorot_uniform", smoke=smoke)
  config.optimizer = {
    "name": "sgd",
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
  }
  config.schedule = {
    "name": "piecewise",
    "learning_rate": 0.1,
    "boundaries": tuple(times * n for n in (30_000, 60_000, 90_000)),
    "factor": 0.2,
  }
  config.log_every = 2 if smoke else 500
  config.eval_every = 3 if smoke else 2000
  config.eval_batch_size = 8 if smoke else 1000
  config.checkpoint_every = 3 if smoke else 5000
  config.algorithm = algorithm(
    name,
    sparsity=0.9,
    delta_t=2 if smoke else 100,
    t_end=times * (5 if smoke else 75_000),
    # Pruning as in the released code: steps 20,000 to 75,000, every 1,000.
    begin=1 if smoke else 20_000,
    end=5 if smoke else 75_000,
    prune_every=2 if smoke else 1000,
    distribution=distribution,
  )
  return config


def wide_resnet(depth: int, kernel_init: str, *, smoke: bool) -> dict[str, Any]:
  """The part `model` of a config: a Wide ResNet of width 2 with dropout.

  Args:
    depth: How many layers it has.
    kernel_init: The name of the kernels' initializer.
    smoke: Whether to take the smallest one instead.

  Returns:
    The mapping.
  """
  return {
    "name": "wrn",
    "depth": 10 if smoke else depth,
    "width": 1 if smoke else 2,
    "dropout": 0.3,
    "kernel_init": kernel_init,
  }


def _look(config, times, *, smoke):
  """How often to look at the net, and to save it."""
  config.log_every = 10 if smoke else 500
  config.eval_every = 10 if smoke else config.steps // times
  config.eval_batch_size = 8 if smoke else 1000
  config.checkpoint_every = 20 if smoke else config.steps // times


def epochs(
  config: ml_collections.ConfigDict, number: float
) -> Callable[[float], int]:
  """The step at which an epoch begins, of a run of so many.

  Args:
    config: The run's, its steps settled: those of a smoke test, too, are
      divided among all epochs.
    number: How many epochs it lasts.

  Returns:
    A function of the epoch, counted from 0.
  """
  return lambda epoch: int(epoch * config.steps // number)
