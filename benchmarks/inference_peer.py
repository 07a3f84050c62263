"""Another program that generates, in its own process, timed by inference.py.

python -m benchmarks.inference_peer llama_cpp FILE.gguf
python -m benchmarks.inference_peer transformers FOLDER float32|bfloat16

It reads lines of JSON and answers each with one: {"read": tokens} reads a
prompt, with nothing kept of the last one, and {"write": n} makes n tokens more
after the last prompt, the likeliest ones. Both on two threads.
"""

import json
import sys

THREADS = 2


def llama_cpp(path):
  """Returns `read` and `write` of llama.cpp, by llama-cpp-python."""
  import llama_cpp
  import numpy as np

  model = llama_cpp.Llama(
    path, n_ctx=512, n_threads=THREADS, n_threads_batch=THREADS, verbose=False
  )
  prompt = []

  def likeliest():
    logits = llama_cpp.llama_get_logits_ith(model._ctx.ctx, -1)
    return int(np.argmax(np.ctypeslib.as_array(logits, (model.n_vocab(),))))

  def read(tokens):
    prompt[:] = tokens
    model.reset()
    model.eval(tokens)
    likeliest()

  def write(n):
    model.n_tokens = len(prompt) - 1  # what follows is forgotten
    token = prompt[-1]
    for _ in range(n):
      model.eval([token])
      token = likeliest()

  return read, write


def transformers(path, dtype):
  """Returns `read` and `write` of transformers on torch."""
  import torch
  import transformers

  torch.set_num_threads(THREADS)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    path, dtype=getattr(torch, dtype)
  )
  kept = {}

  def run(tokens):
    with torch.inference_mode():
      y = model(
        torch.tensor([tokens]), past_key_values=kept["cache"], logits_to_keep=1
      )
    return int(y.logits[0, -1].argmax())

  def read(tokens):
    kept.update(prompt=tokens, cache=transformers.DynamicCache())
    run(tokens)

  def write(n):
    behind = kept["cache"].get_seq_length() - len(kept["prompt"]) + 1
    kept["cache"].crop(-behind)  # the number of tokens that are forgotten
    token = kept["prompt"][-1]
    for _ in range(n):
      token = run([token])

  return read, write


def main(kind, *args):
  """Answers until the input ends."""
  read, write = {"llama_cpp": llama_cpp, "transformers": transformers}[kind](
    *args
  )
  do = {"read": read, "write": write}
  print(json.dumps("ready"), flush=True)
  for line in sys.stdin:
    ((what, value),) = json.loads(line).items()
    do[what](value)
    print(json.dumps("done"), flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
