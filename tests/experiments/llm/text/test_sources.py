"""Texts by the names that configs have for them."""

from experiments.llm.text import sources


def test_pythons_help_is_there_and_divided():
  train, test = (sources.python_help(test=test) for test in (False, True))
  assert sum(map(len, train)) > 300_000
  assert sum(map(len, test)) > 20_000
  assert not set(train) & set(test)


def test_years_begin_with_the_first_and_end_before_the_last(monkeypatch):
  seen = []
  monkeypatch.setattr(
    sources.corpora,
    "state_of_the_union",
    lambda folder, *, years: seen.append((folder, list(years))) or ["text"],
  )
  found = sources.TEXTS["state_of_the_union"](data_dir="x", years=(1998, 2000))
  assert found == ["text"]
  assert seen == [("x", [1998, 1999])]
