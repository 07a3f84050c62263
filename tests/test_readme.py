"""README and docs do what they say: examples run, tables are today's."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import sparsejax
from experiments.tables.text import fill, markdown
from tests.marks import slow

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [README, *(p.read_text() for p in sorted(ROOT.glob("docs/*.md")))]
EXAMPLES = [
  example
  for page in PAGES
  for example in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
]


# Compiles the steps of SEFT, which tests of fine-tuning do besides.
EACH = [
  slow(i) if "finetune.seft(" in text else i for i, text in enumerate(EXAMPLES)
]


@pytest.mark.parametrize("number", EACH)
def test_examples_run(number):
  exec(compile(EXAMPLES[number], f"example {number}", "exec"), {})


def test_ten_lines_make_a_sparse_loop():
  (loop,) = [e for e in EXAMPLES if "def train_step" in e]
  lines = [x for x in loop.splitlines() if x.strip()]
  assert len(lines) <= 10
  assert sum("= sparsejax." in x for x in lines) == 2
  scope = {}
  exec(loop, scope)
  masks = sparsejax.get_masks(scope["opt_state"])
  assert sparsejax.nnz(masks) == 20
  assert jnp.all(masks | (scope["w"] == 0))
  assert jnp.any(masks & (scope["w"] != 1))


def test_your_own_algorithm_is_an_algorithm():
  (example,) = [e for e in EXAMPLES if "def mine" in e]
  assert len([x for x in example.splitlines() if x.strip()]) < 30
  scope = {}
  exec(example, scope)
  tx = scope["mine"](
    optax.adam(1e-2), 0.75, key=jax.random.key(0), t_end=100, delta_t=2
  )
  params = {"w": jax.random.normal(jax.random.key(1), (8, 8))}
  params, state = sparsejax.init(tx, params)
  first = sparsejax.get_masks(state)["w"]

  @jax.jit
  def step(params, state, key):
    grads = {"w": jax.random.normal(key, (8, 8))}
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  for i in range(7):
    params, state = step(params, state, jax.random.key(i))
    masks = sparsejax.get_masks(state)
    assert sparsejax.nnz(masks) == 16
    assert jnp.all(masks["w"] | (params["w"] == 0))
  assert bool(jnp.any(first != masks["w"]))


def test_tables_are_those_of_the_results():
  assert README.count("<!-- table:") >= 2
  for page in PAGES:
    assert page.count("<!-- table:") == page.count("<!-- end -->")
    assert fill(page, ROOT) == page


def test_a_changed_result_changes_the_table(tmp_path):
  file = tmp_path / "a.csv"
  file.write_text("# make it\nname,value\nx,1\n")
  text = "before\n<!-- table: a.csv -->\n<!-- end -->\nafter\n"
  filled = fill(text, tmp_path)
  assert "| x | 1 |" in filled
  assert "Made by `make it`." in filled
  file.write_text("# make it\nname,value\nx,2\n")
  again = fill(filled, tmp_path)
  assert "| x | 2 |" in again
  assert "| x | 1 |" not in again


def test_a_bar_in_a_cell_ends_no_cell():
  table = markdown([("method", "n"), ("seft, |w|", "3")])
  assert table.splitlines()[-1] == r"| seft, \|w\| | 3 |"
