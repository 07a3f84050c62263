"""Methods of pruning a kernel that cannot be; test_layerwise.py runs others."""

import pytest

from experiments.errors import UserError
from experiments.llm.prune import methods


@pytest.mark.parametrize(
  ("name", "n_of_m", "reason"),
  [("sparsegpt", (), "sparsegpt"), ("ria", (2, 4), "n_of_m=")],
)
def test_what_is_compared_cannot_be_chosen_twice(name, n_of_m, reason):
  with pytest.raises(UserError, match=f"per_output=False, but {reason}"):
    methods.make(name, n_of_m=n_of_m, per_output=False)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"name": "wonda"}, "no one-shot method .* did you mean 'wanda'"),
    ({"name": "sparsegpt", "dsnot": True}, "dsnot is set for sparsegpt"),
  ],
)
def test_methods_that_cannot_be(options, message):
  with pytest.raises(UserError, match=message):
    methods.make(**options)
