"""Products with the non-zero blocks of a matrix, for Hopper's tensor cores.

In Pallas's Mosaic GPU. A program has three warpgroups: one copies operands into
a ring of buffers in shared memory, and two multiply what is there. The ring
goes on from one tile to the next, so that operands of the next are on the way
while the result of one is written.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from sparsejax.kernels import devices
from sparsejax.kernels.blocks import Columns
from sparsejax.kernels.tiles import DEPTH, Tile, tile

_WARPGROUP = 64  # Rows that a warpgroup multiplies in one instruction.
_LOADER = 2  # The last of the three.


class _Ring(NamedTuple):
  """Buffers that one warpgroup fills, and two others empty.

  Attributes:
    filled: For each buffer, a barrier at which its copies arrive.
    freed: For each, one at which both that multiply arrive.
    stages: How many buffers there are.
  """

  filled: Any
  freed: Any
  stages: int

  def claim(self, step: jax.Array) -> jax.Array:
    """Waits until the buffer of a step is free; returns its place."""
    at = lax.rem(step, self.stages)

    @pl.when(step >= self.stages)
    def _():
      plgpu.barrier_wait(self.freed.at[at])

    return at

  def drain(self, steps: jax.Array) -> None:
    """Waits until all buffers are free, after so many steps."""

    def wait(step, _):
      plgpu.barrier_wait(self.freed.at[lax.rem(step, self.stages)])
      return ()

    lax.fori_loop(jnp.maximum(steps - self.stages, 0), steps, wait, ())

  def accumulate(
    self,
    begin: jax.Array,
    end: jax.Array,
    add: Callable[[jax.Array], None],
    products: int,
  ) -> None:
    """Multiplies steps' operands, and frees each buffer a step later.

    Args:
      begin: The first step.
      end: The one after the last.
      add: Begins the products of the operands at a place.
      products: How many these are.
    """

    def free(step):
      plgpu.barrier_arrive(self.freed.at[lax.rem(step, self.stages)])

    def turn(step, _):
      at = lax.rem(step, self.stages)
      plgpu.barrier_wait(self.filled.at[at])
      add(at)
      plgpu.wgmma_wait(products)  # Those of the step before are done.
      pl.when(step > begin)(lambda: free(step - 1))
      return ()

    lax.fori_loop(begin, end, turn, ())
    plgpu.wgmma_wait(0)
    pl.when(end > begin)(lambda: free(end - 1))


def _launch(
  kernel: Callable[..., None],
  shape: jax.ShapeDtypeStruct,
  programs: int,
  interpret: Any,
) -> Callable[..., jax.Array]:
  """Makes the function that runs programs of three warpgroups."""
  return plgpu.kernel(
    kernel,
    out_type=shape,
    grid=(programs,),
    grid_names=("program",),
    num_threads=3,
    thread_name="warpgroup",
    compiler_params=plgpu.CompilerParams(
      lowering_semantics=plgpu.LoweringSemantics.Warpgroup
    ),
    interpret=interpret,
  )


def _share_out(load: Callable[[], None], multiply: Callable) -> None:
  """Has one warpgroup load, and the others multiply, with most registers."""
  warpgroup = lax.axis_index("warpgroup")

  @pl.when(warpgroup == _LOADER)
  def _():
    plgpu.set_max_registers(40, action="decrease")
    load()

  @pl.when(warpgroup != _LOADER)
  def _():
    plgpu.set_max_registers(232, action="increase")
    multiply(warpgroup)


def _buffer(shape: tuple[int, ...], dtype: jnp.dtype, width: int) -> Any:
  """Makes shared memory in the layout of tensor cores, `width` at a time."""
  size = jnp.dtype(dtype).itemsize
  swizzle = plgpu.find_swizzle(8 * size * width)
  layout = (
    plgpu.TilingTransform((8, swizzle // size)),
    plgpu.SwizzleTransform(swizzle),
  )
  return plgpu.SMEM(shape, dtype, transforms=layout)


def _padded(x: jax.Array) -> jax.Array:
  """Pads the batch to whole rows of the layout, eight, and to a tile.

  The last of several tiles may reach over the end, where copies read zeros, and
  write nothing.
  """
  batch = x.shape[0]
  wanted = max(batch + -batch % 8, 2 * _WARPGROUP)
  return jnp.pad(x, ((0, wanted - batch), (0, 0)))


class _Plan(NamedTuple):
  """The sizes of a product, and which program makes which tiles.

  Attributes:
    tiles: Of the batch.
    columns: Of blocks.
    rows: Examples of a tile.
    side: Of a block.
    programs: How many run at once: one on each core.
  """

  tiles: int
  columns: int
  rows: int
  side: int
  programs: int

  @property
  def depth(self) -> int:
    """Features of a step."""
    return min(self.side, DEPTH)

  @property
  def parts(self) -> int:
    """Steps of a block."""
    return self.side // self.depth

  @property
  def height(self) -> int:
    """Tiles of the batch whose columns are made before the next tiles'.

    About four for each program, so that those with many blocks and those with
    few add up to the same; and few enough for what they read to stay in the
    second-level cache.
    """
    return min(self.tiles, pl.cdiv(4 * self.programs, self.columns))

  def place(self, turn: jax.Array) -> jax.Array:
    """Finds the place of a program in a turn: every other one goes back."""
    program = lax.axis_index("program")
    return lax.select(
      lax.rem(turn, 2) == 0, program, self.programs - 1 - program
    )

  def turns(self) -> jax.Array:
    """Counts the tiles of a program."""
    whole, rest = divmod(self.tiles * self.columns, self.programs)
    more = self.place(jnp.int32(whole)) < rest
    return whole + more.astype(jnp.int32)

  def tile(self, turn: jax.Array, columns: Columns) -> tuple[jax.Array, ...]:
    """Finds the tile of a program's turn.

    Returns:
      The tile of the batch, the column, its first entry, and how many it has.
    """
    last = self.tiles * self.columns - 1
    i = jnp.minimum(turn * self.programs + self.place(turn), last)
    panel = lax.div(i, self.height * self.columns)
    i -= panel * self.height * self.columns
    height = jnp.minimum(self.height, self.tiles - panel * self.height)
    column = columns.order[lax.div(i, height)]
    first = columns.pointers[column]
    entries = columns.pointers[column + 1] - first
    return panel * self.height + lax.rem(i, height), column, first, entries


def multiply(
  x: jax.Array,
  columns: Columns,
  blocks: jax.Array,
  slots: jax.Array | None = None,
  *,
  tiling: Tile | None = None,
  cores: int | None = None,
  interpret: Any = False,
) -> jax.Array:
  """Multiplies activations by a matrix of blocks.

  Args:
    x: float16 or bfloat16 [batch, in].
    columns: The matrix.
    blocks: [n, side, side], of x's dtype; sides of 32, 64 and 128.
    slots: int32[n]: which block each entry is, transposed: the matrix is then
      that of the blocks transposed. Each is its own by default, as it is.
    tiling: Examples of a tile and stages; of `tiles.TILES` by default.
    cores: How many programs run at once; the card's by default.
    interpret: Pallas's parameters of its interpreter of GPUs.

  Returns:
    [batch, columns * side], of x's dtype, summed in float32.
  """
  side, count = blocks.shape[-1], columns.order.shape[0]
  batch, x = x.shape[0], _padded(x)
  card = devices.card()
  product = "forward" if slots is None else "input"
  rows, stages = tiling or tile(card.name if card else "", product, side)
  cores = cores or (card.cores if card else devices.CORES)
  few = pl.cdiv(x.shape[0], rows) * count < cores
  if x.shape[0] < rows or (tiling is None and few):
    rows = 2 * _WARPGROUP
  tiles = pl.cdiv(x.shape[0], rows)
  plan = _Plan(tiles, count, rows, side, min(cores, tiles * count))
  shape = jax.ShapeDtypeStruct((x.shape[0], count * side), x.dtype)

  def kernel(x, blocks, order, pointers, inputs, *rest):
    *slots, y = rest
    columns = Columns(order, pointers, inputs)
    _multiply(plan, stages, x, blocks, columns, slots[0] if slots else None, y)

  run = _launch(kernel, shape, plan.programs, interpret)
  tables = columns if slots is None else (*columns, slots)
  return run(x, blocks.reshape(-1, side), *tables)[:batch]


def _multiply(plan, stages, x, blocks, columns, slots, y):
  """Runs a program of `multiply`, on arrays in the GPU's memory."""
  rows, side, depth = plan.rows, plan.side, plan.depth
  half = rows // 2  # Of a warpgroup.
  block = (depth, side) if slots is None else (side, depth)
  pieces = min(2, half // _WARPGROUP * plan.parts)

  def scope(xs, bs, ys, filled, freed):
    ring = _Ring(filled, freed, stages)

    def load():
      def visit(turn, step):
        place, _, first, entries = plan.tile(turn, columns)

        def copy(j, step):
          entry = first + lax.div(j, plan.parts)
          part = lax.rem(j, plan.parts) * depth
          features = columns.inputs[entry] * side + part
          if slots is None:
            source = (pl.ds(entry * side + part, depth), slice(None))
          else:
            source = (pl.ds(slots[entry] * side, side), pl.ds(part, depth))
          at = ring.claim(step)
          source_x = (pl.ds(place * rows, rows), pl.ds(features, depth))
          plgpu.copy_gmem_to_smem(x.at[source_x], xs.at[at], filled.at[at])
          plgpu.copy_gmem_to_smem(blocks.at[source], bs.at[at], filled.at[at])
          return step + 1

        return lax.fori_loop(0, entries * plan.parts, copy, step)

      ring.drain(lax.fori_loop(0, plan.turns(), visit, jnp.int32(0)))

    def multiply(warpgroup):
      first_row = warpgroup * half

      def visit(turn, carry):
        begin, (place, column, _, entries) = carry
        # To read the tables takes as long as many products, and goes on
        # beside them if it is begun before.
        ahead = plan.tile(turn + 1, columns)
        end = begin + entries * plan.parts

        def total(acc):
          def add(at):
            weights = bs.at[at]
            if slots is not None:
              weights = weights.transpose((1, 0))
            plgpu.wgmma(acc, xs.at[at, pl.ds(first_row, half)], weights)

          ring.accumulate(begin, end, add, 1)
          return acc[...]

        found = pl.run_scoped(total, plgpu.ACC((half, side), jnp.float32))
        out = y.at[
          pl.ds(place * rows + first_row, half), pl.ds(column * side, side)
        ]
        _write(found.astype(y.dtype), ys.at[warpgroup], out, pieces)
        return end, ahead

      begin = jnp.int32(0), plan.tile(jnp.int32(0), columns)
      lax.fori_loop(0, plan.turns(), visit, begin)
      plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    _share_out(load, multiply)

  pl.run_scoped(
    scope,
    _buffer((stages, rows, depth), x.dtype, depth),
    _buffer((stages, *block), x.dtype, block[1]),
    _buffer((2, pieces, _WARPGROUP, depth), y.dtype, depth),
    plgpu.Barrier(num_arrivals=2, num_barriers=stages),
    plgpu.Barrier(num_arrivals=2, num_barriers=stages),
    collective_axes="warpgroup",
  )


def _write(found, buffers, out, pieces):
  """Writes a tile piece by piece, each while the next is copied."""
  width = buffers.shape[-1]
  places = [
    (row, column)
    for row in range(0, found.shape[0], _WARPGROUP)
    for column in range(0, found.shape[1], width)
  ]
  for i, (row, column) in enumerate(places):
    buffer = buffers.at[i % pieces]
    # The copy of what was in this buffer has to be over.
    plgpu.wait_smem_to_gmem(pieces - 1, wait_read_only=True)
    buffer[...] = found[row : row + _WARPGROUP, column : column + width]
    plgpu.commit_smem()
    piece = pl.ds(row, _WARPGROUP), pl.ds(column, width)
    plgpu.copy_smem_to_gmem(buffer, out.at[piece])


class _Member(NamedTuple):
  """A block whose gradient a program makes, by scalars.

  Attributes:
    index: Among the program's blocks.
    there: Whether the table of entries has it: programs are of one size.
    used: Whether a row has it.
    slot: Which block it is.
    row: Its row of blocks, or pair of rows of small ones.
    column: Its column of blocks.
    source: The index of the first member of that row, which loads inputs.
  """

  index: jax.Array
  there: jax.Array
  used: jax.Array
  slot: jax.Array
  row: jax.Array
  column: jax.Array
  source: jax.Array


class _Share(NamedTuple):
  """The sizes of a program's part of `sample`.

  Attributes:
    members: How many blocks.
    side: Of a block.
    stages: Of the ring.
    steps: Of the batch.
  """

  members: int
  side: int
  stages: int
  steps: int

  @property
  def width(self) -> int:
    """Inputs that are loaded for a block: 64 at least, for tensor cores."""
    return max(self.side, _WARPGROUP)

  @property
  def tasks(self) -> int:
    """Products of a warpgroup, of 64 inputs each."""
    return self.members * self.width // _WARPGROUP // 2

  def task(
    self, members: list[_Member], warpgroup: jax.Array, i: int
  ) -> tuple[_Member, jax.Array]:
    """Finds the block, and the first input in it, of a warpgroup's product."""
    parts = self.width // _WARPGROUP
    one, other = (members[(w * self.tasks + i) // parts] for w in (0, 1))
    chosen = [
      lax.select(warpgroup == 0, *p) for p in zip(one, other, strict=True)
    ]
    part = lax.rem(warpgroup * self.tasks + i, parts) * _WARPGROUP
    return _Member(*chosen), pl.multiple_of(part, _WARPGROUP)


def sample(
  x: jax.Array,
  g: jax.Array,
  inputs: jax.Array,
  rows: Columns,
  slots: jax.Array,
  side: int,
  dtype: jnp.dtype,
  *,
  tiling: Tile | None = None,
  interpret: Any = False,
) -> jax.Array:
  """Computes the blocks of x^T g at the entries of a block-sparse matrix.

  Args:
    x: float16 or bfloat16 [batch, in].
    g: [batch, out], of that dtype.
    inputs: int32[n], the row of blocks of each block.
    rows: The blocks of each row, as `Columns` of the matrix transposed.
    slots: int32[n]: which block each entry of `rows` is.
    side: Of a block.
    dtype: Of the result.
    tiling: Blocks of a program and stages; of `tiles.TILES` by default.
    interpret: Pallas's parameters of its interpreter of GPUs.

  Returns:
    [n, side, side] of `dtype`, summed in float32; 0 for a block that no row
    has.
  """
  n, card = inputs.shape[0], devices.card()
  members, stages = tiling or tile(card.name if card else "", "weight", side)
  if tiling is None:
    least = max(1, 2 * _WARPGROUP // max(side, _WARPGROUP))
    cores = card.cores if card else devices.CORES
    while members > least and 2 * pl.cdiv(n, members) < cores:
      members //= 2
  x, g = _padded(x), _padded(g)
  share = _Share(members, side, stages, pl.cdiv(x.shape[0], DEPTH))
  run = _launch(
    lambda *arrays: _sample(share, *arrays),
    jax.ShapeDtypeStruct((n * side, side), dtype),
    pl.cdiv(n, members),
    interpret,
  )
  out = run(x, g, inputs, rows.pointers, rows.inputs, slots)
  return out.reshape(n, side, side)


def _members(share, inputs, pointers, outputs, slots):
  """Finds the blocks of a program in the tables."""
  n, used = inputs.shape[0], pointers[pointers.shape[0] - 1]
  first = lax.axis_index("program") * share.members
  members = []
  for k in range(share.members):
    entry = jnp.minimum(first + k, n - 1)
    # What no row has are the last blocks.
    slot = lax.select(entry < used, slots[entry], entry)
    row = lax.div(inputs[slot] * share.side, share.width)
    source = index = jnp.int32(k)
    if members:  # Entries go by rows.
      same = row == members[-1].row
      source = lax.select(same, members[-1].source, index)
    members.append(
      _Member(
        *(index, first + k < n, entry < used, slot, row),
        *(outputs[entry], source),
      )
    )
  return members


def _sample(share, x, g, inputs, pointers, outputs, slots, out):
  """Runs a program of `sample`, on arrays in the GPU's memory."""
  side, width, stages = share.side, share.width, share.stages
  members = _members(share, inputs, pointers, outputs, slots)
  steps = jnp.where(members[0].used, share.steps, 0)

  def scope(xs, gs, outs, filled, freed):
    ring = _Ring(filled, freed, stages)

    def load():
      def copy(step, _):
        at = ring.claim(step)
        barrier = filled.at[at]
        batch = pl.ds(step * DEPTH, DEPTH)
        for k, member in enumerate(members):
          of_x = x.at[batch, pl.ds(member.row * width, width)]
          of_g = g.at[batch, pl.ds(member.column * side, side)]
          plgpu.copy_gmem_to_smem(of_g, gs.at[at, k], barrier)
          lax.cond(
            member.source == k,
            functools.partial(
              plgpu.copy_gmem_to_smem, of_x, xs.at[at, k], barrier
            ),
            functools.partial(plgpu.barrier_arrive, barrier),
          )
        return ()

      lax.fori_loop(0, steps, copy, ())
      ring.drain(steps)

    def multiply(warpgroup):
      tasks = [share.task(members, warpgroup, i) for i in range(share.tasks)]

      def totals(*accs):
        def add(at):
          for acc, (member, part) in zip(accs, tasks, strict=True):
            of_x = xs.at[at, member.source]
            if width > _WARPGROUP:
              of_x = of_x.at[:, pl.ds(part, _WARPGROUP)]
            of_x = of_x.transpose((1, 0))
            plgpu.wgmma(acc, of_x, gs.at[at, member.index])

        ring.accumulate(jnp.int32(0), steps, add, share.tasks)
        return [acc[...] for acc in accs]

      acc = plgpu.ACC((_WARPGROUP, side), jnp.float32)
      found = pl.run_scoped(totals, *[acc] * share.tasks)
      for total, (member, part) in zip(found, tasks, strict=True):
        used = jnp.broadcast_to(member.used, total.shape)
        total = jnp.where(used, total, 0.0).astype(out.dtype)
        _write_block(total, outs.at[warpgroup], member, part, inputs, out)
      plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    _share_out(load, multiply)

  narrow = min(side, _WARPGROUP)
  pl.run_scoped(
    scope,
    _buffer((stages, share.members, DEPTH, width), x.dtype, narrow),
    _buffer((stages, share.members, DEPTH, side), x.dtype, narrow),
    _buffer((2, _WARPGROUP, side), out.dtype, side),
    plgpu.Barrier(num_arrivals=2 * share.members, num_barriers=stages),
    plgpu.Barrier(num_arrivals=2, num_barriers=stages),
    collective_axes="warpgroup",
  )


def _write_block(total, buffer, member, part, inputs, out):
  """Writes the 64 rows of a block from `part` on, or a block of 32."""
  side = total.shape[1]
  height = min(side, _WARPGROUP)
  plgpu.wait_smem_to_gmem(0, wait_read_only=True)
  buffer[...] = total
  plgpu.commit_smem()
  if side < _WARPGROUP:  # One of the two in the pair of rows.
    within = lax.rem(inputs[member.slot] * side, _WARPGROUP)
    buffer = buffer.at[pl.ds(pl.multiple_of(within, height), height)]
  target = out.at[pl.ds(member.slot * side + part, height), :]
  pl.when(member.there)(lambda: plgpu.copy_smem_to_gmem(buffer, target))
