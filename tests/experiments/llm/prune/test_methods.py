"""Methods of pruning a kernel that cannot be; test_layerwise.py runs others."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.errors import UserError
from experiments.llm.prune import methods
from sparsejax import oneshot, quantize
from tests.marks import few


@pytest.mark.parametrize(
  ("name", "n_of_m", "reason"),
  [("sparsegpt", (), "sparsegpt"), ("ria", (2, 4), "n_of_m=")],
)
def test_what_is_compared_cannot_be_chosen_twice(name, n_of_m, reason):
  with pytest.raises(UserError, match=f"per_output=False, but {reason}"):
    methods.make(name, n_of_m=n_of_m, per_output=False)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"name": "wonda"}, "no one-shot method .* did you mean 'wanda'"),
    ({"name": "sparsegpt", "dsnot": True}, "dsnot is set for sparsegpt"),
    ({"name": "ria", "int8": "gtpq"}, "no rounding .* did you mean 'gptq'"),
    ({"name": "ria", "int8": "joint"}, "which only sparsegpt does"),
  ],
)
def test_methods_that_cannot_be(options, message):
  with pytest.raises(UserError, match=message):
    methods.make(**options)


@pytest.mark.parametrize(
  "case",
  few(
    [
      ("sparsegpt", "nearest", None),
      ("sparsegpt", "gptq", 8),
      ("sparsegpt", "joint", 8),
      ("sparsegpt", "joint", None),
      ("wanda", "nearest", 4),
      ("wanda", "gptq", None),
    ],
    [("sparsegpt", "joint", 8)],
  ),
)
def test_what_is_kept_is_rounded(case):
  """To multiples of scales that are found again, with the same budget."""
  name, int8, group = case
  rng = np.random.default_rng(0)
  x = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 16))
  x += rng.normal(size=x.shape)
  seen = oneshot.observe(oneshot.statistics(16, gram=True), x)
  w = jnp.asarray(rng.normal(size=(16, 6)), jnp.float32)
  plain = methods.make(name).prune(w, seen, 0.5)
  method = methods.make(name, int8=int8, group=group)
  assert method.gram == (name == "sparsegpt" or int8 == "gptq")
  rounded = method.prune(w, seen, 0.5)
  scales = quantize.exact_scales(rounded, group=group)
  again = quantize.matrix(rounded, scales=scales)
  np.testing.assert_allclose(again.dequantize(), rounded, rtol=1e-6)
  left = np.asarray(rounded != 0).sum()
  assert 0 < left <= np.asarray(plain != 0).sum()
  if int8 == "nearest":
    np.testing.assert_allclose(rounded, plain, atol=float(scales.max()) / 2)
  elif int8 == "gptq":
    assert np.all(np.asarray(rounded)[np.asarray(plain == 0)] == 0)
