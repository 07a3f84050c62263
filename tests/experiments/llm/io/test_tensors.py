"""Names of tensors; test_huggingface.py and test_gguf.py read the tensors."""

from experiments.llm.families import llama
from experiments.llm.io import tensors
from tests.experiments.small_llama import CONFIGS


def test_kernels_are_those_of_the_layers():
  config = CONFIGS["llama3"]
  assert not config.tied  # So that there is another kernel, the head.
  names = tensors.kernel_names(config, llama.gguf.TENSORS)
  assert names == [
    f"blk.{i}.{name}.weight"
    for i in range(config.layers)
    for name in (
      *("attn_k", "attn_output", "attn_q", "attn_v"),
      *("ffn_down", "ffn_gate", "ffn_up"),
    )
  ]
