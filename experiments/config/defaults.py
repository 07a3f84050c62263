"""The keys of a run's config, and their values if a file sets none."""

import ml_collections


def training_run() -> ml_collections.ConfigDict:
  """Makes the config of one training run, to be filled in by a config file.

  The mappings hold a `name` and that function's keywords: `data` as for
  `experiments.data.load`, `model` for `experiments.models.create`, and the
  others for the functions that `experiments.config` and `sparsejax` have.

  Keys:
    driver: What runs the config, a key of `experiments.main.DRIVERS`.
    name: A title, for people.
    seed: What everything random follows from.
    steps: Training steps.
    batch_size: Examples in each.
    augment: Whether training images are cropped and mirrored at random.
    label_smoothing: The share of each label given to all classes.
    data: The data set.
    model: The net.
    optimizer: The optimizer of the dense net.
    schedule: The learning rate by the step.
    algorithm: How it becomes sparse.
    mode: How zeros are held: masked, packed or kernels.
    devices: Devices that share each batch.
    initial: Where the first masks come from.
    log_every: Steps between records of training.
    eval_every: Steps between tests.
    eval_batch_size: Examples that are tested at once.
    checkpoint_every: Steps between checkpoints; 0 for one at the end.
    checkpoints_to_keep: How many of the newest are kept.
    keep_steps: Steps whose checkpoints are kept besides.
    tensorboard: Whether records go to TensorBoard too.

  Returns:
    The config, locked: no other keys can be set.
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


def fine_tuning_run() -> ml_collections.ConfigDict:
  """Makes the config of fine-tuning a language model.

  Keys:
    driver: What runs the config, a key of `experiments.main.DRIVERS`.
    name: A title, for people.
    seed: What everything random follows from.
    steps: Training steps.
    batch_size: Examples in each.
    model: The model, a name of `load.MODELS` and keywords.
    task: What it is tuned to and tested on.
    prune: How to prune it first, as for `pruners.prune`, or "none".
    n_of_m: The (n, m) that the zeros of the base must have and keep.
    method: What is trained, a name of `finetune_step.METHODS` and keywords.
    optimizer: The optimizer; "none" for a method that has its own.
    schedule: The learning rate by the step.
    loss: The weights of `finetune_step.LOSSES`, and a `temperature`.
    teacher: A model as `model`, or "none".
    prune_again: How to prune the merged model at last, or "none".
    int8: Whether layers' kernels are rounded to INT8, by a scale an output:
      "none", "after" training, or "trained", in the forward pass too.
    devices: Devices that share each batch, and the model.
    remat: What backpropagation computes again: "none", "full" or a policy.
    dtype: In what numbers the model computes.
    log_every: Steps between records of training.
    eval_every: Steps between tests; 0 to test at the end only.
    checkpoint_every: Steps between checkpoints; 0 for one at the end.
    checkpoints_to_keep: How many of the newest are kept.
    tensorboard: Whether records go to TensorBoard too.
    save: Whether to write the finished model to the folder `model`.

  Returns:
    The config, locked: no other keys can be set.
  """
  config = ml_collections.ConfigDict()
  config.driver = "finetune"
  config.name = "finetune"
  config.seed = 0
  config.steps = 100
  config.batch_size = 8
  config.model = {"name": "smollm2"}
  config.task = {"name": "text"}
  config.prune = {"name": "none"}
  config.n_of_m = ()
  config.method = {"name": "full"}
  config.optimizer = {"name": "adamw", "weight_decay": 0.0}
  config.schedule = {"name": "linear", "learning_rate": 1e-4}
  config.loss = ml_collections.ConfigDict({"cross_entropy": 1.0})
  config.teacher = {"name": "none"}
  config.prune_again = {"name": "none"}
  config.int8 = "none"  # or what else finetune_step.INT8 has
  config.devices = 1  # that share each batch
  config.remat = "none"
  config.dtype = "float32"
  config.log_every = 10
  config.eval_every = 50
  config.checkpoint_every = 50
  config.checkpoints_to_keep = 1
  config.tensorboard = True
  config.save = True
  return config.lock()
