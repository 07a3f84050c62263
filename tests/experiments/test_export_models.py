"""Language models in packed files and in the 2:4 layout, and what runs them."""

import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from experiments import export, generate, predict
from experiments.errors import UserError
from experiments.llm.evaluate import generate as generation
from experiments.llm.evaluate import perplexity, stream
from experiments.llm.families import llama
from experiments.llm.io import (
  huggingface,
  load,
  packed_files,
  packed_model,
  two_of_four,
)
from sparsejax import packed, patterns, quantize, select
from tests.marks import slow

PROMPT = "It was the best of times"


def pruned(density, *, two=False):
  """A tiny model of bytes with zeros in its blocks."""
  model = load.random(
    seed=0, dim=32, layers=2, heads=4, hidden=64, context=128, kv_heads=2
  )

  def prune(path, w):
    if path[0].key != "layers" or path[-1].key != "kernel":
      return w
    noise = jnp.abs(jnp.asarray(w))
    if two:
      mask = patterns.n_of_m(2, 4).top_k(noise, w.size // 2)
    else:
      mask = select.top_k_mask(noise, round(density * w.size))
    # So that continuations are no constant.
    return np.asarray(jnp.where(mask, 20 * w, 0))

  params = jax.tree_util.tree_map_with_path(prune, model.params)
  return model._replace(params=params)


def continued(model, steps=20):
  (found,) = generation.greedy(
    llama.Network(model.config),
    jax.device_put(model.params),
    [model.tokenizer.encode(PROMPT)],
    steps=steps,
  )
  return found


@pytest.mark.parametrize(
  ("density", "two", "kind"),
  [
    (0.05, False, packed.Rows),
    (0.2, False, packed.RowBits),
    (0.6, False, packed.RowBits),
    (0.5, True, packed.RowBits),
    (1.0, False, None),
  ],
)
@pytest.mark.slow
def test_a_packed_model_is_the_model(density, two, kind, tmp_path):
  model = pruned(density, two=two)
  path = tmp_path / "model.safetensors"
  packed_model.write_model(path, packed_model.pack(model))
  again = load.model_at(str(path))
  kernel = again.params["layers"]["mlp"]["up"]["kernel"]
  if kind is None:
    assert not packed.is_packed(kernel)
  else:
    assert isinstance(kernel.structure, kind)
  assert not packed.is_packed(again.params["embed"]["embedding"])
  jax.tree.map(
    np.testing.assert_array_equal,
    packed_model.unpack(again).params,
    model.params,
  )
  assert again.config == model.config
  assert again.tokenizer.encode("a b") == model.tokenizer.encode("a b")
  assert continued(again) == continued(model)
  tokens = np.asarray(model.tokenizer.encode(PROMPT))[None]
  logits = [
    llama.Network(m.config).apply({"params": m.params}, tokens)
    for m in (model, again)
  ]
  np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_packed_model_is_judged_like_any_other(tmp_path):
  model = pruned(0.2)
  packed_model.write_model(tmp_path / "m", packed_model.pack(model))
  again = load.MODELS["packed"](path=str(tmp_path / "m"))
  tokens = np.asarray(model.tokenizer.encode(30 * PROMPT))
  found = [
    perplexity.perplexity(
      llama.Network(m.config), m.params, tokens, window=64, stride=32, batch=4
    )
    for m in (model, again)
  ]
  np.testing.assert_allclose(*found, rtol=1e-4)


@pytest.mark.slow
def test_bfloat16_halves_the_values(tmp_path):
  model = packed_model.pack(pruned(0.2), dtype="bfloat16")
  packed_model.write_model(tmp_path / "m", model)
  kernel = load.model_at(str(tmp_path / "m")).params["layers"]["mlp"]["up"]
  assert kernel["kernel"].values.dtype == jnp.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.25, 1.0])
def test_int8_of_all_that_is_multiplied(density, tmp_path, monkeypatch):
  """The file, and the logits of its integers in floats."""
  model = pruned(density)
  path = tmp_path / "m"
  packed_model.write_model(path, packed_model.pack(model, dtype="int8"))
  again = load.model_at(str(path))
  kernel = again.params["layers"]["mlp"]["up"]["kernel"]
  assert packed.is_packed(kernel) == (density < 1)
  assert kernel.dtype == jnp.int8
  assert quantize.is_quantized(again.params["embed"]["embedding"])
  floats = packed_model.unpack(again)
  leaves = jax.tree_util.tree_leaves_with_path(model.params)
  for (key, w), got in zip(leaves, jax.tree.leaves(floats.params), strict=True):
    assert w.shape == got.shape, key
    largest = np.abs(w).max()
    np.testing.assert_allclose(got, w, atol=largest / 253)
    assert np.all(got[w == 0] == 0)
  tokens = np.asarray(model.tokenizer.encode(PROMPT))[None]
  logits = [
    llama.Network(m.config).apply({"params": m.params}, tokens)
    for m in (floats, again)
  ]
  np.testing.assert_allclose(*logits, rtol=1e-3, atol=1e-3)
  # Activations in INT8, by kernels and without them.
  rounded = packed_model.pack(model, dtype="int8", activations="int8")
  packed_model.write_model(path, rounded)
  rounded = packed_model.read_model(path)
  network = llama.Network(rounded.config)
  by_kernels = network.apply({"params": rounded.params}, tokens)
  monkeypatch.setenv("SPARSEJAX_KERNELS", "0")
  without = network.apply({"params": rounded.params}, tokens)
  monkeypatch.undo()
  np.testing.assert_allclose(by_kernels, without, rtol=1e-3, atol=1e-3)
  off = np.abs(by_kernels - logits[0]).max()
  assert 1e-3 < off < 0.1 * np.abs(logits[0]).max()
  with pytest.raises(UserError, match=r"for weights of float32, wanted"):
    packed_model.pack(model, activations="int8")
  # Packed again, nothing is rounded twice.
  twice = packed_model.unpack(packed_model.pack(floats, dtype="int8"))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
    twice.params,
    floats.params,
  )
  if density < 1:
    size = sum(x.nbytes for x in jax.tree.leaves(again.params))
    whole = sum(x.nbytes for x in jax.tree.leaves(model.params))
    assert size < 0.25 * whole  # scales and norms of a tiny model included
  else:
    with pytest.raises(UserError, match="embedding: got groups of 5 for 32"):
      packed_model.pack(model, dtype="int8", group=5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", slow("bfloat16")])
def test_two_of_four_as_its_layout_says(dtype, tmp_path):
  model = pruned(0.5, two=True)
  two_of_four.write_model(tmp_path, model, dtype=dtype)
  tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  plain, _ = huggingface.tensors_and_config(model, dtype)
  for name, w in plain.items():
    if not name.endswith("_proj.weight"):
      np.testing.assert_array_equal(tensors.pop(name), w)
      continue
    prefix = name.removesuffix(".weight")
    values = tensors.pop(f"{prefix}.compressed")
    bits = tensors.pop(f"{prefix}.bitmask")
    assert tensors.pop(f"{prefix}.shape").tolist() == [[n] for n in w.shape]
    assert values.dtype == w.dtype
    assert values.shape == (w.shape[0], w.shape[1] // 2)
    assert bits.shape == (w.shape[0], -(-w.shape[1] // 8))
    # Bit by bit, by hand.
    for row, left, line in zip(w, values, bits, strict=True):
      left = list(left)
      for i, x in enumerate(row):
        there = line[i // 8] >> i % 8 & 1
        assert x == (left.pop(0) if there else 0)
  assert not tensors
  config = json.loads((tmp_path / "config.json").read_text())
  said = config["quantization_config"]["sparsity_config"]
  total = sum(w.size for w in plain.values())
  zeros = sum((w == 0).sum() for w in plain.values())
  assert said["global_sparsity"] == zeros / total


def test_two_of_four_is_read_by_compressed_tensors(tmp_path):
  compressors = pytest.importorskip(
    "compressed_tensors.compressors", reason="needs `pip install -e '.[peers]'`"
  )
  model = pruned(0.5, two=True)
  two_of_four.write_model(tmp_path, model)
  config = json.loads((tmp_path / "config.json").read_text())
  compressor = compressors.ModelCompressor.from_compression_config(
    config["quantization_config"]
  )
  read = dict(compressor.sparsity_compressor.decompress(str(tmp_path)))
  plain, _ = huggingface.tensors_and_config(model, "float32")
  assert read.keys() == plain.keys()
  for name, w in plain.items():
    np.testing.assert_array_equal(read[name].numpy(), w)


@pytest.mark.slow
def test_generation_stops_at_every_eos(tmp_path):
  """At that of the tokenizer, of the config and of the generation config."""
  model = pruned(1.0)
  whole = continued(model)
  folder = tmp_path / "folder"
  huggingface.write_model(folder, model)
  assert generate.run(str(folder), PROMPT, tokens=20) == (
    model.tokenizer.decode(whole)
  )
  for token in dict.fromkeys(whole):
    until = model.tokenizer.decode(whole[: whole.index(token)])
    for name in ("config.json", "generation_config.json"):
      path = folder / name
      raw = json.loads(path.read_text()) if path.exists() else {}
      path.write_text(json.dumps(raw | {"eos_token_id": [255, token]}))
      assert generate.run(str(folder), PROMPT, tokens=20) == until
      path.write_text(json.dumps(raw))


@pytest.mark.slow
def test_what_lies_at_a_path_is_told(tmp_path):
  """Every command says what it got, and what takes it."""
  model = pruned(0.2)
  huggingface.write_model(tmp_path / "folder", model)
  packed_model.write_model(tmp_path / "packed", packed_model.pack(model))
  packed_files.write_tree(
    tmp_path / "image", {"w": jnp.ones(3)}, {"config": {}}
  )
  safetensors.numpy.save_file(
    {"w": np.ones(3)}, tmp_path / "dense", {"about": "{}"}
  )
  (tmp_path / "gguf").write_bytes(b"GGUF\3\0\0\0")
  (tmp_path / "torch").write_bytes(b"PK\3\4 of a pickle" * 9)
  for name in ("run/model", "image_run"):
    (tmp_path / name).mkdir(parents=True)
  for name in ("run", "run/model", "image_run"):
    text = '{"config": {"driver": "train"}}'
    (tmp_path / name / "config.json").write_text(text)
  (tmp_path / "empty").mkdir()
  got = {
    "packed": "a packed language model; `python -m experiments.generate`",
    "image": "a packed image model; `python -m experiments.predict` runs it",
    "folder": "the folder of a language model; `python -m experiments.generate",
    "folder/model.safetensors": "name the folder that it lies in",
    "dense": "the dense file of an image model; export its run with --format=p",
    "gguf": "a GGUF file of a language model",
    "torch": "a file that is neither safetensors",
    "run": f"a run; its language model is in {tmp_path / 'run' / 'model'}",
    "image_run": "`python -m experiments.export --workdir` takes it",
    "empty": "a folder without a config.json",
    "none": "nothing, as there is no such file or folder",
  }
  languages = {"folder", "packed"}

  def check(command, *, left_out):
    for name, says in got.items():
      if name not in left_out:
        with pytest.raises(UserError, match=re.escape(says)):
          command(str(tmp_path / name))

  check(predict.run, left_out={"image"})
  check(load.model_at, left_out=languages)
  for kind in ("huggingface", "packed", "gguf"):
    takes = {"huggingface": "folder", "packed": "packed", "gguf": "gguf"}[kind]
    check(lambda path: load.MODELS[kind](path=path), left_out={takes})  # noqa: B023


@pytest.mark.slow
def test_a_directory_of_language_models_is_no_image_run(tmp_path):
  huggingface.write_model(tmp_path / "runs" / "a" / "model", pruned(0.2))
  with pytest.raises(
    UserError, match=r"language models; .* --model: .*a/model"
  ):
    export.run(str(tmp_path), str(tmp_path / "to"), form="packed")
  (tmp_path / "none").mkdir()
  with pytest.raises(UserError, match="holds no finished run\\. Let the"):
    export.run(str(tmp_path / "none"), str(tmp_path / "to"), form="dense")


@pytest.mark.slow
def test_the_exports_of_a_folder(tmp_path, capsys):
  model = pruned(0.5, two=True)
  folder = tmp_path / "folder"
  huggingface.write_model(folder, model)
  for form, dtype in (("packed", "bfloat16"), ("2:4", "float16")):
    to = tmp_path / "made" / form
    export.run_model(str(folder), str(to), form=form, dtype=dtype)
    assert "bytes" in capsys.readouterr().out
  again = tmp_path / "again"
  small = str(tmp_path / "made" / "packed")
  export.run_model(small, str(again), form="dense", dtype="float32")
  read = huggingface.read_model(again)
  jax.tree.map(
    lambda got, want: np.testing.assert_array_equal(
      got, np.asarray(jnp.asarray(want, jnp.bfloat16), np.float32)
    ),
    read.params,
    model.params,
  )
  text = generate.run(small, PROMPT, tokens=8)
  assert len(read.tokenizer.encode(text)) <= 24


def test_what_cannot_be_exported_is_refused(tmp_path):
  folder = tmp_path / "folder"
  huggingface.write_model(folder, pruned(0.6))
  to = str(tmp_path / "to")
  with pytest.raises(UserError, match=r"not 2:4: .*_proj.weight.* and 9 more"):
    export.run_model(str(folder), to, form="2:4", dtype="float32")
  assert not pathlib.Path(to).exists()
  with pytest.raises(UserError, match="format"):
    export.run_model(str(folder), to, form="4:8", dtype="float32")
  with pytest.raises(UserError, match="dtype of packed"):
    export.run_model(str(folder), to, form="packed", dtype="float16")
  with pytest.raises(UserError, match="got nothing, as there is no such"):
    export.run_model(to, to, form="packed", dtype="float32")
  with pytest.raises(UserError, match="no chat template"):
    generate.run(str(folder), PROMPT, tokens=3, chat=True)


def test_damaged_and_other_files_are_refused(tmp_path):
  packed_files.write_tree(
    tmp_path / "image", {"w": jnp.ones(3)}, {"config": {}}
  )
  with pytest.raises(UserError, match="got a packed image model"):
    load.model_at(str(tmp_path / "image"))
  model = packed_model.pack(pruned(0.2))
  packed_model.write_model(tmp_path / "m", model)
  tree, about = packed_files.read_tree(tmp_path / "m")
  del tree["norm"]
  packed_files.write_tree(tmp_path / "less", tree, about)
  with pytest.raises(UserError, match="norm/scale"):
    load.model_at(str(tmp_path / "less"))
  packed_files.write_tree(
    tmp_path / "odd", model.params, about | {"tokenizer": {}}
  )
  with pytest.raises(UserError, match="damaged"):
    load.model_at(str(tmp_path / "odd"))


@pytest.mark.slow
def test_the_commands(tmp_path):
  root = pathlib.Path(__file__).parents[2]
  huggingface.write_model(tmp_path / "model", pruned(0.2))

  def run(*command):
    return subprocess.run(
      [sys.executable, "-m", *command],
      capture_output=True,
      text=True,
      cwd=root,
    )

  file = tmp_path / "small.safetensors"
  done = run(
    *("experiments.export", f"--model={tmp_path / 'model'}", f"--to={file}")
  )
  assert done.returncode == 0, done.stderr
  done = run(
    *("experiments.generate", f"--model={file}", f"--prompt={PROMPT}"),
    "--tokens=4",
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == generate.run(str(file), PROMPT, tokens=4) + "\n"
  done = run("experiments.export", f"--to={file}")
  assert done.returncode == 1
  assert "either --workdir" in done.stderr
  assert "Traceback" not in done.stderr


def test_a_head_may_have_a_dtype_of_its_own(tmp_path):
  model = pruned(0.25)
  packed_model.write_model(
    tmp_path / "file", packed_model.pack(model, head="bfloat16")
  )
  again = packed_model.read_model(tmp_path / "file")
  table = again.params["embed"]["embedding"]
  assert table.dtype == jnp.bfloat16
  norm = again.params["norm"]["scale"]
  assert norm.dtype == jnp.float32
  text = model.tokenizer.encode(PROMPT)
  near = model._replace(
    params={**model.params, "embed": {"embedding": table.astype(np.float32)}}
  )
  made = list(stream.Writer(again.network(), again.params).write(text, steps=8))
  assert made == continued(near, steps=8)
  for dtype, head in (("int8", "bfloat16"), ("float32", "int8")):
    with pytest.raises(UserError, match=f"got a head of {head} for weights of"):
      packed_model.pack(model, dtype=dtype, head=head)
