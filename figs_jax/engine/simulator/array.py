"""A weight-stationary array of blocks, clocked: registers, and what moves.

An array has D blocks of input registers down and C columns of MACs across. In
every cycle

  the loader      sends weights towards the shadow registers of the MACs,
  a buffer        collects the next input vector, `bw_in` values per cycle,
  the corner      holds a vector until the next may take its place: its values
                  have been exchanged, the next one is in the buffer, and the
                  results before have left `bw_out` at a time; the first of a
                  fold waits for its weights
  orders, inputs  and weights reach block d of column c d + c hop cycles later,
  MACs            multiply what their block's registers show,
  sums            move down one block as their vector makes room, and leave
                  below the last one.

All of these are registers that one `lax.scan` over cycles updates. But for the
rule below nothing here knows a closed form: how long a GEMM takes is when its
last result has left.
`figs_jax.engine.simulator._simulate` writes programs for it.

Where loads and streams overlap fully, the last vector of all waits for a load
that no fold follows, as the closed forms charge it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from figs_jax.engine.simulator.program import Program, padded, power_of_two

_CHUNK = 256  # cycles per call, so that one compilation serves every length
# Fields of the order that travels with a vector.
_LIVE, _FOLD, _VECTOR, _HELD, _OVER, _ENDED, _LOADS, _UNIT, _LOADING = range(9)


class State(NamedTuple):
  """All registers of the array, its outputs, and what has been counted.

  Attributes:
    cycles: cycles so far.
    fold: the fold in place, or the next one.
    vector: the vector in place.
    held: cycles that it has been there.
    busy: whether there is one.
    waited: cycles of control so far.
    opened: folds that have begun to stream.
    loads: folds whose weights have been loaded.
    unit: rows loaded of the next one.
    left: folds whose results have all left.
    drained: folds that control has closed.
    next_fold: the fold of the vector in the buffer.
    next_vector: that vector.
    filled: values of it that are there.
    credit: results that have left since the last vector moved on.
    buffer: (R,) the next vector.
    skew: (delays, R) vectors on their way to lower blocks.
    line: (delays, R) values on their way to further columns.
    orders: (delays, 9) what the corner has ordered in the cycles before.
    values: (R, C) input registers.
    shadow: (P, C) the next weights.
    active: (P, C) the weights.
    products: (P, C) behind the multipliers.
    partial: (Q, C) sums of the vector in place.
    sums: (Q, C) sums that move down.
    out: (outputs, M, C, S) results.
    ifmap_reads: words read.
    filter_reads: words read.
    ofmap_writes: words written.
  """

  cycles: Any
  fold: Any
  vector: Any
  held: Any
  busy: Any
  waited: Any
  opened: Any
  loads: Any
  unit: Any
  left: Any
  drained: Any
  next_fold: Any
  next_vector: Any
  filled: Any
  credit: Any
  buffer: Any
  skew: Any
  line: Any
  orders: Any
  values: Any
  shadow: Any
  active: Any
  products: Any
  partial: Any
  sums: Any
  out: Any
  ifmap_reads: Any
  filter_reads: Any
  ofmap_writes: Any


def run(program: Program) -> State:
  """Clocks the array until its last result has left.

  Args:
    program: NumPy arrays; integers, but for the data.

  Returns:
    The last state, on the host. Data are int64 or float64.
  """
  program = padded(program)
  with jax.enable_x64(True):
    program = jax.tree.map(jnp.asarray, program)
    state = _initial(program)
    while int(state.drained) < int(program.folds):
      state = _cycles(program, state)
    return jax.device_get(state)


@jax.jit
def _cycles(program: Program, state: State) -> State:
  def step(state, _):
    return _clock(program, state), None

  return lax.scan(step, state, None, length=_CHUNK)[0]


def _initial(p: Program) -> State:
  P, C = p.weights.shape[1:]
  R, Q = p.row_block.size, p.sum_block.size
  reach = int(p.edge + p.stage + p.blocks + (C - 1) * p.hop + p.finish)
  delays = power_of_two(reach + 1)

  def zeros(*shape):
    return jnp.zeros(shape, p.x.dtype)

  scalars = (jnp.zeros((), jnp.int64) for _ in State._fields)
  state = State(*scalars)
  return state._replace(
    busy=jnp.zeros((), bool),
    filled=p.inputs,
    buffer=p.x[p.down[0], p.first[0]],
    ifmap_reads=p.real[p.down[0]].sum(),
    skew=zeros(delays, R),
    line=zeros(delays, R),
    orders=jnp.zeros((delays, 9), jnp.int64),
    values=zeros(R, C),
    shadow=zeros(P, C),
    active=zeros(P, C),
    products=zeros(P, C),
    partial=zeros(Q, C),
    sums=zeros(Q, C),
    out=zeros(len(p.output), p.x.shape[1], C, p.bottom.size),
  )


def _clock(p: Program, s: State) -> State:
  """One cycle."""
  running = (s.drained < p.folds).astype(jnp.int64)
  s = s._replace(cycles=s.cycles + running)
  s, fresh = _take(p, s)
  skew = _shifted(s.skew, s.buffer)
  s = _decide(p, _fetch(p, s, fresh), fresh)
  s = _move_inputs(p, s._replace(skew=skew))
  s, products = _multiply(p, s)
  return _add(p, _leave(p, s), products)


def _take(p: Program, s: State) -> tuple[State, Any]:
  """Whether block 0 of column 0 takes the vector in the buffer."""
  full = p.overlap == 2
  ready = ~s.busy & (s.fold < p.folds) & (s.loads > s.fold)
  ready &= (s.filled >= p.inputs) & (s.left >= p.after[s.fold])
  ready &= full | (s.drained >= s.fold)
  # Control takes its cycles where the array was empty.
  begins = ready & ((full & (s.fold > 0)) | (s.waited >= p.begin))
  busy = s.busy | begins
  fresh = busy & (s.held == 0)
  return s._replace(
    busy=busy,
    waited=jnp.where(ready & ~begins, s.waited + 1, 0),
    opened=jnp.where(fresh & (s.vector == 0), s.fold + 1, s.opened),
  ), fresh


def _fetch(p: Program, s: State, fresh: Any) -> State:
  """Values of the next vector enter the buffer."""
  vector = s.next_vector + fresh.astype(jnp.int64)
  wraps = vector >= p.vectors[s.next_fold]
  vector = jnp.where(wraps, 0, vector)
  fold = s.next_fold + wraps.astype(jnp.int64)
  start = jnp.where(fresh, 0, s.filled)
  filled = jnp.minimum(start + p.bw_in, p.inputs)
  row = jnp.arange(p.row_block.size)
  enters = (row >= start) & (row < filled)
  values = p.x[p.down[fold], p.first[fold] + vector]
  reads = enters & p.real[p.down[fold]] & (fold < p.folds)
  return s._replace(
    next_fold=fold,
    next_vector=vector,
    filled=filled,
    buffer=jnp.where(enters, values, s.buffer),
    ifmap_reads=s.ifmap_reads + reads.sum(),
  )


def _decide(p: Program, s: State, fresh: Any) -> State:
  """Loads weights, and lets the vector in place go if the next may follow."""
  full = p.overlap == 2
  free = jnp.where(p.overlap == 0, s.drained, s.opened) >= s.loads
  loading = free & (s.loads < p.folds + full.astype(jnp.int64))
  unit = jnp.where(loading, s.unit + p.width, s.unit)
  loaded = unit >= p.units
  loads = s.loads + loaded.astype(jnp.int64)
  credit = jnp.where(fresh, 0, s.credit) + p.bw_out
  credit = jnp.minimum(credit, p.results)
  over = s.busy & (s.held + 1 >= p.kappa[s.fold])
  over &= (s.filled >= p.inputs) & (credit >= p.results)
  last = s.vector + 1 >= p.vectors[s.fold]
  # After the last fold, the load that the closed forms charge.
  over &= ~(full & last & (s.fold + 1 >= p.folds) & (loads <= p.folds))
  ended = over & last
  order = (s.busy, s.fold, s.vector, s.held, over, ended, s.loads, s.unit)
  order = jnp.stack([jnp.asarray(x, jnp.int64) for x in (*order, loading)])
  return s._replace(
    fold=s.fold + ended.astype(jnp.int64),
    vector=jnp.where(ended, 0, s.vector + over.astype(jnp.int64)),
    held=jnp.where(over | ~s.busy, 0, s.held + 1),
    busy=s.busy & ~ended,
    loads=loads,
    unit=jnp.where(loaded, 0, unit),
    credit=credit,
    orders=_shifted(s.orders, order),
  )


def _local(p: Program, s: State, late: Any, block: Any) -> Any:
  """The orders that arrive at blocks, (blocks, C, 9), so many cycles late."""
  column = jnp.arange(s.values.shape[1])
  return s.orders[p.edge + late + block[:, None] + column[None] * p.hop]


def _move_inputs(p: Program, s: State) -> State:
  """Values hop on; registers take new ones, or exchange what they hold."""
  rows, column = jnp.arange(p.row_block.size), jnp.arange(s.values.shape[1])
  entering = s.skew[p.edge + p.row_block, rows]
  line = _shifted(s.line, entering)
  arriving = line[column[None] * p.hop, rows[:, None]]
  order = _local(p, s, 0, p.row_block)
  live, held = order[..., _LIVE] > 0, order[..., _HELD]
  values = jnp.where(live & (held == 0), arriving, s.values)
  weight = p.weight[order[..., _FOLD]]
  step = jnp.minimum(held, p.swaps.shape[1] - 1)
  source = p.swaps[weight, step, rows[:, None], column[None]]
  swapped = live & (held < p.kappa[order[..., _FOLD]])
  source = jnp.where(swapped, source, rows[:, None])
  values = jnp.take_along_axis(values, source, axis=0)
  return s._replace(line=line, values=values)


def _multiply(p: Program, s: State) -> tuple[State, Any]:
  """What MACs multiply; the products that reach the adders."""
  order = _local(p, s, 0, p.mac_block)
  live, held = order[..., _LIVE] > 0, order[..., _HELD]
  opens = live & (held == 0) & (order[..., _VECTOR] == 0)
  active = jnp.where(opens, s.shadow, s.active)
  mac = jnp.arange(p.mac_block.size)[:, None]
  column = jnp.arange(s.values.shape[1])[None]
  at = p.weight[order[..., _FOLD]], mac, column
  operand = jnp.take_along_axis(s.values, p.reads[at], axis=0)
  products = active * operand
  products = jnp.where(live & (p.when[at] == held), products, 0)

  row, first = p.mac_unit[:, None], order[..., _UNIT]
  enters = (order[..., _LOADING] > 0) & (row >= first) & (row < first + p.width)
  enters &= order[..., _LOADS] < p.folds
  at = p.weight[order[..., _LOADS]], mac, column
  return s._replace(
    active=active,
    shadow=jnp.where(enters, p.weights[at], s.shadow),
    products=products,
    filter_reads=s.filter_reads + (enters & p.stored[at]).sum(),
  ), jnp.where(p.stage > 0, s.products, products)


def _leave(p: Program, s: State) -> State:
  """Sums that have reached the bottom leave."""
  bottom = p.stage + p.blocks
  order = _local(p, s, bottom, jnp.zeros((1,), jnp.int64))[0]
  over, fold = order[..., _OVER] > 0, order[..., _FOLD]
  across, row = p.across[fold], p.first[fold] + order[..., _VECTOR]
  column = jnp.arange(s.values.shape[1])
  values = jnp.where(over[:, None], s.sums[p.bottom].T, 0)
  reach = p.edge + bottom + (s.values.shape[1] - 1) * p.hop
  return s._replace(
    out=s.out.at[across, row, column].add(values),
    ofmap_writes=s.ofmap_writes
    + (over[:, None] & p.output[across, column]).sum(),
    left=s.left + s.orders[reach, _ENDED],
    drained=s.drained + s.orders[reach + p.finish, _ENDED],
  )


def _add(p: Program, s: State, products: Any) -> State:
  """Sums grow, and move down where their vector makes room."""
  order = _local(p, s, p.stage, p.sum_block)
  kept = jnp.where(order[..., _HELD] == 0, 0, s.partial)
  partial = kept + jax.ops.segment_sum(
    products, p.mac_sum, num_segments=p.sum_block.size
  )
  above = jnp.where(p.sum_above[:, None] < 0, 0, s.sums[p.sum_above])
  sums = jnp.where(order[..., _OVER] > 0, above + partial, s.sums)
  return s._replace(partial=partial, sums=sums)


def _shifted(line: Any, value: Any) -> Any:
  """A delay line one cycle later; entry i is what entered i cycles ago."""
  return jnp.concatenate([value[None], line[:-1]])
