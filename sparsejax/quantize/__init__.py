"""INT8 with sparsity: rounding that keeps zeros, nodes, and training with it.

`quantize` makes the matrices of a model ones of INT8, which `sparsejax.matmul`
takes; `fake_quantize` trains for them. Of packed matrices, see
`packed.quantize`; rounding that later weights make up for is in
`sparsejax.oneshot`.
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
