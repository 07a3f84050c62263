"""The command that continues a text, or talks."""

import io
import sys
import types

import pytest

from experiments import generate
from experiments.errors import UserError
from experiments.llm.evaluate import generate as generation
from experiments.llm.io import huggingface, load
from tests.experiments import small_whisper

CHAT = (
  "{% for m in messages %}{{ m['role'][0] + ': ' + m['content'] + '\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ 'a: ' }}{% endif %}"
)
STEPS = 5


@pytest.fixture(scope="module")
def model():
  sizes = {"dim": 16, "layers": 1, "heads": 2, "hidden": 16, "context": 100}
  model = load.random(seed=0, **sizes)
  words = type(model.tokenizer)(model.tokenizer.backend, 256, None, CHAT)
  return model._replace(tokenizer=words)


@pytest.fixture
def command(model, tmp_path, monkeypatch):
  """Runs the command; its flags are what is given."""
  huggingface.write_model(tmp_path / "model", model)

  def run(lines="", **given):
    values = {
      **{"model": str(tmp_path / "model"), "tokens": STEPS, "chat": False},
      **{"prompt": None, "temperature": 0.0, "top_p": 1.0, "seed": 0},
    }
    named = types.SimpleNamespace(FLAGS=types.SimpleNamespace(**values | given))
    monkeypatch.setattr(generate, "flags", named)
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    generate.main()

  return run


def wanted(model, text):
  (made,) = generation.greedy(
    model.network(), model.params, [model.tokenizer.encode(text)], steps=STEPS
  )
  return model.tokenizer.decode(made)


def test_a_conversation_from_a_pipe(model, command, capsys):
  """The second turn follows the first and its answer; empty lines are none."""
  command("Hello\n\nAgain ü", chat=True)
  printed = capsys.readouterr()
  first = wanted(model, "u: Hello\na: ")
  second = wanted(model, f"u: Hello\na: {first}\nu: Again ü\na: ")
  assert printed.out == f"{first}\n{second}\n"
  # 12 tokens, and then what the first answer's text has become and 15 more.
  assert "prompt: " in printed.err
  assert f"continuation: {2 * (STEPS - 1)} tokens, " in printed.err
  assert " a second" in printed.err
  assert "memory: weights 0 MiB, cache 0 MiB, peak of the process" in (
    printed.err
  )


def test_a_prompt_without_a_chat(model, command, capsys):
  command(prompt="Mr. S")
  assert capsys.readouterr().out == wanted(model, "Mr. S") + "\n"
  command(prompt="Mr. S", chat=True)
  assert capsys.readouterr().out == wanted(model, "u: Mr. S\na: ") + "\n"
  with pytest.raises(UserError, match="give a --prompt, or --chat"):
    command()


def test_an_interrupt_ends_with_what_it_took(command, capsys, monkeypatch):
  def pieces(self, made):
    yield "".join(map(str, [next(iter(made)) > 0]))
    raise KeyboardInterrupt

  monkeypatch.setattr(load.tokenizer.Tokenizer, "pieces", pieces)
  command(prompt="Mr. S")
  printed = capsys.readouterr()
  assert printed.out in ("True\n", "False\n")
  assert "prompt: 5 tokens" in printed.err


def test_a_model_that_hears_is_refused(tmp_path):
  heard = small_whisper.make_model()
  huggingface.write_model(tmp_path / "whisper", heard)
  with pytest.raises(
    UserError, match=r"whisper: .* reads recordings, not text"
  ):
    generate.Session(str(tmp_path / "whisper"), STEPS)
