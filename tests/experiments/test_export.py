"""Exported runs: packed files, dense ones, and what predicts from them."""

import functools
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from experiments import export, predict
from experiments.errors import UserError
from experiments.llm.io import packed_files
from experiments.runs import train
from sparsejax import packed, patterns, quantize
from tests.experiments import small


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A finished run."""
  path = tmp_path_factory.mktemp("run")
  config = small.get_config("set")
  config.model.hidden = (64,)
  train.train(config, path)
  return path


def result(workdir):
  config = small.get_config("set")
  config.model.hidden = (64,)
  return train.train(config, workdir)


def test_a_packed_file_gives_the_params_back(workdir, tmp_path, capsys):
  file = tmp_path / "new" / "model.safetensors"
  export.run(str(workdir), str(file), form="packed")
  assert f"{file.stat().st_size:,} bytes" in capsys.readouterr().out
  tree, about = packed_files.read_tree(file)
  trained = result(workdir)
  jax.tree.map(
    np.testing.assert_array_equal,
    packed.unpack(tree["params"]),
    trained.params,
  )
  assert about["config"]["algorithm"]["name"] == "set"
  kernel = tree["params"]["dense1"]["kernel"]
  assert packed.is_packed(kernel)
  assert kernel.structure.kernel
  # 20 % of the weights in six bytes each, and names.
  dense = sum(x.nbytes for x in jax.tree.leaves(trained.params))
  assert file.stat().st_size < 0.2 * 1.5 * dense + 4096


def test_a_dense_file_is_plain_safetensors(workdir, tmp_path):
  file = tmp_path / "model.safetensors"
  export.run(str(workdir), str(file), form="dense")
  tensors = safetensors.numpy.load_file(file)
  params = result(workdir).params
  assert sorted(tensors) == [
    f"params/{layer}/{kind}"
    for layer in ("dense1", "logits")
    for kind in ("bias", "kernel")
  ]
  np.testing.assert_array_equal(
    tensors["params/dense1/kernel"], params["dense1"]["kernel"]
  )
  assert (tensors["params/dense1/kernel"] == 0).mean() > 0.7


def test_predictions_are_those_of_the_run(workdir, tmp_path, capsys):
  file = tmp_path / "model.safetensors"
  export.run(str(workdir), str(file), form="packed")
  capsys.readouterr()
  predict.run(str(file))
  accuracy = result(workdir).metrics["accuracy"]
  assert f"accuracy {accuracy:.4f} of 360" in capsys.readouterr().out
  x = np.asarray(predict.read_predictor(file)[0].test[0])
  np.save(tmp_path / "x.npy", x[:50])
  predict.run(
    str(file), inputs=str(tmp_path / "x.npy"), to=str(tmp_path / "y.npy")
  )
  logits = np.load(tmp_path / "y.npy")
  assert logits.shape == (50, 10)
  assert logits.dtype == np.float32


def test_wrong_inputs_are_refused(workdir, tmp_path):
  file = tmp_path / "model.safetensors"
  export.run(str(workdir), str(file), form="packed")
  np.save(tmp_path / "x.npy", np.zeros((5, 7)))
  (tmp_path / "text.npy").write_text("text")
  for name, says in (
    ("x.npy", r"shape \(5, 7\); wanted \[n, "),
    ("text.npy", "cannot be read"),
    ("none.npy", "cannot be read"),
  ):
    with pytest.raises(UserError, match=says):
      predict.run(str(file), inputs=str(tmp_path / name), to="y.npy")
  with pytest.raises(UserError, match="--to"):
    predict.run(str(file), inputs=str(tmp_path / "x.npy"))
  with pytest.raises(UserError, match="format"):
    export.run(str(workdir), str(file), form="sparse")


@functools.cache
def every_format():
  """A packed array of each format."""
  rng = np.random.default_rng(0)

  def best(pattern, count):
    noise = jnp.asarray(rng.random((32, 32)))
    return np.asarray(pattern.top_k(noise, count))

  masks = {
    "flat": rng.random((32, 32)) < 0.2,
    "rows": rng.random((32, 32)) < 0.2,
    "back": rng.random((32, 32)) < 0.2,
    "bits": rng.random((32, 32)) < 0.2,
    "fan_in": best(patterns.fan_in(), 160),
    "n_of_m": best(patterns.n_of_m(2, 4), 512),
    "blocks": best(patterns.blocks((16, 16)), 512),
    "stacked": rng.random((3, 32, 32)) < 0.2,
  }
  formats = {
    "flat": packed.flat(),
    "rows": packed.rows(kernel=True),
    "back": packed.rows(kernel=True, back=True),
    "bits": packed.bits(),
    "fan_in": packed.fan_in(),
    "n_of_m": packed.n_of_m(2, 4),
    "blocks": packed.blocks(16),
    "stacked": packed.stacked(packed.rows()),
  }
  dtypes = {"rows": jnp.bfloat16}
  params = {
    k: jnp.asarray(np.where(m, rng.normal(size=m.shape), 0), dtypes.get(k))
    for k, m in masks.items()
  }
  return packed.pack(params, masks, formats=lambda name, mask: formats[name])


def test_every_format_comes_back(tmp_path):
  tree = {"layer": every_format(), "bias": jnp.ones(3, jnp.bfloat16)}
  tree["int8"] = packed.quantize(tree["layer"])
  tree["dynamic"] = packed.quantize(tree["layer"], dynamic=True)
  tree["dense"] = quantize.matrix(jnp.ones((2, 8, 4)), group=2, dynamic=True)
  packed_files.write_tree(tmp_path / "f", tree, {"a": [1]})
  again, about = packed_files.read_tree(tmp_path / "f")
  assert about == {"a": [1]}
  assert jax.tree.structure(again) == jax.tree.structure(tree)
  for got, want in zip(
    jax.tree.leaves(again), jax.tree.leaves(tree), strict=True
  ):
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


def rewritten(file, tensors=None, metadata=None):
  """The same file with something changed in it."""
  with safetensors.safe_open(file, framework="numpy") as old:
    about = old.metadata()
    arrays = {k: old.get_tensor(k) for k in list(old.keys())}
  arrays.update(tensors or {})
  about.update(metadata or {})
  safetensors.numpy.save_file(arrays, file, metadata=about)


@pytest.mark.parametrize(
  ("change", "says"),
  [
    ({"tensors": {"rows:inputs": np.full(8, 99, np.uint16)}}, "damaged: rows"),
    ({"tensors": {"flat:indices": np.array([5, 5, 9], np.int32)}}, "damaged"),
    ({"metadata": {"version": "4"}}, "version 4 of its format; wanted"),
    ({"tensors": {"int8:scales": np.ones(3, "f")}}, "int8: got scales"),
    ({"metadata": {"structures": "{"}}, "damaged"),
    ({"metadata": {"structures": '{"rows": {"kind": "Odd"}}'}}, "damaged"),
  ],
)
def test_damaged_files_are_refused(change, says, tmp_path):
  file = tmp_path / "f"
  int8 = quantize.matrix(jnp.eye(4))
  packed_files.write_tree(file, {**every_format(), "int8": int8}, {})
  rewritten(file, **change)
  with pytest.raises(UserError, match=says):
    packed_files.read_tree(file)


def test_files_that_are_none_are_refused(tmp_path):
  (tmp_path / "text").write_text("text")
  for name, says in (
    ("text", r"wanted a packed file.* neither safetensors .* nor GGUF"),
    ("missing", "got nothing, as there is no such file"),
  ):
    with pytest.raises(UserError, match=says):
      packed_files.read_tree(tmp_path / name)


@pytest.mark.slow
def test_the_commands_do_the_same(workdir, tmp_path):
  root = pathlib.Path(__file__).parents[2]
  file = tmp_path / "m.safetensors"
  for command in (
    ("experiments.export", f"--workdir={workdir}", f"--to={file}"),
    ("experiments.predict", f"--model={file}"),
  ):
    done = subprocess.run(
      [sys.executable, "-m", *command],
      capture_output=True,
      text=True,
      cwd=root,
    )
    assert done.returncode == 0, done.stderr
  assert done.stdout.startswith("accuracy 0.")
  done = subprocess.run(
    [sys.executable, "-m", "experiments.predict", "--model=nothing"],
    capture_output=True,
    text=True,
    cwd=root,
  )
  assert done.returncode == 1
  assert "Traceback" not in done.stderr
  assert json.dumps("nothing")[1:-1] in done.stderr
