"""Text survives the way to tokens and back; templates and files are read."""

import json
import shutil
import sys

import numpy as np
import pytest
import tokenizers

from experiments.errors import UserError
from experiments.llm.io import extras, files, tokenizer

TEXTS = [
  "",
  "Héllo world! 123 It's\n\n  def f(x): return x+1",
  "日本語🤖 \u200b\t\r\n ½ ٣٤\u0301",
  "  two spaces, a NUL \x00 and a DEL \x7f ",
  "".join(map(chr, range(0x180))),
]
CHATML = (
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content']"
  " + '<|im_end|>' + '\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MESSAGES = [
  {"role": "user", "content": "1 < 2?"},
  {"role": "assistant", "content": "Yes & no"},
]


def with_template(template, **changes):
  made = tokenizer.byte_level()
  return tokenizer.Tokenizer(made.backend, 256, None, template, **changes)


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_are_tokens(text):
  made = tokenizer.byte_level()
  ids = made.encode(text)
  assert ids == list(text.encode())
  assert made.decode(ids) == text
  assert made.decode(np.array(ids, np.int32)) == text


def test_the_end_of_text_is_the_last_of_257():
  made = tokenizer.byte_level()
  assert (made.eos, made.end_of_text, made.vocab_size) == (256, 256, 257)
  assert made.bos is None
  text = "a<|endoftext|>\nb"
  assert made.encode(text) == [97, 256, 10, 98]
  assert made.decode([97, 256, 10, 98]) == text


def test_what_is_no_text_is_replaced():
  made = tokenizer.byte_level()
  assert made.decode([97, 0xE6, 0x97, 98]) == "a\ufffdb"


def metaspace():
  backend = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({"▁one": 0, "▁two": 1, "?": 2}, unk_token="?")
  )
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  backend.decoder = tokenizers.decoders.Metaspace()
  return backend


def test_pieces_are_whole_characters():
  words = tokenizer.byte_level()
  text = "Grüße, 日本 🎉"
  tokens = words.encode(text)
  assert [*words.pieces(iter(tokens))] == [*text]
  # What never becomes a character is not lost.
  assert [*words.pieces(tokens[:-1])] == [*text[:-1], "\ufffd"]
  assert "".join(words.pieces([200, 65, 200])) == words.decode([200, 65, 200])


def test_pieces_of_tokenizers_that_strip_a_first_space():
  """As LLaMA's do: a token's text depends on whether it is the first."""
  words = tokenizer.Tokenizer(metaspace(), eos=0)
  tokens = words.encode("one two two")
  assert [*words.pieces(tokens)] == ["one", " two", " two"]


def test_a_chat_template_gets_messages_and_special_tokens():
  made = with_template(CHATML)
  begin = "<|im_start|>user\n1 < 2?<|im_end|>\n"
  middle = "<|im_start|>assistant\n"
  assert made.chat(MESSAGES[:1]) == begin + middle
  assert made.chat(MESSAGES, add_generation_prompt=False) == (
    begin + middle + "Yes & no<|im_end|>\n"
  )
  special = with_template("[{{ bos_token }}|{{ eos_token }}]")
  assert special.chat([]) == "[|<|endoftext|>]"


def test_templates_are_trimmed_as_their_authors_expect():
  template = (
    "  {% for m in messages %}\n"
    "{% if loop.last %}{% break %}{% endif %}\n"
    "x{{ m['role'] }}\n"
    "  {% endfor %}\n"
    "end\n"
  )
  assert with_template(template).chat(MESSAGES) == "xuser\nend"


@pytest.mark.parametrize(
  ("template", "message"),
  [
    (None, "no chat template"),
    ("{{ raise_exception('only users') }}", "only users"),
    ("{% if %}", "Expected an expression"),
    ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ("{{ messages.append(1) }}", "unsafe"),
  ],
)
def test_what_a_template_cannot_do(template, message):
  with pytest.raises(UserError, match=message):
    with_template(template).chat(MESSAGES)


@pytest.fixture
def folder(tmp_path):
  extras.write_files(tmp_path, tokenizer.to_files(with_template(CHATML)))
  return tmp_path


def change(path, **changes):
  content = json.loads(path.read_text()) | changes
  path.write_text(json.dumps(content))


def test_files_hold_a_tokenizer(folder):
  made = tokenizer.read_tokenizer(folder)
  assert (made.eos, made.bos, made.chat_template) == (256, None, CHATML)
  for text in TEXTS:
    assert made.encode(text) == list(text.encode())
    assert made.decode(made.encode(text)) == text
  assert sorted(path.name for path in folder.iterdir()) == [
    "tokenizer.json",
    "tokenizer_config.json",
  ]


def test_special_tokens_may_be_written_in_two_ways(folder):
  config = folder / "tokenizer_config.json"
  change(config, eos_token={"content": "b"}, bos_token="a")
  made = tokenizer.read_tokenizer(folder)
  assert (made.eos, made.bos) == (98, 97)
  assert made.end_of_text == 256
  extras.write_files(folder, tokenizer.to_files(made))
  made = tokenizer.read_tokenizer(folder)
  assert (made.eos, made.bos) == (98, 97)


def test_chat_templates_lie_in_three_places(folder):
  config = folder / "tokenizer_config.json"
  named = [
    {"name": "rag", "template": "no"},
    {"name": "default", "template": "yes"},
  ]
  change(config, chat_template=named)
  assert tokenizer.read_tokenizer(folder).chat([]) == "yes"
  (folder / "chat_template.jinja").write_text("best")
  assert tokenizer.read_tokenizer(folder).chat([]) == "best"
  extras.write_files(folder, tokenizer.to_files(with_template("newest")))
  assert tokenizer.read_tokenizer(folder).chat([]) == "newest"


def test_nothing_is_added_cut_or_padded(folder):
  backend = tokenizer.byte_level().backend
  from tokenizers import processors

  backend.post_processor = processors.TemplateProcessing(
    single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 256)]
  )
  backend.enable_truncation(2)
  backend.enable_padding(length=9)
  assert len(backend.encode("abc").ids) == 9
  backend.save(str(folder / "tokenizer.json"))
  assert tokenizer.read_tokenizer(folder).encode("abc") == [97, 98, 99]


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda f: (f / "tokenizer.json").unlink(), "json: there is no such file"),
    (
      lambda f: (f / "tokenizer_config.json").unlink(),
      "config.json: there is no such file",
    ),
    (lambda f: (f / "tokenizer.json").write_text("{"), "not a sound tokenizer"),
    (
      lambda f: (f / "tokenizer_config.json").write_text("{"),
      "config.json: not a JSON file",
    ),
    (
      lambda f: (f / "tokenizer_config.json").write_text("[]"),
      "wanted a JSON object, got list",
    ),
    (
      lambda f: change(f / "tokenizer_config.json", eos_token="</s>"),
      "wanted eos_token to name a token .* got '</s>'",
    ),
    (
      lambda f: change(f / "tokenizer_config.json", eos_token=None),
      "wanted eos_token .* got None",
    ),
    (
      lambda f: change(f / "tokenizer_config.json", bos_token="<s>"),
      "wanted bos_token .* got '<s>'",
    ),
  ],
)
def test_damaged_files_are_named(folder, damage, message):
  damage(folder)
  with pytest.raises(UserError, match=message):
    tokenizer.read_tokenizer(folder)


def test_a_missing_package_names_the_command(monkeypatch):
  monkeypatch.setitem(sys.modules, "tokenizers", None)
  with pytest.raises(UserError, match=r"pip install -e '\.\[llm\]'"):
    tokenizer.byte_level()


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
  path = tmp_path / "a"
  path.write_text("old")
  with pytest.raises(OSError, match="full"), files.replacing(path) as part:  # noqa: PT012
    part.write_text("ne")
    raise OSError("disk full")
  assert path.read_text() == "old"
  usual = path.stat().st_mode
  with files.replacing(path) as part:
    part.write_text("new")
    part.chmod(0o600)  # as some libraries do
    assert path.read_text() == "old"
  assert path.read_text() == "new"
  assert path.stat().st_mode == usual
  assert [p.name for p in tmp_path.iterdir()] == ["a"]
  for other, says in (
    (tmp_path, "is a folder"),
    (path / "b", "a is no folder"),
    (path / "b" / "c", "b is no folder"),
  ):
    with pytest.raises(UserError, match=says), files.replacing(other):
      pass


def test_transformers_reads_what_is_written(folder):
  transformers = pytest.importorskip(
    "transformers", reason="needs `pip install -e '.[peers]'`"
  )
  ours = tokenizer.read_tokenizer(folder)
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  for text in TEXTS:
    assert theirs(text, add_special_tokens=False).input_ids == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text
  for prompt in (True, False):
    assert ours.chat(MESSAGES, add_generation_prompt=prompt) == (
      theirs.apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=prompt
      )
    )
  theirs.save_pretrained(folder / "again")
  again = tokenizer.read_tokenizer(folder / "again")
  assert (again.eos, again.chat_template) == (ours.eos, ours.chat_template)
  assert again.encode(TEXTS[1]) == ours.encode(TEXTS[1])
  shutil.rmtree(folder / "again")
