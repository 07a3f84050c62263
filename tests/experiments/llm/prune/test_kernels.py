"""The kernels of all layers, and their non-zeros."""

import numpy as np

from experiments.llm.prune import kernels


def test_only_kernels_of_layers_are_counted():
  kernel = np.ones((2, 3, 4))
  kernel[0, :, 1] = kernel[1, 2, 3] = 0
  params = {
    "embed": {"embedding": np.ones((5, 3))},
    "layers": {
      "a": {"kernel": kernel, "bias": np.ones((2, 4))},
      "b": {"c": {"kernel": np.zeros((2, 4, 3))}},
    },
    "head": {"kernel": np.ones((3, 5))},
  }
  found = kernels.by_path(params)
  assert found.keys() == {"layers/a/kernel", "layers/b/c/kernel"}
  np.testing.assert_array_equal(found["layers/a/kernel"], kernel)
  assert all(kernels.prunable(path, None) for path in found)
  assert not kernels.prunable("head/kernel", None)
  nonzeros = kernels.nonzeros(params)
  assert nonzeros["layers/a/kernel"].tolist() == [9, 11]
  assert nonzeros["layers/b/c/kernel"].tolist() == [0, 0]
  assert kernels.count(params) == (20, 48)
