"""What is done with language models: running, judging and pruning them."""
