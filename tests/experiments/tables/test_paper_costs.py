"""The papers' FLOPs and sizes, to the digits that they print."""

import csv
import pathlib

import pytest

from experiments.tables import paper_costs

RESNET, MOBILENET, WRN, LENET = paper_costs.NETWORKS


@pytest.fixture(scope="module")
def resnet():
  return paper_costs.layers(RESNET)


def numbers(resnet, sparsity, weights):
  """Inference and 5x training of RigL as its README counts, and the size."""
  kept = paper_costs.kept(RESNET, resnet, sparsity, weights)
  here, dense = paper_costs.costs(resnet, kept), paper_costs.costs(resnet, {})
  share = float(here.as_rigl / dense.as_rigl)
  return share, 5 * paper_costs.training(share)[1], float(here.size) / 1e6


@pytest.mark.parametrize("key", paper_costs.PUBLISHED)
def test_resnet_50_is_that_of_rigl_s_readme(resnet, key):
  share, five, size = numbers(resnet, *key)
  inference, training, megabytes = paper_costs.PUBLISHED[key]
  if key != (0.0, "dense"):
    assert (f"{share:.2f}", f"{five:.2f}") == (inference, training)
  theirs = float(megabytes)
  if key == (0.8, "uniform"):
    # 20.395 MB of weights, 3.187 of bits, 0.038 of the stem, 0.110 of biases
    # make 23.729; their other uniform rows are sums of these.
    assert theirs == 23.685
    assert round(size, 3) == 23.729
  elif key == (0.965, "ERK"):
    # The size of the uniform net stands there.
    assert round(size, 3) == 6.869
    assert f"{theirs:.3f}" == f"{numbers(resnet, 0.965, 'uniform')[2]:.3f}"
  else:
    # Ours is an integer of bytes, theirs of no whole number of weights.
    assert size == pytest.approx(theirs, abs=0.00055)


def test_what_the_two_ways_of_counting_differ_by(resnet):
  costs = paper_costs.costs(resnet, {})
  assert costs.flops == 8_178_368_512
  # Evci et al., figure 2: 8.2e9.
  assert f"{float(costs.as_rigl):.1e}" == "8.2e+09"
  stem = resnet["conv1/kernel"]
  assert stem.outputs == 112 * 112 * 64
  assert stem.flops * stem.padded == 2 * 115 * 115 * 64 * 147
  more = sum(layer.padded * layer.outputs for layer in resnet.values())
  assert costs.as_rigl - costs.flops == more + stem.flops * (stem.padded - 1)


def test_first_and_depthwise_convolutions_stay_dense():
  found = paper_costs.layers(MOBILENET)
  for weights in ("uniform", "ERK"):
    kept = paper_costs.kept(MOBILENET, found, 0.9, weights)
    assert {name.split("/")[-2] for name in kept} <= {"pointwise", "logits"}
  found = paper_costs.layers(WRN)
  assert "conv1/kernel" not in paper_costs.kept(WRN, found, 0.9, "uniform")
  assert "conv1/kernel" in paper_costs.kept(WRN, found, 0.99, "ERK")
  # Blocks have a conv1 too.
  kept = paper_costs.kept(WRN, found, 0.9, "uniform")
  assert "stage1_block2/conv1/kernel" in kept


def test_lenet_by_hand():
  found = paper_costs.layers(LENET)
  kept = paper_costs.kept(LENET, found, 0.9, "uniform")
  assert kept == {
    "dense1/kernel": 23_520,
    "dense2/kernel": 3_000,
    "logits/kernel": 100,
  }
  costs = paper_costs.costs(found, kept)
  assert costs.flops == 2 * 26_620
  assert costs.as_rigl == 2 * 26_620 + 410
  assert costs.size == 4 * (26_620 + 410) + 266_200 / 8
  # Evci et al., appendix H: static 3 f_S; SNFS 2 f_S + f_D; RigL between.
  static, rigl, snfs = paper_costs.training(0.1)
  assert (static, snfs) == pytest.approx((0.1, 1.2 / 3))
  assert rigl == pytest.approx((0.3 * 100 + 0.2 + 1) / 101 / 3)


@pytest.mark.slow
def test_the_table_is_what_is_committed():
  root = pathlib.Path(__file__).parents[3]
  lines = (root / "results" / "flops.csv").read_text().splitlines()
  assert list(csv.reader(lines[1:])) == [
    list(row) for row in (paper_costs.HEADER, *paper_costs.lines())
  ]
