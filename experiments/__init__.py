"""Experiments: everything with flags, files, data, models and Flax.

`main` hands a config to a driver; `sweep`, `tables`, `inspect`, `export`,
`predict` and `generate` are the other commands. How sparse training works is in
sparsejax, which imports nothing from here.
"""
