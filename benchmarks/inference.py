"""Sparse language models on CPUs, token by token, against dense and others.

    python -m benchmarks.inference --workdir=runs/inference \
      --csv=results/inference_smollm2.csv [--only=dense,75_bf16] \
      [--llama_cpp=PYTHON] [--transformers=PYTHON]

SmolLM2-135M, pruned by magnitude in each matrix: the weights that are left do
not matter to speed, and the perplexities beside it say what such pruning alone
does. `--repaired=DIR` takes models that are of use: those that
configs/squarehead_llm.py has pruned by SparseGPT, trained and saved in DIR.
Models are written to the workdir first, packed; files that are there stay, and
`--prepare` computes the perplexities as well. Then they run in turns with the
dense one in one process, one text at a time, greedily; llama.cpp and
transformers in processes of their own, which are asked in the same turns.
`--only` measures some models and leaves the CSV's other rows as they are. The
flags of others name the interpreters that have them: `pip install -e
'.[llamacpp]'` builds llama.cpp in ten minutes.
"""

import csv
import functools
import itertools
import json
import os
import pathlib
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import measure
from experiments.llm.evaluate import perplexity, stream
from experiments.llm.families import registry
from experiments.llm.families.protocol import Network, is_layer_kernel
from experiments.llm.io import gguf, huggingface, load, packed_model
from experiments.llm.io.model import Model
from experiments.llm.text import corpora
from experiments.tables import text
from sparsejax.masks import path_name

_PREPARE = flags.DEFINE_bool(
  "prepare", False, "Only write the models, and compute their perplexities."
)
_OTHERS = {
  name: flags.DEFINE_string(name, None, f"The Python that has {name}.")
  for name in ("llama_cpp", "transformers")
}
_REPAIRED = flags.DEFINE_string(
  "repaired", None, "The workdir of models to take in place of pruned ones."
)

DENSE = "dense"
PROMPT, PREFILL, WRITTEN = 64, 256, 8  # tokens
WINDOW, SCORED = 256, 2048  # tokens of the perplexity
COLUMNS = (
  *("model", "tokens/s", "against dense", "wanted", "met"),
  *("prefill against dense", "wanted", "met"),
  *("file against dense", "wanted", "met"),
  *("perplexity", "of dense", "window", "tokens"),
)


class Kind(NamedTuple):
  """A model of ours.

  Attributes:
    sparsity: the share of zeros in the layers' kernels.
    dtype: of the weights; "float32" and "bfloat16" is what dense ones compute
      in, too.
    decoding: the least speed wanted, relative to dense.
    prefill: the same of reading a prompt.
    file: the most bytes wanted, relative to the dense float32 file.
    activations: what INT8 weights are multiplied with, "float" or "int8".
    head: the dtype of embedding and head, if another.
  """

  sparsity: float = 0.0
  dtype: str = "float32"
  decoding: float | None = None
  prefill: float | None = None
  file: float | None = None
  activations: str = "float"
  head: str | None = None

  @property
  def packed(self) -> bool:
    """Whether the model is one packed file, not a Hugging Face folder."""
    return bool(self.sparsity) or self.dtype == "int8"


KINDS = {
  DENSE: Kind(),
  "dense bfloat16": Kind(dtype="bfloat16"),
  "dense INT8": Kind(dtype="int8"),
  "50 %": Kind(0.5, decoding=1.4),
  "50 % INT8": Kind(0.5, "int8"),
  "50 % W8A8": Kind(0.5, "int8", activations="int8"),
  "60 %": Kind(0.6),
  "60 % INT8": Kind(0.6, "int8"),
  "60 % W8A8": Kind(0.6, "int8", activations="int8"),
  "70 %": Kind(0.7),
  "70 % INT8": Kind(0.7, "int8"),
  "70 % W8A8": Kind(0.7, "int8", activations="int8"),
  "75 %": Kind(0.75, decoding=1.7, prefill=2.2),
  "75 % INT8": Kind(0.75, "int8", decoding=4.0, file=0.15),
  "75 % W8A8": Kind(  # activations in INT8, too
    0.75, "int8", decoding=4.0, file=0.15, activations="int8"
  ),
  "75 % + bfloat16 head": Kind(0.75, decoding=1.7, head="bfloat16"),
  "80 %": Kind(0.8),
  "90 %": Kind(0.9, decoding=2.8),
  "90 % + bfloat16 head": Kind(0.9, decoding=2.8, head="bfloat16"),
}
# By name the module that runs it, and its arguments but for the model.
PEERS = {
  "llama.cpp (4-bit GGUF)": ("llama_cpp", ()),
  "transformers float32": ("transformers", ("float32",)),
  "transformers bfloat16": ("transformers", ("bfloat16",)),
}


def pruned(model: Model, sparsity: float) -> Model:
  """Keeps the largest weights of every kernel."""

  def prune(path: tuple[Any, ...], x: np.ndarray) -> np.ndarray:
    if not sparsity or not is_layer_kernel(path_name(path)):
      return x
    made = np.zeros_like(x)
    for one, w in zip(made, x, strict=True):
      k = round((1 - sparsity) * w.size)
      kept = np.argpartition(-np.abs(w), k, axis=None)[:k]
      one.flat[kept] = w.flat[kept]
    return made

  return model._replace(
    params=jax.tree_util.tree_map_with_path(prune, model.params)
  )


def unpacked(kind: Kind) -> Model:
  """Makes a model as it is before it is packed."""
  if _REPAIRED.value is None:
    return pruned(load.smollm2(), kind.sparsity)
  root = pathlib.Path(_REPAIRED.value)
  where = "dense/model"
  if kind.sparsity:
    where = f"runs/sparsegpt_{100 * kind.sparsity:g}-*-0/model"
  found = sorted(root.glob(where))
  if len(found) != 1:
    raise app.UsageError(
      f"--repaired: got {len(found)} folders {root / where}, wanted one; run "
      "configs/squarehead_llm.py with --config.base.save=true and one loss, or "
      "leave the model out by --only"
    )
  return load.model_at(str(found[0]))


def write(name: str, folder: pathlib.Path) -> pathlib.Path:
  """Writes a model, unless it is there; returns its file."""
  kind, path = KINDS[name], folder / name
  file = path if kind.packed else path / "model.safetensors"
  if not file.exists():
    model = unpacked(kind)
    if kind.packed:
      model = packed_model.pack(
        model,
        dtype=kind.dtype,
        activations=kind.activations,
        head=kind.head,
      )
      packed_model.write_model(path, model)
    else:
      huggingface.write_model(path, model, dtype=kind.dtype)
  return file


def read(name: str, folder: pathlib.Path) -> tuple[Model, Network]:
  """Reads a model that `write` wrote, and makes its network."""
  kind, path = KINDS[name], folder / name
  if kind.packed:
    model = packed_model.read_model(path)
    return model, model.network()
  dtype = jnp.dtype(kind.dtype)
  model = huggingface.read_model(path)
  params = jax.tree.map(lambda x: x.astype(dtype), model.params)
  return (
    model._replace(params=params),
    registry.network(model.config, dtype=dtype),
  )


def scored(name: str, folder: pathlib.Path) -> float | None:
  """Reads the perplexity of a model; None if it was not computed."""
  file = folder / f"{name}.json"
  return json.loads(file.read_text()) if file.exists() else None


def score(name: str, folder: pathlib.Path) -> None:
  """Computes the perplexity of a model that `write` wrote, once."""
  if scored(name, folder) is not None:
    return
  kind = KINDS[name]
  if kind.sparsity and kind.dtype == "float32" and kind.head is None:
    model = unpacked(kind)  # what unpacking would give
    network = model.network()
  else:
    model, network = read(name, folder)
    if kind.activations == "float":  # else it would compute otherwise
      model = packed_model.unpack(model)
  found, _ = perplexity.perplexity(
    network,
    model.params,
    words()[: SCORED + 1],
    window=WINDOW,
    stride=WINDOW,
    batch=4,
  )
  (folder / f"{name}.json").write_text(json.dumps(found))


@functools.cache
def words() -> np.ndarray:
  """Reads the tokens of the addresses from 2000 on."""
  texts = corpora.state_of_the_union(
    data_dir=measure.DATA.value, years=(2000, 2022)
  )
  return corpora.tokens(texts, load.smollm2().tokenizer)


class Timed(NamedTuple):
  """What is timed of a model.

  Attributes:
    write: continues the prompt by WRITTEN tokens.
    read: reads another prompt of PREFILL tokens.
  """

  write: Callable[[], Any]
  read: Callable[[], Any]


def ours(name: str, folder: pathlib.Path) -> Timed:
  """Makes what is timed of a model of ours."""
  model, network = read(name, folder)
  one = stream.Writer(network, model.params)
  tokens = words()
  prompt = tokens[:PROMPT].tolist()
  # Each begins otherwise than the last, so that all of it is read.
  others = itertools.cycle(tokens[at : at + PREFILL].tolist() for at in (1, 2))

  def continued():
    # The last token of the prompt is all that is read again.
    assert len(list(one.write(prompt, steps=WRITTEN))) == WRITTEN

  def prefilled():
    return list(one.write(next(others), steps=1))

  return Timed(continued, prefilled)


def theirs(name: str, folder: pathlib.Path, pool: list[Any]) -> Timed:
  """Starts another program, and makes what is timed of it."""
  kind, args = PEERS[name]
  model = gguf.find_smollm2() if kind == "llama_cpp" else folder / DENSE
  module = ("-m", "benchmarks.inference_peer", kind, str(model), *args)
  process = subprocess.Popen(
    [_OTHERS[kind].value, *module],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, "HF_HUB_OFFLINE": "1"},
  )
  pool.append(process)

  def ask(**question):
    if question:
      print(json.dumps(question), file=process.stdin, flush=True)
    if not process.stdout.readline():
      raise RuntimeError(f"{name} has ended; see above")

  ask()
  tokens = words().tolist()
  ask(read=tokens[:PROMPT])
  return Timed(
    functools.partial(ask, write=WRITTEN),
    functools.partial(ask, read=tokens[1 : 1 + PREFILL]),
  )


def line(
  name: str, times: np.ndarray, prefills: np.ndarray, folder: pathlib.Path
) -> tuple[str, ...]:
  """Makes a row of the table; see COLUMNS.

  Args:
    name: Of KINDS or PEERS.
    times: Seconds of the dense model and of this one, [rounds, 2].
    prefills: The same of reading a prompt.
    folder: Where the models are.
  """
  kind = KINDS.get(name, Kind())

  def judged(value, digits, **limit):
    done = measure.row("", value, **limit)
    return f"{value:.{digits}f}", done.wanted, done.met

  def shown(name, digits):
    found = scored(name, folder) if name in KINDS else None
    return "-" if found is None else f"{found:{digits}}"

  size = ("-", "-", "-")
  if name in KINDS:
    file, dense = (write(n, folder).stat().st_size for n in (name, DENSE))
    size = judged(file / dense, 3, most=kind.file)
  return (
    name,
    f"{WRITTEN / np.median(times[:, 1]):.1f}",
    *judged(measure.ratio(times, 0, 1), 2, least=kind.decoding),
    *judged(measure.ratio(prefills, 0, 1), 2, least=kind.prefill),
    *size,
    shown(name, ".4g"),
    shown(DENSE, ".4g"),
    str(WINDOW),
    f"{SCORED:,}",
  )


def main(argv: Sequence[str]) -> None:
  """Measures, and writes the rows of the table."""
  del argv
  folder = pathlib.Path(measure.WORKDIR.value or "runs/inference")
  if _REPAIRED.value:
    folder /= "repaired"  # never among files of the same names
  folder.mkdir(parents=True, exist_ok=True)
  known = [*KINDS, *(n for n, (k, _) in PEERS.items() if _OTHERS[k].value)]
  wanted = {DENSE, *(measure.ONLY.value or known)}
  if unknown := wanted - {*known}:
    raise app.UsageError(f"--only: got {unknown}, wanted some of {known}")
  names = [name for name in known if name in wanted]
  for name in filter(KINDS.__contains__, names):
    write(name, folder)
    if _PREPARE.value:
      score(name, folder)
  if _PREPARE.value:
    return
  pool: list[Any] = []
  timed = [
    ours(n, folder) if n in KINDS else theirs(n, folder, pool) for n in names
  ]
  rounds = measure.ROUNDS.value
  times = measure.interleave([t.write for t in timed], rounds)
  prefills = measure.interleave([t.read for t in timed], rounds)
  for process in pool:
    process.stdin.close()
    process.wait()
  show(
    [
      line(name, times[:, [0, i]], prefills[:, [0, i]], folder)
      for i, name in enumerate(names)
    ]
  )


def show(rows: Sequence[Sequence[str]]) -> None:
  """Prints rows, and puts them into the CSV among those of other models."""
  last = ("met", "wanted", "tokens", "window", "of dense")
  text.print_table(
    "SmolLM2-135M on a CPU", [COLUMNS, *rows], last=last, rest="the CSV"
  )
  file = flags.FLAGS.csv and pathlib.Path(flags.FLAGS.csv)
  if not file:
    return
  table = {}
  if file.exists():
    _, _, *old = csv.reader(file.read_text().splitlines())
    table = {row[0]: row for row in old}
  table |= {row[0]: row for row in rows}
  order = [n for n in (*KINDS, *PEERS) if n in table]
  lines = [COLUMNS, *(table[n] for n in order)]
  text.write_csv(file, lines, command=command(flags.FLAGS.repaired, order))


def command(repaired: str | None, names: Sequence[str]) -> str:
  """Makes the command of the whole table, whatever rows are measured now."""
  if repaired is None:
    return f"{COMMAND} --csv=results/inference_smollm2.csv"
  # Not every model is there that could be.
  only = f'--repaired={repaired} "--only={",".join(names)}"'
  return f"{COMMAND} {only} --csv=results/inference_repaired.csv"


COMMAND = "python -m benchmarks.inference"

if __name__ == "__main__":
  app.run(main)
