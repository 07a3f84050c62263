"""What `experiments.main` can do with a config."""
