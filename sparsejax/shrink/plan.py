"""Plans: what of a model can be removed, and the model without it."""

import dataclasses
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import flops
from sparsejax.masks import PyTree, is_hole
from sparsejax.shrink import choosing
from sparsejax.shrink.analysis import Analysis, Settings
from sparsejax.shrink.folding import Folds, constants_of
from sparsejax.shrink.graph import Graph
from sparsejax.shrink.removal import Cut, Frozen, Group, Removal
from sparsejax.shrink.rules import analyse
from sparsejax.shrink.smaller import Smaller
from sparsejax.shrink.trees import Structure, shape_of, take
from sparsejax.shrink.vanishing import Slices, vanishing

# For how many shapes of inputs an analysis is kept.
_MOST_SHAPES = 16


def trace(
  apply_fn: Callable[..., Any],
  params: PyTree,
  *inputs: Any,
  frozen: Callable[[str], bool] | None = None,
  strict: bool = True,
  split: Callable[[tuple[int, ...], str], int | None] | None = None,
) -> "Plan":
  """Finds which slices of which params can be removed together.

  It traces the function, and follows each index of each axis through it. The
  result is exact: the smaller model computes what the whole model does with
  these slices set to zero. Slices that meet operations it does not know are
  kept.

  Args:
    apply_fn: `apply_fn(params, *inputs)`: any function that JAX can trace.
      An output counts as the next value of a leaf, such as new running
      statistics, if its key path ends in the leaf's key path and it has the
      leaf's shape. It is cut like the leaf. All other outputs keep their
      shapes.
    params: A pytree of arrays or `jax.ShapeDtypeStruct`s.
    *inputs: Pytrees of arrays or `jax.ShapeDtypeStruct`s. You may use other
      batch sizes later.
    frozen: `key path -> bool`: leaves that stay whole.
    strict: Whether to keep an axis whole if it is summed where the masked model
      is not zero, as in a LayerNorm, which subtracts its mean first. If not,
      such axes are cut, and the smaller model is a different function; `verify`
      says by how much.
    split: `(sizes, line) -> factor or None`: which factor can be cut where a
      reshape splits an axis, such as [heads, head size]. By default the largest
      one except the last: heads.

  Returns:
    The plan.

  References:
    Fang et al., DepGraph: Towards Any Structural Pruning, arXiv:2301.12900,
    2023, for groups of coupled slices.

  Example:
    >>> def apply(params, x):
    ...   return jax.nn.relu(x @ params["a"]) @ params["b"]
    >>> params = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2))}
    >>> plan = trace(apply, params, jnp.ones((1, 3)))
    >>> remove = plan.lowest(params, 0.5)
    >>> jax.tree.map(jnp.shape, plan.take(params, remove))
    {'a': (3, 4), 'b': (4, 2)}
    >>> plan.apply_fn(remove)(plan.take(params, remove), jnp.ones((1, 3)))
    Array([[12., 12.]], dtype=float32)
  """
  return Plan(apply_fn, params, inputs, frozen, strict, split)


class Plan:
  """The result of `trace`: the units that can be removed, and what cannot.

  Attributes:
    function: The traced function.
    structure: The structure of the params.
    paths: The key path of each leaf of the params.
    groups: Groups of comparable units, by their signature: the key path and
      axis of each leaf that they are slices of.
    frozen: What cannot be removed, and why.
  """

  def __init__(self, apply_fn, params, inputs, frozen, strict, split):
    self.function = apply_fn
    self.structure = Structure(params)
    self.paths, self._leaves = self.structure.paths, self.structure.leaves
    self._inputs = jax.tree.map(shape_of, inputs)
    self._settings = Settings(
      tuple(bool(frozen and frozen(path)) for path in self.paths),
      strict=strict,
      split=split,
    )
    self._analyses: dict[Any, tuple[Analysis, Any]] = {}
    analysis, _ = self._analysis(self._leaves, self._inputs)
    self._units = _units(analysis, len(self.paths))
    self.groups: Mapping[tuple[Cut, ...], Group] = self._groups(analysis)
    self.frozen: tuple[Frozen, ...] = tuple(self._frozen(analysis))

  def __str__(self):
    return self.report()

  def report(self) -> str:
    """Lists groups and what is frozen, in 80 columns."""
    lines = [f"{len(self.groups)} groups of slices that leave together"]
    lines += _wrapped(map(str, self.groups.values()))
    reasons = defaultdict(list)
    for each in self.frozen:
      at = f" ({each.primitive} at {each.line})" if each.primitive else ""
      reasons[f"{each.why}{at}"].append(str(each))
    lines.append("Frozen" if reasons else "Nothing is frozen")
    lines += _wrapped(f"{why}: {' '.join(x)}" for why, x in reasons.items())
    return "\n".join(lines)

  # What to remove.

  def remove(self, units: Iterable[int]) -> Removal:
    """Removes units by their numbers, which `groups` lists.

    Args:
      units: Their numbers.

    Returns:
      The removal.
    """
    keep: dict[Cut, np.ndarray] = {}
    for unit in units:
      for leaf, axis, indices in self._units[unit]:
        cut = self.paths[leaf], axis
        if cut not in keep:
          keep[cut] = np.ones(self._leaves[leaf].shape[axis], bool)
        keep[cut][indices] = False
    return Removal(keep)

  def lowest(
    self,
    scores: PyTree,
    share: float,
    *,
    budget: str | Callable[[Removal], float] = "units",
    round_to: int = 1,
    scope: str = "group",
    only: Callable[[Group], bool] | None = None,
  ) -> Removal:
    """Removes the units with the lowest scores.

    Args:
      scores: A tree of the params' structure with a score for each weight, such
        as those of `sparsejax.scores`. A unit's score is the sum of its
        weights' scores. Scalars and masked optax nodes count for nothing.
      share: The share of the budget to remove, in [0, 1).
      budget: What `share` is a share of: "units", "params", "flops", or a
        function that takes a removal and returns a cost, such as the result of
        `shrink.milliseconds`. Except for units, bisection finds the smallest
        removal whose cost is at most 1 - share of the whole model's cost.
      round_to: A number that the kept length of each axis has to divide by, if
        its whole length does; widths that divide by 8 or more are faster.
      scope: "group" to remove the same share of each group; "global" to
        compare the scores of units of all groups.
      only: `group -> bool`: the groups to remove from; by default all.

    Returns:
      The removal. At least one unit of each group stays.

    Raises:
      ValueError: If an argument is none of these, scores do not fit, or the
        budget cannot be met.
    """
    groups = [g for g in self.groups.values() if only is None or only(g)]
    rated = self._rated(scores)
    if isinstance(budget, str):
      budget = choosing.look_up_budget(budget, self.params, self.flops)
    units = choosing.lowest(
      groups, rated, share, budget, self.remove, round_to, scope
    )
    return self.remove(units)

  def zeroed(self, tree: PyTree) -> Removal:
    """Removes the units that zeros have already turned off, without loss.

    Args:
      tree: Masks of structured patterns, such as channels or heads; or params,
        whose own zeros then count, including those of biases.

    Returns:
      The removal, of units without which the model computes the same. A zero
      filter stays if its bias or norm turns the zeros into something else; see
      `fold`. At least one unit of each group stays.

    Example:
      >>> def apply(params, x):
      ...   return jax.nn.relu(x @ params["a"]) @ params["b"]
      >>> params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
      >>> masks = {"a": jnp.ones((3, 4), bool).at[:, 1].set(False),
      ...          "b": jnp.array(True)}
      >>> print(trace(apply, params, jnp.ones((1, 3))).zeroed(masks))
      a[1]: 3 of 4 stay
      b[0]: 3 of 4 stay
    """
    return self.remove(self._vanishing(tree, fold=False)[0])

  def fold(
    self, params: PyTree, remove: Removal | None = None
  ) -> tuple[PyTree, Removal]:
    """Folds the constant outputs of turned-off units into the next layer.

    If a filter is all zeros, and a bias or BatchNorm adds something after it,
    its output is the same number for every input. The contribution of this
    number to the next layer is added to the bias there, or subtracted from the
    running mean.

    Args:
      params: Params that hold zeros, such as masked ones.
      remove: Units that must be folded; by default all that can be. The default
        leaves out units for which folding would not be exact, for example
        because their constants meet the zero padding of an image.

    Returns:
      Params in which these units are entirely zero, with which the model
      computes the same as before, up to rounding; and the removal that is now
      possible.

    Raises:
      ValueError: If a unit of `remove` cannot be folded.
    """
    units, others = self._vanishing(params, fold=True)
    if remove is not None:
      units = self._fitting(units, others, remove)
    found = self.remove(units)
    leaves = jax.tree.leaves(params)
    analysis, _ = self._analysis(self._leaves, self._inputs)
    removed = self._removed(analysis, found)
    folds = Folds(analysis.graph, len(leaves))
    sites = folds.sites()
    wanted = [i for op, x, _ in sites for i in (x, folds.kernel(op, x))]

    @jax.jit
    def watch(args):
      watched = dict.fromkeys(wanted)
      Smaller(analysis, np.zeros_like(removed), watched)(args)
      return watched

    inputs = map(_any_array, jax.tree.leaves(self._inputs))
    watched = watch([*leaves, *inputs])
    for op, x, axis in sites:
      gone = removed[analysis.labels.find(analysis.axes[x][axis])]
      value = analysis.graph.constants.get(x, watched[x])
      constants = constants_of(value, axis, gone)
      if constants.any():
        kernel = np.asarray(watched[folds.kernel(op, x)], np.float64)
        leaf, more = folds.fold(op, x, constants, kernel)
        old = leaves[leaf]
        leaves[leaf] = jnp.asarray(
          np.asarray(old, np.float64) + more, old.dtype
        )
    return self.mask(self.structure.whole(leaves), found), found

  # What is left.

  def params(self, remove: Removal | None = None) -> int:
    """Counts the params that stay.

    Args:
      remove: What to remove; by default nothing.

    Returns:
      Their number.
    """
    keep = remove.keep if remove else {}
    total = 0
    for path, leaf in zip(self.paths, self._leaves, strict=True):
      size = 1
      for axis, n in enumerate(leaf.shape):
        size *= int(keep[path, axis].sum()) if (path, axis) in keep else n
      total += size
    return total

  def flops(self, remove: Removal | None = None) -> int:
    """Counts the FLOPs of the products, as `sparsejax.flops` does.

    Args:
      remove: What to remove; by default nothing.

    Returns:
      The FLOPs of one call with the inputs that were traced.
    """
    remove = remove or Removal({})
    small = self.take(self.structure.whole(), remove)
    return flops.product_flops(self.apply_fn(remove), small, *self._inputs)

  def unit_flops(self, group: Group) -> int:
    """Counts the FLOPs that leave with the first unit of a group."""
    return self.flops() - self.flops(self.remove(group.units[:1]))

  def mask(self, tree: PyTree, remove: Removal) -> PyTree:
    """Sets what would be removed to zero, and keeps all shapes.

    Args:
      tree: Params, or any trees of their structure.
      remove: What to remove.

    Returns:
      The tree.
    """

    def cut(x, kept, axis):
      shape = [-1 if other == axis else 1 for other in range(x.ndim)]
      return jnp.where(kept.reshape(shape), x, jnp.zeros_like(x))

    return self.structure.map(cut, tree, remove)

  def take(self, tree: PyTree, remove: Removal) -> PyTree:
    """Cuts a removal out of a tree.

    Args:
      tree: Params; a tree of their structure, such as gradients, masks or an
        average; or a tree that contains such trees, such as the state of an
        optax optimizer, whose moments are cut and whose counters stay.
      remove: What to remove.

    Returns:
      The tree with smaller leaves.

    Raises:
      ValueError: If nothing in it has the params' structure, if a leaf has
        another shape, or if it holds masks with budgets, which no longer hold.
    """
    return self.structure.map(take, tree, remove)

  def apply_fn(self, remove: Removal) -> Callable[..., Any]:
    """Returns the function of the smaller model.

    Args:
      remove: What to remove.

    Returns:
      `apply(small, *inputs)`, for params from `take`. JAX can transform it like
      the original function.
    """

    def apply(small: PyTree, *inputs: Any) -> Any:
      leaves, treedef = jax.tree.flatten(small)
      wanted = self.structure.treedef
      if treedef != wanted:
        raise ValueError(f"got params of {treedef}, wanted {wanted}")
      whole = [
        jax.ShapeDtypeStruct(old.shape, jnp.result_type(new))
        for old, new in zip(self._leaves, leaves, strict=True)
      ]
      analysis, out = self._analysis(whole, jax.tree.map(shape_of, inputs))
      smaller = Smaller(analysis, self._removed(analysis, remove))
      self._check_small(smaller, leaves)
      outs = smaller([*leaves, *jax.tree.leaves(inputs)])
      return jax.tree.unflatten(out, outs)

    return apply

  # Inside.

  def _analysis(self, leaves: Sequence[Any], inputs: Any):
    """Analyses the function at some shapes, and returns its outputs' tree."""
    flat, structure = jax.tree.flatten(inputs)
    known = tuple((x.shape, x.dtype, x.weak_type) for x in flat)
    dtypes = tuple(x.dtype for x in leaves)
    key = structure, known, dtypes
    if key in self._analyses:
      return self._analyses[key]
    params = self.structure.whole(leaves)
    closed, out = jax.make_jaxpr(
      lambda p, x: self.function(p, *x), return_shape=True
    )(params, inputs)
    graph = Graph(closed)
    carried = self.structure.carried(out)
    analysis = analyse(graph, self._settings, carried=carried)
    found = analysis, jax.tree.structure(out)
    # Constants of a trace must not outlive it.
    if graph.is_of_arrays:
      if len(self._analyses) == _MOST_SHAPES:
        del self._analyses[next(iter(self._analyses))]
      self._analyses[key] = found
    return found

  def _groups(self, analysis: Analysis) -> dict[tuple[Cut, ...], Group]:
    members = defaultdict(list)
    for number, unit in enumerate(self._units):
      signature = tuple(
        sorted({(self.paths[leaf], axis) for leaf, axis, _ in unit})
      )
      members[signature].append(number)
    summed = analysis.summed and np.unique(
      analysis.labels.find(np.concatenate(analysis.summed))
    )
    whole, groups = self.params(), {}
    for signature, units in members.items():
      if len(units) < 2:  # without it there would be nothing
        continue
      first = self._units[units[0]]
      leaf, axis, indices = first[0]
      labels = analysis.axes[analysis.graph.ins[leaf]][axis][indices[:1]]
      groups[signature] = Group(
        signature,
        tuple(units),
        tuple(len(indices) for _, _, indices in first),
        whole - self.params(self.remove(units[:1])),
        bool(np.isin(analysis.labels.find(labels), summed).any()),
      )
    return groups

  def _frozen(self, analysis: Analysis) -> Iterable[Frozen]:
    for leaf, path in enumerate(self.paths):
      for axis, labels in enumerate(analysis.axes[analysis.graph.ins[leaf]]):
        reasons = analysis.labels.reason(labels)
        for number in np.unique(reasons[reasons > 0]):
          why = analysis.reasons[number]
          yield Frozen(
            path,
            axis,
            int((reasons == number).sum()),
            len(labels),
            why.why,
            why.primitive,
            why.line,
          )

  def _removed(self, analysis: Analysis, remove: Removal) -> np.ndarray:
    """Marks classes that are removed, and checks that they are whole."""
    labels, graph = analysis.labels, analysis.graph
    removed = np.zeros(labels.count, bool)
    axes = {
      (path, axis): analysis.axes[graph.ins[leaf]][axis]
      for leaf, path in enumerate(self.paths)
      for axis in range(len(self._leaves[leaf].shape))
    }
    for cut, kept in remove.keep.items():
      if cut not in axes or len(kept) != len(axes[cut]):
        raise ValueError(
          f"{cut[0]}[{cut[1]}]: got {len(kept)} indices to keep or not, wanted "
          f"{len(axes[cut]) if cut in axes else 'none: there is no such axis'}."
          " Take what is removed from a plan of this model"
        )
      gone = axes[cut][~kept]
      if (labels.reason(gone) > 0).any():
        number = labels.reason(gone).max()
        why = analysis.reasons[number]
        raise ValueError(
          f"{cut[0]}[{cut[1]}]: cannot remove a part of it: {why.why}"
          f" ({why.primitive} at {why.line})"
        )
      removed[labels.find(gone)] = True
    for cut, each in axes.items():
      gone = removed[labels.find(each)]
      wanted = ~remove.keep[cut] if cut in remove.keep else False
      if (gone != wanted).any():
        raise ValueError(
          f"{cut[0]}[{cut[1]}]: {gone.sum()} of its indices have to leave with"
          f" others, got {np.sum(wanted)} to remove: remove whole units, of a"
          " plan made with inputs like these"
        )
      if gone.size and gone.all():
        raise ValueError(f"{cut[0]}[{cut[1]}]: nothing would be left of it")
    return removed

  def _check_small(self, smaller: Smaller, leaves: Sequence[Any]) -> None:
    ins = smaller.graph.ins
    for path, i, leaf in zip(self.paths, ins, leaves, strict=False):
      if jnp.shape(leaf) != smaller.shape(i):
        raise ValueError(
          f"{path}: got shape {jnp.shape(leaf)}, wanted {smaller.shape(i)}:"
          " pass what plan.take(params, remove) gives, with the same removal"
        )

  def _vanishing(
    self, tree: PyTree, fold: bool
  ) -> tuple[list[int], dict[int, str]]:
    """Finds units that do nothing, or nothing but what can be folded."""
    leaves = self.structure.leaves_of(tree, "masks")
    first, _ = self._analysis(self._leaves, self._inputs)
    graph, carried = first.graph, first.carried
    settings = dataclasses.replace(self._settings, strict=True)
    why_not = Folds(graph, len(leaves)).why_not if fold else None

    def analysis(zero):
      return analyse(
        graph, settings, carried=carried, zero=zero, foldable=why_not
      )

    groups = [group.units for group in self.groups.values()]
    units, others = vanishing(groups, self._units, leaves, analysis)
    for group in groups:
      if set(group) <= set(units):  # something has to stay
        units.remove(group[0])
    return units, others

  def _fitting(self, units, others, remove: Removal) -> list[int]:
    """The units of a removal, all of which have to be among some."""
    chosen = []
    for unit, slices in enumerate(self._units):
      leaf, axis, indices = slices[0]
      kept = remove.keep.get((self.paths[leaf], axis))
      if kept is None or kept[indices].all():
        continue
      if unit not in units:
        why = others.get(unit, "none of its slices are zero")
        raise ValueError(
          f"{self.paths[leaf]}[{axis}], index {indices[0]}: cannot be folded: "
          f"{why}. Leave it out, or set all of it to zero and fine-tune:"
          " plan.mask(params, remove)"
        )
      chosen.append(unit)
    return chosen

  def _rated(self, scores: PyTree) -> np.ndarray:
    """Sums scores over each unit."""
    sums: dict[Cut, np.ndarray] = {}
    for name, leaf in zip(
      self.paths, self.structure.leaves_of(scores, "scores"), strict=True
    ):
      if is_hole(leaf) or np.ndim(leaf) == 0:
        continue
      x = np.asarray(leaf, np.float64)
      if not np.isfinite(x).all():
        raise ValueError(f"{name}: got scores that are not finite")
      for axis in range(x.ndim):
        others = tuple(other for other in range(x.ndim) if other != axis)
        sums[name, axis] = x.sum(others)
    rated = np.zeros(len(self._units))
    for number, unit in enumerate(self._units):
      for leaf, axis, indices in unit:
        cut = self.paths[leaf], axis
        if cut in sums:
          rated[number] += sums[cut][indices].sum()
    return rated


def _any_array(x: jax.ShapeDtypeStruct) -> jax.Array:
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    return jax.random.split(jax.random.key(0), x.shape)
  return jnp.zeros(x.shape, x.dtype)


def _units(analysis: Analysis, leaves: int) -> list[Slices]:
  """Collects the slices of each free class."""
  found: dict[int, Slices] = defaultdict(list)
  for leaf, i in enumerate(analysis.graph.ins[:leaves]):
    for axis, labels in enumerate(analysis.axes[i]):
      free = np.flatnonzero(analysis.labels.reason(labels) == 0)
      roots = analysis.labels.find(labels[free])
      order = np.argsort(roots, kind="stable")
      ids, begins = np.unique(roots[order], return_index=True)
      parts = np.split(free[order], begins[1:])
      for root, indices in zip(ids, parts, strict=bool(len(ids))):
        found[int(root)].append((leaf, axis, indices))
  return [found[root] for root in sorted(found)]


def _wrapped(items: Iterable[str]) -> list[str]:
  return [
    line
    for item in items
    for line in textwrap.wrap(
      item, 80, initial_indent="  ", subsequent_indent="    "
    )
  ]
