"""Which units leave, to a budget."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import shrink


def apply(params, x):
  x = jax.nn.relu(x @ params["a"])
  x = jax.nn.relu(x @ params["b"])
  return x @ params["c"]


SHAPES = {"a": (4, 20), "b": (20, 12), "c": (12, 3)}


@pytest.fixture(scope="module")
def params():
  rng = np.random.default_rng(0)
  return {k: np.float32(rng.random(s)) for k, s in SHAPES.items()}


@pytest.fixture(scope="module")
def plan(params):
  return shrink.trace(apply, params, jnp.ones((5, 4)))


def sizes(remove):
  return {cut: int(mask.sum()) for cut, mask in remove.keep.items()}


@pytest.mark.parametrize(
  ("round_to", "a", "b"), [(1, 10, 6), (4, 12, 8), (8, 16, 8), (16, 16, 12)]
)
def test_kept_lengths_divide_by_what_is_asked(plan, params, round_to, a, b):
  got = sizes(plan.lowest(params, 0.5, round_to=round_to))
  assert got.get(("a", 1), 20) == a
  assert got.get(("b", 1), 12) == b


def test_heads_are_as_wide_as_they_are(params):
  def heads(params, x):
    q = (x @ params["q"]).reshape(*x.shape[:1], 6, 8)
    return jnp.tanh(q).reshape(x.shape[0], 48) @ params["o"]

  shapes = {"q": (4, 48), "o": (48, 4)}
  params = {k: jnp.ones(s) for k, s in shapes.items()}
  plan = shrink.trace(heads, params, jnp.ones((2, 4)))
  remove = plan.lowest(params, 0.5, round_to=8)
  assert sizes(remove) == {("o", 0): 24, ("q", 1): 24}
  assert sizes(plan.lowest(params, 0.5, round_to=16)) == {
    ("o", 0): 32,
    ("q", 1): 32,
  }


@pytest.mark.parametrize("scope", ["group", "global"])
@pytest.mark.parametrize("budget", ["params", "flops"])
def test_budgets_are_met_and_not_by_much(plan, params, budget, scope):
  cost = getattr(plan, budget)
  remove = plan.lowest(params, 0.4, budget=budget, scope=scope)
  assert cost(remove) <= 0.6 * cost()
  # One unit more of each group would have been too much.
  assert cost(remove) > 0.45 * cost()


def test_flops_are_those_of_the_products(plan, params):
  assert plan.flops() == 2 * 5 * (4 * 20 + 20 * 12 + 12 * 3)
  remove = plan.lowest(params, 0.5)
  assert plan.flops(remove) == 2 * 5 * (4 * 10 + 10 * 6 + 6 * 3)


def test_global_compares_units_of_all_groups(plan, params):
  scores = {
    "a": np.full((4, 20), 9.0),
    "b": np.zeros((20, 12)),
    "c": np.ones((12, 3)),
  }
  remove = plan.lowest(scores, 0.25, scope="global")
  assert sizes(remove) == {("b", 1): 4, ("c", 0): 4}


def test_one_unit_of_each_group_stays(plan, params):
  remove = plan.lowest(params, 0.999)
  assert set(sizes(remove).values()) == {1}


def test_groups_may_be_left_alone(plan, params):
  remove = plan.lowest(params, 0.5, only=lambda g: ("a", 1) in g.cuts)
  assert set(remove.keep) == {("a", 1), ("b", 0)}


def test_a_function_may_be_the_budget(plan, params):
  seen = []

  def cost(remove):
    seen.append(remove)
    return plan.params(remove) ** 2

  remove = plan.lowest(params, 0.5, budget=cost)
  assert plan.params(remove) <= plan.params() * 0.5**0.5
  assert len(seen) < 20


def test_milliseconds_are_measured(plan, params):
  cost = shrink.milliseconds(plan, params, jnp.ones((5, 4)), repeats=2)
  assert cost(plan.remove([])) > 0


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"share": 1.0}, r"wanted one in \[0, 1\)"),
    ({"budget": "memory"}, "no budget is called 'memory'"),
    ({"scope": "layer"}, "no scope is called 'layer'"),
    ({"round_to": 0}, "wanted at least 1"),
    ({"share": 0.9999, "budget": "params"}, "the smallest model"),
  ],
)
def test_what_cannot_be_is_refused(plan, params, options, words):
  options = {"share": 0.5, **options}
  with pytest.raises(ValueError, match=words):
    plan.lowest(params, **options)


def test_scores_have_to_fit(plan, params):
  with pytest.raises(ValueError, match="c: scores and params differ"):
    plan.lowest({"a": params["a"], "b": params["b"]}, 0.5)
  with pytest.raises(ValueError, match=r"a: got scores of shape \(4,\)"):
    plan.lowest({**params, "a": np.ones(4)}, 0.5)
  with pytest.raises(ValueError, match="a: got scores that are not finite"):
    plan.lowest({**params, "a": np.full((4, 20), np.nan)}, 0.5)
