"""T5, version 1.0 and 1.1, and models made from them: one `Family`.

They differ by their `Config` alone. Raffel et al., "Exploring the Limits of
Transfer Learning with a Unified Text-to-Text Transformer", arXiv 1910.10683;
version 1.1 and mT5 have the gated feed-forward layer of Shazeer, arXiv
2002.05202, and a head of their own.
"""

from experiments.llm.families.t5 import huggingface
from experiments.llm.families.t5.config import Config, from_sizes
from experiments.llm.families.t5.network import Network

NAME = "t5"
gguf = None  # no such file is read

__all__ = ["NAME", "Config", "Network", "from_sizes", "gguf", "huggingface"]
