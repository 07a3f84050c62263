"""What patterns cost: N:M, blocks and constant fan-in on Fashion-MNIST.

    python -m experiments.main --config=configs/patterns_fashion_mnist.py \
      --workdir=DIR

RigL, gradual magnitude pruning and SR-STE with unstructured zeros, constant
fan-in, and 4 x 4 blocks, at 50, 75, 80, 90 and 95 %; with 2:4 at 50 % and 1:4
at 75 %, along the inputs. The first convolution and the output layer are dense,
as hardware for N:M requires, and all other layers have the same sparsity, since
N:M allows no other.

Expected: nobody has published these on Fashion-MNIST. Papers report
unstructured zeros at least as good as constant fan-in (Lasby et al.,
arXiv:2305.02299), this above N:M, and N:M above blocks; and for SR-STE,
unstructured above N:M (Zhou et al., arXiv:2102.04010).

Argument: a net, `lenet` (the default) or `conv`, and `smoke`.
"""

import ml_collections

from experiments.config import args
from experiments.drivers import compare
from experiments.recipes import vision

PATTERNS = {
  "unstructured": {"name": "unstructured"},
  "fan-in": {"name": "fan_in"},
  "N:M": None,  # depends on the sparsity: N_OF_M
  "blocks": {"name": "blocks", "shape": [4, 4]},
}
N_OF_M = (
  (0.5, {"name": "n_of_m", "n": 2, "m": 4}),
  (0.75, {"name": "n_of_m", "n": 1, "m": 4}),
)
ALGORITHMS = ("rigl", "gmp", "sr_ste")
STEPS = {"lenet": 4800, "conv": 1600}
SPARSE = {"lenet": r"^dense\d/kernel", "conv": r"^(conv2|dense\d)/kernel"}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config.

  Args:
    arg: A net, `smoke`, or both with a comma between.

  Returns:
    The config.
  """
  words = args.parse(arg, net=tuple(STEPS))
  net, smoke = words.net, words.smoke
  config = compare.defaults()
  config.name = f"patterns_fashion_mnist_{net}"
  config.seeds = (0,) if smoke else (0, 1, 2)
  config.sparsities = (0.5,) if smoke else (0.5, 0.75, 0.8, 0.9, 0.95)

  base = vision.fashion_mnist(net, STEPS[net], smoke=smoke)
  base.batch_size = 128
  base.optimizer = {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4}
  base.schedule = {"name": "cosine", "learning_rate": 0.05}
  config.base = base

  both = [(a, p) for a in ALGORITHMS for p in PATTERNS]
  config.methods = ("dense", *(f"{a} {p}" for a, p in both))
  config.algorithms = {
    "dense": {"name": "dense"},
    **{
      f"{name} {shape}": {
        **vision.algorithm_by_shares(
          name,
          steps=base.steps,
          every=base.steps // 40,
          output="^logits",
        ),
        "distribution": "uniform",
        "prunable": SPARSE[net],
        "pattern": PATTERNS[shape] or N_OF_M[0][1],
      }
      for name, shape in both
    },
  }
  config.settings = {
    f"{name} N:M": tuple(
      (s, {"pattern": pattern})
      for s, pattern in N_OF_M
      if s in config.sparsities
    )
    for name in ALGORITHMS
  }
  config.expected = tuple(
    (f"{name} {worse}", f"{name} {better}")
    for name in ALGORITHMS
    for worse, better in (
      ("fan-in", "unstructured"),
      ("N:M", "fan-in"),
      ("N:M", "unstructured"),
      ("blocks", "N:M"),
      ("blocks", "fan-in"),
    )
  )
  return config
