"""Continues a text by a language model, a packed one by the kernels.

python -m experiments.generate --model=PATH --prompt="Mr. Speaker," \
  [--tokens=50] [--chat]

PATH is a packed file of `experiments.export`, a Hugging Face folder or a GGUF
file. With --chat the prompt is a question, put into the model's chat template.
The most likely token is taken every time.
"""

import jax
from absl import flags

from experiments import cli
from experiments.llm.evaluate import generate
from experiments.llm.io import load


def run(path: str, prompt: str, *, tokens: int, chat: bool = False) -> str:
  """Continues a text.

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
  model = load.model_at(path)
  words = model.tokenizer
  if chat:
    prompt = words.chat([{"role": "user", "content": prompt}])
  (found,) = generate.greedy(
    model.network(),
    jax.device_put(model.params),
    [words.encode(prompt)],
    steps=tokens,
    stop=model.stop_tokens,
  )
  return words.decode(found)


def main() -> None:
  """Prints the continuation."""
  values = flags.FLAGS
  print(
    run(values.model, values.prompt, tokens=values.tokens, chat=values.chat)
  )


def _define_flags() -> None:
  flags.DEFINE_string("model", None, "A packed file, a folder, a GGUF file.")
  flags.DEFINE_string("prompt", None, "The text to continue.")
  flags.DEFINE_integer("tokens", 50, "How many at most.", lower_bound=1)
  flags.DEFINE_bool("chat", False, "Whether it is a question in a chat.")
  flags.mark_flags_as_required(["model", "prompt"])


if __name__ == "__main__":
  cli.run(main, _define_flags)
