"""Architectures of language models."""
