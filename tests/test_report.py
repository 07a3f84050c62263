import doctest

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from sparsejax import packed, quantize, report


def half(param):
  """Every other weight of a matrix; vectors stay dense."""
  if param.ndim < 2:
    return True
  return np.arange(param.size).reshape(param.shape) % 2 == 0


def half_of(params):
  return jax.tree.map(half, params)


@pytest.fixture
def rows():
  params = {
    "encoder": {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)},
    "head": jnp.ones((4, 2), jnp.bfloat16),
  }
  flops = {"encoder": {"kernel": 640, "bias": 0}, "head": 80}
  return report.layers(params, half_of(params), flops)


def test_doctests():
  assert doctest.testmod(report).failed == 0


def test_layers(rows):
  assert rows == [
    ("encoder/bias", (4,), "float32", 4, 4, False, 0, 0, "bias", None),
    (
      *("encoder/kernel", (8, 4), "float32", 32, 16, True, 640, 320),
      *("weight, 8 -> 4", None),
    ),
    ("head", (4, 2), "bfloat16", 8, 4, True, 80, 40, "weight, 4 -> 2", None),
  ]
  assert [row.sparsity for row in rows] == [0, 0.5, 0.5]


def test_total(rows):
  whole = report.total(rows)
  assert whole == ("total", (), "", 44, 24, True, 720, 360, "", None)
  assert whole.sparsity == 20 / 44
  sparse = report.total((row for row in rows if row.masked), "sparse")
  assert sparse == ("sparse", (), "", 40, 20, True, 720, 360, "", None)
  assert report.total(rows[:2]).dtype == "float32"
  nothing = ("total", (), "", 0, 0, False, None, None, "", None)
  assert report.total([]) == nothing
  assert report.total([]).sparsity == 0


def test_table(rows):
  assert report.table(rows) == (
    "| leaf           | shape | dtype    | taken for      | size | nnz "
    "| sparsity | FLOPs | sparse FLOPs |\n"
    "| :------------- | :---- | :------- | :------------- | ---: | --: "
    "| -------: | ----: | -----------: |\n"
    "| encoder/bias   | 4     | float32  | bias           |    4 |   4 "
    "|    dense |     0 |            0 |\n"
    "| encoder/kernel | 8 x 4 | float32  | weight, 8 -> 4 |   32 |  16 "
    "|  50.00 % |   640 |          320 |\n"
    "| head           | 4 x 2 | bfloat16 | weight, 4 -> 2 |    8 |   4 "
    "|  50.00 % |    80 |           40 |\n"
    "| sparse leaves  |       |          |                |   40 |  20 "
    "|  50.00 % |   720 |          360 |\n"
    "| all leaves     |       |          |                |   44 |  24 "
    "|  45.45 % |   720 |          360 |"
  )


def test_table_without_flops_separates_thousands():
  params = {"a|b": jax.ShapeDtypeStruct((1000, 2000), jnp.float32)}
  mask = np.zeros((1000, 2000), bool)
  mask[:, 0] = True
  text = report.table(report.layers(params, {"a|b": mask}))
  assert "FLOPs" not in text
  assert r"| a\|b" in text
  assert "| 2,000,000 | 1,000 |  99.95 % |" in text
  assert len({len(line) for line in text.splitlines()}) == 1


def test_table_of_nothing_and_of_dense_leaves():
  assert "| all leaves" in report.table([])
  rows = report.layers((jnp.ones((2, 3)),), (True,), (10,))
  sparse, whole = report.table(rows).splitlines()[-2:]
  assert sparse.split("|")[5:7] == ["    0 ", "   0 "]
  assert whole.split("|")[5:7] == ["    6 ", "   6 "]
  assert "dense" in whole


def test_paths_of_any_pytree():
  def paths(params):
    rows = report.layers(params, half_of(params))
    assert [row.nnz for row in rows] == [
      p.size if p.ndim < 2 else p.size // 2 for p in jax.tree.leaves(params)
    ]
    return [row.path for row in rows]

  x = jnp.ones((2, 4))
  linen = nn.Dense(3).init(jax.random.key(0), x)
  assert paths(linen) == ["params/bias", "params/kernel"]
  net = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
  params = eqx.filter(net, eqx.is_inexact_array)
  assert paths(params)[:2] == ["layers/0/weight", "layers/0/bias"]
  state = nnx.state(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.Param)
  assert list(paths(state)) == ["bias", "kernel"]
  assert paths((x, [x])) == ["0", "1/0"]
  assert paths(x) == ["params"]


def test_masks_on_a_device_scalars_and_empty_leaves():
  params = {"a": jnp.ones((2, 2)), "b": jnp.float32(1), "c": np.ones((0, 3))}
  masks = {
    "a": jnp.array([[True, False], [False, False]]),
    "b": jnp.array(True),
    "c": np.ones((0, 3), bool),
  }
  a, b, c = report.layers(params, masks)
  assert (a.nnz, a.sparsity, a.masked) == (1, 0.75, True)
  assert (b.nnz, b.size, b.masked) == (1, 1, False)
  assert (c.nnz, c.size, c.sparsity) == (0, 0, 0.0)


def test_errors():
  params = {"layer": {"kernel": jnp.ones((2, 3))}}
  with pytest.raises(ValueError, match="masks must have the structure"):
    report.layers(params, {"layer": {"weight": True}})
  with pytest.raises(ValueError, match="masks must have the structure"):
    report.layers(params, {"layer": {"kernel": None}})
  with pytest.raises(ValueError, match="flops must have the structure"):
    report.layers(params, {"layer": {"kernel": True}}, {"layer": 1})
  wrong = {"layer": {"kernel": np.ones((3, 2), bool)}}
  with pytest.raises(
    ValueError, match=r"'layer/kernel' .* \(2, 3\).* got shape \(3, 2\)"
  ):
    report.layers(params, wrong)


def test_bytes_are_counted_where_leaves_are_nodes():
  """By hand: values, bits of the mask and pointers, scales."""
  w = np.where(np.arange(128).reshape(16, 8) % 4 == 0, 1.5, 0).astype("f")
  params = {"a": {"kernel": w}, "b": {"kernel": w}, "c": np.ones(8, "f")}
  masks = {"a": {"kernel": w != 0}, "b": {"kernel": True}, "c": True}
  tree = packed.pack(params, masks, formats=packed.row_bits())
  tree = packed.quantize(tree)
  tree["b"]["kernel"] = quantize.matrix(w, group=4)
  masks["b"]["kernel"] = w != 0
  rows = report.layers(tree, masks)
  assert [row.nbytes for row in rows] == [
    32 + 16 * 8 // 8 + 4 * 9 + 4 * 8,
    128 + 4 * 8 * 4,
    4 * 8,
  ]
  assert [row.dtype for row in rows] == ["int8", "int8", "float32"]
  assert [row.nnz for row in rows] == [32, 32, 8]
  table = report.table(rows)
  assert table.splitlines()[0].endswith("| sparsity | bytes |")
  assert table.splitlines()[-1].endswith(f" {116 + 256 + 32} |")
  plain = report.layers(params, masks)
  assert [row.role for row in plain] == [row.role for row in rows]
  assert all(row.nbytes is None for row in plain)
