"""Parameters of tiny language models, from NumPy."""

import jax
import numpy as np

from experiments.llm.families import protocol


def params(network, spread=lambda names: 0.3):
  """Parameters large enough that everything matters.

  `spread` returns the standard deviation of a leaf, by the names of its path.
  """
  key = jax.random.key(0)
  shapes = jax.eval_shape(lambda: protocol.init(network, key))
  rng = np.random.default_rng(0)

  def leaf(path, x):
    names = [key.key for key in path]
    middle = 1.0 if names[-1] == "scale" else 0.0
    return rng.normal(middle, spread(names), x.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(leaf, shapes)
