"""Published names of methods, models and data sets, for pictures.

Tables have the names of the configs, which a user types; here is the one place
that says how papers write them.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

_NAMES = {
  "ac_dc": "AC/DC",
  "ce": "cross-entropy",
  "dst_ee": "DST-EE",
  "erk": "ERK",
  "force": "FORCE",
  "gmp": "GMP",
  "granet": "GraNet",
  "grasp": "GraSP",
  "kl": "KL",
  "lora": "LoRA",
  "mest": "MEST",
  "mest_s": "MEST (EM&S)",
  "movement": "movement pruning",
  "owl": "OWL",
  "ria": "RIA",
  "rigl": "RigL",
  "rigl_itop": "RigL-ITOP",
  "seft": "SEFT",
  "set": "SET",
  "snfs": "SNFS",
  "snip": "SNIP",
  "soft_movement": "soft movement pruning",
  "sparsegpt": "SparseGPT",
  "spiel": "SpIEL",
  "spp": "SPP",
  "squarehead": "SquareHead",
  "sr_ste": "SR-STE",
  "srigl": "SRigL",
  "ste": "STE",
  "str": "STR",
  "synflow": "SynFlow",
  "top_kast": "Top-KAST",
  "wanda": "Wanda",
  # Data and models.
  "cifar10": "CIFAR-10",
  "cifar100": "CIFAR-100",
  "digits": "scikit-learn's digits",
  "fashion_mnist": "Fashion-MNIST",
  "imagenet": "ImageNet",
  "lenet5": "LeNet-5",
  "lenet_300_100": "LeNet-300-100",
  "mnist": "MNIST",
  "mnist1d": "MNIST-1D",
  "mnist1d_conv": "convolutional net",
  "mobilenet_v1": "MobileNet-v1",
  "resnet": "ResNet",
  "resnet18": "ResNet-18",
  "resnet20": "ResNet-20",
  "resnet32": "ResNet-32",
  "resnet50": "ResNet-50",
  "resnet56": "ResNet-56",
  "small_conv": "small convolutional net",
  "vgg16": "VGG-16",
  "vgg19": "VGG-19",
  "wikitext103": "WikiText-103",
  "wrn": "Wide ResNet",
  # Ways to train a lottery ticket again.
  "fine_tuning": "fine-tuning",
  "learning_rate": "learning-rate rewinding",
  "one_shot": "one-shot pruning",
  "reinit": "reinitialised",
  "rewound": "rewound ticket",
}


def published(name: str) -> str:
  """Writes a name of a config as papers do.

  Args:
    name: Such as `rigl_itop`; words that no paper writes otherwise stay.

  Returns:
    The name for people.

  Example:
    >>> published("rigl from snip"), published("weights_50")
    ('RigL from SNIP', 'weights of step 50')
  """
  name = re.sub(r"\bweights_(\d+)\b", r"weights of step \1", name)
  name = re.sub(r"\w+", lambda m: _NAMES.get(m[0], m[0]), name)
  return "no tuning" if name == "none" else name


def of(config: Mapping[str, Any]) -> str:
  """Says which model a config trains on which data."""
  model, data = (config[part] for part in ("model", "data"))
  drawn = "random arrays like " if data.get("random") else ""
  return f"{published(model['name'])} on {drawn}{published(data['name'])}"


def spread(counts: Iterable[int]) -> str:
  """Says what a line with a band is, of as many seeds as methods have."""
  found = seeds(counts)
  return found if found == "one seed" else f"mean ± s.d. of {found}"


def means(counts: Iterable[int]) -> str:
  """Says what a line is, of as many seeds as methods have."""
  found = seeds(counts)
  return found if found == "one seed" else f"means of {found}"


def seeds(counts: Iterable[int]) -> str:
  """Says how many seeds there are, where methods may differ in it.

  Example:
    >>> seeds([3, 3]), seeds([5, 1]), seeds([1])
    ('3 seeds', '1 to 5 seeds', 'one seed')
  """
  found = sorted(set(counts))
  if found == [1]:
    return "one seed"
  return " to ".join(map(str, dict.fromkeys((found[0], found[-1])))) + " seeds"
