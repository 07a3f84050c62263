"""Labels of slices: which ones leave together, and which ones have to stay."""

import contextlib
from collections.abc import Iterator

import numpy as np


class TouchedError(Exception):
  """Labels that were to stay as they are would have changed."""


class Labels:
  """A union-find over integers, for whole arrays of them at once.

  A class of labels is free, or frozen for a reason, which is an integer above
  0. Frozen classes keep the reason that they had first, and are not merged with
  each other.
  """

  def __init__(self):
    self._parent = np.zeros(1024, np.int64)
    self._reason = np.zeros(1024, np.int32)
    self.count = 0
    self._first_free = 0  # what is below it must not change

  def new(self, n: int) -> np.ndarray:
    """Makes n free labels, each in a class of its own."""
    while self.count + n > len(self._parent):
      self._parent = np.concatenate([self._parent, self._parent])
      self._reason = np.concatenate([self._reason, self._reason])
    ids = np.arange(self.count, self.count + n)
    self._parent[ids], self._reason[ids] = ids, 0
    self.count += n
    return ids

  def frozen(self, n: int, reason: int) -> np.ndarray:
    """Makes one frozen label, and repeats it n times."""
    label = self.new(1)
    self._reason[label] = reason
    return np.repeat(label, n)

  def find(self, x: np.ndarray) -> np.ndarray:
    """Returns the label that stands for the class of each label."""
    root = self._parent[x]
    while True:
      above = self._parent[root]
      if np.array_equal(above, root):
        self._parent[x] = root
        return root
      root = above

  def reason(self, x: np.ndarray) -> np.ndarray:
    """Returns why each label is frozen; 0 where it is free."""
    return self._reason[self.find(x)]

  def freeze(self, x: np.ndarray, reason: int) -> None:
    """Freezes the classes of labels, where they are free."""
    roots = self.find(x)
    roots = roots[self._reason[roots] == 0]
    self._touch(roots)
    self._reason[roots] = reason

  def union(self, a: np.ndarray, b: np.ndarray) -> None:
    """Merges the classes of each label in `a` and of that in `b`."""
    a, b = np.broadcast_arrays(a, b)
    while True:
      a, b = self.find(a), self.find(b)
      stays = self._reason[a] > 0, self._reason[b] > 0
      todo = (a != b) & ~(stays[0] & stays[1])
      if not todo.any():
        return
      a, b, stay_a, stay_b = (x[todo] for x in (a, b, *stays))
      free = ~(stay_a | stay_b)
      low, high = np.minimum(a, b)[free], np.maximum(a, b)[free]
      frozen = np.where(stay_a, a, b)[~free]
      joining = np.where(stay_a, b, a)[~free]
      self._touch(high)
      self._touch(joining)
      np.minimum.at(self._parent, high, low)
      # A class that joins here may have been merged with another just above;
      # then the next turn merges that one with the frozen class.
      self._parent[joining] = frozen

  @contextlib.contextmanager
  def untouched(self) -> Iterator[None]:
    """Raises `TouchedError` before a class that is there already changes.

    What is labelled inside may join such classes; they are neither frozen nor
    merged with each other.
    """
    outer, self._first_free = self._first_free, self.count
    try:
      yield
    finally:
      self._first_free = outer

  def _touch(self, roots: np.ndarray) -> None:
    if (roots < self._first_free).any():
      raise TouchedError
