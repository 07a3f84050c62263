"""Names of tensors; test_huggingface.py and test_gguf.py read the tensors."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.errors import UserError
from experiments.llm.families import llama
from experiments.llm.io import tensors
from tests.experiments.small_llama import CONFIGS


def test_kernels_are_those_of_the_layers():
  config = CONFIGS["llama3"]
  assert not config.tied  # So that there is another kernel, the head.
  names = tensors.kernel_names(config, llama.gguf.TENSORS)
  assert names == [
    f"blk.{i}.{name}.weight"
    for i in range(config.layers)
    for name in (
      *("attn_k", "attn_output", "attn_q", "attn_v"),
      *("ffn_down", "ffn_gate", "ffn_up"),
    )
  ]


def test_cast_keeps_what_a_dtype_holds():
  x = np.array([0.0, -1.5, 65504.0, 2.0**-14], np.float32)
  assert tensors.cast(x, "float32", "x") is x
  for dtype in ("float16", "bfloat16"):
    made = tensors.cast(x, dtype, "x")
    assert made.dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(made, jnp.asarray(x).astype(dtype))


@pytest.mark.parametrize(
  ("value", "dtype", "message"),
  [
    # 65519 rounds to 65504, the largest float16; 65520 overflows.
    (
      65520.0,
      "float16",
      "a value of 65520, but the largest of float16 is 65504",
    ),
    (-7e4, "float16", "a value of 70000, .*take bfloat16"),
    (3.4e38, "bfloat16", "a value of 3.4e.38, but the largest of bfloat16"),
    (np.nan, "float32", "tensor w has 1 of 3 values that are NaN or infinite"),
    (-np.inf, "float16", "1 of 3 values that are NaN or infinite"),
  ],
)
def test_cast_refuses_what_is_not_finite(value, dtype, message):
  x = np.array([1.0, value, 2.0], np.float32)
  with pytest.raises(UserError, match=message):
    tensors.cast(x, dtype, "tensor w")


def test_cast_tells_of_weights_that_become_zero():
  # The smallest float16 is 2**-24, and half of it is rounded to zero.
  x = np.array([0.0, 1.0, 2.0**-24, 2.0**-25, -1e-9], np.float32)
  lost = {}
  made = tensors.cast(x, "float16", "w", lost)
  assert np.count_nonzero(made) == 2
  tensors.cast(x[:2], "float16", "v", lost)
  tensors.cast(x, "bfloat16", "u", lost)
  assert lost == {"w": 2, "v": 0, "u": 0}
  with pytest.warns(UserWarning, match="2 non-zeros .* 2 of them in w"):
    tensors.warn_of_zeros(lost, "float16")
  tensors.warn_of_zeros({"v": 0}, "float16")
