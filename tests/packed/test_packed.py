"""Packed arrays: every format, trees of them, products, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparsejax
from sparsejax import packed, patterns
from sparsejax.packed.layouts import formats_of
from tests import bits
from tests.marks import slow

pytestmark = pytest.mark.core


def random_mask(shape, density=0.2):
  return np.random.default_rng(0).random(shape) < density


def best(pattern, shape, count):
  noise = np.random.default_rng(0).random(shape)
  return np.asarray(pattern.top_k(jnp.asarray(noise), count))


N_OF_M = [
  (packed.n_of_m(n, m, axis), best(patterns.n_of_m(n, m, axis), shape, count))
  for n, m, axis, shape, count in (
    (2, 4, -2, (32, 10), 160),
    (2, 4, -2, (30, 10), 160),
    (1, 4, -1, (5, 33), 45),
    (3, 4, 1, (5, 8, 7), 210),
    (1, 2, -2, (3, 6, 7, 9), 567),
  )
]
CASES = [
  (packed.flat(), random_mask((30, 50))),
  (packed.flat(), random_mask((3, 4, 5, 6))),
  (packed.flat(), random_mask((200,))),
  (packed.rows(), random_mask((30, 50))),
  (packed.rows(), random_mask((1, 70))),
  (packed.rows(kernel=True, back=True), random_mask((30, 50))),
  (packed.bits(), random_mask((30, 51))),
  (packed.row_bits(), random_mask((51, 30))),
  (packed.fan_in(), best(patterns.fan_in(), (30, 50), 300)),
  (packed.stacked(packed.rows()), random_mask((4, 30, 50))),
  (packed.stacked(packed.row_bits()), random_mask((4, 30, 50))),
  (packed.stacked(packed.n_of_m(2, 4)), np.stack([N_OF_M[0][1]] * 3)),
  *N_OF_M,
]
FORMATS = (
  *(packed.flat(), packed.rows(), packed.bits(), packed.row_bits()),
  packed.fan_in(),
)
EMPTY = [(form, np.zeros((8, 6), bool)) for form in FORMATS]
FULL = [(form, np.ones((8, 6), bool)) for form in FORMATS]


def weights(mask, dtype=jnp.float32):
  values = np.random.default_rng(1).normal(size=mask.shape)
  return jnp.asarray(np.where(mask, values, 0), dtype)


def name(case):
  return f"{case[0].name}-{case[1].shape}"


@pytest.mark.parametrize("case", [*CASES, *EMPTY, *FULL], ids=name)
@pytest.mark.parametrize("dtype", [jnp.float32, slow(jnp.bfloat16)])
def test_every_format_gives_back_what_it_was_given(case, dtype):
  form, mask = case
  w = weights(mask, dtype)
  tree = packed.pack({"w": w, "b": w[0]}, {"w": mask, "b": True}, formats=form)
  packed.check(tree)
  assert tree["w"].shape == w.shape
  assert tree["w"].dtype == dtype
  for leaf in jax.tree.leaves(packed.split(tree)[0]["w"]):
    assert leaf.size < w.size + 8 or mask.all()
  again = packed.unpack(packed.join(*packed.split(tree)))
  np.testing.assert_array_equal(again["w"], w)
  np.testing.assert_array_equal(again["b"], w[0])
  structure = tree["w"].structure
  np.testing.assert_array_equal(structure.mask(), mask)
  assert int(structure.used().sum()) == mask.sum()


@pytest.mark.parametrize(
  "case", [c for c in CASES if not c[0].name.startswith("stacked")], ids=name
)
def test_a_structure_takes_another_mask_without_compiling_anew(case):
  form, mask = case
  first = packed.pack(weights(mask), mask, formats=form).structure
  if form.name in ("flat", "rows", "bits", "row_bits"):
    flat = np.random.default_rng(2).permutation(mask.reshape(-1))
    other = flat.reshape(mask.shape)
  else:  # The groups or outputs in another order.
    along = -1 if mask.ndim < 3 else 0
    other = np.flip(mask, along)
    if not form.fits(other):
      pytest.skip("its groups are of several sizes")
  moved = jax.jit(lambda s, m: s.moved(m))(first, other)
  assert jax.tree.structure(moved) == jax.tree.structure(first)
  assert jax.tree.map(jnp.shape, moved) == jax.tree.map(jnp.shape, first)
  np.testing.assert_array_equal(moved.mask(), other)


@pytest.mark.parametrize("case", [c for c in CASES if c[1].ndim == 2], ids=name)
@pytest.mark.parametrize("batch", [(), slow((7,)), (3, 5)])
def test_products_have_the_bits_of_the_dense_ones(case, batch):
  form, mask = case
  by_kernel = form.name == "row_bits" or (
    form.name == "rows" and form.place(jnp.asarray(mask), 8).kernel
  )
  if by_kernel:
    pytest.skip("kernels have other bits; see tests/kernels")
  w = packed.pack(weights(mask), mask, formats=form)
  rng = np.random.default_rng(3)
  x = jnp.asarray(rng.normal(size=(*batch, mask.shape[0])), jnp.float32)

  def loss(values, x):
    tree = packed.join(values, w.structure)
    return jnp.sum(sparsejax.matmul(x, tree) ** 2)

  def dense_loss(dense, x):
    return jnp.sum(sparsejax.matmul(x, dense) ** 2)

  value, (of_values, of_x) = jax.jit(jax.value_and_grad(loss, (0, 1)))(
    w.values, x
  )
  wanted, (of_w, of_x_too) = jax.jit(jax.value_and_grad(dense_loss, (0, 1)))(
    w.unpack(), x
  )
  assert of_values.shape == w.values.shape
  gathered = w.structure.gather(of_w)
  bits.assert_same((value, of_values, of_x), (wanted, gathered, of_x_too))


def test_the_gradient_of_an_unpacked_kernel_is_gathered():
  mask = random_mask((3, 3, 4, 6))
  kernel = packed.pack(weights(mask), mask)
  x = jnp.asarray(np.random.default_rng(4).normal(size=(2, 8, 8, 4)))

  def loss(kernel):
    if packed.is_packed(kernel):
      kernel = kernel.unpack()
    y = jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.sum(y**2)

  found = jax.grad(lambda v: loss(packed.join(v, kernel.structure)))(
    kernel.values
  )
  wanted = jax.grad(loss)(kernel.unpack())
  np.testing.assert_allclose(found, kernel.structure.gather(wanted), rtol=1e-5)


def test_stacked_matrices_go_through_a_scan():
  mask = random_mask((3, 20, 20))
  w = packed.pack(weights(mask), mask, formats=packed.stacked(packed.rows()))
  x = jnp.ones((2, 20))

  def through(w):
    return jax.lax.scan(lambda x, w: (sparsejax.matmul(x, w), None), x, w)[0]

  np.testing.assert_allclose(
    jax.jit(through)(w), through(w.unpack()), rtol=1e-5
  )


def test_layers_of_one_array_are_made_dense_before_a_loop():
  w = np.where(mask := random_mask((3, 8, 8)), 1.0, 0.0).astype(np.float32)
  tree = packed.pack(w, mask)
  with pytest.raises(TypeError, match=r"\(3, 8, 8\).*w\.unpack\(\)\[index\]"):
    tree[0]
  with pytest.raises(ValueError, match=r"\(3, 8, 8\).*loop over them: w\.unp"):
    sparsejax.matmul(jnp.ones((2, 8)), tree)
  np.testing.assert_array_equal(tree.unpack()[0], w[0])


@pytest.mark.slow
def test_formats_are_as_small_as_they_say():
  mask = best(patterns.n_of_m(2, 4), (64, 64), 2048)
  w = weights(mask)

  def bytes_of(form):
    structure = packed.pack(w, mask, formats=form).structure
    return sum(x.nbytes for x in jax.tree.leaves(structure))

  count = int(mask.sum())
  assert bytes_of(packed.flat()) == 4 * count
  assert bytes_of(packed.rows()) == 2 * count + 4 * 65
  assert bytes_of(packed.n_of_m(2, 4)) == count // 4
  assert bytes_of(packed.bits()) == mask.size // 8
  assert bytes_of(packed.row_bits()) == mask.size // 8 + 4 * 65


def test_a_format_is_chosen_that_fits():
  assert packed.fitting(random_mask((8, 8))).name == "rows"
  assert packed.fitting(random_mask((2, 2, 8, 8))).name == "flat"
  wide = np.broadcast_to(True, (2**16, 2))
  assert packed.fitting(wide).name == "flat"
  two_of_four = formats_of(patterns.n_of_m(2, 4).layout)
  form, mask = N_OF_M[0]
  assert packed.fitting(mask, wanted=two_of_four).name == form.name
  other = random_mask((32, 10))
  assert packed.fitting(other, wanted=two_of_four).name == "rows"


@pytest.mark.parametrize(
  ("masks", "error", "says"),
  [
    ({"w": np.ones((4, 3))}, TypeError, "w: got a mask of float64"),
    ({"w": np.ones((3, 3), bool)}, ValueError, r"w: .*\(3, 3\)"),
    ({"v": np.ones((4, 3), bool)}, ValueError, "v: masks have a leaf"),
  ],
)
def test_masks_that_do_not_fit_are_refused(masks, error, says):
  with pytest.raises(error, match=says):
    packed.pack({"w": jnp.ones((4, 3))}, masks)


def test_a_format_that_does_not_fit_is_refused():
  with pytest.raises(ValueError, match=r"w: .* cannot be stored as 2_of_4"):
    packed.pack(
      {"w": jnp.ones((4, 3))},
      {"w": np.eye(4, 3, dtype=bool)},
      formats=packed.n_of_m(2, 4),
    )


def test_values_of_another_topology_are_refused():
  mask = random_mask((8, 8))
  _, structure = packed.split({"w": packed.pack(weights(mask), mask)})
  with pytest.raises(ValueError, match=r"w: got values of shape \(3,\)"):
    packed.join({"w": jnp.ones(3)}, structure)


BROKEN = [
  (packed.flat(), "indices", lambda x: x.at[0].set(-1), "below 0"),
  (packed.flat(), "indices", lambda x: x.at[3].set(x[2]), "twice"),
  (packed.flat(), "indices", lambda x: x[::-1], "another order"),
  (packed.flat(), "indices", lambda x: x.at[-1].set(10**6), "another order"),
  (packed.rows(), "pointers", lambda x: x.at[2].set(10**6), "ascend"),
  (packed.rows(), "pointers", lambda x: x.at[-1].set(10**6), "at most"),
  (packed.rows(), "pointers", lambda x: x[:-1], "one for each output"),
  (packed.rows(), "inputs", lambda x: x.at[0].set(30), "30, wanted below 30"),
  (packed.rows(), "inputs", lambda x: x.at[1].set(x[0]), "do not ascend"),
  (packed.fan_in(), "inputs", lambda x: x.at[1].set(x[0]), "twice"),
  (packed.rows(), "inputs", lambda x: x[:-8], "at most"),
  (packed.row_bits(), "pointers", lambda x: x.at[2].add(1), "do not go with"),
  (packed.row_bits(), "pointers", lambda x: x[:-1], "do not go with"),
  (packed.row_bits(), "bits", lambda x: x ^ 1, "do not go with"),
  (packed.row_bits(), "bits", lambda x: x | 128, "do not go with"),
]


@pytest.mark.parametrize(("form", "field", "breaking", "says"), BROKEN)
def test_a_broken_structure_is_refused_by_name(form, field, breaking, says):
  mask = best(patterns.fan_in(), (30, 50), 296)
  w = packed.pack(weights(mask), mask, formats=form)
  broken = breaking(getattr(w.structure, field))
  structure = dataclasses.replace(w.structure, **{field: broken})
  tree = {"layer": {"w": dataclasses.replace(w, structure=structure)}}
  with pytest.raises(ValueError, match=f"layer/w: got .*{says}"):
    packed.check(tree)


def test_slots_by_inputs_that_are_others_are_refused():
  mask = random_mask((30, 50))
  form = packed.rows(kernel=True, back=True)
  w = packed.pack(weights(mask), mask, formats=form)
  back = w.structure.back
  for broken in (
    dataclasses.replace(back, slots=back.slots.at[0].set(back.slots[1])),
    dataclasses.replace(back, slots=back.slots.at[0].set(10**6)),
    dataclasses.replace(back, outputs=back.outputs.at[0].set(49)),
  ):
    structure = dataclasses.replace(w.structure, back=broken)
    with pytest.raises(
      ValueError, match=r"layer/w: got back\..* that do not go"
    ):
      packed.check(
        {"layer": {"w": dataclasses.replace(w, structure=structure)}}
      )
