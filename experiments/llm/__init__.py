"""Language models: files, text, pruning, evaluation."""
