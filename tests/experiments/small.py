"""A config that trains in a second: digits, a net of 64-8-10, all methods."""

import jax
import ml_collections

from experiments.config import defaults

MOVES = {"sparsity": 0.8, "delta_t": 4, "t_end": 18}
ALGORITHMS = {
  "dense": {},
  "set": MOVES,
  "rigl": {**MOVES, "accumulate": 2},
  "gmp": {"sparsity": 0.8, "begin": 4, "end": 16, "delta_t": 4},
}


def get_config(algorithm: str = "rigl") -> ml_collections.ConfigDict:
  """Makes the config, by the name of an algorithm."""
  config = defaults.training_run()
  config.name = algorithm
  config.steps = 24
  config.batch_size = 32
  config.data = {"name": "digits"}
  config.model = {"name": "lenet_300_100", "hidden": (8,)}
  config.optimizer = {"name": "adam"}
  config.schedule = {"name": "cosine", "learning_rate": 0.01}
  config.algorithm = {"name": algorithm, **ALGORITHMS[algorithm]}
  config.log_every = 5
  config.eval_every = 8
  config.eval_batch_size = 100  # of 360: the last batch is filled up
  config.checkpoint_every = 6
  config.tensorboard = False
  return config


def compiled(functions) -> list[int]:
  """How many programs there are of each jitted function in a pytree."""
  jitted = [f for f in jax.tree.leaves(functions) if hasattr(f, "_cache_size")]
  return [f._cache_size() for f in jitted]
