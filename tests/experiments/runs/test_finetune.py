"""Fine-tuning language models: from a config to a saved model."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.errors import UserError
from experiments.llm.evaluate import tasks
from experiments.llm.families import llama
from experiments.llm.io import huggingface, load
from experiments.llm.prune import kernels
from experiments.runs import finetune, finetune_step, metrics, signals
from sparsejax import distill, quantize
from tests.experiments.interrupted import stop_at
from tests.experiments.small_finetune import (
  DELTAS,
  SEFT,
  SIZES,
  TEXT,
  WANDA,
  make,
)
from tests.marks import slow

pytestmark = pytest.mark.core


def evaluations(result):
  return [r for r in result.history if r["split"] == "test"]


def assert_same(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run of SEFT that nobody stopped, and its directory."""
  path = tmp_path_factory.mktemp("whole")
  config = make(method=SEFT, optimizer=DELTAS)
  return finetune.train(config, path), path


def test_seft_from_pruning_to_the_saved_model(whole):
  result, path = whole
  final = result.metrics
  first, middle, last = evaluations(result)
  assert (first["step"], middle["step"], last["step"]) == (0, 3, 6)
  assert last["perplexity"] < first["perplexity"] == pytest.approx(256, rel=0.1)
  base = huggingface.read_model(path / "pruned")
  before = kernels.nonzeros(base.params)
  size = sum(leaf.size for leaf in kernels.by_path(base.params).values())
  assert kernels.count(base.params) == (size // 2, size)
  saved = huggingface.read_model(path / "model")
  after = kernels.nonzeros(saved.params)
  assert all((after[name] <= before[name]).all() for name in before)
  assert final["nnz"] == sum(n.sum() for n in after.values())
  assert final["trained"] == 12 * 7 * 2
  # Zeros moved, and what is not in the kernels did not.
  zeros = [np.concatenate([k.ravel() for k in kernels.by_path(m).values()]) == 0
           for m in (base.params, saved.params)]  # fmt: skip
  assert 0 < np.sum(zeros[0] & ~zeros[1]) <= 12 * 7 * 2 * 2
  assert_same(saved.params["embed"], base.params["embed"])
  # What is saved is what was judged.
  task = tasks.make(saved, TEXT)
  scores = task.evaluate(llama.Network(saved.config), saved.params)
  assert scores["perplexity"] == final["perplexity"]


def test_a_finished_run_is_read(whole):
  result, path = whole
  config = make(method=SEFT, optimizer=DELTAS)
  before = (path / "model" / "model.safetensors").stat().st_mtime_ns
  assert finetune.train(config, path) == result
  assert (path / "model" / "model.safetensors").stat().st_mtime_ns == before
  with pytest.raises(UserError, match="seed: 0 -> 1"):
    finetune.train(make(method=SEFT, optimizer=DELTAS, seed=1), path)


@pytest.mark.parametrize("stop", [slow(1), 4, slow(5)])
def test_a_broken_run_goes_on_to_the_same_bits(whole, tmp_path, stop):
  def progress(name, total, start=0, unit="step"):
    def advance(step, note=""):
      if total == 6 and step == stop:
        raise ZeroDivisionError

    return advance

  config = make(method=SEFT, optimizer=DELTAS)
  with pytest.raises(ZeroDivisionError):
    finetune.train(config, tmp_path, progress=progress)
  if stop < 4:  # and once more, between two log points
    stopping = stop_at([5])
    with pytest.raises(signals.Stopped, match="after step 5 of 6"):
      finetune.train(config, tmp_path, progress=stopping)
  result = finetune.train(config, tmp_path)
  wanted, path = whole
  assert result == wanted
  for name in ("metrics.jsonl", "model/model.safetensors"):
    assert (tmp_path / name).read_bytes() == (path / name).read_bytes()


@pytest.mark.slow
def test_all_losses_against_the_functions_themselves(tmp_path):
  loss = {"cross_entropy": 0.5, "kl": 2.0, "square_head": 0.25}
  config = make(
    method={"name": "fixed"},
    loss={**loss, "temperature": 0.5},
    teacher={"name": "random", "seed": 1, **SIZES},
    steps=1,
    log_every=1,
    eval_every=0,
  )
  result = finetune.train(config, tmp_path)
  (record,) = [r for r in result.history if r["split"] == "train"]
  assert result.metrics["nnz"] == result.metrics["size"] // 2
  teacher = load.random(seed=1, **SIZES)
  student = huggingface.read_model(tmp_path / "pruned")
  task = tasks.make(student, TEXT)
  (batch,) = finetune._batches(config, task.examples, 0)
  (logits, hidden), (wanted, features) = (
    llama.Network(student.config).apply(
      {"params": model.params}, jnp.asarray(batch.tokens), method="with_hidden"
    )
    for model in (student, teacher)
  )
  where = batch.targets[:, 1:]
  parts = {
    "cross_entropy": distill.cross_entropy(
      logits[:, :-1], batch.tokens[:, 1:], where
    ),
    "kl": distill.kl_divergence(
      logits[:, :-1], wanted[:, :-1], where, temperature=0.5
    ),
    "square_head": distill.square_head(hidden[1:], features[1:], batch.real),
  }
  for name, value in parts.items():
    assert value > 1e-5
    np.testing.assert_allclose(record[name], value, rtol=1e-3)
  total = sum(loss[name] * parts[name] for name in loss)
  np.testing.assert_allclose(record["loss"], total, rtol=1e-5)


@pytest.mark.slow
def test_lora_is_merged_and_pruned_again(tmp_path):
  lora = {"name": "lora", "rank": 2}
  again = {**WANDA, "sequences": 3}
  result = finetune.train(
    make(method=lora, prune_again=again, eval_every=0, steps=4), tmp_path
  )
  (merged,) = [r for r in result.history if r["split"] == "merged"]
  assert merged["nnz"] == merged["size"]  # LoRA leaves no zeros.
  assert result.metrics["nnz"] == merged["size"] // 2
  assert result.metrics["perplexity"] != merged["perplexity"]
  saved = huggingface.read_model(tmp_path / "model")
  nnz, size = kernels.count(saved.params)
  assert nnz == size // 2


def test_every_method_fits_a_config():
  for name in finetune_step.METHODS:
    own = name == "spiel_sm3"
    options = {"rank": 2} if "spiel" in name or name == "seft" else {}
    optimizer = {"name": "none" if own else "adamw"}
    config = make(method={"name": name, **options}, optimizer=optimizer)
    finetune.check_config(config)


def broken(n_of_m):
  """A model folder's source whose groups hold one weight too many."""
  return make(method={**SEFT, "revive": False}, optimizer=DELTAS, n_of_m=n_of_m)


METHODS = {
  "full": {},
  "fixed": {},
  "lora": {"rank": 2},
  "masked_lora": {"rank": 2},
  "spp": {"rank": 2},
  "spiel": {"rank": 2, "every": 2, "accumulate": 2},
  "spiel_sm3": {"rank": 2, "every": 2, "on_zeros": False},
  "seft": {"rank": 2, "every": 2, "revive": False},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", finetune_step.METHODS)
def test_every_method_changes_a_model_and_keeps_its_promise(name, tmp_path):
  own = name == "spiel_sm3"
  config = make(
    method={"name": name, **METHODS[name]},
    optimizer={"name": "none"} if own else DELTAS,
    eval_every=0,
    steps=4,
  )
  finetune.train(config, tmp_path)
  before, after = (
    kernels.by_path(huggingface.read_model(tmp_path / folder).params)
    for folder in ("pruned", "model")
  )
  kept = name not in ("full", "lora", "spiel")
  assert kept == finetune_step.keeps_zeros(config)
  assert kept == all((after[k][before[k] == 0] == 0).all() for k in before)
  assert all((after[k] != before[k]).any() for k in before)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"method": {"name": "sefd"}}, "did you mean 'seft'"),
    ({"method": {"name": "lora", "rang": 2}}, "did you mean 'rank'"),
    ({"method": {"name": "lora", "rank": 0}}, "rank=0, wanted at least 1"),
    (
      {"method": {**SEFT, "sensitivity": "w"}, "optimizer": DELTAS},
      "no sensitivity is called 'w'",
    ),
    (
      {"method": {"name": "spiel_sm3", "k": 2}},
      "config.optimizer is 'adamw'; wanted 'none': spiel_sm3 has its own",
    ),
    ({"int8": "before"}, "int8 .*'none', 'after' and 'trained'|int8"),
    ({"loss": {"kl": 1.0}}, "asks for kl, but config.teacher is 'none'"),
    ({"loss": {"square": 1.0}}, "did you mean 'square_head'"),
    ({"loss": {"cross_entropy": -1.0}}, "not negative, one of them positive"),
    ({"loss": {"temperature": 2.0}}, "not negative, one of them positive"),
    ({"prune": {"name": "wnada"}}, "no one-shot method is called"),
    ({"prune": {**WANDA, "sparsety": 1}}, "did you mean 'sparsity'"),
    ({"prune": {**WANDA, "sparsity": 1.5}}, "1.5, wanted a share in"),
    ({"prune": {**WANDA, "n_of_m": (2, 4)}}, "wanted one of them"),
    ({"prune": {**WANDA, "length": 10**6}}, "wanted at least 1000000 tokens"),
    ({"prune": {**WANDA, "length": 65}}, "at most 64"),
    (
      {"prune": {"name": "none"}, "method": SEFT, "optimizer": DELTAS},
      r"without a zero, wanted a sparse base.*prune it first",
    ),
    (
      {"n_of_m": (2, 4), "method": SEFT, "optimizer": DELTAS},
      "set config.method.revive to False",
    ),
    (
      {"n_of_m": (2, 4), "method": {"name": "fixed"}},
      r"kernel, layer \d: got [34] non-zeros among inputs \d+ to \d+ of output",
    ),
    ({"n_of_m": (2,)}, r"n_of_m is \(2,\); wanted \(n, m\)"),
    slow({"n_of_m": (2, 5)}, "got 16 inputs, wanted a multiple of m=5"),
    ({"task": {**TEXT, "length": 65}}, "length 65, wanted 2 to 64"),
    (
      {"task": {**TEXT, "window": 65}},
      "sequences of 65 tokens, wanted at most",
    ),
    (
      {
        "loss": {"square_head": 1.0},
        "teacher": {"name": "random", "seed": 1, **SIZES, "layers": 1},
      },
      "wanted a teacher of the student's architecture",
    ),
    slow(
      {"schedule": {"name": "constant", "learning_rate": float("nan")}},
      "loss is not finite at step 2; there is no checkpoint yet",
    ),
  ],
)
def test_what_is_wrong_is_told(tmp_path, changes, message):
  with pytest.raises(UserError, match=message):
    finetune.train(make(**changes), tmp_path)


@pytest.mark.slow
def test_two_of_four_stay_two_of_four(tmp_path):
  prune = {k: v for k, v in WANDA.items() if k != "sparsity"}
  config = make(
    prune={**prune, "n_of_m": (2, 4)},
    n_of_m=(2, 4),
    method={**SEFT, "revive": False},
    optimizer=DELTAS,
    eval_every=0,
  )
  finetune.train(config, tmp_path)
  for kernel in kernels.by_path(
    huggingface.read_model(tmp_path / "model").params
  ).values():
    layers, inputs, outputs = kernel.shape
    groups = (kernel != 0).reshape(layers, inputs // 4, 4, outputs)
    assert (groups.sum(2) == 2).all()


@pytest.mark.slow
@pytest.mark.parametrize(
  "method", [{"name": "fixed"}, {"name": "full"}, {"name": "seft", "k": 12}]
)
def test_int8_is_trained_for_or_rounded_to(method, tmp_path):
  """The two differ in what is trained, and both end on integers."""
  models = {}
  for int8 in ("none", "after", "trained"):
    options = {"optimizer": DELTAS} if method["name"] == "seft" else {}
    config = make(method=method, int8=int8, eval_every=0, **options)
    finetune.train(config, tmp_path / int8)
    models[int8] = kernels.by_path(
      huggingface.read_model(tmp_path / int8 / "model").params
    )
  for path, w in models["none"].items():
    rounded = quantize.matrix(w).dequantize()
    np.testing.assert_array_equal(models["after"][path], rounded)
    trained = models["trained"][path]
    again = quantize.matrix(trained).dequantize()
    np.testing.assert_allclose(trained, again, rtol=1e-6)
    assert np.any(trained != rounded)
    assert np.any(w != rounded)


def test_a_non_zero_too_many_is_a_fault():
  most = {"layers/a/kernel": np.array([3, 3])}
  finetune._check_budget(most, {"layers/a/kernel": np.array([3, 2])})
  with pytest.raises(UserError, match=r"layer 1: got 4 .* at most 3"):
    finetune._check_budget(most, {"layers/a/kernel": np.array([3, 4])})


def test_seeds_share_programs():
  one, two = make(), make(seed=1)
  config = load.random(seed=0, **SIZES).config
  assert finetune_step.get(one, config) is finetune_step.get(two, config)
  other = make(steps=7)
  assert finetune_step.get(one, config) is not finetune_step.get(other, config)


def test_records_are_sound(whole):
  _, path = whole
  for record in metrics.read(path):
    assert json.dumps(record, allow_nan=False)
