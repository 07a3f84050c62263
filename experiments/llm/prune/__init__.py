"""Prunes language models in one shot, layer after layer.

`layerwise` runs calibration text through the model; the pruning of one matrix
is in sparsejax.oneshot.
"""
