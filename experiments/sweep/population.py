"""Runs of one method as one population: one program for all of them.

What may differ among its members is the seed, the sparsity, the learning rate
and the drop fraction. Their states are stacked, and shared out among the
devices. A CPU trains its members one after another within one loop; an
accelerator trains its members at once, by `jax.vmap`. No step is a condition:
which steps move masks is the same for all, and known to the host.

Each member leaves the directory that runs/train.py leaves, and begins with the
bits that it begins with there. Sums are made in another order from then on, so
its numbers differ in rounding, which training makes larger.
"""

import collections
import contextlib
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import data
from experiments.config import algorithms, calling, grid, parts
from experiments.errors import UserError
from experiments.runs import (
  checkpoints,
  devices,
  loop,
  metrics,
  programs,
  train,
)
from experiments.runs import workdir as workdir_lib
from experiments.runs.batches import check_batch, open_source
from experiments.runs.model import Batches, Scores, no_scores
from experiments.runs.recorder import Diverged, Recorder, check_state
from experiments.runs.step import State, Sums, model_variables, no_sums
from sparsejax.keys import wrapped

if TYPE_CHECKING:
  import orbax.checkpoint as ocp

_AXIS = "members"
_MEMBERS, _ALL = PartitionSpec(_AXIS), PartitionSpec()


def groups(
  planned: Mapping[str, ml_collections.ConfigDict],
) -> dict[str, dict[str, ml_collections.ConfigDict]]:
  """Groups the runs that can be members of one population.

  Args:
    planned: Configs by the names of runs.

  Returns:
    Configs by the names of runs, by the name of the population: a hash of what
    its members share. A run that fits no population is alone, under its name.
  """
  found: dict[str, dict[str, ml_collections.ConfigDict]] = {}
  for name, config in planned.items():
    found.setdefault(_group(name, config), {})[name] = config
  return found


def _group(name: str, config: ml_collections.ConfigDict) -> str:
  dataset = parts.dataset(config.data.to_dict())
  fits = config.mode == "masked" and config.devices == 1
  if not fits or dataset.train is None or config.keep_steps:
    return name
  differing = {"name", "seed"}
  # Whose budgets are in the state, and nowhere else.
  scope = config.algorithm.get("scope", "layer")
  algorithm = algorithms.find(config.algorithm.name)
  if scope == "layer" and algorithm.budgets_in_state:
    differing.add("algorithm.sparsity")
  flat = grid.flat(config)
  same = {k: None if k in parts.NUMBERS else v for k, v in flat.items()}
  text = json.dumps({k: v for k, v in same.items() if k not in differing})
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def run(
  name: str,
  group: Mapping[str, ml_collections.ConfigDict],
  root: Path,
) -> dict[str, str]:
  """Trains the runs of a group that are not finished, from where they are.

  Args:
    name: The population's.
    group: The configs of its runs by their names, as `groups` gives them.
    root: The directory of all runs.

  Returns:
    By name, why runs have failed: their loss was not finite.

  Raises:
    UserError: If something is wrong that the user can mend (the population was
      begun with runs that are not in the group, among others), or it was asked
      to stop, once it has saved.
  """
  folder, failed = root / "populations" / name, {}
  devices.keep_programs()
  with workdir_lib.locked(folder):
    while left := [
      n
      for n in group
      if n not in failed and workdir_lib.finished(root / n) is None
    ]:
      if len(left) == 1 and not (folder / "members.json").exists():
        train.train(group[left[0]], root / left[0])
        continue
      # Others may have joined since it began: these come afterwards.
      begun = workdir_lib.read_or_make(
        folder / "members.json", lambda left=left: {"members": left}
      )["members"]
      if lost := [n for n in begun if n not in group]:
        raise UserError(
          f"{folder} trains runs that the grid no longer has: "
          f"{', '.join(lost)}. Bring them back into the config file, or remove "
          "that folder: what its other runs have learned is lost, and they "
          "begin anew."
        )
      failed |= _train({n: group[n] for n in begun}, folder, root)
      shutil.rmtree(folder / "checkpoints")
      (folder / "members.json").unlink()
  return failed


def _train(
  members: Mapping[str, ml_collections.ConfigDict], folder: Path, root: Path
) -> dict[str, str]:
  """Trains a population; returns by name why members have failed."""
  names = list(members)
  with contextlib.ExitStack() as stack:
    paths = []
    for name, config in members.items():
      check_batch(config)
      paths.append(stack.enter_context(workdir_lib.locked(root / name)))
    ensure = functools.partial(
      workdir_lib.ensure_config, free=("mode", "devices")
    )
    workdir_lib.of_each(ensure, paths, map(calling.plain, members.values()))
    manager = stack.enter_context(
      checkpoints.open_manager(folder / "checkpoints")
    )
    population = _Population(list(members.values()), paths, folder, manager)
    host, failed = population.train()
    failed |= population.finish_members(host, failed)
  return {names[i]: why for i, why in failed.items()}


class _Programs(NamedTuple):
  """Compiled functions of all members at once, see `programs.Programs`.

  Attributes:
    ordinary: `(State, Batches, until, numbers) -> State`.
    moving: The same, of steps on which masks move.
    evaluate: `(State, x, y) -> Scores` of batches of tests [parts, n, ...].
    inspect: `(State) -> (dict, seen_masks)`.
    order: `(keys, first, n, steps) -> int32[members, steps, batch_size]`: which
      of n examples each takes from a step on.
  """

  ordinary: Any
  moving: Any
  evaluate: Any
  inspect: Any
  order: Any


# Of a stacked state all but the step has an axis of members, the first one.
_STATE = State(*[_MEMBERS] * len(State._fields))._replace(step=_ALL)
_BATCHES = Batches(x=_ALL, y=_ALL, order=_MEMBERS, first=_ALL)


@functools.lru_cache(maxsize=4)
def _compiled(
  single: programs.Programs, mesh: Mesh, batch_size: int
) -> _Programs:
  """Compiles the programs of one member for all that are on a mesh."""
  one_by_one = _one_by_one(mesh)

  def each(function: Callable[..., Any], *stacked: Any) -> Any:
    """Applies a function to every member that this device has."""
    if one_by_one:
      return lax.map(lambda xs: function(*xs), stacked)
    return jax.vmap(function)(*stacked)

  def sharded(
    function: Callable[..., Any], takes: tuple[Any, ...], gives: Any
  ) -> Callable[..., Any]:
    return jax.shard_map(
      function, mesh=mesh, in_specs=takes, out_specs=gives, check_vma=False
    )

  def steps(many: Callable[..., State]) -> Callable[..., State]:
    def stretch(
      state: State, batches: Batches, until: jax.Array, numbers: Any
    ) -> State:
      def member(rest: State, order: jax.Array, numbers: Any) -> State:
        own = batches._replace(order=order)
        rest = rest._replace(step=state.step)
        new = many.__wrapped__(rest, own, until, numbers)
        return new._replace(step=None)

      rest = state._replace(step=None)
      new = each(member, rest, batches.order, numbers)
      return new._replace(step=until)

    takes = (_STATE, _BATCHES, _ALL, _MEMBERS)
    return devices.jit(sharded(stretch, takes, _STATE), donate_argnums=0)

  def evaluate(state: State, x: jax.Array, y: jax.Array) -> Scores:
    def member(rest: State) -> Scores:
      variables = model_variables(rest)

      def add(
        scores: Scores, batch: tuple[jax.Array, jax.Array]
      ) -> tuple[Scores, None]:
        return single.evaluate.__wrapped__(scores, variables, *batch), None

      return lax.scan(add, no_scores(), (x, y))[0]

    return each(member, state._replace(step=None))

  def inspect(state: State) -> tuple[dict[str, Any], Any]:
    return each(single.inspect.__wrapped__, state._replace(step=None))

  @functools.partial(jax.jit, static_argnums=(2, 3))
  def order(keys: jax.Array, first: jax.Array, n: int, steps: int) -> jax.Array:
    def member(key: jax.Array) -> jax.Array:
      return data.batch_indices(
        wrapped(key), n=n, batch_size=batch_size, start=first, steps=steps
      )

    rows = sharded(lambda keys: each(member, keys), (_MEMBERS,), _MEMBERS)
    return rows(keys)

  return _Programs(
    ordinary=steps(single.ordinary.many),
    moving=steps(single.moving.many),
    evaluate=devices.jit(sharded(evaluate, (_STATE, _ALL, _ALL), _MEMBERS)),
    inspect=devices.jit(sharded(inspect, (_STATE,), _MEMBERS)),
    order=order,
  )


class _Member(Recorder):
  """The record of a member, which ends where its loss is not finite."""

  failed = ""

  def flush(self, *, keep: int = 0) -> None:
    try:
      if not self.failed:
        super().flush(keep=keep)
    except Diverged as error:
      self.failed = str(error)


class _Population:
  """Members that train at once, and what they share."""

  def __init__(
    self,
    configs: Sequence[ml_collections.ConfigDict],
    paths: Sequence[Path],
    folder: Path,
    manager: "ocp.CheckpointManager",
  ):
    """Makes the programs.

    Args:
      configs: The members' configs.
      paths: Their directories.
      folder: The population's directory.
      manager: Of its checkpoints.
    """
    self.configs, self.paths = configs, paths
    self.folder, self.manager = folder, manager
    self.config = configs[0]
    # All devices have as many members; the last one fills them up.
    count = min(len(configs), len(_devices()))
    self.mesh = Mesh(np.array(_devices()[:count]), (_AXIS,))
    self.padding = -len(configs) % count
    single = programs.get(self.config, products=True)
    self.program = _compiled(single, self.mesh, self.config.batch_size)
    self.shapes = train.state_shapes(self.config, single)

  def train(self) -> tuple[State, dict[int, str]]:
    """Trains; returns the last state, on the host, and why members failed."""
    config, size = self.config, len(self.configs)
    like = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype), self.shapes
    )._replace(step=self.shapes.step)
    step, host = checkpoints.restore(self.manager, like) or (-1, None)
    if step == config.steps:
      return host, {}
    fresh = host is None
    state = self._placed(self._first_states() if fresh else host)
    del host
    with self._recorders(after=step) as recorders:
      # A copy: the state is donated to the first stretch.
      work = self._work(recorders, jnp.copy(state.keys["data"]))
      step = int(state.step)
      _, host = loop.run(
        config, work, state, step, path=self.folder, fresh=fresh
      )
    return host, {i: r.failed for i, r in enumerate(recorders) if r.failed}

  def _work(self, recorders: list[_Member], keys: jax.Array) -> loop.Work:
    """Makes what the loop does for all members.

    Args:
      recorders: One a member.
      keys: Raw data uint32[members, 2] of the keys of their data's order.
    """
    config = self.config
    source = open_source(config, np.asarray(keys[0]))
    x, y = map(jnp.stack, zip(*source.tests(), strict=True))
    tests = self._put((x, y), _ALL)
    x, y = self._put(source.examples, _ALL)
    numbers = self._numbers()
    moves = parts.transformation(config, jax.random.key(0)).moves
    # What to record, read one stretch late, as runs that are alone do.
    pending = collections.deque()

    @functools.lru_cache(maxsize=1)
    def batches(first: int) -> Batches:
      first = np.int32(first)
      order = self.program.order(keys, first, len(y), source.block)
      return Batches(x, y, order, self._put(first, _ALL))

    def stretch(state: State, step: int, stop: int) -> State:
      take = self.program.moving if moves(step) else self.program.ordinary
      own = batches(step - step % source.block)
      return take(state, own, np.int32(stop), numbers)

    def log(state: State, step: int) -> State:
      pending.append((_Member.train, step, (state.sums,)))
      return state._replace(sums=self._no_sums())

    def evaluate(state: State, step: int) -> State:
      scores = self.program.evaluate(state, *tests)
      zeros, seen = self.program.inspect(state)
      pending.append((_Member.test, step, (scores, zeros)))
      return state._replace(seen_masks=seen)

    def record(keep: int) -> None:
      while len(pending) > keep:
        add, step, found = pending.popleft()
        found = jax.device_get(found)
        for i, recorder in enumerate(recorders):
          add(recorder, step, *_member(i, found))
          recorder.flush()

    def save(state: State, step: int) -> State:
      record(keep=0)
      host = self._on_host(state)
      return checkpoints.save(self.manager, step, host, self.paths)

    return loop.Work(
      block=source.block,
      moves=moves,
      stretch=stretch,
      log=log,
      evaluate=evaluate,
      publish=lambda step: record(keep=1),
      save=save,
      wait=functools.partial(checkpoints.wait, self.manager),
    )

  def finish_members(
    self, host: State, failed: Mapping[int, str]
  ) -> dict[int, str]:
    """Writes what `train.train` leaves of each; returns why others failed."""
    good, more = {}, {}
    for i, path in enumerate(self.paths):
      if i in failed:
        continue
      state = _member(i, host._replace(step=None))._replace(step=host.step)
      try:
        check_state(state)
        train.check_zeros_kept(self.folder / "checkpoints", state)
        good[path] = state
      except (Diverged, UserError) as error:
        more[i] = str(error)
    if good:
      folders = [path / "checkpoints" for path in good]
      checkpoints.save_each(folders, self.config.steps, list(good.values()))

    def finish(path: Path) -> None:
      final = metrics.last_test(metrics.read(path))
      workdir_lib.finish(path, self.config.steps, final)

    workdir_lib.of_each(finish, good)
    return more

  def _first_states(self) -> State:
    """Stacks the states that each begins with by itself."""
    usual = grid.flat(self.config)
    states = []
    for config, path in zip(self.configs, self.paths, strict=True):
      # Numbers have no part in it: whoever has the same budgets shares it.
      config = grid.changed(
        config, {key: usual[key] for key in parts.NUMBERS if key in usual}
      )
      states.append(train.first_state(config, programs.get(config)))
      train.write_leaves(path, states[-1])
    stacked = jax.tree.map(lambda *xs: np.stack(jax.device_get(xs)), *states)
    return stacked._replace(step=np.asarray(states[0].step))

  @contextlib.contextmanager
  def _recorders(self, *, after: int) -> Iterator[list[_Member]]:
    with contextlib.ExitStack() as stack:
      writers = [
        metrics.writer(path, after=after, tensorboard=config.tensorboard)
        for config, path in zip(self.configs, self.paths, strict=True)
      ]
      dataset = parts.dataset(self.config.data.to_dict())
      labels = self.config.batch_size * dataset.labels
      yield [
        _Member(
          stack.enter_context(writer), params=self.shapes.params, labels=labels
        )
        for writer in writers
      ]

  def _numbers(self) -> dict[str, jax.Array]:
    """Stacks the members' values of `parts.NUMBERS`, by key."""
    flat = [grid.flat(one) for one in self.configs]
    numbers = {
      key: np.array([one[key] for one in flat], np.float32)
      for key in parts.NUMBERS
      if key in flat[0]
    }
    return self._put(self._padded(numbers), _MEMBERS)

  def _no_sums(self) -> Sums:
    size = len(self.configs) + self.padding
    sums = jax.tree.map(
      lambda x: np.broadcast_to(x, (size, *x.shape)),
      jax.device_get(no_sums()),
    )
    return self._put(sums, _MEMBERS)

  def _padded(self, tree: Any) -> Any:
    def leaf(x: np.ndarray) -> np.ndarray:
      return np.concatenate([x, np.repeat(x[-1:], self.padding, 0)])

    return jax.tree.map(leaf, tree)

  def _put(self, tree: Any, spec: PartitionSpec) -> Any:
    return jax.device_put(tree, NamedSharding(self.mesh, spec))

  def _placed(self, host: State) -> State:
    rest = self._put(self._padded(host._replace(step=None)), _MEMBERS)
    return rest._replace(step=self._put(host.step, _ALL))

  def _on_host(self, state: State) -> State:
    size = len(self.configs)
    host = checkpoints.snapshot(state)
    rest = jax.tree.map(lambda x: x[:size], host._replace(step=None))
    return rest._replace(step=host.step)


def _one_by_one(mesh: Mesh) -> bool:
  return mesh.devices.flat[0].platform == "cpu"


def _devices() -> list[jax.Device]:
  return jax.local_devices()


def _member(i: int, tree: Any) -> Any:
  return jax.tree.map(lambda x: x[i], tree)
