"""Runs: from a config to a finished directory.

`train` and `finetune` give `loop` what to do, with checkpoints, metrics,
batches and devices; `lottery`, `recovery` and `prune_llm` are made of several
steps of that kind. Reports are in tables/, many runs at once in sweep/.
"""
