"""Accuracy after repair and speed in one table, of byte-level models.

    python -m benchmarks.inference_bytes --workdir=runs/squarehead_bytes \
      --dense=runs/byte_llama/model --csv=results/inference_bytes.csv

The workdir is that of configs/squarehead_llm.py:bytes with
`--config.base.save=true`: models pruned by SparseGPT and trained by SquareHead.
Each is packed in float32 and in INT8 and read from its file again; perplexities
are those of what was read, of all seeds, and speeds those of the first seed,
token by token, in turns with the dense model in one process.
"""

import pathlib
import statistics as means
import tempfile
from collections.abc import Sequence

import numpy as np
from absl import app, flags

from benchmarks import measure
from experiments import statistics
from experiments.llm.evaluate import perplexity, stream
from experiments.llm.io import load, packed_model
from experiments.llm.io.model import Model
from experiments.llm.text import corpora

_DENSE = flags.DEFINE_string(
  "dense", "runs/byte_llama/model", "The dense model's folder."
)

SPARSITIES = (50, 60, 70, 75)
DTYPES = {"float32": "float32", "INT8": "int8"}
WINDOW, SCORED = 256, 16_384  # tokens, as in the config
PROMPT, WRITTEN = 64, 64
COLUMNS = (
  *("zeros", "values", "perplexity", "95 % interval", "against dense", "runs"),
  *("tokens/s against dense", "file against dense"),
  *("perplexity of dense", "window", "tokens"),
)


def score(model: Model, tokens: np.ndarray) -> float:
  """Computes the perplexity of a model, unpacked."""
  found, _ = perplexity.perplexity(
    model.network(),
    packed_model.unpack(model).params,
    tokens[: SCORED + 1],
    window=WINDOW,
    stride=WINDOW,
    batch=8,
  )
  return found


def repaired(sparsity: int) -> list[Model]:
  """Reads the models of all seeds."""
  workdir = pathlib.Path(measure.WORKDIR.value or "runs/squarehead_bytes")
  folders = sorted(workdir.glob(f"runs/sparsegpt_{sparsity}-*/model"))
  return [load.model_at(str(folder)) for folder in folders]


def packed_again(model: Model, dtype: str, file: pathlib.Path) -> Model:
  """Packs a model, writes it and reads it again."""
  packed_model.write_model(file, packed_model.pack(model, dtype=dtype))
  return packed_model.read_model(file)


def main(argv: Sequence[str]) -> None:
  """Prints the table."""
  del argv
  dense = load.model_at(_DENSE.value)
  words = corpora.state_of_the_union(
    data_dir=measure.DATA.value, years=(2000, 2022)
  )
  tokens = corpora.tokens(words, dense.tokenizer)
  size = (pathlib.Path(_DENSE.value) / "model.safetensors").stat().st_size
  whole = score(dense, tokens)
  writers = {"dense": stream.Writer(dense.network(), dense.params)}
  found = {}
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder, "model")
    for sparsity in SPARSITIES:
      for name, dtype in DTYPES.items():
        models = [packed_again(m, dtype, file) for m in repaired(sparsity)]
        scores = [score(m, tokens) for m in models]
        found[sparsity, name] = scores, file.stat().st_size / size
        one = models[0]
        writers[sparsity, name] = stream.Writer(one.network(), one.params)
  prompt = tokens[:PROMPT].tolist()
  times = measure.interleave(
    [
      lambda writer=writer: list(writer.write(prompt, steps=WRITTEN))
      for writer in writers.values()
    ],
    measure.ROUNDS.value,
  )
  about = (f"{whole:.3f}", str(WINDOW), f"{SCORED:,}")
  rows = [("0", "float32", f"{whole:.3f}", "-", "1x", "1", "1", "1", *about)]
  for i, (key, (scores, share)) in enumerate(found.items(), 1):
    low, high = statistics.interval(scores)
    mean = means.mean(scores)
    rows.append(
      (
        f"{key[0]} %",
        key[1],
        f"{mean:.3f}",
        f"{low:.3f} to {high:.3f}" if np.isfinite(low) else "-",
        f"{mean / whole:.3f}x",
        str(len(scores)),
        f"{measure.ratio(times, 0, i):.2f}",
        f"{share:.3f}",
        *about,
      )
    )
  title = "Accuracy after repair, and speed"
  measure.show(title, "benchmarks.inference_bytes", rows, columns=COLUMNS)


if __name__ == "__main__":
  app.run(main)
