"""Reading and writing language models."""
