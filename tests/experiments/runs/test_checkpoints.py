"""Checkpoints come back bit for bit, or the one before does, and it is said."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from experiments.errors import UserError
from experiments.runs import checkpoints

pytestmark = pytest.mark.core


class State(NamedTuple):
  step: jax.Array
  params: dict
  opt_state: tuple
  keys: dict


def make(seed, width=16, copy=checkpoints.snapshot):
  params = {
    "w": jax.random.normal(jax.random.key(seed), (width, 8)),
    "b": jnp.full(3, seed, jnp.bfloat16),
    "list": [jnp.asarray(seed % 2 == 0), (jnp.ones(5, bool),)],
  }
  opt_state = optax.adam(1e-3).init({"w": params["w"]})
  keys = {"data": jax.random.key_data(jax.random.key(seed))}
  return copy(State(jnp.int32(seed), params, opt_state, keys))


@contextlib.contextmanager
def manager(path, keep=3):
  opened = checkpoints.open_manager(path / "checkpoints", keep=keep)
  with contextlib.closing(opened):
    yield opened


def fill(path, steps, keep=3, **kwargs):
  with manager(path, keep) as opened:
    for step in steps:
      checkpoints.save(opened, step, make(step, **kwargs))
    checkpoints.wait(opened)


def restored(path, like=None):
  with manager(path) as opened:
    return checkpoints.restore(opened, make(0) if like is None else like)


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert (x.dtype, x.shape) == (y.dtype, y.shape)
    np.testing.assert_array_equal(x, y)


def damage(path, step, how):
  """Damages the largest file of a step, which holds the arrays."""
  files = (path / "checkpoints" / str(step)).rglob("*")
  file = max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size)
  data = bytearray(file.read_bytes())
  how(data)
  file.write_bytes(data)


def test_round_trip(tmp_path):
  fill(tmp_path, [1, 2])
  step, state = restored(tmp_path)
  assert step == 2
  assert_same(state, make(2))


def test_masks_are_saved_eight_to_a_byte(tmp_path):
  mask = np.random.default_rng(0).random((3, 5, 7)) < 0.3
  state = {"mask": mask, "dense": np.True_}
  with manager(tmp_path) as opened:
    checkpoints.save(opened, 1, state)
    checkpoints.wait(opened)
    raw = opened.restore(
      1, args=ocp.args.Composite(state=ocp.args.StandardRestore())
    )["state"]
  assert raw["mask"].dtype == np.uint8
  assert raw["mask"].shape == (14,)  # 105 bits
  step, again = restored(tmp_path, state)
  assert step == 1
  assert_same(again, state)


def test_what_is_empty_stays_empty(tmp_path):
  state = {"a": np.zeros((2, 0), np.int32), "b": np.zeros((0, 3), bool)}
  with manager(tmp_path) as opened:
    checkpoints.save(opened, 1, state)
    checkpoints.wait(opened)
  _, back = restored(tmp_path, state)
  assert_same(back, state)


def test_restores_into_abstract_values(tmp_path):
  fill(tmp_path, [5])
  like = jax.eval_shape(lambda: make(0, copy=lambda state: state))
  step, state = restored(tmp_path, like)
  assert step == 5
  assert_same(state, make(5))


def test_no_checkpoint_yet(tmp_path):
  assert restored(tmp_path) is None
  with manager(tmp_path) as opened:
    assert checkpoints.latest(opened) is None


def test_keeps_the_newest(tmp_path):
  fill(tmp_path, [1, 2, 3, 4], keep=2)
  with manager(tmp_path) as opened:
    assert sorted(opened.all_steps()) == [3, 4]
    assert checkpoints.latest(opened) == 4


def test_a_snapshot_shares_no_memory():
  x = jnp.arange(4.0)
  (copy,) = checkpoints.snapshot([x])
  assert not np.shares_memory(copy, np.asarray(x))


def flip_each(data):
  for place in range(len(data) // 8, len(data), max(1, len(data) // 8)):
    data[place] ^= 1


@pytest.mark.parametrize(
  "how",
  [
    flip_each,
    lambda d: d.__delitem__(slice(len(d) // 2, None)),
    bytearray.clear,
  ],
  ids=["flipped", "truncated", "empty"],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
  tmp_path, caplog, how
):
  fill(tmp_path, [1, 2, 3])
  damage(tmp_path, 3, how)
  with manager(tmp_path) as opened:
    step, state = checkpoints.restore(opened, make(0))
    assert step == 2
    assert_same(state, make(2))
    assert "of step 3 is damaged" in caplog.text
    assert "from that of step 2" in caplog.text
    checkpoints.save(opened, 3, make(3))  # the step is free again
    assert checkpoints.latest(opened) == 3
  assert (tmp_path / "damaged" / "3").is_dir()
  assert restored(tmp_path)[0] == 3


def test_a_flipped_bit_of_a_weight_is_seen(tmp_path, caplog):
  """Plain Orbax gives it back without a word."""
  for step in (1, 2):
    fill(tmp_path, [step], width=4096)
  damage(tmp_path, 2, lambda data: flip(data, len(data) // 2))
  opened = checkpoints.open_manager(tmp_path / "checkpoints")
  with contextlib.closing(opened):
    state = opened.restore(2)["state"]  # is given back
  assert np.any(state["params"]["w"] != make(2, width=4096).params["w"])
  step, state = restored(tmp_path, make(0, width=4096))
  assert step == 1
  assert_same(state, make(1, width=4096))
  assert "checksums differ: .params['w']" in caplog.text


def flip(data, place):
  data[place] ^= 1


def test_a_lost_file_gives_way_to_the_one_before(tmp_path, caplog):
  fill(tmp_path, [1, 2])
  for file in (tmp_path / "checkpoints" / "2" / "sums").iterdir():
    file.unlink()
  assert restored(tmp_path)[0] == 1
  assert "of step 2 is damaged" in caplog.text


def test_all_damaged_starts_over_and_says_so(tmp_path, caplog):
  fill(tmp_path, [1, 2])
  for step in (1, 2):
    damage(tmp_path, step, bytearray.clear)
  assert restored(tmp_path) is None
  assert caplog.text.count("from the start") == 2


def test_another_shape_is_an_error_that_names_the_leaf(tmp_path):
  fill(tmp_path, [1])
  with pytest.raises(UserError, match=r"params\['w'\].*16, 8.*32, 8"):
    restored(tmp_path, make(0, width=32))
  assert restored(tmp_path)[0] == 1  # and nothing was set aside


def test_another_structure_is_an_error_that_names_the_leaf(tmp_path):
  fill(tmp_path, [1])
  like = make(0)
  with pytest.raises(UserError, match=r"params\['new'\]: absent ->"):
    restored(tmp_path, like._replace(params={**like.params, "new": like.step}))


def folders(path, seeds):
  return [path / str(seed) / "checkpoints" for seed in seeds]


@pytest.mark.parametrize("known", [True, False], ids=["", "unknown"])
def test_many_are_saved_as_each_would_be(known, tmp_path, monkeypatch):
  if not known:  # how Orbax calls arrays
    monkeypatch.setattr(checkpoints, "_name", lambda key: "elsewhere")
  seeds = [3, 4, 5]
  fill(tmp_path / "4", [7])  # is there: written before a kill
  checkpoints.save_each(folders(tmp_path, seeds), 7, [make(i) for i in seeds])
  for seed in (3, 5):
    step, state = restored(tmp_path / str(seed))
    assert step == 7
    assert_same(state, make(seed))
    with manager(tmp_path / str(seed)) as opened:
      plain = opened.restore(7)["state"]  # as Orbax alone reads it
    np.testing.assert_array_equal(plain["params"]["w"], make(seed).params["w"])
  assert_same(restored(tmp_path / "4")[1], make(7))
  # And they are gone on from as any other.
  fill(tmp_path / "5", [8])
  assert restored(tmp_path / "5")[0] == 8


def test_one_of_many_that_cannot_be_saved_is_an_error(tmp_path):
  (tmp_path / "4").write_text("in the way")
  with pytest.raises(UserError, match=r"cannot write in .*/4/checkpoints"):
    checkpoints.save_each(folders(tmp_path, [3, 4, 5]), 7, [make(0)] * 3)
  assert restored(tmp_path / "5")[0] == 7


MANY = """
import sys
from pathlib import Path
from tests.experiments.runs import test_checkpoints as t
states = [t.make(i) for i in range(400)]
t.checkpoints.save_each(t.folders(Path(sys.argv[1]), range(400)), 7, states)
"""


def test_a_kill_while_many_are_saved_leaves_whole_ones(tmp_path):
  with subprocess.Popen([sys.executable, "-c", MANY, str(tmp_path)]) as child:
    while len(list(tmp_path.glob("*/checkpoints/7"))) < 5:
      assert child.poll() is None
    child.send_signal(signal.SIGKILL)
  whole = [seed for seed in range(400) if (tmp_path / str(seed)).exists()]
  assert len(whole) < 400
  found = {seed: restored(tmp_path / str(seed)) for seed in whole[-12:]}
  for seed, one in found.items():
    if one is not None:
      assert_same(one[1], make(seed))
  assert any(found.values())
  assert not list(tmp_path.rglob("damaged"))


FILL = """
import sys, time
from pathlib import Path
from tests.experiments.runs import test_checkpoints as t
with t.manager(Path(sys.argv[1])) as opened:
  for step in range(1, 10_000):
    t.checkpoints.save(opened, step, t.make(step))
    print(step, flush=True)
"""


def test_a_kill_during_a_save_keeps_the_one_before(tmp_path):
  command = [sys.executable, "-c", FILL, str(tmp_path)]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
    while int(child.stdout.readline()) < 4:
      pass
    time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
  broken_off = tmp_path / "checkpoints" / "99.orbax-checkpoint-tmp"
  broken_off.mkdir()
  step, state = restored(tmp_path)
  assert step >= 3
  assert_same(state, make(step))
  names = [p.name for p in (tmp_path / "checkpoints").iterdir()]
  assert all(name.isdigit() for name in names), names


FULL = """
from pathlib import Path
from tests.experiments.runs import test_checkpoints as t
path = Path("{path}")
t.fill(path, [1])
with t.manager(path) as opened:
  try:
    t.checkpoints.save(opened, 2, t.make(2, width=50_000))
    t.checkpoints.wait(opened)
  except t.UserError as error:
    print(error)
print("left:", t.restored(path)[0])
t.fill(path, [2])
print("then:", t.restored(path)[0])
"""


def test_a_full_disk_keeps_the_one_before(tmp_path):
  mount = f"mount -t tmpfs -o size=400k tmpfs {tmp_path}"
  command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
  if (
    not shutil.which("unshare") or subprocess.run([*command, mount]).returncode
  ):
    pytest.skip("no private file systems here")
  code = FULL.format(path=tmp_path)
  run = f"{mount} && exec {sys.executable} -c '{code}'"
  out = subprocess.run([*command, run], capture_output=True, text=True)
  assert "could not save a checkpoint" in out.stdout, out.stderr
  assert "Complete ones: 1." in out.stdout
  assert "left: 1\nthen: 2" in out.stdout, out.stdout


def test_an_unwritable_directory_is_a_clear_error():
  with pytest.raises(UserError, match="cannot write"):
    checkpoints.open_manager(os.devnull + "/checkpoints")
