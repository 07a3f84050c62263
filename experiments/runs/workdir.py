"""A run's directory: its lock, its config, and whether the run is finished.

What lies in it besides (metrics, checkpoints) is for other modules.
"""

import contextlib
import datetime
import errno
import fcntl
import importlib.metadata
import json
import os
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

from absl import logging

from experiments.errors import UserError

FORMAT = 3  # of config.json; rises when old runs can no longer be resumed
try:
  VERSION = importlib.metadata.version("sparsejax")
except importlib.metadata.PackageNotFoundError:  # run from a bare checkout
  VERSION = "of a checkout"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InUse(UserError):
  """Another process is in a run's directory."""


@contextlib.contextmanager
def locked(path: str | os.PathLike) -> Iterator[Path]:
  """Makes the directory and keeps other processes out of it.

  The lock is the kernel's (flock), so that it goes with its owner, also when
  the owner is killed; the file only tells who that is.

  Args:
    path: The run's directory, made with its parents if need be.

  Yields:
    The directory's absolute path.

  Raises:
    InUse: If another process is in it.
    UserError: If it cannot be written to.
  """
  path = Path(path).absolute()
  with storage(path):
    path.mkdir(parents=True, exist_ok=True)
    file = (path / "lock").open("a+")
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      owner = file.read().strip() or "another process"
      raise InUse(
        f"{path} is in use by {owner}. Wait for it, stop it, or give "
        "another --workdir."
      ) from None
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    with storage(path):
      file.truncate(0)
      file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}")
      file.flush()
    try:
      yield path
    finally:
      file.truncate(0)


@contextlib.contextmanager
def storage(path: Path) -> Iterator[None]:
  """Turns the errors of a full or forbidden disk into a clear message."""
  try:
    yield
  except OSError as error:
    if error.errno in _NO_ROOM:
      raise UserError(
        f"no room to write in {path}: {error.strerror}. What was saved is "
        "safe; free some space and give the same command again."
      ) from error
    raise UserError(
      f"cannot write in {path}: {error.strerror or error}. Give a --workdir "
      "that you may write to."
    ) from error


def ensure_config(
  path: Path, config: Mapping[str, Any], *, free: Collection[str] = ()
) -> None:
  """Writes the config on the first start; afterwards refuses any other.

  Args:
    path: The run's directory, locked.
    config: The config as nested mappings of what JSON can hold.
    free: Its dotted keys whose values may change; the newest are written.

  Raises:
    UserError: If the directory holds the run of another config or of another
      format, or files of a run without a config.
  """
  here = json.loads(json.dumps(config))
  file = path / "config.json"
  if not file.exists():
    if (path / "checkpoints").exists() or (path / "metrics.jsonl").exists():
      raise UserError(
        f"{path} holds a run but no config.json, so nobody knows which. "
        "Give another --workdir."
      )
    head = {"format": FORMAT, "sparsejax": VERSION, "config": here}
    write_json(file, head)
    return
  saved = {"config": None, "sparsejax": None, **_read_json(file)}
  if saved.get("format") != FORMAT:
    raise UserError(
      f"{file} is a config from another version: format "
      f"{saved.get('format')} of sparsejax {saved.get('sparsejax')}; this is "
      f"format {FORMAT} of sparsejax {VERSION}. Go on with that "
      "version, or give another --workdir."
    )
  there = saved["config"]
  if not isinstance(there, Mapping):
    raise UserError(f"{file} holds no config. Give another --workdir.")
  beginnings = tuple(f"{key}." for key in free)
  bound = [
    {k: v for k, v in _flat(one) if not f"{k}.".startswith(beginnings)}
    for one in (there, here)
  ]
  if bound[0] != bound[1]:
    raise UserError(
      f"{path} holds the run of another config (there -> here):\n"
      + "\n".join(f"  {line}" for line in difference(*bound))
      + "\nGive another --workdir, or the config that it was started with."
    )
  if saved["sparsejax"] != VERSION:
    logging.warning(
      "%s was begun by sparsejax %s and goes on with %s: its last bits may "
      "differ from those of a run that was never stopped.",
      path,
      saved["sparsejax"],
      VERSION,
    )
  if there != here:
    write_json(file, {**saved, "config": here})


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
  """Lists where two configs differ, as `key: there -> here`."""
  old, new = dict(_flat(there)), dict(_flat(here))
  return [
    f"{key}: {_show(old, key)} -> {_show(new, key)}"
    for key in sorted(old.keys() | new.keys())
    if _show(old, key) != _show(new, key)
  ]


def finish(path: Path, step: int, metrics: Mapping[str, Any]) -> None:
  """Marks the run as done, with its final metrics."""
  write_json(path / "finished.json", {"step": step, "metrics": dict(metrics)})


def finished(path: str | os.PathLike) -> dict[str, Any] | None:
  """Reads the final metrics of a run that is done; None if it is not."""
  file = Path(path) / "finished.json"
  if not file.exists():
    return None
  found = _read_json(file)
  if "metrics" not in found:
    raise UserError(f"{file} holds no metrics. Give another --workdir.")
  return found["metrics"]


def of_each(function: Callable[..., Any], *items: Iterable[Any]) -> list[Any]:
  """Calls a function that waits for the disk, of all items at once.

  Args:
    function: Safe in threads.
    *items: Its arguments, as for `map`.

  Returns:
    What it returns, in their order; the first error is raised.
  """
  with futures.ThreadPoolExecutor() as pool:
    return list(pool.map(function, *items))


def write_json(file: Path, value: Any) -> None:
  """Writes a JSON file whole or not at all."""
  temporary = file.with_name(file.name + ".tmp")
  with storage(file.parent):
    with temporary.open("w") as out:
      json.dump(value, out, indent=2)
      out.write("\n")
      out.flush()
      os.fsync(out.fileno())
    temporary.replace(file)


def read_or_make(
  file: Path, make: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
  """Reads a JSON file; if there is none, writes what `make` returns first.

  Raises:
    UserError: If the file is damaged, or cannot be written.
  """
  if not file.exists():
    with storage(file.parent):
      file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, make())
  return _read_json(file)


def _read_json(file: Path) -> dict[str, Any]:
  try:
    value = json.loads(file.read_text())
  except (ValueError, OSError) as error:
    raise UserError(
      f"{file} cannot be read ({error}). Give another --workdir."
    ) from error
  if not isinstance(value, dict):
    raise UserError(f"{file} holds no config. Give another --workdir.")
  return value


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple]:
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      yield from _flat(value, f"{prefix}{key}.")
    else:
      yield prefix + key, value


def _show(flat: Mapping[str, Any], key: str) -> str:
  return json.dumps(flat[key]) if key in flat else "(not set)"
