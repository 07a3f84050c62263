"""Changes of configs: every key of every part, and what names bring."""

import itertools
import re

import pytest

import sparsejax
from experiments import main
from experiments.config import (
  algorithms,
  calling,
  check,
  describe,
  grid,
  overrides,
  schema,
  sections,
)
from experiments.errors import UserError

CONFIG = "configs/rigl_mnist1d.py"
FILES = [f"configs/{file.name}" for file in describe.files()]


def changed(*changes, config=CONFIG):
  made, _ = main.load(config, changes)
  return made


def refused(*changes, config=CONFIG):
  with pytest.raises(UserError) as error:
    changed(*changes, config=config)
  return str(error.value)


@pytest.mark.parametrize("file", FILES)
def test_every_key_is_known_and_takes_the_value_that_it_has(file):
  made, driver = main.load(f"{file}:smoke", ())
  found = list(schema.paths(made, driver.SECTION))
  assert len(found) >= 30
  for path, key, value, is_set in found:
    assert key.meaning or is_set, path
    fixed = any(
      made.get(other.partition(".")[0]) and re.fullmatch(rule, path)
      for rule, other in driver.SECTION.instead.items()
    )
    if value is schema.REQUIRED or fixed:
      continue
    value = value.to_dict() if hasattr(value, "to_dict") else value
    named = callable(value) and hasattr(value, "__name__")
    text = value.__name__ if named else str(value)
    one = made.copy_and_resolve_references()
    overrides.apply(one, ((path, text),), driver.SECTION)
    if is_set:
      assert calling.plain(one) == calling.plain(made), path


@pytest.mark.parametrize(
  ("config", "path", "text", "wanted"),
  [
    (CONFIG, "model.dtype", "bfloat16", "bfloat16"),
    (CONFIG, "algorithm.pattern", "2:4", "2:4"),
    (CONFIG, "algorithm.pattern", "fan_in", {"name": "fan_in"}),
    (CONFIG, "algorithm.distribution", "erk", "erk"),
    (CONFIG, "algorithm.accumulate", "4", 4),
    (CONFIG, "algorithm.grown_values", "normal", {"name": "normal"}),
    (CONFIG, "algorithm.restart", "(100, 200)", (100, 200)),
    (CONFIG, "algorithm.prunable", "kernel", "kernel"),
    (CONFIG, "data.data_dir", "FOLDER", "FOLDER"),
    (CONFIG, "initial.name", "snip", "snip"),
    (CONFIG, "schedule.warmup", "5", 5),
    ("configs/quickstart.py", "base.model.dtype", "float16", "float16"),
    ("configs/quickstart.py", "seeds", "5,", (5,)),
    ("configs/quickstart.py", "methods", "set,rigl", ("set", "rigl")),
    ("configs/quickstart.py", "initial.rigl", "snip", {"name": "snip"}),
    ("configs/quickstart.py", "settings.rigl", "((0.9, {}),)", ((0.9, {}),)),
    ("configs/prune_llm.py", "task.window", "64", 64),
    ("configs/prune_llm.py", "task.test_tokens", "None", None),
    ("configs/prune_llm.py", "pruners.wanda.dsnot", "true", True),
    ("configs/prune_llm.py", "n_of_m", "2:4", ((2, 4),)),
    ("configs/seft_llm.py", "settings.seft.method.fold", "yes", True),
    ("configs/seft_llm.py", "starts.wanda 60 %.prune.seed", "3", 3),
    ("configs/seft_llm.py", "base.loss.kl", "1", 1.0),
    ("configs/byte_llama.py", "optimizer.eps", "1e-6", 1e-6),
    ("configs/imp_rewinding.py", "branches.one_shot.of", "x", "x"),
  ],
)
def test_optional_keys_of_every_driver(config, path, text, wanted):
  made = changed((path, text), config=config)
  for key in path.split("."):
    made = made[key]
  made = made.to_dict() if hasattr(made, "to_dict") else made
  assert made == wanted
  assert type(made) is type(wanted)


def test_names_come_before_their_keywords():
  folder = (
    ("model.path", "FOLDER"),
    ("model.dtype", "bfloat16"),
    ("model.name", "huggingface"),
    ("task.train.path", "a.jsonl"),
    ("task.train.name", "jsonl"),
  )
  made = changed(*folder, config="configs/prune_llm.py")
  assert made.model.to_dict() == {
    "name": "huggingface",
    "path": "FOLDER",
    "dtype": "bfloat16",
  }
  assert made.task.train.to_dict() == {"name": "jsonl", "path": "a.jsonl"}
  grown = (
    ("algorithm.grown_values.stddev", "0.1"),
    ("algorithm.grown_values.name", "normal"),
    ("algorithm.pattern.m", "4"),
    ("algorithm.pattern.n", "2"),
    ("algorithm.pattern.name", "n_of_m"),
  )
  algorithm = changed(*grown).algorithm
  assert algorithm.grown_values.to_dict() == {"name": "normal", "stddev": 0.1}
  assert algorithm.pattern.to_dict() == {"name": "n_of_m", "n": 2, "m": 4}


def test_what_follows_from_a_value_follows_its_change():
  assert changed(("steps", "800")).algorithm.t_end == 600
  assert (
    changed(("steps", "800"), ("algorithm.t_end", "7")).algorithm.t_end == 7
  )
  # An algorithm's share of training, too, in any order.
  gmp = changed(("algorithm.name", "gmp"), ("steps", "800")).algorithm
  assert (gmp.begin, gmp.end) == (200, 600)


@pytest.mark.parametrize("old", algorithms.ALGORITHMS)
def test_any_algorithm_in_place_of_any(old):
  sparsity = ("algorithm.sparsity", "0.9")
  backward = ("algorithm.backward_sparsity", "0.8")
  needs = {
    name: [
      *([sparsity] if row.takes("sparsity") else []),
      *([backward] if row.takes("backward_sparsity") else []),
    ]
    for name, row in algorithms.ALGORITHMS.items()
  }
  for new, arg in itertools.product(needs, ("", ":smoke")):
    made = changed(
      ("algorithm.name", old), *needs[old], config=f"{CONFIG}{arg}"
    )
    before = made.algorithm.to_dict()
    changes = ("algorithm", new), *needs[new]
    overrides.apply(made, changes, sections.TRAINING)
    check.training_run(made)
    after = made.algorithm.to_dict()
    moved = {algorithms.find(new).last, "name"}
    shared = before.keys() & after.keys() - moved
    assert {k: after[k] for k in shared} == {k: before[k] for k in shared}
    known = sections.ALGORITHM.keys(new)
    assert before.keys() & known.keys() <= after.keys()


def test_what_changes_with_a_name_is_told():
  made = grid.config(CONFIG)
  (told,) = overrides.apply(made, (("algorithm", "gmp"),), sections.TRAINING)
  assert told == (
    "config.algorithm is gmp in place of rigl; keeps delta_t=100, "
    "distribution='erdos_renyi_kernel', sparsity=0.9; loses fraction, t_end; "
    "gets begin=1000, end=3000"
  )
  assert made.name == "gmp_mnist1d"
  assert not overrides.apply(made, (("algorithm", "gmp"),), sections.TRAINING)


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (("stps", "3"), "called 'stps'; did you mean 'steps'"),
    (("optimizer.momentun", "3"), "did you mean 'optimizer.momentum'"),
    (("model.dtyp", "x"), "did you mean 'model.dtype'"),
    (("task.train.path", "x"), "no key of the config is called 'task.train"),
    (("model.width", "3"), "another --config.model.name there is: .*resnet50"),
    (("algorithm.begin", "3"), "algorithm.name there is: .*gmp"),
    (("algorithm.masks", "x"), "no key"),
    (("algorithm.key", "x"), "no key"),
    (("model.num_classes", "3"), "no key"),
    (("algorithm.name", "rigel"), "did you mean 'rigl'"),
    (("algorithm", "rigel"), "did you mean 'rigl'"),
    (("algorithm.name", "top_kast"), r"backward_sparsity=\.\.\. The share"),
    (("model", "{'channels': 3}"), "lacks a name"),
    (("algorithm.pattern.n", "2"), "algorithm.pattern.name as well"),
    (("keep_steps[0]", "2"), "set the whole list, --config.keep_steps"),
    (("steps.more", "2"), "no key"),
    (
      ("algorithm.fraction", "half"),
      "fraction is 'half'; wanted a number",
    ),
    (("algorithm.grown_values", "normel"), "did you mean 'normal'"),
    (("algorithm.pattern", "fan_inn"), "fan_in"),
    (("algorithm.pattern", "[['(', '2:4']]"), "unterminated"),
    (("algorithm.distribution", "erkk"), "algorithm.distribution is 'erkk'"),
    (
      ("algorithm.prunable", "("),
      "prunable is .*unterminated",
    ),
    (
      ("algorithm.by_path", "[['(', 0.5]]"),
      "by_path is .* unterminated",
    ),
    (("algorithm.by_path", "[3]"), r"algorithm.by_path is \(3,\): "),
    (("algorithm.restart", "nevr"), "did you mean 'never'"),
  ],
)
def test_what_cannot_be_is_refused_in_words(change, says):
  def make():
    check.training_run(changed(change))

  with pytest.raises(UserError, match=says):
    make()


def test_mappings_are_no_names():
  for path in ("initial", "base"):
    change = (path, "snip")
    says = refused(change, config="configs/quickstart.py")
    assert f"config.{path} is 'snip'; wanted a mapping" in says


def test_few_keys_are_listed_of_hundreds():
  says = refused(("zzzzzzzz", "3"))
  assert "there are: algorithm, augment, batch_size" in says
  assert len(says) < 400


def test_seeds_are_a_list():
  assert "write 5, with the comma; for several, 0,1,2" in refused(
    ("seeds", "5"), config="configs/quickstart.py"
  )


@pytest.mark.parametrize(
  ("config", "path", "decides"),
  [
    ("quickstart", "base.seed", "seeds"),
    ("quickstart", "base.algorithm.name", "algorithms.NAME"),
    ("init_pruning", "algorithms.snip.sparsity", "sparsities"),
    ("imp_rewinding", "base.seed", "seeds"),
    ("seft_llm", "settings.seft.seed", "seeds"),
    ("seft_llm", "starts.wanda 60 %.model.name", "base.model"),
  ],
)
def test_what_would_change_nothing_is_refused(config, path, decides):
  assert f"config.{decides} decides" in refused(
    (path, "3"), config=f"configs/{config}.py"
  )


def test_a_sparsity_is_set_where_no_others_decide():
  change = ("algorithms.rigl.sparsity", "0.5")
  made = changed(change, config="configs/quickstart.py")
  assert made.algorithms.rigl.sparsity == 0.5


def anything(inner, sparsity, *, key, t_end, **options):
  """An algorithm of one's own, whose keywords nothing lists."""
  assert options == {"delta_t": 100, "fraction": 0.3, "mine": (1, 2)}
  return sparsejax.rigl(inner, sparsity, key=key, t_end=t_end)


def test_keywords_that_nothing_lists():
  made = changed(
    ("algorithm.mine", "(1, 2)"),
    ("algorithm.name", f"{__name__}:anything"),
    ("algorithm.distribution", "erk"),
  )
  del made.algorithm.distribution
  check.training_run(made)


def test_the_driver_is_the_config_files():
  assert "give another" in refused(("driver", "compare"))
  changed(("driver", "train"))


def test_rows_are_what_they_are_called():
  config = "configs/quickstart.py"
  assert "'rigl' is the name of a row" in refused(
    ("algorithms.rigl.name", "set"), config=config
  )
  llm = "configs/seft_llm.py"
  for path, value in (
    ("starts.wanda 60 %.prune.name", "ria"),
    ("starts.wanda 60 %.prune.sparsity", "0.7"),
    ("settings.seft.method", "spiel"),
  ):
    assert "is the name of a row" in refused((path, value), config=llm)
  same = ("starts.wanda 60 %.prune.sparsity", "0.6")
  changed(same, config=llm)
  more = (
    ("algorithms.srigl.name", "srigl"),
    ("algorithms.srigl.sparsity", "0.9"),
    ("methods", "rigl,srigl"),
  )
  assert changed(*more, config=config).algorithms.srigl.t_end == 2250
