"""What leaves are taken for, in four kinds of trees."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax import nnx

import sparsejax
from sparsejax import distributions, roles
from sparsejax.roles import Role

KEY = jax.random.key(0)


def read(params, prunable=None):
  """Maps each key path to its kind, stacked axes, inputs and outputs."""
  return {
    path: (role.kind, role.stacked, role.inputs, role.outputs)
    for path, role in roles.of(params, prunable).items()
  }


class Block(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    x = nn.Dense(32)(nn.relu(nn.Dense(64)(nn.LayerNorm()(x))))
    return nn.MultiHeadDotProductAttention(4, use_bias=False)(x), None


class Stack(nn.Module):
  called: str | None = None

  @nn.compact
  def __call__(self, x):
    layers = nn.scan(
      Block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=6,
    )
    x = x + self.param("pos_embedding", nn.initializers.normal(), (1, 6, 32))
    x = x + self.param("cls", nn.initializers.normal(), (1, 1, 32))
    x = x + nn.Embed(50, 32)(jnp.ones((2, 6), int))
    return nn.Dense(10, name="head")(layers(name=self.called)(x, None)[0])


def shapes(model, *args):
  return jax.eval_shape(lambda: model.init(KEY, *args))["params"]


@pytest.mark.parametrize("called", [None, "middle"])  # by name, by its norms
def test_layers_scanned_by_linen(called):
  params = shapes(Stack(called), jnp.ones((2, 6, 32)))
  found = read(params)
  name = called or "ScanBlock_0"
  attention = f"{name}/MultiHeadDotProductAttention_0"
  for path in ("pos_embedding", "cls", "Embed_0/embedding"):
    assert found[path][0] == "embedding"
  assert found[f"{name}/LayerNorm_0/scale"][:2] == ("norm", (0,))
  assert found[f"{name}/LayerNorm_0/bias"][:2] == ("bias", (0,))
  assert found[f"{name}/Dense_0/bias"][:2] == ("bias", (0,))
  assert found[f"{name}/Dense_0/kernel"] == ("weight", (0,), (1,), (2,))
  assert found[f"{attention}/query/kernel"] == ("weight", (0,), (1,), (2, 3))
  assert found[f"{attention}/out/kernel"] == ("weight", (0,), (1, 2), (3,))
  assert found["head/kernel"] == ("weight", (), (0,), (1,))
  sparse = distributions.budgets(params, 0.9)
  assert all(path.endswith("kernel") for path in sparse)
  assert len(sparse) == 7


def test_attention_of_linen_as_long_as_it_has_heads():
  """[in, heads, size] of in == heads: the bias [heads, size] fits two ways."""
  params = shapes(nn.MultiHeadDotProductAttention(4), jnp.ones((2, 6, 4)))
  found = read(params)
  assert found["query/kernel"] == ("weight", (), (0,), (1, 2))
  assert found["out/kernel"] == ("weight", (), (0, 1), (2,))
  assert found["query/bias"][0] == found["out/bias"][0] == "bias"


def test_convolutions_and_statistics_of_linen():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Conv(8, (3,), use_bias=False)(x)
      return nn.Conv(8, (3,))(nn.BatchNorm(use_running_average=False)(x))

  variables = jax.eval_shape(lambda: Net().init(KEY, jnp.ones((2, 6, 32))))
  found = read(variables)
  for layer in ("Conv_0", "Conv_1"):
    assert found[f"params/{layer}/kernel"] == ("weight", (), (1,), (2,))
  # As vmap would stack them.
  stacked = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((5, *x.shape), x.dtype), variables
  )
  found = read(stacked)
  assert found["batch_stats/BatchNorm_0/mean"][0] == "other"
  assert found["params/BatchNorm_0/scale"][0] == "norm"
  assert found["params/Conv_1/kernel"] == ("weight", (0,), (2,), (3,))
  assert set(distributions.budgets(stacked, 0.5)) == {
    "params/Conv_0/kernel",
    "params/Conv_1/kernel",
  }


def test_layers_of_nnx_in_lists_and_in_stacks():
  class Net(nnx.Module):
    def __init__(self, rngs):
      self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
      self.emb = nnx.Embed(10, 4, rngs=rngs)
      self.norm = nnx.BatchNorm(4, rngs=rngs)
      self.attention = nnx.MultiHeadAttention(2, 4, rngs=rngs, decode=False)

  @nnx.vmap
  def ensemble(key):
    rngs = nnx.Rngs(key)
    return nnx.Sequential(
      nnx.Linear(4, 8, rngs=rngs), nnx.LayerNorm(8, rngs=rngs)
    )

  found = read(nnx.state(Net(nnx.Rngs(0))))
  assert found["layers/1/kernel"] == ("weight", (), (0,), (1,))
  assert found["emb/embedding"][0] == "embedding"
  assert found["norm/mean"][0] == found["norm/var"][0] == "other"
  assert found["attention/query/bias"][0] == "bias"
  assert found["attention/query/kernel"] == ("weight", (), (0,), (1, 2))
  assert found["attention/out/kernel"] == ("weight", (), (0, 1), (2,))
  found = read(nnx.state(ensemble(jax.random.split(KEY, 5)), nnx.Param))
  assert found["layers/0/kernel"] == ("weight", (0,), (1,), (2,))
  assert found["layers/1/scale"][0] == "norm"


def test_modules_of_equinox_have_outputs_first():
  linears = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 7, key=key))
  params = {
    "conv": eqx.nn.Conv2d(3, 8, 3, key=KEY),
    "square": eqx.nn.Linear(4, 4, key=KEY),
    "tokens": eqx.nn.Embedding(10, 4, key=KEY),
    "before": eqx.nn.LayerNorm((4, 5)),
    "stack": linears(jax.random.split(KEY, 3)),
    "embed": eqx.nn.Linear(4, 7, use_bias=False, key=KEY),
  }
  found = read(eqx.filter(params, eqx.is_inexact_array))
  assert found["conv/weight"] == ("weight", (), (1,), (0,))
  assert found["conv/bias"][0] == "bias"
  assert found["square/weight"] == ("weight", (), (1,), (0,))
  assert found["tokens/weight"][0] == "embedding"
  assert found["before/weight"][0] == "norm"
  assert found["stack/weight"] == ("weight", (0,), (2,), (1,))
  assert found["stack/bias"][:2] == ("bias", (0,))
  assert found["embed/weight"][0] == "weight"  # by its type


def test_plain_trees():
  def of(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)

  found = read({
    "layers": {"w": of(6, 32, 16), "b": of(6, 16), "gain": of(6, 32)},
    "blocks": [{"w": of(3, 8, 16), "b": of(16)}] * 2,
    "pairs": [(of(784, 300), of(300)), (of(3, 4, 4), of(3, 4))],
    "wte": of(50, 32),
    "unembed": of(32, 50),
    "a": of(16, 12),
    "b": of(12, 30),
    "experts": {"kernel": of(8, 4, 4)},
    "patch_embed": {"w": of(48, 32), "b": of(32)},
    "stack": of(7, 9),
    "ln": {"scale": of(6, 32)},
  })  # fmt: skip
  assert found["layers/w"] == ("weight", (0,), (1,), (2,))
  assert found["layers/b"][0] == "bias"
  assert found["layers/gain"][0] == "other"
  assert found["blocks/1/w"] == ("weight", (), (1,), (2,))
  assert found["pairs/0/0"] == ("weight", (), (0,), (1,))
  assert found["pairs/1/0"] == ("weight", (0,), (1,), (2,))
  assert found["pairs/1/1"][0] == "bias"
  assert found["wte"][0] == "embedding"
  for name in ("unembed", "a", "b", "stack"):
    assert found[name] == ("weight", (), (0,), (1,))
  assert found["experts/kernel"] == ("weight", (0,), (1,), (2,))
  assert found["patch_embed/w"][0] == "weight"
  assert found["ln/scale"][0] == "norm"


def test_weights_of_attention_in_one_module():
  found = read(
    {
      "attention": {
        "wq": jnp.ones((32, 4, 8)),
        "bq": jnp.ones((4, 8)),
        "wo": jnp.ones((4, 8, 32)),
      }
    }
  )
  assert found["attention/wq"] == ("weight", (), (0,), (1, 2))
  assert found["attention/bq"][0] == "bias"
  assert found["attention/wo"] == ("weight", (), (0, 1), (2,))


def test_layers_stacked_along_another_axis_are_warned_of():
  """By nn.scan with variable_axes={"params": 1}, of 6 inputs and outputs."""
  params = {
    "ScanBlock_0": {
      "Dense_0": {"kernel": jnp.ones((6, 5, 6)), "bias": jnp.ones((6, 5))},
      "LayerNorm_0": {"scale": jnp.ones((6, 5))},
    }
  }
  with pytest.warns(UserWarning, match=r"ScanBlock_0/Dense_0/kernel"):
    assert len(distributions.budgets(params, 0.5)) == 1
  said = roles.by_path({"kernel$": Role("weight", stacked=(1,))})
  found = read(params, said)["ScanBlock_0/Dense_0/kernel"]
  assert found == ("weight", (1,), (0,), (2,))


def test_names_that_are_no_stacks():
  """Hints by names hold only where all leaves below can be such stacks."""
  found = read(
    {
      "blocks": {
        "conv1": {"kernel": jnp.ones((3, 3, 8, 16))},
        "norm": {"scale": jnp.ones(16)},
      },
      "ScanCell_0": {  # nn.scan with its parameters broadcast
        "ii": {"kernel": jnp.ones((5, 5))},
        "hi": {"kernel": jnp.ones((5, 5)), "bias": jnp.ones(5)},
      },
    }
  )
  assert found["blocks/conv1/kernel"] == ("weight", (), (2,), (3,))
  assert found["ScanCell_0/ii/kernel"] == ("weight", (), (0,), (1,))


def test_what_can_be_read_in_two_ways_is_warned_of_and_can_be_said():
  params = {"mix": jnp.ones((5, 7, 3)), "w": jnp.ones((4, 4))}
  with pytest.warns(UserWarning, match=r"mix: .*\(5, 7, 3\).*roles\.by_path"):
    distributions.budgets(params, 0.5)
  assert "mix: its first axes may" in roles.table(params)
  said = roles.by_path({"mix": Role("weight", stacked=(-3,))})
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    distributions.budgets(params, 0.5, prunable=said)
  assert read(params, said)["mix"] == ("weight", (0,), (1,), (2,))
  assert "mix: " not in roles.table(params, said)


def test_rules_come_before_what_is_read():
  params = {
    "embed": {"embedding": jnp.ones((9, 4))},
    "head": {"kernel": jnp.ones((4, 9)), "bias": jnp.ones(9)},
    "scale": jnp.ones((3, 4)),
  }
  said = roles.by_path(
    {"^head/kernel": Role("other"), "embedding$": Role("weight")}
  )
  assert list(roles.sparse(params, said)) == ["embed/embedding"]
  assert said("embed/embedding", None)
  assert not said("scale", params["scale"])
  rest = roles.by_path(
    {"embedding$": Role("weight")}, distributions.matching("scale")
  )
  assert list(roles.sparse(params, rest)) == ["embed/embedding", "scale"]
  tx = sparsejax.static(optax.sgd(0.1), 0.5, key=KEY, prunable=said)
  masks = sparsejax.get_masks(tx.init(params))
  assert int(masks["embed"]["embedding"].sum()) == 18
  assert masks["head"]["kernel"].shape == ()


def test_rules_that_do_not_fit_are_refused():
  params = {"w": jnp.ones((3, 4))}
  with pytest.raises(ValueError, match="'v' names no leaf"):
    roles.of(params, roles.by_path({"v": Role()}))
  for axes in ({"stacked": (2,)}, {"inputs": (0,), "outputs": (-2,)}):
    with pytest.raises(ValueError, match=r"^w: got the role .*\(3, 4\)"):
      roles.of(params, roles.by_path({"w": Role(**axes)}))
  with pytest.raises(ValueError, match="kind 'wieght', wanted one of weight"):
    roles.by_path({"w": Role("wieght")})


def test_matching_keeps_its_meaning():
  params = {
    "layers": {"bias": jnp.ones((6, 32)), "kernel": jnp.ones((6, 8, 8))}
  }
  taken = distributions.budgets(
    params, 0.5, distributions.uniform, distributions.matching("bias")
  )
  assert taken == {"layers/bias": 96}


def test_a_regular_expression_chooses_leaves():
  params = {name: {"kernel": jnp.ones((4, 4))} for name in "ab"}
  assert list(roles.sparse(params, "^b/")) == ["b/kernel"]
  with pytest.raises(TypeError, match=r"prunable: got 3, a int, wanted"):
    roles.sparse(params, 3)
