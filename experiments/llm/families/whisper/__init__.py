"""Whisper, which writes down speech, and Distil-Whisper: one `Family`.

Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision",
arXiv 2212.04356; Gandhi et al., "Distil-Whisper", arXiv 2311.00430, has fewer
blocks in its decoder. What the encoder reads is made by audio/log_mel.py.
"""

from experiments.llm.families.whisper import ctranslate2, huggingface
from experiments.llm.families.whisper.config import Config, from_sizes
from experiments.llm.families.whisper.network import Network

NAME = "whisper"
gguf = None  # no such file is read
# Sinusoids: parameters only since files hold them.
FIXED = ("encoder/positions",)

__all__ = [
  "FIXED",
  "NAME",
  "Config",
  "Network",
  "ctranslate2",
  "from_sizes",
  "gguf",
  "huggingface",
]
