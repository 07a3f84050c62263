"""One-shot pruning of SmolLM2-135M-Instruct, and of any LLaMA-type model.

    python -m experiments.main --config=configs/prune_llm.py --workdir=DIR

Magnitude, Wanda, SparseGPT, RIA, Wanda with OWL's layer densities, and RIA with
the same sparsity for each output (its code has both), at 30 to 70 %, 2:4 and
4:8. The measure is perplexity on the State of the Union addresses from 2000 on,
in windows of 256 tokens; the calibration data, 32 windows of the addresses
before. Papers calibrate on 128 windows of 2048 tokens from C4 and test on
WikiText-2 in windows of 4096 (2048 for LLaMA 1): these files are set by
`--config.task.train.name=jsonl` and the like, see
docs/howto/prune_language_model.md.

Expected: the papers' numbers stand beside ours, as numbers of other models:
magnitude far above the others, SparseGPT best at 70 %, 2:4 above 4:8 above
50 %.

References: Frantar and Alistarh, arXiv:2301.00774 (SparseGPT); Sun et al.,
arXiv:2306.11695 (Wanda), README of the released code; Zhang et al., ICLR 2024
(RIA); Yin et al., arXiv:2310.05175 (OWL), README of the released code.

Argument: `bytes` for the byte-level model that configs/byte_llama.py trains,
with three seeds of the windows; `smoke` for a random model and Python's own
help texts, in seconds.
"""

import ml_collections

from experiments.config import args
from experiments.drivers import prune_llm
from experiments.recipes import llm

PRUNERS = {
  "magnitude": {"name": "magnitude"},
  "wanda": {"name": "wanda"},
  "sparsegpt": {"name": "sparsegpt"},
  "ria": {"name": "ria"},
  "owl-wanda": {"name": "wanda", "owl": True},
  "ria, by output": {"name": "ria", "per_output": True},
}
# WikiText-2 perplexity. LLaMA-2-7B: README of Wanda's code; LLaMA-7B: of OWL's.
PUBLISHED = (
  ("LLaMA-2-7B", 5.12, "50 %", (14.89, 6.42, 6.51)),
  ("LLaMA-2-7B", 5.12, "4:8", (16.48, 7.97, 8.12)),
  ("LLaMA-2-7B", 5.12, "2:4", (54.59, 11.02, 10.17)),
  ("LLaMA-7B", 5.68, "70 %", (48419, 85.77, 26.30, None, 24.55)),
)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config.

  Args:
    arg: `bytes`, `smoke` or nothing.

  Returns:
    The config.
  """
  variant = args.parse(arg, variant=llm.VARIANTS).variant
  config = prune_llm.defaults()
  config.name = f"prune_llm {variant}"
  config.model = llm.model(variant)
  config.task = llm.text(variant)
  config.calibration = {"sequences": 32, "length": config.task.length}
  config.pruners = PRUNERS
  config.methods = tuple(PRUNERS)
  config.sparsities = (0.3, 0.5, 0.6, 0.7)
  config.n_of_m = ((4, 8), (2, 4))
  if variant == "bytes":
    config.seeds = (0, 1, 2)
  if variant == "smoke":
    config.calibration.sequences = 4
    config.sparsities = (0.5,)
    return config
  config.published = tuple(
    (base, method, f"{model}: {dense} -> {value}")
    for model, dense, base, values in PUBLISHED
    for method, value in zip(PRUNERS, values, strict=False)
    if value is not None
  )
  sparse = tuple(f"{100 * s:g} %" for s in config.sparsities if s >= 0.5)
  config.expected = (
    *((f"magnitude, {base}", f"wanda, {base}") for base in sparse),
    *((f"magnitude, {base}", f"sparsegpt, {base}") for base in sparse),
    *((f"wanda, {base}", f"sparsegpt, {base}") for base in sparse[-1:]),
    *((f"wanda, {base}", f"owl-wanda, {base}") for base in sparse[-1:]),
    *(
      (f"{method}, 2:4", f"{method}, 4:8") for method in ("wanda", "sparsegpt")
    ),
    *(
      (f"{method}, 4:8", f"{method}, 50 %") for method in ("wanda", "sparsegpt")
    ),
  )
  return config
