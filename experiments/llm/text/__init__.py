"""Texts and questions on which language models are trained and tested.

Tokenizers are in `experiments.llm.io`, metrics in `experiments.llm.evaluate`.
"""
