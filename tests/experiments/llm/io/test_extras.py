"""What a model's folder holds beside the model comes back from every export."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors
from safetensors import numpy as safetensors_numpy

from experiments import export
from experiments.errors import UserError
from experiments.llm.io import extras, huggingface, load, packed_model
from experiments.llm.prune import pruners
from tests.marks import slow

TOKENIZER = {
  "tokenizer_class": "PreTrainedTokenizerFast",
  "eos_token": {"content": "<|endoftext|>", "lstrip": False},
  "pad_token": "a",
  "padding_side": "left",
  "model_max_length": 64,
  "added_tokens_decoder": {"256": {"content": "<|endoftext|>"}},
}
# As their authors wrote them: no JSON of ours, bytes that are no UTF-8.
FILES = {
  "added_tokens.json": b'{"<|endoftext|>":256}',
  "additional_chat_templates/tool.jinja": b"{{ tools }}",
  "chat_template.jinja": b"{% for m in messages %}{{ m.content }}{% endfor %}",
  "generation_config.json": b'{ "eos_token_id": [66, 67], "top_p":0.9 }',
  "LICENSE": b"Apache-2.0\r\n",
  "merges.txt": b"#version: 0.2\n",
  "README.md": "# É\n".encode(),
  "special_tokens_map.json": b'{"pad_token": "a"}\n\n',
  "tokenizer.model": bytes(range(256)),
  "tokenizer_config.json": json.dumps(TOKENIZER).encode(),
  "vocab.json": b"{}",
}
CONFIG = {
  "eos_token_id": [256, 65],
  "pad_token_id": 97,
  "attention_dropout": 0.0,
  "initializer_range": 0.02,
  "of_no_library": {"deep": [1, None, "é"]},
  "transformers_version": "4.46.0",
  "use_cache": True,
}
METADATA = {"format": "pt", "made_by": "somebody"}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
  """A folder as others publish them, of a model that is 2:4."""
  folder = tmp_path_factory.mktemp("given") / "model"
  model = load.random(seed=0, dim=16, layers=2, heads=2, hidden=32, context=64)
  text = np.arange(600, dtype=np.int32) % 256
  model = pruners.prune(
    model,
    text,
    {"name": "magnitude", "n_of_m": (2, 4), "sequences": 1, "length": 8},
  )
  huggingface.write_model(folder, model)
  extras.write_files(folder, FILES)
  path = folder / "tokenizer.json"
  # With settings that are switched off when it is read, and other spaces.
  words = json.loads(path.read_text()) | {
    "truncation": {
      "direction": "Right",
      "max_length": 3,
      "strategy": "LongestFirst",
      "stride": 0,
    }
  }
  path.write_text(json.dumps(words, indent=1))
  path = folder / "config.json"
  raw = json.loads(path.read_text()) | CONFIG
  del raw["dtype"]
  path.write_text(json.dumps(raw))
  path = folder / "model.safetensors"
  tensors = safetensors_numpy.load_file(path)
  safetensors_numpy.save_file(tensors, path, metadata=METADATA)
  (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
  (folder / "pytorch_model.bin").write_bytes(b"the weights again")
  (folder / "original").mkdir()
  (folder / "original" / "params.json").write_text("{}")
  return folder


def check_handed_through(given, made, *, stored=()):
  theirs = {**FILES, "tokenizer.json": (given / "tokenizer.json").read_bytes()}
  for name, content in theirs.items():
    assert (made / name).read_bytes() == content, name
  before, after = (
    json.loads((folder / "config.json").read_text()) for folder in (given, made)
  )
  assert after.keys() - before.keys() == {"dtype", *stored}
  assert {key: after[key] for key in before} == before
  with safetensors.safe_open(made / "model.safetensors", "numpy") as file:
    assert file.metadata() == METADATA
  assert {path.name for path in made.iterdir()} == {
    *(name.split("/")[0] for name in theirs),
    *("config.json", "model.safetensors"),
  }


@pytest.mark.parametrize("form", ["dense", slow("2:4")])
def test_folders_are_handed_through(form, given, tmp_path, capsys):
  made = tmp_path / "made"
  export.run_model(str(given), str(made), form=form, dtype="float32")
  stored = {"quantization_config"} if form == "2:4" else ()
  check_handed_through(given, made, stored=stored)
  assert "Handed through as they are: LICENSE, README.md" in (
    capsys.readouterr().out
  )


@pytest.mark.slow
def test_a_packed_file_keeps_all_of_it(given, tmp_path):
  small, made = tmp_path / "small", tmp_path / "made"
  export.run_model(str(given), str(small), form="packed", dtype="float32")
  export.run_model(str(small), str(made), form="dense", dtype="float32")
  check_handed_through(given, made)
  before, after = load.model_at(str(given)), load.model_at(str(small))
  assert after.extras == before.extras
  assert after.stop_tokens == before.stop_tokens == (65, 66, 67, 256)


def test_what_is_pruned_keeps_all_of_it(given, tmp_path):
  options = {"name": "wanda", "sparsity": 0.6, "sequences": 1, "length": 8}
  text = np.arange(600, dtype=np.int32) % 256
  model = pruners.prune(load.model_at(str(given)), text, options)
  huggingface.write_model(tmp_path / "made", model)
  check_handed_through(given, tmp_path / "made")


def test_files_of_another_model_do_not_stay(given, tmp_path):
  made = tmp_path / "made"
  export.run_model(str(given), str(made), form="dense", dtype="float32")
  model = load.random(seed=0, dim=16, layers=1, heads=2, hidden=32, context=64)
  huggingface.write_model(made, model)
  assert {path.name for path in made.iterdir() if path.is_file()} == {
    *("config.json", "model.safetensors", "LICENSE", "README.md"),
    *("tokenizer.json", "tokenizer_config.json"),
  }
  assert not list((made / "additional_chat_templates").iterdir())
  assert load.model_at(str(made)).stop_tokens == (256,)


def test_a_config_that_no_longer_fits_is_written_anew(given, tmp_path):
  model = load.model_at(str(given))
  other = load.random(seed=0, dim=16, layers=1, heads=2, hidden=32, context=64)
  huggingface.write_model(tmp_path, other._replace(extras=model.extras))
  raw = json.loads((tmp_path / "config.json").read_text())
  assert raw["num_hidden_layers"] == 1
  assert raw["of_no_library"] == CONFIG["of_no_library"]
  assert huggingface.read_model(tmp_path).config == other.config
  # A key of newer files, which none of ours replaces.
  rope = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
  }
  raw = {**model.extras.config, "rope_parameters": rope}
  mixed = dataclasses.replace(model.extras, config=raw)
  huggingface.write_model(tmp_path, other._replace(extras=mixed))
  assert huggingface.read_model(tmp_path).config == other.config


@pytest.mark.parametrize(
  ("name", "raw", "says"),
  [
    ("config.json", {"eos_token_id": ["</s>"]}, "config.json: .*'</s>' in it"),
    ("config.json", {"eos_token_id": -1}, "config.json: .* got -1 in it"),
    ("generation_config.json", {"eos_token_id": True}, "gener.* got True in"),
    ("generation_config.json", [], "generation.*wanted a JSON object"),
  ],
)
def test_stop_tokens_that_are_none_are_refused(name, raw, says, tmp_path):
  model = load.random(seed=0, dim=16, layers=1, heads=2, hidden=32, context=64)
  huggingface.write_model(tmp_path, model)
  path = tmp_path / name
  if isinstance(raw, dict) and path.exists():
    raw = json.loads(path.read_text()) | raw
  path.write_text(json.dumps(raw))
  with pytest.raises(UserError, match=says):
    huggingface.read_model(tmp_path)


def test_packed_files_of_earlier_versions_have_none(tmp_path):
  from experiments.llm.io import packed_files

  model = load.random(seed=0, dim=16, layers=1, heads=2, hidden=32, context=64)
  path = tmp_path / "m"
  packed_model.write_model(path, packed_model.pack(model))
  tree, about = packed_files.read_tree(path)
  del about["extras"], about["tokenizer"]["pad"]
  packed_files.write_tree(path, tree, about)
  assert load.model_at(str(path)).extras == extras.Extras()
  packed_files.write_tree(path, tree, about | {"extras": {"files": {"a": "!"}}})
  with pytest.raises(UserError, match="damaged"):
    load.model_at(str(path))


@pytest.mark.parametrize(
  "name", ["../a", "/a", "a/b", "..", ".", "", "a\\b", ".ssh/a"]
)
def test_packed_files_do_not_say_where_to_write(name):
  good = extras.Extras(
    files={"additional_chat_templates/a.jinja": b"", "b": b""}
  )
  assert extras.from_json(extras.to_json(good)) == good
  bad = extras.to_json(extras.Extras(files={name: b"text"}))
  with pytest.raises(ValueError, match="no name of a file in a model's folder"):
    extras.from_json(bad)
