"""The families of language models, a row each."""

import jax
import jax.numpy as jnp

from experiments.llm.families import llama
from experiments.llm.families.protocol import Config, Family, Network

_FAMILIES: tuple[Family, ...] = (llama,)

FAMILIES = {family.NAME: family for family in _FAMILIES}
DEFAULT = llama.NAME  # of models that are trained from scratch


def of(config: Config) -> Family:
  """Returns the family whose config this is."""
  return next(f for f in FAMILIES.values() if isinstance(config, f.Config))


def network(
  config: Config,
  *,
  remat: str = "none",
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> Network:
  """Makes the Linen module of a config.

  Args:
    config: of any family.
    remat: what the backward pass recomputes: "none", "full", which keeps only
      the input of each layer, or the name of a policy in
      `jax.checkpoint_policies` that takes no arguments.
    dtype: in which to compute.

  Returns:
    The module.
  """
  return of(config).Network(config, remat=remat, dtype=dtype)
