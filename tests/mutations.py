"""Breaks each numbered rule of the design, and sees a default test fail.

    python tests/mutations.py [RULE ...]

Each mutation is made in a copy of the repository, where the default tests of
its rule in tests/test_rules.py run. It exits with 1 if one of them lived.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]


class Mutation(NamedTuple):
  """A text of a file, which occurs in it once, and what breaks the rule."""

  rule: int
  file: str
  old: str
  new: str


MUTATIONS = (
  # A small value in place of an exact zero.
  Mutation(
    1,
    "sparsejax/transform/step.py",
    "return jnp.where(mask, u, 0) - jnp.where(mask, 0, p)",
    "return jnp.where(mask, u, 0) - jnp.where(mask, 0, 0.999 * p)",
  ),
  # The inner optimizer sees dense gradients.
  Mutation(
    2,
    "sparsejax/transform/sparsify.py",
    "masks_lib.apply_masks(grads, masks),\n",
    "grads,\n",
  ),
  # Grown weights keep the moments that they had.
  Mutation(
    3,
    "sparsejax/transform/step.py",
    "    return kept | jnp.logical_not(now)\n",
    "    return kept | True\n",
  ),
  # A gradient step where masks move.
  Mutation(
    4,
    "sparsejax/transform/sparsify.py",
    """        inner, inner_state, kept, masks, grads, grown_moments
      )
    updates, stepped""",
    """        inner, inner_state, kept, masks, grads, grown_moments
      )
      now = False
    updates, stepped""",
  ),
  # Moments and the counts of schedules stand still together.
  Mutation(
    4,
    "sparsejax/transform/step.py",
    "select_tree(now, still, stepped)",
    "select_tree(now, inner_state, stepped)",
  ),
  # A weight too many at every update.
  Mutation(
    5,
    "sparsejax/updates/dynamic.py",
    "n, k = jnp.clip(n, 0, budget), budget",
    "n, k = jnp.clip(n, 0, budget), budget + 1",
  ),
  # A dense leaf has no mask.
  Mutation(
    6,
    "sparsejax/updates/fixed.py",
    "not in counts:\n      return jnp.array(True)\n",
    "not in counts:\n      return None\n",
  ),
  # The same draw at every update.
  Mutation(
    7,
    "sparsejax/keys.py",
    "return jax.random.fold_in(wrapped(data), step)",
    "return wrapped(data)",
  ),
  # The schedule decides, whatever the loop says.
  Mutation(
    8,
    "sparsejax/transform/step.py",
    "now = when(step) if update_masks is None else update_masks",
    "now = when(step)",
  ),
  # Scores without a state are computed on every step.
  Mutation(
    9,
    "sparsejax/updates/base.py",
    "if not now and not has_state:",
    "if False:",
  ),
  # Scores that are not finite choose masks.
  Mutation(
    10,
    "sparsejax/updates/base.py",
    "    ok[i] &= fine\n",
    "    ok[i] &= fine | True\n",
  ),
  # Ranks by sorting.
  Mutation(
    11,
    "sparsejax/select/counting.py",
    "  return by_counting(leaves, k, where, several)\n",
    """  (x,), (among,) = leaves, where
  rated = x if among is None else jnp.where(among, x, -jnp.inf)
  rank = jnp.argsort(jnp.argsort(-rated.ravel())).reshape(x.shape)
  return [(rank < k) & (True if among is None else among)]
""",
  ),
  # Methods that keep dense weights begin without them.
  Mutation(
    12,
    "sparsejax/transform/sparsify.py",
    "if not isinstance(state, ForwardMaskedState):",
    "if True:",
  ),
  # Masks leave an average as it is.
  Mutation(
    13,
    "sparsejax/masks.py",
    "    _apply(path, mask, x) for (path, mask), x in",
    "    x for (path, mask), x in",
  ),
)


def mutated(mutation: Mutation, root: pathlib.Path) -> str:
  """The text of a mutation's file, with it."""
  text = (root / mutation.file).read_text()
  if text.count(mutation.old) != 1:
    raise ValueError(
      f"{mutation.file} holds the text of a mutation of rule {mutation.rule} "
      f"{text.count(mutation.old)} times, wanted once: {mutation.old!r}"
    )
  return text.replace(mutation.old, mutation.new)


def failures(mutation: Mutation) -> list[str]:
  """The default tests of a rule that fail with a mutation of it."""
  with tempfile.TemporaryDirectory() as scratch:
    copy = pathlib.Path(scratch) / "copy"
    ignore = shutil.ignore_patterns(".*", "__pycache__", "runs", "results")
    shutil.copytree(ROOT, copy, ignore=ignore)
    (copy / mutation.file).write_text(mutated(mutation, copy))
    done = subprocess.run(
      [
        *(sys.executable, "-m", "pytest", "-n0", "-q", "-rf", "--tb=no"),
        *("tests/test_rules.py", f"-k=rule_{mutation.rule}_"),
      ],
      cwd=copy,
      capture_output=True,
      text=True,
    )
  if done.returncode not in (0, 1):
    raise RuntimeError(done.stdout + done.stderr)
  return [
    line.split("::")[1].split(" - ")[0]
    for line in done.stdout.splitlines()
    if line.startswith("FAILED")
  ]


def main(rules: list[int]) -> int:
  """Tries all mutations, or those of some rules."""
  lived = 0
  for mutation in MUTATIONS:
    if not rules or mutation.rule in rules:
      failed = failures(mutation)
      lived += not failed
      print(mutation.rule, mutation.new.strip().splitlines()[0], flush=True)
      print("  ", ", ".join(failed) or "LIVED", flush=True)
  return int(lived > 0)


if __name__ == "__main__":
  sys.exit(main([int(rule) for rule in sys.argv[1:]]))
