"""What is left whole, and what is said of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sparsejax import shrink
from tests.shrink import zoo

SHAPES = {"a": (3, 8), "c": (8, 2)}


def reasons(between, params=None, **options):
  """What is frozen of the axis between two products, with its primitive."""
  params = params or zoo.arrays(SHAPES)

  def apply(params, x):
    return between(x @ params["a"], params) @ params["c"]

  plan = shrink.trace(apply, params, jnp.ones((4, 3)), **options)
  return {
    (f.why, f.primitive)
    for f in plan.frozen
    if (f.path, f.axis) in (("a", 1), ("c", 0))
  }


@pytest.mark.parametrize(
  ("between", "primitive"),
  [
    (lambda x, _: lax.top_k(x, 8)[0], "top_k"),
    (lambda x, _: jnp.fft.rfft(x, 14).real, "fft"),
    (lambda x, _: jax.nn.softmax(x), "reduce_max"),
    (lambda x, _: jnp.cumsum(x, 1), "cumsum"),
    (lambda x, _: x / jax.nn.sigmoid(x).sum(1, keepdims=True), "reduce_sum"),
    (lambda x, _: x[:, jnp.argsort(x[0])], "gather"),
    (lambda x, _: lax.while_loop(lambda y: y.sum() < 0, jnp.abs, x), "while"),
    (lambda x, _: x.at[0, x.argmax()].set(0), "scatter"),
  ],
)
def test_in_doubt_it_stays(between, primitive):
  assert primitive in {found for _, found in reasons(between)}


@pytest.mark.parametrize(
  "between",
  [
    lambda x, _: jax.nn.sigmoid(x),  # whose product with zeros is zero
    lambda x, _: x / jnp.abs(x).sum(1, keepdims=True),
    lambda x, _: lax.fori_loop(0, 3, lambda i, y: jnp.sin(y) * i, x),
    lambda x, _: lax.cond(jnp.abs(x).sum() > 0, jnp.sin, jnp.cos, x),
    lambda x, _: jnp.flip(jnp.roll(x, 2, 0), 0),
  ],
)
def test_without_doubt_it_may_leave(between):
  assert not reasons(between)


def test_a_line_is_named():
  def apply(params, x):
    y = jax.nn.sigmoid(x @ params["a"])
    return y.sum(1, keepdims=True) * y @ params["c"]

  plan = shrink.trace(apply, zoo.arrays(SHAPES), jnp.ones((4, 3)))
  (line,) = {f.line for f in plan.frozen if f.primitive == "reduce_sum"}
  number = apply.__code__.co_firstlineno + 2
  assert line == f"shrink/test_frozen.py:{number}"
  report = " ".join(str(plan).split())
  assert "it sums what is not zero behind a mask" in report
  assert f"(reduce_sum at {line}): a[1] c[0]" in report
  assert max(map(len, str(plan).splitlines())) <= 80


def test_leaves_stay_when_asked():
  assert reasons(lambda x, _: x, frozen=lambda path: path == "c") == {
    ("it was asked to stay", "")
  }


def two_pass_norm(x, params):
  x = x - x.mean(-1, keepdims=True)
  return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def test_a_variance_in_two_passes_stays_unless_not_strict():
  params = zoo.randomized(zoo.arrays(SHAPES))
  x = zoo.images(4, 3)

  def apply(params, x):
    return two_pass_norm(x @ params["a"], params) @ params["c"]

  assert not shrink.trace(apply, params, x).groups
  loose = shrink.trace(apply, params, x, strict=False)
  (group,) = loose.groups.values()
  assert group.summed
  remove = loose.remove(group.units[:3])
  error = shrink.verify(loose, params, remove, x)
  assert error > 1e-3
  with pytest.raises(ValueError, match="differs from the masked one by"):
    shrink.verify(loose, params, remove, x, tolerance=1e-4)


def test_other_splits_of_a_reshape_may_be_chosen():
  def apply(params, x):
    y = (x @ params["a"]).reshape(-1, 2, 4)
    return jnp.einsum("bhd,hde->be", jnp.tanh(y), params["c"])

  params = zoo.randomized(zoo.arrays({"a": (3, 8), "c": (2, 4, 5)}))
  heads = shrink.trace(apply, params, zoo.images(4, 3))
  assert {g.cuts for g in heads.groups.values()} == {(("a", 1), ("c", 0))}
  sizes = shrink.trace(
    apply, params, zoo.images(4, 3), split=lambda sizes, line: 1
  )
  (group,) = sizes.groups.values()
  assert group.cuts == (("a", 1), ("c", 1))
  assert len(group) == 4
  remove = sizes.remove(group.units[:2])
  shrink.verify(sizes, params, remove, zoo.images(4, 3), tolerance=1e-6)


def test_new_statistics_are_cut_as_the_old_ones():
  apply, variables, (x,) = zoo.MODELS["resnet, training"]()
  plan = shrink.trace(apply, variables, x)
  remove = plan.lowest(variables, 0.5)
  _, new = jax.eval_shape(
    plan.apply_fn(remove), plan.take(variables, remove), x
  )
  small = plan.take(variables, remove)["batch_stats"]
  assert jax.tree.map(jnp.shape, new["batch_stats"]) == (
    jax.tree.map(jnp.shape, small)
  )
  assert np.size(small["bn1"]["mean"]) == 4
