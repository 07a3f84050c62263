"""Compiles JAX programs for an H100, and counts what it would launch.

XLA's compiler for GPUs needs no GPU and no driver, only a description of the
device (h100.txtpb) and the programs of two Python packages. Nothing is run,
timed or tuned; `jnp.sort` is counted as XLA's own sort, where a GPU has CUB's.
"""

import collections
import functools
import importlib.metadata
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import pytest
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

ROOM = pathlib.Path(__file__).parent
_H100 = ROOM / "h100.txtpb"
_KIND = "NVIDIA H100 80GB HBM3"
_CORES = 132

# What XLA's text lists and a GPU does not launch.
_NO_KERNEL = {
  "after-all",
  "bitcast",
  "call",
  "conditional",
  "constant",
  "get-tuple-element",
  "parameter",
  "partition-id",
  "replica-id",
  "tuple",
  "while",
}


class Counts(NamedTuple):
  """What a compiled program launches.

  Attributes:
    kernels: Kernels, products, convolutions and copies of every run; not those
      inside of loops and conditionals.
    branches: For each conditional of every run, the kernels of each branch.
    copies: How many of `kernels` only copy.
    whiles: Loops, at any depth.
    entry_whiles: Loops of every run: outside of loops and conditionals.
    unbounded_whiles: Loops, at any depth, whose number of turns XLA does not
      know: the host reads the condition from the device at each of them.
    conditionals: Conditionals, at any depth.
    entry_conditionals: Conditionals of every run.
    arguments: Arrays that the program takes.
    temporary_bytes: Memory beyond arguments and results.
  """

  kernels: int
  branches: tuple[tuple[int, ...], ...]
  copies: int
  whiles: int
  entry_whiles: int
  unbounded_whiles: int
  conditionals: int
  entry_conditionals: int
  arguments: int
  temporary_bytes: int

  @property
  def ordinary_kernels(self) -> int:
    """Kernels of a run that takes the shortest branches: no mask moves."""
    return self.kernels + sum(map(min, self.branches))


def _absent(*packages: str) -> list[str]:
  """Lists those packages that are not installed."""
  installed = {d.name for d in importlib.metadata.distributions()}
  return [package for package in packages if package not in installed]


def missing() -> str | None:
  """Says what to install before anything can be compiled, if anything."""
  if not _absent("jax-cuda13-plugin", "nvidia-cuda-nvcc"):
    return None
  return (
    "to compile for an H100, pip install "
    f"jax-cuda13-plugin=={jax.__version__} nvidia-cuda-nvcc"
  )


needs_cudnn = pytest.mark.skipif(
  bool(_absent("nvidia-cudnn-cu13")),
  reason="to compile convolutions for an H100, pip install "
  f"'jax-cuda13-plugin[with-cuda]=={jax.__version__}'",
)


@functools.cache
def h100() -> jax.Device:
  """Makes an H100 to compile for, on which nothing can run."""
  return topologies.get_topology_desc(
    platform="cuda", topology="1x1x1", target_config=_H100.read_text()
  ).devices[0]


def compile_for_h100(
  function: Callable, *args: Any, **jit_options: Any
) -> jax.stages.Compiled:
  """Compiles a function for an H100.

  Args:
    function: Of arrays.
    *args: Trees of arrays, or of jax.ShapeDtypeStruct.
    **jit_options: As for jax.jit: static_argnums, donate_argnums, ...

  Returns:
    The program: as_text(), memory_analysis(), and `counts` below.
  """
  place = SingleDeviceSharding(h100())
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), args
  )
  # Mosaic GPU's kernels ask the mesh which card they are for.
  card = jax.sharding.AbstractDevice(
    device_kind=_KIND, num_cores=_CORES, platform="gpu"
  )
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=card)
  with jax.sharding.use_abstract_mesh(mesh):
    jitted = jax.jit(function, out_shardings=place, **jit_options)
    return jitted.trace(*shapes).lower(lowering_platforms=("cuda",)).compile()


class _Instruction(NamedTuple):
  """An instruction of a compiled program.

  Attributes:
    opcode: What it is.
    line: Its text.
    called: The computations that it names: branches, bodies, ...
  """

  opcode: str
  line: str
  called: list[str]


_CALLED = re.compile(
  r"(?:to_apply|calls|body|condition|true_computation|false_computation)"
  r"=(%?[\w.\-]+)|branch_computations=\{([^}]*)\}"
)


def _called(line: str) -> list[str]:
  """Lists the computations that an instruction names, in order."""
  found = []
  for one, several in _CALLED.findall(line):
    found += several.split(", ") if several else [one]
  return [name.lstrip("%") for name in found]


def _computations(text: str) -> dict[str, list[_Instruction]]:
  """Reads the computations of a program; what it runs is named ENTRY."""
  computations: dict[str, list[_Instruction]] = {}
  current: list[_Instruction] = []
  for line in text.splitlines():
    if line.startswith(("%", "ENTRY ")) and line.endswith("{"):
      name = re.match(r"ENTRY|%?[\w.\-]+", line).group()
      current = computations[name.lstrip("%")] = []
    elif line.startswith("  ") and " = " in line:
      value = line.split(" = ", 1)[1]
      opcode = re.search(r"(?:^| )([a-z][a-z0-9\-]*)\(", value).group(1)
      current.append(_Instruction(opcode, line, _called(line)))
  return computations


def counts(compiled: jax.stages.Compiled) -> Counts:
  """Counts what a program launches.

  Args:
    compiled: As from `compile_for_h100`.
  """
  computations = _computations(compiled.as_text())

  def run(name: str) -> Iterator[_Instruction]:
    """Yields the instructions of every run of a computation."""
    for instruction in computations[name]:
      yield instruction
      if instruction.opcode == "call":
        yield from run(instruction.called[0])

  def kernels(instructions: list[_Instruction]) -> int:
    return sum(
      i.opcode not in _NO_KERNEL and not i.opcode.endswith("-done")
      for i in instructions
    )

  entry = list(run("ENTRY"))
  anywhere = [i for c in computations.values() for i in c]

  def number(opcode: str, instructions: list[_Instruction]) -> int:
    return sum(i.opcode == opcode for i in instructions)

  return Counts(
    kernels=kernels(entry),
    branches=tuple(
      tuple(kernels(list(run(branch))) for branch in i.called)
      for i in entry
      if i.opcode == "conditional"
    ),
    copies=number("copy", entry),
    whiles=number("while", anywhere),
    entry_whiles=number("while", entry),
    unbounded_whiles=sum(
      i.opcode == "while" and "known_trip_count" not in i.line for i in anywhere
    ),
    conditionals=number("conditional", anywhere),
    entry_conditionals=number("conditional", entry),
    arguments=number("parameter", computations["ENTRY"]),
    temporary_bytes=compiled.memory_analysis().temp_size_in_bytes,
  )


class Loop(NamedTuple):
  """A loop of a compiled program.

  Attributes:
    turns: How many it has, if XLA knows; else the host asks after each.
    kernels: How many of each kind a turn launches, without those of loops and
      conditionals in it.
  """

  turns: int | None
  kernels: collections.Counter[str]


def loops(compiled: jax.stages.Compiled) -> list[Loop]:
  """Lists the loops of a program, at any depth.

  Args:
    compiled: As from `compile_for_h100`.
  """
  computations = _computations(compiled.as_text())
  found = []
  for computation in computations.values():
    for loop in computation:
      if loop.opcode != "while":
        continue
      (body,) = re.findall(r"body=%?([\w.\-]+)", loop.line)
      turns = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.line)
      kinds = [i.opcode for i in computations[body]]
      kernels = collections.Counter(k for k in kinds if k not in _NO_KERNEL)
      found.append(Loop(int(turns[1]) if turns else None, kernels))
  return found
