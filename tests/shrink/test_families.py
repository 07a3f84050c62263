"""Language models of all families are functions that become smaller."""

import jax
import numpy as np
import pytest

from experiments.llm.families import mpt, t5, whisper
from sparsejax import shrink
from tests.experiments import small_mpt, small_t5, small_whisper

MODELS = {
  "mpt": lambda: (
    mpt.Network(small_mpt.CONFIG),
    small_mpt.make_params(small_mpt.CONFIG),
    small_mpt.make_tokens(2, 5),
    {},
  ),
  "t5": lambda: (
    t5.Network(small_t5.CONFIG),
    small_t5.make_params(small_t5.CONFIG),
    small_t5.make_inputs()["tokens"],
    {"source": small_t5.make_inputs()["source"]},
  ),
  "whisper": lambda: (
    whisper.Network(small_whisper.CONFIG),
    small_whisper.make_params(),
    small_whisper.make_tokens(2, 5),
    {"source": small_whisper.make_source(2)},
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_heads_and_hidden_units_of_a_whole_model_leave(name):
  network, params, tokens, more = MODELS[name]()

  def apply(params, tokens, more):
    return network.apply({"params": params}, tokens, **more)

  plan = shrink.trace(apply, params, tokens, more)
  assert "unknown line" not in str(plan)
  remove = plan.lowest(params, 0.5)
  assert plan.params(remove) < 0.75 * plan.params()
  wanted = jax.jit(apply)(plan.mask(params, remove), tokens, more)
  error = shrink.verify(plan, params, remove, tokens, more)
  assert error <= 1e-5 * np.abs(wanted).max()
