"""Devices: how runs share them, and repeat the same bits on them.

Data parallelism: several devices share each batch, and all have the state.

A batch is the global one: losses are means over all of it, and so are
BatchNorm's statistics, on however many devices. XLA sums over devices in
another order than over examples, so bits depend on their number; where masks
may be, and how many weights they keep, does not.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.errors import UserError

_AXIS = "data"


def sharing(config: ml_collections.ConfigDict) -> "Sharing":
  """Makes the sharing that the config of a training run asks for.

  Raises:
    UserError: If there are fewer devices, or they cannot share the batches.
  """
  count = config.devices
  _check(config, "batch_size", "eval_batch_size")
  if count > 1 and config.mode != "masked":
    raise UserError(
      f"config.devices is {count} in mode {config.mode!r}: only 'masked' runs "
      "on more than one"
    )
  return Sharing(count)


def mesh(
  config: ml_collections.ConfigDict, *batches: str
) -> contextlib.AbstractContextManager[Any]:
  """Has a language model run on all devices that a config asks for.

  Args:
    config: The config.
    *batches: Its keys of batch sizes that the devices have to share.

  Returns:
    A context: arrays made in it are on all devices, and networks share their
    batches out among them, see `families.layers.split_batch`.

  Raises:
    UserError: If there are fewer devices, or they cannot share the batches.
  """
  _check(config, *batches)
  if config.devices == 1:
    return contextlib.nullcontext()
  return jax.set_mesh(Mesh(jax.devices()[: config.devices], (_AXIS,)))


def spread(tree: Any) -> Any:
  """Shares out matrices among the devices of the mesh that is set.

  No device then holds all of a model, its gradients or its optimizer's state;
  XLA brings together what a layer needs. Without a mesh nothing changes.

  Args:
    tree: A pytree of arrays, traced ones too. Each with two axes or more is cut
      along its last axis that divides by the number of devices; not along the
      first of three, which in models is that of layers.

  Returns:
    The tree.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return tree

  def leaf(x: jax.Array) -> jax.Array:
    spec = [None] * np.ndim(x)
    for axis in reversed(range(int(np.ndim(x) > 2), np.ndim(x))):
      if np.ndim(x) > 1 and x.shape[axis] % mesh.size == 0:
        spec[axis] = _AXIS
        break
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))

  return jax.tree.map(leaf, tree)


def _check(config: ml_collections.ConfigDict, *batches: str) -> None:
  """Checks that there are the devices, and that they can share batches."""
  count, devices = config.devices, jax.devices()
  if count > len(devices):
    raise UserError(
      f"config.devices is {count}, but there are only {len(devices)}: "
      f"{', '.join(map(str, devices[:4]))}"
    )
  for key in batches:
    if config[key] % count:
      raise UserError(
        f"config.{key} is {config[key]}; wanted a multiple of the {count} "
        "devices that share it"
      )


def jit(
  function: Callable[..., Any], *, convolves: bool = False, **options: Any
) -> Callable[..., Any]:
  """Compiles a function, so that the same program gives the same bits.

  On a GPU it then has no kernel whose sums depend on which of its threads comes
  first: a scatter sorts its indices, and cuDNN runs deterministic algorithms.
  XLA restricts cuDNN only by an option that also takes the first algorithm of
  every convolution and product, where it would time several; functions without
  convolutions are spared that. Only the outermost `jax.jit` takes compiler
  options: to call the result inside of another one, call its `__wrapped__`.

  Args:
    function: The function.
    convolves: Whether it has convolutions.
    **options: Those of `jax.jit`.

  Returns:
    The jitted function.
  """
  if jax.default_backend() == "gpu":
    strict = "xla_gpu_exclude_nondeterministic_ops"
    scatters = "xla_gpu_enable_scatter_determinism_expander"
    options["compiler_options"] = {strict if convolves else scatters: True}
  return jax.jit(function, **options)


def keep_programs() -> None:
  """Keeps what is compiled for accelerators in a folder, for other processes.

  A GPU's compiler times several algorithms for each product and convolution,
  and another time may choose others, of other bits: a run that resumes takes
  the programs that it had. Runs that differ in their method share most of them,
  too. The folder is $JAX_COMPILATION_CACHE_DIR, or else sparsejax/programs in
  $XDG_CACHE_HOME, by default ~/.cache. On a CPU nothing is kept.
  """
  if jax.default_backend() == "cpu" or jax.config.jax_compilation_cache_dir:
    return
  caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  folder = Path(caches, "sparsejax", "programs")
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  compilation_cache.reset_cache()  # which had looked for a folder before


class Sharing:
  """Places the arrays of a run on the first `count` devices."""

  def __init__(self, count: int = 1):
    self.count = count
    self._mesh = Mesh(jax.devices()[:count], (_AXIS,))

  def replicated(self, tree: Any) -> Any:
    """Puts arrays on every device."""
    return self._put(tree, PartitionSpec())

  def batch(self, tree: Any) -> Any:
    """Shares arrays out by their first axis, that of examples."""
    return self._put(tree, PartitionSpec(_AXIS))

  def order(self, order: jax.Array) -> jax.Array:
    """Shares out the indices [steps, examples] of batches."""
    return self._put(order, PartitionSpec(None, _AXIS))

  def _put(self, tree: Any, spec: PartitionSpec) -> Any:
    if self.count == 1:
      return tree
    return jax.device_put(tree, NamedSharding(self._mesh, spec))
