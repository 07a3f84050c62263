"""The configs of language models: all are sound, and the small ones run."""

import ml_collections
import pytest

from experiments import main
from experiments.config import calling, check
from experiments.drivers import prune_llm
from experiments.errors import UserError
from experiments.llm.evaluate import tasks
from experiments.llm.text import questions
from experiments.runs import finetune as run
from experiments.runs import prune_llm as prune_runs
from experiments.runs import recovery as recovery_runs
from tests.configs.shipped import CONFIGS, load

VARIANTS = {
  "prune_llm": ("", "bytes", "smoke"),
  "byte_llama": ("", "smoke"),
  "seft_llm": ("", "bytes", "smoke"),
  "squarehead_llm": ("", "bytes", "gsm8k", "smoke"),
  "quantize_llm": ("", "bytes", "trained", "smoke", "smoke,trained"),
  "reasoning_llm": ("", "smoke", *questions.TASKS),
  "t5_sotu": ("", "pairs", "smoke"),
}


@pytest.mark.parametrize(
  ("name", "arg"), [(n, a) for n, args in VARIANTS.items() for a in args]
)
def test_every_variant_is_sound(name, arg, tmp_path):
  config = load(name, arg)
  assert calling.plain(config) == calling.plain(load(name, arg))
  assert config.driver in main.DRIVERS
  match config.driver:
    case "prune_llm":
      check.keys(config, prune_llm.defaults())
      assert list(prune_runs.plan(config))
    case "finetune":
      run.check_config(config)
    case "recovery":
      planned = recovery_runs.plan(config, tmp_path)
      cells = [str(cell) for cell in planned]
      methods = [cell.method for cell in planned]
      for pair in config.expected:
        assert set(pair) <= {*cells, *methods}


def test_arguments_are_those_that_are_documented():
  for name, args in VARIANTS.items():
    text = load.__globals__["Path"](CONFIGS / f"{name}.py").read_text()
    for arg in filter(None, args):
      assert arg in questions.TASKS or all(a in text for a in arg.split(","))
    with pytest.raises(UserError, match="no argument of the config"):
      load(name, "smok")


def test_squarehead_on_gsm8k_is_the_papers_recipe(tmp_path):
  config = load("squarehead_llm", "gsm8k")
  planned = recovery_runs.plan(config, tmp_path)
  steps = {
    cell.base: (one.steps, one.schedule.learning_rate)
    for cell, runs in planned.items()
    for one, _ in runs
  }
  # 234 batches an epoch, the last of which is not full.
  assert steps == {
    "sparsegpt 50 %": (467, 3e-5),
    "sparsegpt 60 %": (467, 1e-4),
    "sparsegpt 70 %": (934, 8e-5),
    "sparsegpt 80 %": (934, 1e-4),
  }
  for runs in planned.values():
    for one, _ in runs:
      assert (one.batch_size, one.task.length, one.seed) == (32, 512, 17)
      assert one.optimizer.to_dict() == {"name": "adamw", "weight_decay": 0.0}
      assert (one.schedule.name, one.schedule.warmup) == ("linear", 20)
      assert one.loss.to_dict() == {"cross_entropy": 1.0, "square_head": 1.0}
      assert one.dtype == "bfloat16"


def test_as_many_weights_as_lora_trains(tmp_path):
  """Of SmolLM2's shapes, rank 8, but for the methods that say otherwise."""
  config = load("seft_llm")
  for name, setting in config.settings.items():
    assert setting.method.get("rank", 8) == (16 if name == "spp" else 8)


def test_the_test_texts_are_not_trained_on():
  for arg, split in (("", "years"), ("smoke", "test")):
    task = load("prune_llm", arg).task
    assert task.name in tasks.TASKS
    assert task.train[split] != task.test[split]
  years = load("prune_llm").task
  assert years.train.years[1] == years.test.years[0] == 2000
  assert isinstance(years, ml_collections.ConfigDict)
