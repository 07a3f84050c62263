"""Drivers: what `experiments.main` can do with a config.

Each module has `defaults`, which makes the config, and `run`, which does it and
writes the report. Training is in runs/, tables and text in tables/.
"""
