"""MPT, MosaicML's decoder-only models with linear biases: one `Family`.

MosaicML NLP Team, "Introducing MPT-7B: A New Standard for Open-Source,
Commercially Usable LLMs", 2023 (github.com/mosaicml/llm-foundry).
"""

from experiments.llm.families.mpt import gguf, huggingface
from experiments.llm.families.mpt.config import Config, from_sizes
from experiments.llm.families.mpt.network import Network

NAME = "mpt"

__all__ = ["NAME", "Config", "Network", "from_sizes", "gguf", "huggingface"]
