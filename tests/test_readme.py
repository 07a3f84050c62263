"""README and docs do what they say: examples run, tables are today's."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import sparsejax
from experiments.tables.text import fill, markdown

ROOT = Path(__file__).parents[1]
# Notebooks run when the site is built.
PAGES = {
  str(page.relative_to(ROOT)): page.read_text()
  for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
  if not {"_build", "notebooks"} & set(page.parts)
}
README = PAGES["README.md"]


def examples(page: str, text: str) -> list[tuple[bool, str]]:
  """Whether an example is slow, and its code; an API page is a single one."""
  found = re.findall(
    r"(<!-- slow -->\s+)?^```python\n(.*?)```", text, re.M | re.S
  )
  if page.startswith("docs/api/") and found:
    slow, code = zip(*found, strict=True)
    found = [(any(slow), "".join(code))]
  return [(bool(slow), code) for slow, code in found]


# One that is on two pages runs once.
FOUND = {
  code: pytest.param(code, id=f"{page}-{number}", marks=marks)
  for page, text in reversed(PAGES.items())
  for number, (dear, code) in enumerate(examples(page, text))
  # Compiles the steps of SEFT, which tests of fine-tuning do besides.
  for marks in [pytest.mark.slow if dear or "finetune.seft(" in code else ()]
}
EXAMPLES = list(FOUND)


@pytest.mark.parametrize("example", FOUND.values())
def test_examples_run(example):
  exec(compile(example, "example", "exec"), {})


def test_the_readme_is_short():
  assert len(README.encode()) <= 9000


def test_ten_lines_make_a_sparse_loop():
  (loop,) = [e for e in EXAMPLES if "def train_step" in e and e in README]
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
  assert README.count("<!-- table:") >= 1
  for page in PAGES.values():
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
  fewer = fill(
    again.replace("a.csv -->", "a.csv without n, value -->"), tmp_path
  )
  assert "| name |\n| --- |\n| x |\n" in fewer


def test_a_bar_in_a_cell_ends_no_cell():
  table = markdown([("method", "n"), ("seft, |w|", "3")])
  assert table.splitlines()[-1] == r"| seft, \|w\| | 3 |"
