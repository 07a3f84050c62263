"""Architectures of language models: a package and a row of registry.py each."""
