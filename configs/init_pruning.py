"""Masks found before training at 80 to 98 %, kept or as the start of RigL.

    python -m experiments.main --config=configs/init_pruning.py --workdir=DIR

Random masks (ERK), the largest initial weights, SNIP, SNIP by gradient alone,
GraSP, SynFlow and FORCE, each kept as it is and each as the start of RigL, on
MNIST-1D with its convolutional net with 50 channels, at 80, 90, 95 and 98 %
with three seeds.

Expected: nobody has published these on MNIST-1D. Papers report SNIP above
random masks (Lee et al., arXiv:1810.02340), but SNIP by gradient alone below
them (Evci et al., arXiv:1911.11134, appendix M); SynFlow above SNIP and GraSP
where few weights are left (Tanaka et al., arXiv:2006.05467, figure 1); and RigL
above the masks from which it starts.

Argument: `smoke` for a run of seconds.
"""

import ml_collections

from experiments.config import args
from experiments.drivers import compare
from experiments.recipes import vision

INITIAL = {
  "random": {"name": "drawn"},
  "magnitude": {"name": "magnitude"},
  "gradient": {"name": "snip", "score": "gradient", "batches": 5},
  "snip": {"name": "snip", "batches": 5},
  "grasp": {"name": "grasp", "batches": 5},
  "synflow": {"name": "synflow"},
  "force": {"name": "force", "batches": 5},
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """Makes the config.

  Args:
    arg: `smoke` for a run of seconds, or nothing.

  Returns:
    The config.
  """
  smoke = args.parse(arg).smoke
  config = compare.defaults()
  config.name = "init_pruning"
  config.seeds = (0,) if smoke else (0, 1, 2)
  config.sparsities = (0.9,) if smoke else (0.8, 0.9, 0.95, 0.98)

  base = config.base
  base.steps = 20 if smoke else 3000
  base.batch_size = 100
  base.data = {"name": "mnist1d"}
  base.model = {"name": "mnist1d_conv", "channels": 50}
  base.optimizer = {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4}
  base.schedule = {"name": "cosine", "learning_rate": 0.05}
  base.log_every = 20 if smoke else 300
  base.eval_every = 20 if smoke else 300
  base.checkpoint_every = 20 if smoke else 3000
  base.tensorboard = False

  steps = base.get_ref("steps")
  keywords = {
    "sparsity": 0.9,
    "distribution": "erdos_renyi_kernel",
    "fraction": 0.3,
    "delta_t": 10 if smoke else 100,
    "t_end": steps * 3 // 4,
  }
  starts = ("random", "snip") if smoke else tuple(INITIAL)
  config.methods = (
    "dense",
    *starts,
    *(f"rigl from {name}" for name in starts),
  )
  config.algorithms = {
    "dense": vision.algorithm("dense", **keywords),
    **{name: vision.algorithm("static", **keywords) for name in starts},
    **{
      f"rigl from {name}": vision.algorithm("rigl", **keywords)
      for name in starts
    },
  }
  config.initial = {
    method: INITIAL[name]
    for name in starts
    for method in (name, f"rigl from {name}")
  }
  config.expected = (
    ("gradient", "random"),
    ("random", "snip"),
    ("snip", "synflow"),
    ("grasp", "synflow"),
    ("random", "rigl from random"),
    ("snip", "rigl from snip"),
  )
  return config
