"""What benchmarks.inference measures, and how it keeps its table."""

import csv
import json
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from absl import app

from benchmarks import inference, inference_bytes
from experiments.llm.io import huggingface, load


def test_both_benchmarks_know_the_same_flags():
  # Defined twice, the second import would have failed.
  assert inference.measure.WORKDIR is inference_bytes.measure.WORKDIR


def test_every_matrix_keeps_its_largest_weights():
  sizes = {"dim": 12, "layers": 2, "heads": 2, "hidden": 20, "context": 32}
  model = load.random(seed=0, **sizes)
  made = inference.pruned(model, 0.75).params
  np.testing.assert_array_equal(
    made["embed"]["embedding"], model.params["embed"]["embedding"]
  )
  for w, x in zip(
    made["layers"]["mlp"]["up"]["kernel"],
    model.params["layers"]["mlp"]["up"]["kernel"],
    strict=True,
  ):
    kept = w != 0
    assert kept.sum() == 60
    assert np.abs(x[kept]).min() > np.abs(x[~kept]).max()
    np.testing.assert_array_equal(w[kept], x[kept])


@pytest.mark.parametrize(
  ("repaired", "made"),
  [
    (None, "--csv=results/inference_smollm2.csv"),
    (
      "runs/a",
      '--repaired=runs/a "--only=dense,50 %,75 %" '
      "--csv=results/inference_repaired.csv",
    ),
  ],
)
def test_rows_that_are_not_measured_again_stay(
  repaired, made, tmp_path, monkeypatch
):
  file = tmp_path / "table.csv"
  monkeypatch.setattr(
    inference, "flags", types.SimpleNamespace(FLAGS=types.SimpleNamespace())
  )
  inference.flags.FLAGS.csv = str(file)
  inference.flags.FLAGS.repaired = repaired
  rest = ["-"] * (len(inference.COLUMNS) - 2)
  inference.show([["75 %", "1", *rest], ["dense", "2", *rest]])
  inference.show([["50 %", "3", *rest], ["dense", "4", *rest]])
  comment, header, *rows = csv.reader(file.read_text().splitlines())
  assert ",".join(comment) == f"# {inference.COMMAND} {made}"
  assert tuple(header) == inference.COLUMNS
  assert [row[:2] for row in rows] == [
    ["dense", "4"],
    ["50 %", "3"],
    ["75 %", "1"],
  ]


def test_a_row_says_whether_a_wish_is_met(tmp_path, monkeypatch):
  (tmp_path / "dense").mkdir()
  (tmp_path / "dense" / "model.safetensors").write_bytes(100 * b"x")
  (tmp_path / "75 %").write_bytes(30 * b"x")
  for name, found in (("dense", 28.44), ("75 %", 12345.6)):
    (tmp_path / f"{name}.json").write_text(json.dumps(found))
  times = np.array([[4.0, 2.0], [8.0, 4.0], [8.0, 1.0]])
  prefills = np.array([[2.0, 1.0]])
  row = inference.line("75 %", times, prefills, tmp_path)
  got = dict(zip(inference.COLUMNS, row, strict=True))
  assert got["against dense"] == "2.00"
  assert row[3:5] == (">= 1.7", "yes")
  assert row[5:8] == ("2.00", ">= 2.2", "NO")
  assert row[8:] == (
    *("0.300", "-", "-", "1.235e+04", "28.44"),
    *(str(inference.WINDOW), f"{inference.SCORED:,}"),
  )


def test_repaired_models_come_from_their_runs(tmp_path, monkeypatch):
  monkeypatch.setattr(
    inference, "_REPAIRED", types.SimpleNamespace(value=tmp_path)
  )
  sizes = {"dim": 12, "layers": 1, "heads": 2, "hidden": 20, "context": 32}
  models = [load.random(seed=seed, **sizes) for seed in range(3)]
  folders = ("dense", "runs/sparsegpt_50-ce-0", "runs/sparsegpt_75-ce-0")
  for folder, model in zip(folders, models, strict=True):
    huggingface.write_model(tmp_path / folder / "model", model)
  names = ("dense INT8", "50 %", "75 % INT8")
  for name, model in zip(names, models, strict=True):
    got = inference.unpacked(inference.KINDS[name])
    jax.tree.map(np.testing.assert_array_equal, got.params, model.params)
  with pytest.raises(app.UsageError, match=r"got 0 folders .*sparsegpt_60-"):
    inference.unpacked(inference.KINDS["60 %"])


@pytest.mark.parametrize("lines", ['{"read": [1, 2]}\n{"write": 3}\n'])
def test_another_program_answers_every_line(lines, tmp_path):
  """With a package in place of llama_cpp, since that is rarely installed."""
  (tmp_path / "llama_cpp.py").write_text(
    "import ctypes\n"
    "class Llama:\n"
    "  def __init__(self, path, **options):\n"
    "    self._ctx = type('', (), {'ctx': None})\n"
    "  def n_vocab(self): return 2\n"
    "  def reset(self): pass\n"
    "  def eval(self, tokens):\n"
    "    import sys; print('eval', tokens, file=sys.stderr)\n"
    "def llama_get_logits_ith(context, i):\n"
    "  return (ctypes.c_float * 2)(0, 1)\n"
  )
  done = subprocess.run(
    [sys.executable, "-m", "benchmarks.inference_peer", "llama_cpp", "x"],
    input=lines,
    capture_output=True,
    text=True,
    cwd=inference.__file__.rpartition("benchmarks")[0],
    env={"PYTHONPATH": str(tmp_path)},
  )
  assert done.stdout == '"ready"\n"done"\n"done"\n', done.stderr
  assert done.stderr == "eval [1, 2]\neval [2]\neval [1]\neval [1]\n"
