"""Reads and writes language models: GGUF, Hugging Face folders, packed files.

Also tokenizers. How an architecture's tensors are named is in
`experiments.llm.families`.
"""
