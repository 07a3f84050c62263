"""The keys of a training run's config, and their values if a file sets none."""

import ml_collections


def training_run() -> ml_collections.ConfigDict:
  """Makes the config of one training run, to be filled in by a config file.

  The mappings hold a `name` and that function's keywords: `data` as for
  `experiments.data.load`, `model` for `experiments.models.create`, and the
  others for the functions that `experiments.config` and `sparsejax` have.

  Returns:
    The config, locked: only keys that are here can be set.
  """
  config = ml_collections.ConfigDict()
  config.driver = "train"
  config.name = "run"  # in the progress bar
  config.seed = 0
  config.steps = 1000
  config.batch_size = 128
  config.augment = False
  config.label_smoothing = 0.0
  config.data = {"name": "mnist1d"}
  config.model = {"name": "mnist1d_conv"}
  config.optimizer = {"name": "sgd"}
  config.schedule = {"name": "constant", "learning_rate": 0.1}
  config.algorithm = {"name": "dense"}
  config.mode = "masked"  # or what else parts.MODES has
  config.devices = 1  # that share each batch
  config.initial = {"name": "drawn"}
  config.log_every = 100
  config.eval_every = 500
  config.eval_batch_size = 1000
  config.checkpoint_every = 1000
  config.checkpoints_to_keep = 2
  config.keep_steps = ()  # whose checkpoints are kept besides
  config.tensorboard = True
  return config.lock()
