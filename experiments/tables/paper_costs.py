"""FLOPs and sizes of the papers' networks, without training them.

python -m experiments.paper_costs [--csv=results/flops.csv]

Dense, uniform and ERK at the papers' sparsities: inference, and a training step
under each algorithm's cost model, relative to the dense network. Convolutional
nets keep their first convolution dense under `uniform`, and ResNet-50 under ERK
at 99 %, as the README of google-research/rigl says; MobileNet keeps it, and its
depthwise convolutions, always, as the code there does.

Two columns count as that README does. The code behind it (rigl/sparse_utils.py
there, and micronet_challenge/counting.py of google-research/google-research)
takes two operations for each weight at each place, as we do, and

* one more for each output of a layer: n products take n - 1 sums, a bias one
  more, and a ReLU counts as a product;
* of ResNet-50's first convolution 115 x 115 outputs instead of 112 x 112: they
  follow from the image as it is padded beforehand, 230 x 230, and padded again.

Sizes are 4 bytes for each weight that is there, one bit for each of a sparse
layer, and 4 bytes for the bias of each output, into which BatchNorm is folded.
"""

import pathlib
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from experiments import models
from experiments.tables import text
from sparsejax import distributions
from sparsejax import flops as flops_lib
from sparsejax.masks import path_name

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.965, 0.99)
DELTA_T = 100
HEADER = (
  *("network", "weights", "zeros", "inference", "static, SET", "RigL", "SNFS"),
  *("size [MB]", "inference, counted as RigL", "RigL 5x, counted as RigL"),
  *("RigL's inference", "RigL's 5x training", "RigL's size [MB]"),
)
# Of ResNet-50, by zeros and weights: inference, training at 5x, size. From the
# README of github.com/google-research/rigl, "Best Sparse Models".
PUBLISHED = {
  (0.0, "dense"): ("1", "-", "102.122"),
  (0.8, "ERK"): ("0.42", "2.09", "23.683"),
  (0.8, "uniform"): ("0.23", "1.14", "23.685"),
  (0.9, "ERK"): ("0.24", "1.23", "13.499"),
  (0.9, "uniform"): ("0.13", "0.66", "13.532"),
  (0.95, "ERK"): ("0.12", "0.63", "8.399"),
  (0.95, "uniform"): ("0.08", "0.42", "8.433"),
  (0.965, "ERK"): ("0.09", "0.45", "6.904"),
  (0.965, "uniform"): ("0.07", "0.34", "6.904"),
  (0.99, "ERK"): ("0.05", "0.29", "4.354"),
}


class Network(NamedTuple):
  """A network of the papers.

  Attributes:
    title: For people.
    model: Its name in `models.create`, and its options.
    classes: How many logits.
    shape: Of one input.
    dense: A regular expression of layers that stay dense, by distribution.
  """

  title: str
  model: dict[str, Any]
  classes: int
  shape: tuple[int, ...]
  dense: dict[str, str]


IMAGE = (224, 224, 3)
STEM = {"uniform": "^conv1/"}
DEPTHWISE = dict.fromkeys(("uniform", "ERK"), "^conv1/|/depthwise/")
WRN = {"name": "wrn", "depth": 22, "width": 2}
NETWORKS = (
  Network("ResNet-50", {"name": "resnet50"}, 1000, IMAGE, STEM),
  Network("MobileNet-v1", {"name": "mobilenet_v1"}, 1000, IMAGE, DEPTHWISE),
  Network("WRN-22-2", WRN, 10, (32, 32, 3), STEM),
  Network("LeNet-300-100", {"name": "lenet_300_100"}, 10, (28, 28, 1), {}),
)
_SHARES = {
  "uniform": distributions.uniform,
  "ERK": distributions.erdos_renyi_kernel,
}


class Layer(NamedTuple):
  """A kernel, and what one example costs.

  Attributes:
    kernel: Its shape, outputs last.
    flops: Two for each weight at each place.
    padded: What the flops are multiplied by where the image is padded twice.
  """

  kernel: jax.ShapeDtypeStruct
  flops: int
  padded: Fraction

  @property
  def outputs(self) -> int:
    """As many numbers come out."""
    return self.flops * self.kernel.shape[-1] // (2 * self.kernel.size)


def layers(network: Network) -> dict[str, Layer]:
  """Finds the kernels of a network, by key path, and what they cost."""
  model = models.create(num_classes=network.classes, **network.model)
  x = jax.ShapeDtypeStruct((1, *network.shape), jnp.float32)
  made = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), x)
  params = made.pop("params")
  counts = flops_lib.param_flops(
    lambda params, rest, x: model.apply({"params": params} | rest, x, False),
    *(params, made, x),
  )
  kernels = jax.tree_util.tree_leaves_with_path(params)
  found = {
    path_name(path): Layer(kernel, count, Fraction(1))
    for (path, kernel), count in zip(
      kernels, jax.tree.leaves(counts), strict=True
    )
    if count
  }
  if network.title == "ResNet-50":
    stem = found["conv1/kernel"]
    found["conv1/kernel"] = stem._replace(padded=Fraction(115, 112) ** 2)
  return found


def kept(
  network: Network, found: dict[str, Layer], sparsity: float, weights: str
) -> dict[str, int]:
  """Counts the weights that each sparse layer keeps; other layers are dense."""
  if weights == "dense":
    return {}
  dense = network.dense.get(weights)
  if (network.title, weights, sparsity) == ("ResNet-50", "ERK", 0.99):
    dense = network.dense["uniform"]
  sparse = {
    name: layer.kernel
    for name, layer in found.items()
    if dense is None or not re.search(dense, name)
  }
  counts = distributions.budgets(
    sparse, sparsity, _SHARES[weights], lambda path, leaf: True
  )
  return {name: n for name, n in counts.items() if n < sparse[name].size}


class Costs(NamedTuple):
  """FLOPs of an example forward, the same as RigL counts them, and bytes."""

  flops: Fraction
  as_rigl: Fraction
  size: Fraction


def costs(found: dict[str, Layer], counts: dict[str, int]) -> Costs:
  """Computes the costs of a network whose sparse layers keep these weights."""
  total = as_rigl = size = Fraction(0)
  for name, layer in found.items():
    weights = layer.kernel.size
    share = Fraction(counts.get(name, weights), weights)
    total += share * layer.flops
    as_rigl += layer.padded * (share * layer.flops + layer.outputs)
    size += 4 * (share * weights + layer.kernel.shape[-1])
    if name in counts:
      size += Fraction(weights, 8)
  return Costs(total, as_rigl, size)


def lines() -> Iterator[tuple[str, ...]]:
  """Computes the lines of the table, without its header."""
  for network in NETWORKS:
    found = layers(network)
    dense = costs(found, {})
    pairs = [(0.0, "dense")]
    pairs += [(s, w) for w in _SHARES for s in SPARSITIES]
    for sparsity, weights in pairs:
      here = costs(found, kept(network, found, sparsity, weights))
      share, as_rigl = (
        float(a / b) for a, b in zip(here[:2], dense[:2], strict=True)
      )
      theirs = ("-",) * 3
      if network.title == "ResNet-50":
        theirs = PUBLISHED.get((sparsity, weights), theirs)
      yield (
        network.title,
        weights,
        f"{100 * sparsity:g} %",
        f"{share:.3f}",
        *(f"{cost:.3f}" for cost in training(share)),
        f"{float(here.size) / 1e6:.3f}",
        f"{as_rigl:.3f}",
        "-" if weights == "dense" else f"{5 * training(as_rigl)[1]:.3f}",
        *theirs,
      )


def training(share: float) -> tuple[float, float, float]:
  """A step of static or SET, of RigL and of SNFS, relative to a dense one.

  Args:
    share: The FLOPs of inference relative to those of the dense network.
  """
  if share == 1:
    return 1.0, 1.0, 1.0
  steps = (
    flops_lib.static_training_flops(share),
    flops_lib.rigl_training_flops(1.0, share, delta_t=DELTA_T),
    flops_lib.snfs_training_flops(1.0, share),
  )
  whole = flops_lib.dense_training_flops(1.0)
  return tuple(step / whole for step in steps)


def main() -> None:
  """Prints the table, or writes it where --csv says."""
  table = [HEADER, *lines()]
  if flags.FLAGS.csv:
    path = pathlib.Path(flags.FLAGS.csv)
    text.write_csv(path, table, module="experiments.paper_costs")
  else:
    print(text.markdown(table))


def define_flags() -> None:
  """Defines the command's flags."""
  flags.DEFINE_string("csv", None, "Where to write the table.")
