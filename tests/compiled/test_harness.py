"""The harness counts what programs that are known by hand launch."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from tests.compiled import harness
from tests.compiled.harness import compile_for_h100, counts

X = jax.ShapeDtypeStruct((1024,), jnp.float32)
SCALAR = jax.ShapeDtypeStruct((), jnp.int32)


def test_one_device():
  assert jax.device_count() == 1
  assert harness.h100().device_kind.startswith("NVIDIA H100")


def test_elementwise_arithmetic_is_one_kernel():
  found = counts(compile_for_h100(lambda x: jnp.sin(x) * 2 + 1, X))
  assert found == harness.Counts(
    kernels=1,
    branches=(),
    copies=0,
    whiles=0,
    entry_whiles=0,
    unbounded_whiles=0,
    conditionals=0,
    entry_conditionals=0,
    arguments=1,
    temporary_bytes=found.temporary_bytes,
  )


def test_an_argument_that_is_returned_is_copied_unless_it_is_donated():
  def both(x, y):
    return x + 1, y

  found = counts(compile_for_h100(both, X, X))
  assert (found.kernels, found.copies) == (2, 1)
  found = counts(compile_for_h100(both, X, X, donate_argnums=(0, 1)))
  assert (found.kernels, found.copies, found.arguments) == (1, 0, 2)


def test_a_loop_of_known_length_does_not_wait_for_the_host():
  def loop(x):
    return lax.fori_loop(0, 5, lambda i, x: jnp.cumsum(x), x)

  found = counts(compile_for_h100(loop, X))
  assert (found.entry_whiles, found.unbounded_whiles) == (found.whiles, 0)
  assert found.whiles == 1


def test_a_loop_of_traced_length_waits_for_the_host():
  def loop(x, n):
    return lax.fori_loop(0, n, lambda i, x: jnp.cumsum(x), x)

  found = counts(compile_for_h100(loop, X, SCALAR))
  assert (found.whiles, found.unbounded_whiles) == (1, 1)


def test_a_conditional_counts_kernels_by_branch():
  def choose(x, n):
    return lax.cond(
      n > 0, lambda x: jnp.cumsum(jnp.sort(jnp.cumsum(x))), lambda x: -x, x
    )

  found = counts(compile_for_h100(choose, X, SCALAR))
  assert (found.conditionals, found.entry_conditionals) == (1, 1)
  ((few, many),) = map(sorted, found.branches)
  assert few == 1 < 3 <= many
  assert found.ordinary_kernels == found.kernels + 1


def test_a_loop_within_a_conditional_is_not_of_every_run():
  def loop(x, n):
    return lax.fori_loop(0, n, lambda i, x: jnp.cumsum(x), x)

  def choose(x, n):
    return lax.cond(n > 3, loop, lambda x, n: -x, x, n)

  found = counts(compile_for_h100(choose, X, SCALAR))
  assert (found.whiles, found.entry_whiles) == (1, 0)


def test_copies_of_branches_are_not_of_every_run():
  def choose(x, y, n):
    return lax.cond(n > 0, lambda x, y: (x, y), lambda x, y: (y, x), x, y)

  compiled = compile_for_h100(choose, X, X, SCALAR)
  found = counts(compiled)
  anywhere = compiled.as_text().count(" copy(")
  assert found.copies < anywhere == found.copies + sum(map(sum, found.branches))


@harness.needs_cudnn
def test_a_convolution_is_a_kernel():
  def conv(x, w):
    return lax.conv_general_dilated(
      x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  x = jax.ShapeDtypeStruct((128, 32, 32, 16), jnp.float32)
  w = jax.ShapeDtypeStruct((3, 3, 16, 32), jnp.float32)
  compiled = compile_for_h100(conv, x, w)
  assert "__cudnn$conv" in compiled.as_text()
  assert counts(compiled).kernels >= 1


@pytest.mark.parametrize(
  "line",
  [
    "  %a.1 = (f32[2]{0}, /*index=5*/s32[]) while(%b), body=%c, condition=%d",
    "  ROOT a = f32[2]{0:S(5)} while(b), condition=d, body=c",
  ],
)
def test_an_instruction_is_read(line):
  text = f"HloModule m\n\nENTRY %main (p: s32[]) -> s32[] {{\n{line}\n}}\n"
  ((instruction,),) = harness._computations(text).values()
  assert instruction.opcode == "while"
  assert sorted(instruction.called) == ["c", "d"]
