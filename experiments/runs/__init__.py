"""Runs: from a config to a finished directory.

`train`, `finetune` and `lottery` give `loop` what to do; checkpoints, metrics,
batches and devices are theirs. Reports are in tables/, many runs at once in
sweep/.
"""
