"""The mutations of `tests/mutations.py` are still of the code as it is."""

import pytest

from tests import mutations


@pytest.mark.parametrize("mutation", mutations.MUTATIONS)
def test_its_text_is_found_once_and_is_another(mutation):
  text = mutations.mutated(mutation, mutations.ROOT)
  assert text != (mutations.ROOT / mutation.file).read_text()


def test_every_rule_is_broken():
  assert {m.rule for m in mutations.MUTATIONS} == set(range(1, 14))
