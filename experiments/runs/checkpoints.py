"""Checkpoints: Orbax's manager, with sums of what it wrote, masks as bits.

Orbax gives back a flipped byte without a word. Here every checkpoint carries a
checksum of each array, and one that fails it is set aside for the one before.
"""

import functools
import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import logging

from experiments.errors import UserError
from experiments.runs import metrics
from experiments.runs.workdir import of_each, storage

if TYPE_CHECKING:
  # Where it is used it is imported late: it takes longer to load than JAX.
  import orbax.checkpoint as ocp

_SHOWN = 5  # leaves named in an error
_DISK = re.compile(r"errno|os error|no space|quota|file too large", re.I)


def open_manager(
  directory: str | os.PathLike, *, keep: int = 2, keep_steps: Sequence[int] = ()
) -> "ocp.CheckpointManager":
  """Opens the directory, made if need be, and clears away broken-off saves.

  Args:
    directory: Where the checkpoints are, one numbered directory each.
    keep: How many of them to keep.
    keep_steps: Steps whose checkpoints are kept besides.

  Returns:
    Orbax's manager, which saves in the background; to be closed.
  """
  import orbax.checkpoint as ocp

  directory = Path(directory).absolute()
  policies = ocp.checkpoint_managers
  options = ocp.CheckpointManagerOptions(
    preservation_policy=policies.AnyPreservationPolicy(
      [policies.LatestN(keep), policies.CustomSteps(tuple(keep_steps))]
    ),
    save_root_metadata=False,
  )
  with storage(directory):
    directory.mkdir(parents=True, exist_ok=True)
    # Orbax would do this in the background, beside the first new save.
    for broken_off in directory.glob("*.orbax-checkpoint-tmp*"):
      shutil.rmtree(broken_off)
    return ocp.CheckpointManager(directory, options=options)


def snapshot(state: Any) -> Any:
  """Copies a pytree to the host, so that its buffers may be donated."""
  return jax.tree.map(np.array, state)


def save(
  manager: "ocp.CheckpointManager",
  step: int,
  state: Any,
  records: Sequence[Path] = (),
) -> Any:
  """Saves in the background, once the save before it is complete.

  Args:
    manager: From `open_manager`.
    step: The number of steps behind the state.
    state: A pytree of NumPy arrays that nobody writes to any more, as
      `snapshot` makes it.
    records: Directories of the runs whose records the checkpoint vouches for:
      they are flushed to the disk first.

  Returns:
    The state.

  Raises:
    UserError: If this save or the one before it failed; older checkpoints
      stay.
  """
  import orbax.checkpoint as ocp

  of_each(metrics.sync, records)
  wait(manager)
  try:
    manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(_packed(state)),
        sums=ocp.args.JsonSave(_sealed(_sums(state))),
      ),
    )
  except Exception as error:
    raise _failed(manager, error) from None
  return state


def save_each(
  folders: Sequence[Path], step: int, states: Sequence[Any]
) -> None:
  """Saves the states of several runs that are alike, and waits for them.

  Orbax takes tens of milliseconds of Python for each, whatever it holds, and
  no two threads. So it writes the first one, of which the others are copies
  but for the arrays and their sums: TensorStore writes these as for Orbax.

  Args:
    folders: The directories of the runs' checkpoints.
    step: The number of steps behind all states.
    states: One each, as `save` takes them, of the same shapes and dtypes.

  Raises:
    UserError: If the disk does not take them.
  """
  with open_manager(folders[0]) as manager:
    save(manager, step, states[0])
    wait(manager)
  save_like = _saving_like(Path(folders[0], str(step)), states[0])
  pairs = list(zip(folders[1:], states[1:], strict=True))
  with futures.ThreadPoolExecutor() as pool:
    saved = [pool.submit(save_like, *pair) for pair in pairs]
  for (folder, _), one in zip(pairs, saved, strict=True):
    if error := one.exception():
      with open_manager(folder) as manager:
        raise _failed(manager, error) from None


def _saving_like(model: Path, state: Any) -> Callable[[Path, Any], None]:
  """Makes `(folder, state)` that saves as a state was saved in `model`.

  It does nothing if that is there already.
  """
  import tensorstore as ts

  # One for all, with its caches: it takes 50 times as long without.
  context = ts.Context()

  def arrays(at: Path) -> dict[str, Any]:
    return {"driver": "ocdbt", "base": f"file://{at / 'state'}/"}

  stored = ts.KvStore.open(arrays(model), context=context).result()
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state)]
  names = [f"{'.'.join(map(_name, path))}/" for path in paths]
  try:
    about = [json.loads(stored[f"{name}.zarray"]) for name in names]
  except KeyError:  # Orbax writes another format by now
    return functools.partial(_save_by_orbax, int(model.name))

  def save_like(folder: Path, state: Any) -> None:
    target = folder / model.name
    if target.exists():
      return
    # Called as Orbax calls what is not complete: `open_manager` clears it away.
    partial = folder / f"{model.name}.orbax-checkpoint-tmp"
    shutil.rmtree(partial, ignore_errors=True)
    own = shutil.ignore_patterns("d", "manifest.ocdbt", "ocdbt.process_*")
    shutil.copytree(model, partial, ignore=own)
    sums = json.dumps(_sealed(_sums(state)))
    (partial / "sums" / "metadata").write_text(sums)
    base, transaction = arrays(partial), ts.Transaction()
    options = {"create": True, "transaction": transaction, "context": context}
    opened = []
    for name, metadata in zip(names, about, strict=True):
      kvstore = {**base, "path": name}
      spec = {"driver": "zarr", "kvstore": kvstore, "metadata": metadata}
      opened.append(ts.open(spec, **options))
    leaves = jax.tree.leaves(_packed(state))
    for array, x in zip(opened, leaves, strict=True):
      array.result().write(x).result()
    transaction.commit_async().result()
    partial.rename(target)

  return save_like


def _save_by_orbax(step: int, folder: Path, state: Any) -> None:
  with open_manager(folder) as manager:
    save(manager, step, state)
    wait(manager)


def _name(key: Any) -> str:
  """Returns what Orbax calls a step of a path, such as a field's name."""
  found = (getattr(key, kind, None) for kind in ("name", "key", "idx"))
  return str(next(name for name in found if name is not None))


def wait(manager: "ocp.CheckpointManager") -> None:
  """Waits until what is being saved is on disk."""
  try:
    manager.wait_until_finished()
  except Exception as error:  # TensorStore raises ValueError when disks fill
    raise _failed(manager, error) from None


def latest(manager: "ocp.CheckpointManager") -> int | None:
  """Returns the newest complete checkpoint's step, None if there is none."""
  wait(manager)
  return manager.latest_step()


def restore(
  manager: "ocp.CheckpointManager", like: Any
) -> tuple[int, Any] | None:
  """Restores the newest checkpoint that is whole.

  Damaged ones are moved to `damaged/` beside the checkpoints, and named in a
  warning.

  Args:
    manager: From `open_manager`.
    like: A pytree of arrays or `jax.ShapeDtypeStruct`s that says what the
      checkpoint should hold.

  Returns:
    The step and the state as NumPy arrays, or None if there is no checkpoint
    or none is whole.

  Raises:
    UserError: If a whole checkpoint holds another tree, shape or dtype.
  """
  damaged = []
  found = None
  for step in sorted(manager.all_steps(), reverse=True):
    try:
      found = step, _restore(manager, step, like)
      break
    except UserError:
      raise
    except Exception as error:  # Orbax and TensorStore have many kinds
      damaged.append((step, _reason(error)))
  for step, reason in damaged:
    logging.warning(
      "The checkpoint of step %d is damaged (%s): moved to %s; going on %s.",
      step,
      reason,
      _set_aside(manager, step),
      f"from that of step {found[0]}" if found else "from the start",
    )
  if damaged:
    manager.reload()
  return found


def restore_step(manager: "ocp.CheckpointManager", step: int, like: Any) -> Any:
  """Restores the checkpoint of one step, as NumPy arrays.

  Raises:
    UserError: If there is none, it is damaged, or it holds another tree.
  """
  where = Path(manager.directory)
  if step not in manager.all_steps():
    raise UserError(
      f"{where} has no checkpoint of step {step}, only of "
      f"{', '.join(map(str, sorted(manager.all_steps()))) or 'none'}. Remove "
      f"{where.parent}, and give the same command again."
    )
  try:
    return _restore(manager, step, like)
  except UserError:
    raise
  except Exception as error:  # Orbax and TensorStore have many kinds
    raise UserError(
      f"the checkpoint {where / str(step)} is damaged ({_reason(error)}). "
      f"Remove {where.parent}, and give the same command again."
    ) from error


def _restore(manager: "ocp.CheckpointManager", step: int, like: Any) -> Any:
  import orbax.checkpoint as ocp

  args = ocp.args.Composite(sums=ocp.args.JsonRestore())
  sums = _unsealed(manager.restore(step, args=args)["sums"])
  _check_same_tree(manager.directory / str(step), sums, like)
  empty = _packed(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like))
  args = ocp.args.Composite(state=ocp.args.StandardRestore(empty))
  state = jax.tree.map(
    _unpacked, manager.restore(step, args=args)["state"], like
  )
  wrong = [k for k, v in _sums(state).items() if v != sums[k]]
  if wrong:
    raise ValueError(f"checksums differ: {', '.join(wrong[:_SHOWN])}")
  return state


def _packed(state: Any) -> Any:
  """Packs masks eight to a byte and empty arrays into a zero."""

  def leaf(x: np.ndarray) -> np.ndarray:
    if not x.size:
      return np.zeros(1, x.dtype)  # Orbax refuses arrays without elements.
    return np.packbits(x) if x.dtype == bool and x.ndim else x

  return jax.tree.map(leaf, state)


def _unpacked(saved: Any, like: Any) -> np.ndarray:
  saved = np.asarray(saved)
  if not math.prod(like.shape):
    return np.zeros(like.shape, like.dtype)
  if like.dtype != bool or not like.shape:
    return saved
  flat = np.unpackbits(saved, count=np.prod(like.shape, dtype=int))
  return flat.reshape(like.shape).astype(bool)


def _sums(state: Any) -> dict[str, list]:
  """Describes each leaf: dtype, shape, CRC-32 of its bytes."""
  return {
    key: [*about, zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8))]
    for (key, about), leaf in zip(
      _described(state).items(), jax.tree.leaves(state), strict=True
    )
  }


def _described(tree: Any) -> dict[str, list]:
  return {
    jax.tree_util.keystr(path): [np.dtype(x.dtype).name, list(x.shape)]
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }


def _sealed(sums: dict[str, list]) -> dict[str, Any]:
  return {"leaves": sums, "crc32": zlib.crc32(json.dumps(sums).encode())}


def _unsealed(sealed: dict[str, Any]) -> dict[str, list]:
  if _sealed(sealed["leaves"]) != sealed:
    raise ValueError("its list of checksums is broken")
  return sealed["leaves"]


def _check_same_tree(where: Any, sums: dict[str, list], like: Any) -> None:
  saved = {key: value[:2] for key, value in sums.items()}
  wanted = _described(like)
  wrong = [
    f"  {key}: {saved.get(key, 'absent')} -> {wanted.get(key, 'absent')}"
    for key in sorted(saved.keys() | wanted.keys())
    if saved.get(key) != wanted.get(key)
  ]
  if wrong:
    more = [f"  and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
    raise UserError(
      f"{where} does not fit this model and algorithm (there -> here):\n"
      + "\n".join(wrong[:_SHOWN] + more)
      + "\nIt was written by other code; go on with that, or give another "
      "--workdir."
    )


def _set_aside(manager: "ocp.CheckpointManager", step: int) -> Path:
  source = Path(manager.directory) / str(step)
  target = source.parent.parent / "damaged" / source.name
  target.parent.mkdir(exist_ok=True)
  shutil.rmtree(target, ignore_errors=True)
  return source.replace(target)


def _failed(manager: "ocp.CheckpointManager", error: Exception) -> Exception:
  """Makes a UserError if it was the disk; returns other errors as they are."""
  reason = _reason(error)
  if not isinstance(error, OSError) and not _DISK.search(str(error)):
    return error
  if "no space" in reason.lower():
    reason = "no space left on the disk"
  manager.reload()
  kept = ", ".join(map(str, sorted(manager.all_steps()))) or "none"
  return UserError(
    f"could not save a checkpoint in {manager.directory}: {reason}. "
    f"Complete ones: {kept}. Free some space and give the same command again."
  )


def _reason(error: Exception) -> str:
  """Returns the first line of an error's message."""
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[0][:300]
