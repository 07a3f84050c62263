"""LLaMA 1 to 3, Mistral, Qwen2 and models distilled into them: one `Family`.

They differ by their `Config` alone. Touvron et al., "LLaMA: Open and Efficient
Foundation Language Models", arXiv 2302.13971; Grattafiori et al., "The Llama 3
Herd of Models", arXiv 2407.21783; Jiang et al., "Mistral 7B", arXiv 2310.06825;
Yang et al., "Qwen2 Technical Report", arXiv 2407.10671.
"""

from experiments.llm.families.llama import gguf, huggingface
from experiments.llm.families.llama.config import Config, from_sizes, resized
from experiments.llm.families.llama.network import Network

NAME = "llama"

__all__ = [
  "NAME",
  "Config",
  "Network",
  "from_sizes",
  "gguf",
  "huggingface",
  "resized",
]
