"""Perplexity, generated text and answers to questions."""
