"""One-shot pruning of language models, layer after layer."""
