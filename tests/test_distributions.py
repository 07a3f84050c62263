"""How many weights each leaf keeps, against the published formulas."""

import math
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax
from sparsejax import distributions as lib

RESNET = {
  "conv_init": (3, 3, 3, 64),
  "block0/conv": (3, 3, 64, 64),
  "block1/conv": (3, 3, 64, 128),
  "block1/proj": (1, 1, 64, 128),
  "block2/conv": (3, 3, 128, 256),
  "block3/conv": (3, 3, 512, 512),
  "head": (512, 10),
}
MLP = {"0": (784, 300), "1": (300, 100), "2": (100, 10)}


def budget(shapes, sparsity):
  """The share kept of all weights, to the nearest integer, halves up."""
  total = sum(map(math.prod, shapes.values()))
  return math.floor(total * (1 - Fraction(str(sparsity))) + Fraction(1, 2))


def published(shapes, sparsity, ratio):
  """Real-valued ER(K) as in the authors' code: retried until none exceeds 1.

  eps solves sum_l eps ratio_l n_l = (1 - S) N over the leaves not yet dense;
  the leaf of the largest probability turns dense whenever that exceeds 1.
  """
  dense = set()
  sizes = {p: math.prod(s) for p, s in shapes.items()}
  while True:
    rhs = (1 - sparsity) * sum(sizes.values()) - sum(sizes[p] for p in dense)
    others = [p for p in shapes if p not in dense]
    eps = rhs / sum(ratio(shapes[p]) * sizes[p] for p in others)
    worst = max(others, key=lambda p: ratio(shapes[p]))
    if eps * ratio(shapes[worst]) <= 1:
      break
    dense.add(worst)
  keep = {p: sizes[p] * eps * ratio(shapes[p]) for p in others}
  return {p: keep.get(p, sizes[p]) for p in shapes}


def erk(shape, power=1.0):
  return (sum(shape) / math.prod(shape)) ** power


def er(shape):
  n_in, n_out = shape[-2:]
  return (n_in + n_out) / (n_in * n_out)


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("shapes", [RESNET, MLP])
@pytest.mark.parametrize(
  ("distribution", "ratio"),
  [
    (lib.erdos_renyi_kernel, erk),
    (partial(lib.erdos_renyi_kernel, power_scale=0.5), partial(erk, power=0.5)),
    (lib.erdos_renyi, er),
  ],
)
def test_erdos_renyi_is_the_published_formula(
  distribution, ratio, shapes, sparsity
):
  counts = distribution(shapes, sparsity)
  wanted = published(shapes, sparsity, ratio)
  assert sum(counts.values()) == budget(shapes, sparsity)
  for path, shape in shapes.items():
    assert abs(counts[path] - wanted[path]) <= 1, path
    assert 1 <= counts[path] <= math.prod(shape)


def test_small_layers_of_a_resnet_are_dense():
  counts = lib.erdos_renyi_kernel(RESNET, 0.8)
  for path in ("conv_init", "block1/proj", "head"):
    assert counts[path] == math.prod(RESNET[path])
  assert counts["block3/conv"] < 0.2 * math.prod(RESNET["block3/conv"])


def test_the_papers_layers_of_lenet_300_100():
  """eps (n_in + n_out) by hand: 25,820 weights kept of 266,200 less 1,000."""
  counts = lib.erdos_renyi(MLP, 0.9)
  assert sum(counts.values()) == 26_620
  eps = (26_620 - 1_000) / (784 + 300 + 300 + 100)
  assert counts["2"] == 1_000
  assert counts["0"] == round(eps * 1084)
  assert counts["1"] == round(eps * 400)


def test_axes_of_kernels_laid_out_as_in_pytorch():
  hwio = {"a": (3, 3, 16, 32), "b": (1, 1, 32, 64), "c": (64, 10)}
  oihw = {"a": (32, 16, 3, 3), "b": (64, 32, 1, 1), "c": (10, 64)}
  assert lib.erdos_renyi(hwio, 0.8) == lib.erdos_renyi(oihw, 0.8, axes=(0, 1))
  assert lib.erdos_renyi(hwio, 0.8) != lib.erdos_renyi(oihw, 0.8)


def test_power_scale_0_is_uniform():
  counts = lib.erdos_renyi_kernel(MLP, 0.9, power_scale=0)
  assert counts == lib.uniform(MLP, 0.9) == {"0": 23520, "1": 3000, "2": 100}


@pytest.mark.parametrize("sparsity", [0.3, 0.55, 0.9, 0.997])
def test_uniform_has_an_exact_total(sparsity):
  shapes = {str(i): (i, 37) for i in range(1, 20)}
  counts = lib.uniform(shapes, sparsity)
  assert sum(counts.values()) == budget(shapes, sparsity)
  for path, shape in shapes.items():
    assert abs(counts[path] - math.prod(shape) * (1 - sparsity)) <= 1


def test_a_sparsity_is_the_decimal_that_it_prints_as():
  """In floats, 1 - 0.9 is less than 0.1; 1 of 10 weights has to stay."""
  assert lib.uniform({"w": (10,)}, 0.9) == {"w": 1}
  assert lib.uniform({"w": (10**9,)}, 0.999999) == {"w": 1000}


@pytest.mark.parametrize(
  "distribution", [lib.uniform, lib.erdos_renyi, lib.erdos_renyi_kernel]
)
def test_extremes(distribution):
  sizes = {p: math.prod(s) for p, s in MLP.items()}
  assert distribution(MLP, 0.0) == sizes
  assert distribution({"w": (100, 10)}, 0.9) == {"w": 100}
  assert distribution({"w": (50,)}, 0.5) == {"w": 25}
  least = distribution(MLP, 1 - 3 / sum(sizes.values()))
  assert least == dict.fromkeys(MLP, 1)
  with pytest.raises(ValueError, match="2 weights in all cannot be shared"):
    distribution(MLP, 1 - 2 / sum(sizes.values()))


def test_by_path_leaves_its_leaves_out_of_the_budget():
  distribution = lib.by_path({"^0$": 0.0, "[02]": 0.5})
  counts = distribution(MLP, 0.9)
  assert counts == {"0": 784 * 300, "1": 3000, "2": 500}
  assert list(counts) == list(MLP)


def test_by_path_may_rule_every_leaf():
  assert lib.by_path({".": 0.0})(MLP, 0.9) == lib.uniform(MLP, 0)
  # Each leaf has the rule's sparsity by itself.
  assert lib.by_path({".": 0.5})({"a": (3,), "b": (3,)}, 0.9) == {
    "a": 2,
    "b": 2,
  }


def test_by_path_refuses():
  with pytest.raises(ValueError, match=r"rule 'Dense_O' names no sparse leaf"):
    lib.by_path({"Dense_O": 0.5})({"Dense_0": (9, 9)}, 0.9)
  with pytest.raises(ValueError, match=r"rule 'head': got 1.0, wanted"):
    lib.by_path({"head": 1.0})


PARAMS = {
  "Dense_0": {"kernel": jnp.ones((20, 10)), "bias": jnp.ones(10)},
  "Embed_0": {"table": jnp.ones((10, 10), jnp.bfloat16)},
  "scale": jnp.ones(()),
  "steps": jnp.ones((4, 4), jnp.int32),
}


def test_what_is_no_matrix_is_left_alone_unless_asked_for():
  counts = lib.budgets(PARAMS, 0.5, lib.uniform)
  assert counts == {"Dense_0/kernel": 100}
  counts = lib.budgets(PARAMS, 0.5, lib.uniform, lib.matching("bias|table"))
  assert counts == {"Dense_0/bias": 5, "Embed_0/table": 50}
  shapes = jax.eval_shape(lambda: PARAMS)
  assert lib.budgets(shapes, 0.5) == lib.budgets(PARAMS, 0.5)


def test_matching_reaches_the_masks():
  update = sparsejax.updates.static(
    sparsity=0.5, prunable=lib.matching(r"Dense_\d/(kernel|bias)$")
  )
  masks = update.init(jax.random.key(0), PARAMS).masks
  assert jax.tree.map(np.ndim, masks) == {
    "Dense_0": {"kernel": 2, "bias": 1},
    "Embed_0": {"table": 0},
    "scale": 0,
    "steps": 0,
  }


@pytest.mark.parametrize(
  ("prunable", "message"),
  [
    ("scale", r"scale: float32\[\] is asked to be sparse, wanted a floating"),
    ("steps", r"steps: int32\[4, 4\] is asked.*Leave it out of `prunable`"),
    ("kernal", r"no leaf is prunable among 5 \(Dense_0/bias\[10\],.*matching"),
  ],
)
def test_budgets_refuse_leaves(prunable, message):
  with pytest.raises(ValueError, match=message):
    lib.budgets(PARAMS, 0.5, prunable=lib.matching(prunable))


def test_budgets_refuse_paths_that_are_alike():
  twins = {"a/b": jnp.ones((3, 3)), "a": {"b": jnp.ones((3, 3))}}
  with pytest.raises(ValueError, match="two leaves have the key path 'a/b'"):
    lib.budgets(twins, 0.5)


@pytest.mark.parametrize("answer", [-1, 201, 10.0, None])
def test_budgets_refuse_what_is_no_count(answer):
  with pytest.raises(ValueError, match=r"gives .* of shape \(20, 10\), wanted"):
    lib.budgets({"w": jnp.ones((20, 10))}, 0.5, lambda shapes, s: {"w": answer})


@pytest.mark.parametrize("sparsity", [-0.1, 1, 1.5, float("nan"), 90])
def test_a_sparsity_is_a_share(sparsity):
  with pytest.raises(ValueError, match=r"sparsity: got .*, wanted .* \[0, 1\)"):
    lib.budgets(PARAMS, sparsity)


@pytest.mark.parametrize("name", ["uniform", "erdos_renyi", "er", "erk"])
def test_a_leaf_of_no_size_keeps_nothing_and_takes_nothing(name):
  full = {"a": jnp.ones((16, 12)), "b": jnp.ones((12, 30))}
  counts = lib.budgets(full | {"empty": jnp.ones((0, 4))}, 0.9, name)
  assert counts == lib.budgets(full, 0.9, name) | {"empty": 0}
  ruled = lib.by_path({"empty": 0.5, "a": 0.0}, rest=name)
  counts = lib.budgets(full | {"empty": jnp.ones((0, 4))}, 0.9, ruled)
  assert counts == {"a": 192, "b": 36, "empty": 0}


def test_distributions_go_by_name():
  by_name = {
    "uniform": lib.uniform,
    "er": lib.erdos_renyi,
    "erdos_renyi": lib.erdos_renyi,
    "erk": lib.erdos_renyi_kernel,
    "erdos_renyi_kernel": lib.erdos_renyi_kernel,
  }
  for name, function in by_name.items():
    assert lib.named(name) is function
  with pytest.raises(ValueError, match=r"'unifrom'\. Near it: uniform"):
    lib.budgets(PARAMS, 0.5, "unifrom")
  with pytest.raises(TypeError, match=r"got 0\.5, wanted a function .*erk"):
    lib.budgets(PARAMS, 0.5, 0.5)


def test_rounding_of_ten_thousand_layers_is_exact_and_quick():
  """A stack of experts: as many numbers as layers are rounded together."""
  params = {
    "experts": {"kernel": jax.ShapeDtypeStruct((9973, 3, 7), "float32")}
  }
  (count,) = lib.budgets(params, 0.777).values()
  assert count == round(9973 * 21 * 0.223)
