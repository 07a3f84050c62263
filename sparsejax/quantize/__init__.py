"""INT8 with sparsity: rounding that keeps zeros, nodes, and training with it.

`quantize` converts the matrices of a model to INT8, for `sparsejax.matmul`.
`fake_quantize` trains a model for this. For packed matrices use
`packed.quantize`. `sparsejax.oneshot` has rounding that later weights make up
for.
"""

from sparsejax.quantize.arrays import (
  Quantized,
  dequantize,
  is_quantized,
  matrix,
  quantize,
)
from sparsejax.quantize.rounding import (
  exact_scales,
  integers,
  multiples,
  scales,
)
from sparsejax.quantize.training import FakeQuantized, fake_quantize

__all__ = [
  "FakeQuantized",
  "Quantized",
  "dequantize",
  "exact_scales",
  "fake_quantize",
  "integers",
  "is_quantized",
  "matrix",
  "multiples",
  "quantize",
  "scales",
]
