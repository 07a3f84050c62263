"""The kernels against NumPy in float64, under sanitizers and when broken."""

import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import kernels, packed
from sparsejax.kernels import build
from tests.marks import slow

pytestmark = pytest.mark.core

SOURCES = pathlib.Path(kernels.__file__).parent
COMPILER = shutil.which(os.environ.get("CXX", "c++"))

needs_compiler = pytest.mark.skipif(
  COMPILER is None, reason="there is no C++ compiler: install g++"
)


def supports(name):
  """Whether this processor runs an instruction set of the kernels."""
  if name == "plain":
    return True
  flags = pathlib.Path("/proc/cpuinfo").read_text()
  flag = {"avx512": "avx512bw"}.get(name, name)
  return f" {flag} " in flags


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", build.INSTRUCTION_SETS)
@pytest.mark.parametrize(
  ("driver", "sources"),
  [
    ("driver.cc", ("products.cc", "selection.cc")),
    ("masked_driver.cc", ("masked.cc", "integers.cc")),
  ],
)
def test_sanitizers_find_nothing(driver, sources, name, tmp_path):
  if not supports(name):
    pytest.skip(f"this processor does not run {name}")
  program = tmp_path / "driver"
  flags = [f for f in build.FLAGS if f not in ("-O3", "-fPIC")]
  subprocess.run(
    [
      *(COMPILER, *flags, "-O1", "-g", f"-I{SOURCES}"),
      *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
      *build.INSTRUCTION_SETS[name],
      f"-DSPARSEJAX_ISA={name}",
      *(SOURCES / source for source in sources),
      pathlib.Path(__file__).parent / driver,
      *("-o", program),
    ],
    check=True,
  )
  # A shell's preloaded libraries may come before the sanitizer's own.
  environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
  done = subprocess.run(
    [program], capture_output=True, text=True, env=environment
  )
  assert done.stdout == "good\n", done.stdout + done.stderr
  assert done.returncode == 0


def matrix(rng, inputs, outputs, density, dtype=jnp.float32, **options):
  """A packed matrix, and the same dense in float64."""
  mask = rng.random((inputs, outputs)) < density
  w = jnp.asarray(np.where(mask, rng.normal(size=mask.shape), 0), dtype)
  form = packed.rows(kernel=True, **options)
  return packed.pack(w, mask, formats=form), np.asarray(w, np.float64), mask


@needs_compiler
@pytest.mark.parametrize(
  "batch", [(), slow((1,)), slow((2,)), slow((16,)), (3, 37), slow((128,))]
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("back", [False, True])
def test_products_and_gradients_are_those_of_the_dense_matrix(
  batch, dtype, back
):
  rng = np.random.default_rng(0)
  w, dense, mask = matrix(rng, 90, 70, 0.1, dtype, back=back)
  x = rng.normal(size=(*batch, 90))
  g = rng.normal(size=(*batch, 70))

  @jax.jit
  def products(values, x):
    tree = packed.join(values, w.structure)
    y, pull = jax.vjp(
      lambda values, x: packed.join(values, w.structure).matmul(x), values, x
    )
    return tree.matmul(x), pull(jnp.asarray(g, y.dtype))

  y, (of_values, of_x) = products(w.values, jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(y, x @ dense, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(of_x, g @ dense.T, rtol=1e-4, atol=1e-4)
  gradient = x.reshape(-1, 90).T @ g.reshape(-1, 70)
  tolerance = 1e-4 if dtype == jnp.float32 else 2**-8
  assert of_values.dtype == dtype
  np.testing.assert_allclose(
    np.asarray(w.structure.expand(of_values), np.float64),
    np.where(mask, gradient, 0),
    rtol=tolerance,
    atol=tolerance,
  )


@needs_compiler
@pytest.mark.parametrize("back", [False, slow(True)])
def test_a_gradient_alone_has_the_bits_of_both(back):
  rng = np.random.default_rng(2)
  w, _, _ = matrix(rng, 50, 40, 0.2, back=back)
  x = jnp.asarray(rng.normal(size=(24, 50)), jnp.float32)

  def loss(values, x):
    return jnp.sum(packed.join(values, w.structure).matmul(x) ** 2)

  both = jax.jit(jax.grad(loss, (0, 1)))(w.values, x)
  for i in range(2):
    alone = jax.jit(jax.grad(loss, i))(w.values, x)
    if back and i == 0:  # summed by outputs instead of by inputs
      np.testing.assert_allclose(alone, both[i], rtol=1e-4, atol=1e-4)
    else:
      np.testing.assert_array_equal(alone, both[i])


@needs_compiler
def test_products_agree_under_vmap_scan_and_checkpoint():
  rng = np.random.default_rng(1)
  w, dense, _ = matrix(rng, 40, 40, 0.2, back=True)
  values = jnp.stack([w.values, 2 * w.values])
  x = jnp.asarray(rng.normal(size=(8, 40)), jnp.float32)

  def loss(values):
    @jax.checkpoint
    def layer(x, _):
      return packed.join(values, w.structure).matmul(x), None

    return jnp.sum(jax.lax.scan(layer, x, length=2)[0] ** 2)

  def dense_loss(w):
    return jnp.sum((x @ w @ w) ** 2)

  found = jax.jit(jax.vmap(jax.grad(loss)))(values)
  for factor, got in zip((1, 2), found, strict=True):
    wanted = jax.grad(dense_loss)(jnp.asarray(factor * dense, jnp.float32))
    np.testing.assert_allclose(
      got, w.structure.gather(wanted), rtol=2e-4, atol=2e-3
    )


@needs_compiler
@pytest.mark.parametrize(
  ("field", "index", "value"),
  [
    ("inputs", 3, 90),
    ("pointers", 5, -1),
    ("pointers", 70, 10**6),
    ("pointers", 0, 1),
  ],
)
@pytest.mark.parametrize("batch", [(), (16,)])
def test_a_broken_structure_is_refused_by_the_kernel(
  field, index, value, batch
):
  w, _, _ = matrix(np.random.default_rng(0), 90, 70, 0.1)
  broken = np.array(getattr(w.structure, field))
  broken[index] = value
  place = {
    "pointers": w.structure.pointers,
    "inputs": w.structure.inputs,
    field: jnp.asarray(broken),
  }
  with pytest.raises(jax.errors.JaxRuntimeError, match=r"packed\.check"):
    kernels.multiply(
      jnp.ones((90, *batch)), place["pointers"], place["inputs"], w.values
    ).block_until_ready()


PROGRAM = """
import sys, warnings
import jax.numpy as jnp
from sparsejax import kernels, packed
with warnings.catch_warnings(record=True) as caught:
  warnings.simplefilter("always")
  w = packed.pack(jnp.eye(20), jnp.eye(20, dtype=bool),
                  formats=packed.rows(kernel=True, back=True))
  assert (w.matmul(jnp.eye(20)) == jnp.eye(20)).all()
  assert (w.matmul(jnp.ones(20)) == 1).all()
print(kernels.available(quiet=True), [str(w.message) for w in caught])
"""


def run(tmp_path, **environment):
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM],
    capture_output=True,
    text=True,
    env={**os.environ, "SPARSEJAX_CACHE": str(tmp_path), **environment},
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.mark.slow
def test_without_a_compiler_there_is_one_warning_and_the_same_result(tmp_path):
  said = run(tmp_path, CXX="no-such-compiler")
  assert said.startswith("False")
  assert said.count("no-such-compiler") == 1
  assert "g++" in said
  assert run(tmp_path, SPARSEJAX_KERNELS="0") == "False []\n"


@needs_compiler
@pytest.mark.slow
def test_a_failed_build_leaves_nothing_and_says_why(tmp_path):
  compiler = tmp_path / "c++"
  compiler.write_text(
    '#!/bin/sh\n[ "$1" = --version ] && exit\necho no room >&2\nexit 1\n'
  )
  compiler.chmod(0o755)
  said = run(tmp_path / "cache", CXX=str(compiler))
  assert said.startswith("False")
  assert said.count("no room") == 1
  assert list((tmp_path / "cache").iterdir()) == []


@needs_compiler
@pytest.mark.slow
def test_every_instruction_set_gives_the_same(tmp_path):
  for name in build.INSTRUCTION_SETS:
    assert run(build.cache_directory(), SPARSEJAX_ISA=name) == "True []\n"
