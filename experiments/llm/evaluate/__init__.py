"""Evaluates language models: perplexity, generated text, exact answers.

Texts and questions come from `experiments.llm.text`.
"""
