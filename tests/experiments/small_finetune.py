"""A config that fine-tunes by SEFT in seconds, and needs no file."""

import ml_collections

from experiments.drivers import finetune
from tests.experiments.drivers.test_finetune import DELTAS, SEFT, make


def get_config() -> ml_collections.ConfigDict:
  """Makes the config."""
  config = make(method=SEFT, optimizer=DELTAS, steps=100, eval_every=25)
  finetune.check(config)
  return config
