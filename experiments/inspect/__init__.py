"""Measures finished runs: sensitivity, overlap of masks, gradients, units.

`python -m experiments.inspect` adds a section to their reports. The instruments
themselves are in sparsejax.instruments, the pictures in plots/.
"""
