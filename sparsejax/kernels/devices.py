"""Which GPU a program is traced for."""

import re
from typing import NamedTuple

import jax

# Streaming multiprocessors of an H100 and an H200 of the SXM form.
CORES = 132

_HOPPER = re.compile(r"\b(H100|H200|H800|H20|GH200)\b")


class Card(NamedTuple):
  """A kind of GPU.

  Attributes:
    name: As its maker calls it, "NVIDIA H100 80GB HBM3".
    capability: CUDA's compute capability, such as (9, 0).
    cores: Streaming multiprocessors.
  """

  name: str
  capability: tuple[int, int]
  cores: int

  @property
  def hopper(self) -> bool:
    """Whether code for compute capability 9.0a, and only that, runs on it."""
    return self.capability == (9, 0)


def card() -> Card | None:
  """Finds the kind of GPU that a program is traced for.

  It is that of the abstract mesh in use, if there is one for a GPU, so that a
  program can be compiled for a card that is not there; otherwise that of JAX's
  own GPUs. Of cards that differ, only what all of them have counts, and never
  Hopper, whose code runs on no other card.

  Returns:
    The card; None if there is none, or if its name says nothing.
  """
  mesh = jax.sharding.get_abstract_mesh()
  abstract = getattr(mesh, "abstract_device", None)
  # JAX 0.8 has no platform there, and no kernels for Hopper.
  if getattr(abstract, "platform", None) == "gpu":
    if not _HOPPER.search(abstract.device_kind):
      return None
    return Card(abstract.device_kind, (9, 0), abstract.num_cores or CORES)
  try:
    found = {_card(device) for device in jax.devices("cuda")}
  except RuntimeError:
    return None
  if len(found) == 1:
    return found.pop()
  lowest = min(c.capability for c in found)
  return Card("several", min(lowest, (8, 0)), min(c.cores for c in found))


def _card(device: jax.Device) -> Card:
  major, minor = device.compute_capability.split(".")
  return Card(device.device_kind, (int(major), int(minor)), device.core_count)
