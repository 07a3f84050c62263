"""Beginning with masks that are there already, as a rewound ticket does.

Moments are made for params that hold the masks' zeros, so masks have to be
known when `init` runs. What lies around `sparsify` (`optax.chain`,
`optax.partition`, `modes.packed`, at any depth) hands its `init` the params and
nothing else: no argument can reach it. A context variable does, and unlike a
global one it is not seen by another thread that calls `init` meanwhile.
"""

import contextlib
import contextvars
from collections.abc import Iterator

from sparsejax.updates import MaskState

_mask_state = contextvars.ContextVar("mask state", default=None)


@contextlib.contextmanager
def taking_over(mask_state: MaskState) -> Iterator[None]:
  """Makes `init` begin with the given masks, on params that hold their zeros.

  Args:
    mask_state: The mask state to begin with.

  Yields:
    Nothing.
  """
  token = _mask_state.set(mask_state)
  try:
    yield
  finally:
    _mask_state.reset(token)


def taken_over() -> MaskState | None:
  """Returns the mask state to begin with; None outside `taking_over`."""
  return _mask_state.get()
