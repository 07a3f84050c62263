"""Tokenizers of models, and one whose tokens are bytes.

A thin layer over the package tokenizers. The files are Hugging Face's
`tokenizer.json` and `tokenizer_config.json`.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.sandbox

from experiments.errors import UserError
from experiments.llm import optional
from experiments.llm.io import files

_HALF = "\ufffd"  # what is not sound UTF-8, such as half a character
_END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """The tokenizer of a model.

  Attributes:
    backend: a `tokenizers.Tokenizer`.
    eos: the token that ends an answer.
    bos: the token that begins every text, or None.
    pad: the token that fills batches, or None.
    chat_template: the Jinja template of a conversation's text, or None.
  """

  backend: Any
  eos: int
  bos: int | None = None
  chat_template: str | None = None
  pad: int | None = None

  @property
  def vocab_size(self) -> int:
    """The largest token plus one."""
    return 1 + max(self.backend.get_vocab().values())

  @property
  def end_of_text(self) -> int:
    """The token between documents: one of the usual names, else `eos`."""
    ids = map(self.backend.token_to_id, _END_OF_TEXT)
    return next((i for i in ids if i is not None), self.eos)

  @property
  def sentinels(self) -> list[int]:
    """T5's tokens for spans left out, "<extra_id_0>" and so on; may be none."""
    names = (f"<extra_id_{i}>" for i in itertools.count())
    ids = map(self.backend.token_to_id, names)
    return list(itertools.takewhile(lambda i: i is not None, ids))

  def encode(self, text: str) -> list[int]:
    """Returns the tokens of a text, without adding special ones.

    The names of special tokens, such as "<|im_end|>", become those tokens.

    Args:
      text: the text.

    Returns:
      The tokens.
    """
    return self.backend.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of tokens, special ones included.

    Args:
      ids: the tokens, a list or an array.

    Returns:
      The text; what is not sound UTF-8 becomes U+FFFD.
    """
    return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)

  def pieces(self, ids: Iterable[int]) -> Iterator[str]:
    """Yields the text of tokens as they come, in whole characters.

    A character may take several tokens; it waits for the last of them.

    Args:
      ids: the tokens.

    Yields:
      The text that each token completes, if any; together `decode(ids)`.
    """
    # Two windows of the last tokens: decoders may treat the first token of a
    # text otherwise than later ones.
    held: list[int] = []
    shown = 0  # of the held tokens, how many have been yielded

    def new() -> str:
      return self.decode(held)[len(self.decode(held[:shown])) :]

    for token in ids:
      held.append(int(token))
      text = new()
      if text and not text.endswith(_HALF):
        yield text
        held, shown = held[shown:], len(held) - shown
    if text := new():
      yield text

  def chat(
    self,
    messages: Sequence[Mapping[str, str]],
    *,
    add_generation_prompt: bool = True,
  ) -> str:
    """Returns the text of a conversation, formatted by the model's template.

    Args:
      messages: such as {"role": "user", "content": "Hello"}.
      add_generation_prompt: whether to append the beginning of an answer.

    Returns:
      The text, which includes `bos` where the template has it.

    Raises:
      UserError: there is no template, or it refuses the messages.
    """
    if self.chat_template is None:
      raise UserError(
        "tokenizer: this one has no chat template; encode plain text instead, "
        "or take a model that was trained to chat."
      )
    try:
      return _compile(self.chat_template).render(
        messages=messages,
        add_generation_prompt=add_generation_prompt,
        bos_token=self._name(self.bos),
        eos_token=self._name(self.eos),
      )
    except jinja2.TemplateError as error:
      raise UserError(
        f"tokenizer: the chat template does not take these messages: {error}"
      ) from error

  def _name(self, token: int | None) -> str:
    """Returns the text of a special token, "" for None."""
    return "" if token is None else self.backend.id_to_token(token)


def byte_level(*, sentinels: int = 0) -> Tokenizer:
  """Makes a tokenizer of bytes, for models trained from scratch.

  Args:
    sentinels: the number of T5's tokens for spans left out.

  Returns:
    Tokens 0 to 255 are the bytes of the text in UTF-8; 256 is "<|endoftext|>",
    its `eos`; the sentinels follow.
  """
  tokenizers = optional.load("tokenizers")
  vocabulary = {c: i for i, c in enumerate(_byte_names())}
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab=vocabulary, merges=[])
  )
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  backend.decoder = tokenizers.decoders.ByteLevel()
  names = [f"<extra_id_{i}>" for i in range(sentinels)]
  backend.add_special_tokens([_END_OF_TEXT[0], *names])
  return Tokenizer(backend, eos=256)


def read_tokenizer(folder: str | pathlib.Path) -> Tokenizer:
  """Reads a tokenizer from the folder of a Hugging Face model.

  Args:
    folder: of `tokenizer.json` and `tokenizer_config.json`, and perhaps of
      `chat_template.jinja`.

  Returns:
    The tokenizer.

  Raises:
    UserError: a file is missing or damaged, or names no `eos_token`.
  """
  folder = pathlib.Path(folder)
  config = files.read_json(folder / "tokenizer_config.json")
  path = folder / "tokenizer.json"
  if not path.is_file():
    raise UserError(
      f"{path}: there is no such file; save the tokenizer in this form, as "
      "transformers' save_pretrained does for its fast tokenizers."
    )
  try:
    words = backend(path.read_text("utf-8"))
  except ValueError as error:
    raise UserError(f"{path}: {error}") from error

  def token(key: str) -> int | None:
    name = config.get(key)
    name = name.get("content") if isinstance(name, dict) else name
    token = None if name is None else words.token_to_id(name)
    if token is None and (name is not None or key == "eos_token"):
      raise UserError(
        f"{folder / 'tokenizer_config.json'}: wanted {key} to name a token "
        f"of {path.name}, got {name!r}."
      )
    return token

  template = config.get("chat_template")
  if isinstance(template, list):
    template = {t["name"]: t["template"] for t in template}.get("default")
  beside = folder / "chat_template.jinja"
  if beside.is_file():
    template = beside.read_text("utf-8")
  return Tokenizer(
    words,
    token("eos_token"),
    token("bos_token"),
    chat_template=template,
  )


def backend(text: str) -> Any:
  """Makes the backend of a tokenizer.

  Args:
    text: the contents of `tokenizer.json`.

  Returns:
    A `tokenizers.Tokenizer`.

  Raises:
    ValueError: the text is damaged.
  """
  tokenizers = optional.load("tokenizers")
  try:
    loaded = tokenizers.Tokenizer.from_str(text)
  except Exception as error:  # The package has no narrower one.
    raise ValueError(f"not a sound tokenizer: {error}") from error
  # A file may switch these on; sequences are cut and padded in text/.
  loaded.no_truncation()
  loaded.no_padding()
  return loaded


def to_files(tokenizer: Tokenizer) -> dict[str, bytes]:
  """Makes the files of a tokenizer, for `read_tokenizer` and transformers.

  Args:
    tokenizer: the tokenizer.

  Returns:
    The contents of `tokenizer.json` and `tokenizer_config.json` by name.
  """
  config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": tokenizer._name(tokenizer.eos),
    "clean_up_tokenization_spaces": False,
  }
  for key in ("bos", "pad"):
    if (token := getattr(tokenizer, key)) is not None:
      config[f"{key}_token"] = tokenizer._name(token)
  if tokenizer.chat_template is not None:
    config["chat_template"] = tokenizer.chat_template
  return {
    "tokenizer.json": tokenizer.backend.to_str().encode(),
    "tokenizer_config.json": f"{json.dumps(config, indent=2)}\n".encode(),
  }


def _byte_names() -> list[str]:
  """Returns the characters that byte-level BPE has for the bytes 0 to 255.

  Radford et al., "Language Models are Unsupervised Multitask Learners", 2019:
  bytes that print in Latin-1 are themselves, and the others, in order, are the
  characters from U+0100 on.
  """
  prints = {*range(33, 127), *range(161, 173), *range(174, 256)}
  others = iter(range(256, 512))
  return [chr(i if i in prints else next(others)) for i in range(256)]


@functools.cache
def _compile(template: str) -> Any:
  """Compiles a template in a sandbox, since its author may not be trusted."""

  def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)

  # The settings under which templates are written, those of transformers.
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=["jinja2.ext.loopcontrols"],
  )
  environment.globals["raise_exception"] = raise_exception
  return environment.from_string(template)
