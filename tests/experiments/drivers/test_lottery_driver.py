"""Lottery tickets: what each branch starts from, its masks, its report."""

import csv
import json
import shutil

import jax
import ml_collections
import numpy as np
import pytest
from matplotlib import image

from experiments.config import branches
from experiments.drivers import lottery
from experiments.errors import UserError
from experiments.runs import checkpoints, loop, programs, train
from experiments.runs import lottery as runs
from experiments.runs.recorder import DivergedError
from sparsejax import nnz
from tests.experiments import small
from tests.experiments.interrupted import Crash, assert_same_run
from tests.experiments.small_lottery import BRANCHES, STEP, make


class Finished:
  """A finished workdir, and the states in which its runs started."""

  def __init__(self, path, config, starts):
    self.path, self.config, self.starts = path, config, starts

  def start(self, name, level):
    return self.starts[f"{name}/level-{level:02}"]

  def result(self, folder):
    path = self.path / "seed-0" / folder
    config = json.loads((path / "config.json").read_text())["config"]
    return train.train(ml_collections.ConfigDict(config), path)

  def level(self, name, level):
    return self.result(f"{name}/level-{level:02}")

  @property
  def dense(self):
    return self.result("dense")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  path = tmp_path_factory.mktemp("lottery")
  starts, train_one = {}, train.train

  def watched(config, workdir, *, progress, start):
    folder = str(workdir.relative_to(path / "seed-0"))
    starts[folder] = jax.tree.map(np.array, start(programs.get(config)))
    return train_one(config, workdir, progress=progress, start=start)

  config = make()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train, "train", watched)
    lottery.run(config, str(path))
  return Finished(path, config, starts)


@pytest.fixture
def copied(finished, tmp_path):
  """A copy of the finished workdir, for tests that run in it again."""
  return shutil.copytree(finished.path, tmp_path / "lottery")


def weights(tree):
  return {k: np.asarray(v["kernel"]) for k, v in tree.items()}


def kept(n, rounds):
  for _ in range(rounds):
    n = (8 * n + 5) // 10
  return n


def assert_same(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


def assert_within(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert not np.any(x & ~y)


def mask_of(state):
  return state.opt_state.mask_state.masks


@pytest.mark.slow
@pytest.mark.parametrize("name", BRANCHES)
def test_every_level_has_its_exact_share_of_the_weights(finished, name):
  total = 64 * 8 + 8 * 10
  for level in (1, 2):
    masks = finished.level(name, level).masks
    assert nnz(masks) == kept(total, level)
    assert_same(masks, mask_of(finished.start(name, level)))
    for p, m in zip(
      jax.tree.leaves(finished.level(name, level).params),
      jax.tree.leaves(masks),
      strict=True,
    ):
      assert np.all((p == 0) | m)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ticket", "rewound", "fine_tuning"])
def test_a_round_prunes_the_smallest_weights_of_all_layers_together(
  finished, name
):
  before = finished.dense
  for level in (1, 2):
    w, now = weights(before.params), finished.level(name, level)
    was, left = weights(before.masks), weights(now.masks)
    threshold = min(np.abs(w[k][left[k]]).min() for k in w)
    gone = [np.abs(w[k][was[k] & ~left[k]]) for k in w]
    assert max(g.max() for g in gone if g.size) < threshold
    assert_within(now.masks, before.masks)
    before = now


@pytest.mark.slow
def test_one_shot_prunes_as_much_by_the_dense_runs_weights(finished):
  w = weights(finished.dense.params)
  ranked = np.sort(np.concatenate([np.abs(x).ravel() for x in w.values()]))
  for level in (1, 2):
    left = weights(finished.level("one_shot", level).masks)
    threshold = ranked[-kept(ranked.size, level)]
    for name, x in w.items():
      np.testing.assert_array_equal(left[name], np.abs(x) >= threshold)


@pytest.mark.slow
def test_random_masks_are_pruned_from_round_to_round(finished):
  one, two = (finished.level("random", level).masks for level in (1, 2))
  assert_within(two, one)
  layers = {k: int(m.sum()) for k, m in weights(two).items()}
  of_ticket = weights(finished.level("ticket", 2).masks)
  assert layers != {k: int(m.sum()) for k, m in of_ticket.items()}


@pytest.mark.slow
def test_controls_take_the_masks_of_another_branch(finished):
  for level in (1, 2):
    ticket = finished.level("ticket", level).masks
    assert_same(finished.level("reinit", level).masks, ticket)
    for name in ("shuffled", "nested"):
      other = finished.level(name, level).masks
      for a, b in zip(
        jax.tree.leaves(ticket), jax.tree.leaves(other), strict=True
      ):
        assert np.sum(a) == np.sum(b)
      assert any(
        np.any(a != b)
        for a, b in zip(
          weights(ticket).values(), weights(other).values(), strict=True
        )
      )
  one, two = (finished.level("nested", level).masks for level in (1, 2))
  assert_within(two, one)
  with pytest.raises(AssertionError):
    assert_within(
      finished.level("shuffled", 2).masks, finished.level("shuffled", 1).masks
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "step"), [("ticket", 0), ("rewound", STEP)])
def test_weights_are_rewound_to_those_of_the_dense_run(finished, name, step):
  config = branches.dense_run(finished.config, 0)
  saved = train.state_at(config, finished.path / "seed-0" / "dense", step)
  assert saved.step == step
  for level in (1, 2):
    state = finished.start(name, level)
    assert state.step == step
    for p, q, m in zip(
      jax.tree.leaves(state.params),
      jax.tree.leaves(saved.params),
      jax.tree.leaves(mask_of(state)),
      strict=True,
    ):
      np.testing.assert_array_equal(p, np.where(m, q, 0))
  records = finished.level(name, 1).history
  assert next(r["step"] for r in records if r["split"] == "test") == step


@pytest.mark.slow
@pytest.mark.parametrize("name", ["learning_rate", "fine_tuning"])
def test_trained_weights_go_on(finished, name):
  last = finished.dense
  for level in (1, 2):
    state = finished.start(name, level)
    assert state.step == STEP
    for p, q, m in zip(
      jax.tree.leaves(state.params),
      jax.tree.leaves(last.params),
      jax.tree.leaves(mask_of(state)),
      strict=True,
    ):
      np.testing.assert_array_equal(p, np.where(m, q, 0))
    last = finished.level(name, level)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "step"), [("ticket", 0), ("rewound", STEP), ("learning_rate", STEP)]
)
def test_the_schedule_goes_on_from_the_step_and_moments_begin_anew(
  finished, name, step
):
  """Adam counts its own steps, the schedule those of the dense run."""
  counts = [
    (jax.tree_util.keystr(path), int(leaf))
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      finished.start(name, 2).opt_state.inner_state
    )
    if np.issubdtype(leaf.dtype, np.integer)
  ]
  assert sorted(count for _, count in counts) == [0, step], counts
  moments = [
    x
    for x in jax.tree.leaves(finished.start(name, 2).opt_state.inner_state)
    if np.ndim(x) > 0
  ]
  assert moments
  assert not any(np.any(x) for x in moments)


@pytest.mark.slow
def test_fine_tuning_has_the_last_learning_rate(finished):
  file = finished.path / "seed-0/fine_tuning/level-01/config.json"
  schedule = json.loads(file.read_text())["config"]["schedule"]
  assert schedule["name"] == "constant"
  # A cosine from 0.03 to 0.003 over 16 steps, at step 15.
  rate = 0.003 + 0.027 * 0.5 * (1 + np.cos(np.pi * 15 / 16))
  assert schedule["learning_rate"] == pytest.approx(rate, rel=1e-5)


@pytest.mark.slow
def test_reinitialised_weights_are_new_at_every_level(finished):
  first = weights(finished.start("ticket", 1).params)
  new = [weights(finished.start("reinit", level).params) for level in (1, 2)]
  for name, w in new[1].items():
    active = w != 0
    assert not np.any(w[active] == new[0][name][active])
    assert not np.any(w[active] == first[name][active])
  assert finished.start("reinit", 1).step == 0


@pytest.mark.slow
def test_every_level_and_child_has_an_order_of_its_own(finished):
  child = finished.starts["ticket/level-02-child"]
  one = finished.start("ticket", 2)
  assert_same(child.params, one.params)
  assert_same(mask_of(child), mask_of(one))
  differ = {n for n in one.keys if np.any(one.keys[n] != child.keys[n])}
  assert differ == {"data", "augment"}
  orders = {tuple(state.keys["data"]) for state in finished.starts.values()}
  # Levels 0, 1 and 2 and second children of 0 and 2.
  assert len(orders) == 5


@pytest.mark.slow
def test_the_ends_of_a_line_are_the_children_themselves(finished):
  levels = list(_levels(finished))
  (found,) = [e for e in levels if (e.branch, e.level) == ("rewound", 2)]
  child = finished.result("rewound/level-02-child")
  assert len(found.line) == 5
  assert found.line[0] == pytest.approx(1 - found.metrics["accuracy"])
  assert found.line[-1] == pytest.approx(1 - child.metrics["accuracy"])
  (start,) = [e for e in levels if (e.branch, e.level) == ("ticket", 0)]
  assert start.line[0] == pytest.approx(1 - finished.dense.metrics["accuracy"])
  assert [e.line is None for e in levels if e.branch == "random"] == [True] * 3


def _levels(finished):
  return runs.train_levels(finished.config, 0, finished.path / "seed-0")


@pytest.mark.slow
def test_the_table_holds_the_runs_numbers(finished):
  comment, *lines = (finished.path / "table.csv").read_text().splitlines()
  assert comment.startswith("# python -m experiments.main")
  table = list(csv.DictReader(lines))
  assert (table[0]["branch"], table[0]["level"]) == ("dense", "0")
  rows = {(r["branch"], int(r["level"])): r for r in table}
  assert {b for b, _ in rows} == {"dense", *BRANCHES}
  for name in BRANCHES:
    row = rows[name, 2]
    metrics = finished.level(name, 2).metrics
    assert row["test accuracy [%]"] == f"{100 * metrics['accuracy']:.2f}"
    assert row["weights left [%]"] == f"{100 * metrics['density']:.2f}"
    assert row["runs"] == "1"
  assert rows["ticket", 2]["error barrier [%]"] != "-"
  assert rows["random", 2]["error barrier [%]"] == "-"


@pytest.mark.slow
def test_the_report_has_pictures_and_says_what_papers_report(finished):
  text = (finished.path / "report.md").read_text()
  assert "ticket above reinitialised: at" in text
  for name in ("tickets.png", "curves.png", "barriers.png", "lines.png"):
    assert f"({name})" in text
    picture = image.imread(finished.path / name)[..., :3]
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


@pytest.mark.slow
def test_a_seed_that_diverges_does_not_stop_the_others(
  finished, copied, monkeypatch, capsys
):
  real = lottery.lottery.train_levels

  def train_levels(config, number, folder, progress):
    if number:
      raise DivergedError(f"seed {number} is not finite")
    return real(config, number, folder, progress)

  monkeypatch.setattr(lottery.lottery, "train_levels", train_levels)
  config = finished.config.copy_and_resolve_references()
  with config.unlocked():
    config.seeds = (0, 7)
  lottery.run(config, str(copied))
  _, header, dense, *_ = (copied / "table.csv").read_text().splitlines()
  cells = dict(zip(header.split(","), dense.split(","), strict=True))
  assert cells["test accuracy [%]"].endswith(" (1 of 2 diverged)")
  assert cells["95 % interval"] == "-"
  said = (
    "Seed 7 diverged, and has no levels from there on: seed 7 is not finite"
  )
  assert said in capsys.readouterr().out
  assert said in (copied / "report.md").read_text()
  with config.unlocked():
    config.seeds = (7,)
  with pytest.raises(UserError, match="all seeds diverged: seed 7"):
    lottery.run(config, str(copied))


@pytest.mark.slow
def test_the_same_command_again_trains_nothing(
  finished, copied, monkeypatch, capsys
):
  before = (copied / "table.csv").read_text()
  monkeypatch.setattr(loop, "run", None)  # a step would be an error
  lottery.run(finished.config, str(copied))
  assert (copied / "table.csv").read_text() == before
  assert "small tickets" in capsys.readouterr().out


@pytest.mark.slow
def test_more_levels_and_seeds_join_a_finished_workdir(copied):
  dense = copied / "seed-0/dense/finished.json"
  before = dense.stat().st_mtime_ns
  config = make(seeds=(0, 1), levels=3, methods=("ticket",))
  config.stability.branches = ()
  lottery.run(config, str(copied))
  assert dense.stat().st_mtime_ns == before
  for folder in ("seed-0/ticket/level-03", "seed-1/ticket/level-03"):
    assert (copied / folder / "finished.json").exists()
  other = make()
  with other.unlocked():
    other.branches.ticket = {"step": STEP}
  with pytest.raises(UserError, match=r"ticket holds .*\n  step: 0 -> 6"):
    lottery.run(other, str(copied))
  other = make()
  other.rate = 0.5
  with pytest.raises(UserError, match=r"rate: 0\.2 -> 0\.5"):
    lottery.run(other, str(copied))


@pytest.mark.slow
def test_tickets_that_crashed_end_in_the_same_bits(
  finished, tmp_path, monkeypatch
):
  """Within levels and between them, at one save after another."""
  config = make(methods=("rewound", "random"))
  config.stability.branches = ()
  save, saves = checkpoints.save, []

  def crashing(manager, step, state, records):
    saved = save(manager, step, state, records)
    saves.append(step)
    if len(saves) in (3, 5, 8):
      raise Crash
    return saved

  monkeypatch.setattr(checkpoints, "save", crashing)
  for _ in range(3):
    with pytest.raises(Crash):
      lottery.run(config, str(tmp_path))
  lottery.run(config, str(tmp_path))
  runs = [f.parent for f in tmp_path.rglob("metrics.jsonl")]
  assert len(runs) == 5
  for run in runs:
    assert_same_run(run, finished.path / run.relative_to(tmp_path))


def test_nothing_is_compiled_from_the_second_level_on(tmp_path, monkeypatch):
  sizes, train_one = {}, train.train

  def watched(config, workdir, **options):
    result = train_one(config, workdir, **options)
    rounds = (runs._prune, runs._shuffle)
    sizes[workdir.name] = small.compiled((programs.get(config), rounds))
    return result

  monkeypatch.setattr(train, "train", watched)
  config = make(levels=3, methods=("rewound",))
  config.stability.branches = ()
  lottery.run(config, str(tmp_path))
  assert sizes["level-01"] == sizes["level-02"] == sizes["level-03"]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"methods": ()}, "nothing to run"),
    ({"methods": ("tickt",)}, "ticket"),
    ({"methods": ("reinit",)}, r"branches\.reinit\.of is 'ticket'"),
    ({"levels": 0}, "at least 1"),
    ({"rate": 1.0}, r"in \(0, 1\)"),
    ({"scope": "layers"}, "layer"),
    ({"branches.ticket.step": 16}, "0 to 15"),
    ({"branches.ticket.masks": "magnitude"}, "pruned"),
    ({"branches.ticket.retrain": "rewind"}, "reinit"),
    ({"branches.ticket.stpe": 3}, "step"),
    ({"stability.levels": (3,)}, "0 to 2"),
    ({"stability.branches": ("x",)}, "ticket"),
    ({"stability.points": 1}, "at least 2"),
    ({"base.algorithm.name": "rigl"}, "static with sparsity 0"),
  ],
)
def test_a_config_that_makes_no_sense_is_an_error(change, message, tmp_path):
  config = make()
  config.unlock()
  for key, value in change.items():
    *path, last = key.split(".")
    node = config
    for part in path:
      node = node[part]
    node.unlock()
    node[last] = value
  with pytest.raises(UserError, match=message):
    lottery.run(config, str(tmp_path / "a"))
  assert not (tmp_path / "a").exists()
