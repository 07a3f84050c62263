"""Published names of methods, models and data sets, for pictures.

CSVs and the terminal have the names of the configs, which a user types; here is
the one place that says how papers write them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

_NAMES = {
  "ac_dc": "AC/DC",
  "ce": "cross-entropy",
  "dst_ee": "DST-EE",
  "erk": "ERK",
  "fan_in": "fan-in",
  "force": "FORCE",
  "gmp": "GMP",
  "granet": "GraNet",
  "grasp": "GraSP",
  "kl": "KL",
  "lora": "LoRA",
  "mest": "MEST",
  "mest_s": "MEST (EM&S)",
  "movement": "movement pruning",
  "pruning": "GMP",  # RigL's name for it
  "n_of_m": "N:M",
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
  "static": "Static",
  "ste": "STE",
  "str": "STR",
  "synflow": "SynFlow",
  "top_kast": "Top-KAST",
  "wanda": "Wanda",
  # Data and models.
  "byte_llama": "byte-level LLaMA",
  "cifar10": "CIFAR-10",
  "cifar100": "CIFAR-100",
  "digits": "scikit-learn's digits",
  "fashion_mnist": "Fashion-MNIST",
  "imagenet": "ImageNet",
  "gsm8k": "GSM8K",
  "lenet5": "LeNet-5",
  "lenet_300_100": "LeNet-300-100",
  "mnist": "MNIST",
  "mnist1d": "MNIST-1D",
  "mnist1d_conv": "convolutional net",
  "llama": "LLaMA",
  "mobilenet_v1": "MobileNet-v1",
  "mpt": "MPT",
  "python_help": "Python's help texts",
  "resnet": "ResNet",
  "resnet18": "ResNet-18",
  "resnet20": "ResNet-20",
  "resnet32": "ResNet-32",
  "resnet50": "ResNet-50",
  "resnet56": "ResNet-56",
  "small_conv": "small convolutional net",
  "smollm2": "SmolLM2-135M-Instruct",
  "state_of_the_union": "the State of the Union addresses",
  "t5": "T5",
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


_NAMED = {"method", "branch", "lower", "higher", "zeros", "run", "compared"}


def table(lines: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
  """Writes the methods in the cells of a table as papers do.

  Args:
    lines: The table, its header first.

  Returns:
    The table for people; that for programs keeps the names of the configs.

  Example:
    >>> table([("method", "runs"), ("gmp, 90 %", "3")])
    [('method', 'runs'), ('GMP, 90 %', '3')]
  """
  header, *body = lines
  return [
    tuple(header),
    *(
      tuple(
        published(cell) if name in _NAMED else cell
        for name, cell in zip(header, line, strict=True)
      )
      for line in body
    ),
  ]


def of(config: Mapping[str, Any]) -> str:
  """Says which model a config is about, on which data.

  Args:
    config: Of any driver: what it changes from run to run does not matter.

  Returns:
    The first half of a title.
  """
  config = config.get("base", config)
  if "task" in config:
    found = f"{_language_model(config['model'])} on {_text(config['task'])}"
    return found[0].upper() + found[1:]
  model, data = (config[part] for part in ("model", "data"))
  drawn = "random arrays like " if data.get("random") else ""
  found = f"{published(model['name'])} on {drawn}{published(data['name'])}"
  return found[0].upper() + found[1:]


def of_means(config: Mapping[str, Any]) -> str:
  """Says what a config of several seeds is about, for a picture of means."""
  return f"{of(config)}\n{means([len(config['seeds'])])}"


def _language_model(model: Mapping[str, Any]) -> str:
  if model["name"] == "random":  # and trained from scratch
    family = published(model.get("family", "llama"))
    return f"small {family} ({model['layers']} layers, {model['dim']} features)"
  folders = PurePath(model.get("path") or "").parts
  named = [part for part in folders if part not in ("runs", "model")]
  return published(named[-1] if named else model["name"])


def _text(task: Mapping[str, Any]) -> str:
  test = task.get("test")  # a text of its own, or a number of questions
  name = test["name"] if isinstance(test, Mapping) else task["name"]
  return published(task.get("task", name)).replace("_", " ")


def chance(config: Mapping[str, Any]) -> float | None:
  """Returns the accuracy of guesses in percent; None if it is not known."""
  data = config.get("base", config).get("data") or {}
  classes = _CLASSES.get(data.get("name"))
  return 100 / classes if classes else None


_CLASSES = {
  **dict.fromkeys(
    ("cifar10", "digits", "fashion_mnist", "mnist", "mnist1d"), 10
  ),
  "cifar100": 100,
  "imagenet": 1000,
}


def spread(counts: Iterable[int]) -> str:
  """Says what a line with a band is, of as many seeds as methods have."""
  found = seeds(counts)
  if found == "one seed":
    return found
  return f"means of {found}; shaded: 95 % intervals (t)"


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
