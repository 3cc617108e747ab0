"""Collectives are read from each form that XLA writes groups in."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from figs_jax.train.collectives import collectives
from figs_jax.train.sharding import make_mesh

MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def line(groups, kind="all-gather", result="f32[8,4]{1,0}"):
  head = "ENTRY %m (a: f32[2]) -> f32[2] {"
  return f"{head}\n  %x = {result} {kind}(%a), {groups}\n}}"


@pytest.mark.parametrize(
  ("groups", "axis"),
  [
    ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", "tensor"),
    ("replica_groups={{0,2},{1,3},{4,6},{5,7}}, dimensions={0}", "fsdp"),
    ("replica_groups={}", "data+fsdp+tensor"),
    ("replica_groups=[2,4]<=[8]", "fsdp+tensor"),
    ("replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}", "data"),
    ("replica_groups=[4,2]<=[2,2,2]T(0,2,1)", "fsdp"),
    ("replica_groups=mesh['a'=4,'b'=2] {'b'}", "tensor"),
    ("replica_groups=mesh['a'=4,'b'=2] {'a'}", "data+fsdp"),
    ("replica_groups=mesh['a'=4,'b'=2] {'a':(2)2}", "fsdp"),
    (
      "replica_groups=mesh['a'=1,'b'=2,'c'=4], device_ids=([2,2,2]T(1,0,2))"
      " {'b'}",
      "fsdp",
    ),
    ("source_target_pairs={{0,4},{4,0},{1,1}}", "data"),
    ("replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}", "none"),
  ],
)
def test_axis_of_groups(groups, axis):
  (one,) = collectives(line(groups), MESH)
  assert (one.axis, one.bytes, one.count) == (axis, 128, 1)


def test_unknown_groups_are_refused():
  with pytest.raises(ValueError, match="expected groups of devices"):
    collectives(line("replica_groups=?"), MESH)


def test_bytes_by_kind():
  groups = "replica_groups=[4,2]<=[8]"
  (one,) = collectives(line(groups, "reduce-scatter"), MESH)
  assert one.bytes == 256  # the operand, of which the result is a half
  both = "(bf16[8,4]{1,0}, pred[3]{0})"
  (one,) = collectives(line(groups, "all-reduce", both), MESH)
  assert one.bytes == 64 + 3
  started = "(f32[4]{0}, f32[8]{0})"
  (one,) = collectives(line(groups, "all-gather-start", started), MESH)
  assert (one.kind, one.bytes) == ("all-gather", 32)


def test_a_scatter_of_a_tpu():
  text = """
%all-reduce-scatter.3 (input: f32[16,4]) -> f32[8,4] {
  %input = f32[16,4]{1,0:T(8,128)S(1)} parameter(0)
  %r = f32[16,4]{1,0:T(8,128)} all-reduce(%input), replica_groups={{0,4},{1,5}}
}

ENTRY %main (a: f32[16,4]) -> f32[8,4] {
  ROOT %f = f32[8,4] fusion(%a), kind=kCustom, calls=%all-reduce-scatter.3
}"""
  (one,) = collectives(text, MESH)
  assert (one.kind, one.axis, one.bytes) == ("reduce-scatter", "data", 256)


def test_an_asynchronous_gather_of_a_tpu():
  """XLA repeats it in each fusion that it runs beside."""
  attributes = (
    "channel_id=8, replica_groups=[4,2]<=[8], dimensions={0},"
    ' frontend_attributes={chain_id="0"}'
  )
  gather = f"  %g = f32[8,4]{{1,0}} all-gather(%p), {attributes}"
  names = ("start", "beside", "done")
  text = "\n".join(
    f"%{name} (p: f32[4,4]) -> f32[8,4] {{\n{gather}\n}}\n" for name in names
  )
  calls = "\n".join(
    f"  %{x}.1 = f32[8,4] fusion(%a), kind=kCustom, calls=%{x}" for x in names
  )
  entry = f"ENTRY %main (a: f32[4,4]) -> f32[8,4] {{\n{calls}\n}}"
  (one,) = collectives(text + entry, MESH)
  assert (one.axis, one.bytes, one.count) == ("tensor", 128, 1)
  others = text.replace('chain_id="0"', "").replace(
    "channel_id=8", "channel_id=9"
  )
  assert len(collectives(others + entry, MESH)) == 3


# A loop as XLA for TPUs writes it: no known_trip_count, a counter that is
# copied, and a step that the loop hands on from outside of it.
LOOP = """
%body (p: (s32[], f32[8,4], s32[])) -> (s32[], f32[8,4], s32[]) {
  %p = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}, s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %step = s32[]{:T(128)} get-tuple-element(%p), index=2
  %j = s32[]{:T(128)S(6)} copy(%i)
  %next = s32[]{:T(128)} add(%j, %step), metadata={op_name="while/body/add"}
  %x = f32[8,4]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %g = f32[8,4]{1,0:T(8,128)} all-reduce(%x), replica_groups=[4,2]<=[8]
  ROOT %t = (s32[], f32[8,4], /*index=2*/s32[]) tuple(%next, %g, %step)
}

%test (q: (s32[], f32[8,4], s32[])) -> pred[] {
  %bound = s32[]{:T(128)} constant(12)
  %q = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}, s32[]{:T(128)}) parameter(0)
  %k = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %lt = pred[]{:T(512)} compare(%k, %bound), direction=LT
}

ENTRY %main (a: f32[8,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = s32[]{:T(128)} copy(%zero)
  %one = s32[]{:T(128)} constant(1)
  %init = (s32[], f32[8,4], s32[]) tuple(%start, %a, %one)
  %w = (s32[], f32[8,4], s32[]) while(%init), condition=%test, body=%body
  ROOT %r = f32[8,4]{1,0:T(8,128)} get-tuple-element(%w), index=1
}"""


@pytest.mark.parametrize(
  ("old", "new", "count"),
  [
    ("", "", 12),
    ("%zero = s32[]{:T(128)} constant(0)", "%zero = s32[] constant(4)", 8),
    ("%one = s32[]{:T(128)} constant(1)", "%one = s32[] constant(5)", 3),
    ("direction=LT", "direction=LE", 13),
    (
      "compare(%k, %bound), direction=LT",
      "compare(%bound, %k), direction=GT",
      12,
    ),
    ("add(%j, %step)", "add(%step, %j)", 12),
    ("constant(12)", "constant(-1)", 0),
    ("body=%body", 'body=%body, {"known_trip_count":{"n":"7"}}', 7),
    # A condition on data, a counter that doubles, a step that changes.
    ("direction=LT", "direction=NE", None),
    ("compare(%k, %bound)", "and(%k, %bound)", None),
    ("add(%j, %step)", "multiply(%j, %step)", None),
    ("tuple(%next, %g, %step)", "tuple(%next, %g, %next)", None),
    ("tuple(%start, %a, %one)", "tuple(%a, %a, %one)", None),
  ],
  ids=str,
)
def test_a_loop_of_a_tpu(old, new, count):
  assert old in LOOP
  each = collectives(LOOP.replace(old, new) if old else LOOP, MESH)
  if count == 0:
    assert not each
    return
  (one,) = each
  assert one.counted_once == (count is None)
  assert (one.count, one.total) == (count or 1, (count or 1) * 128)


def test_a_compiled_loop():
  """Five products whose contracted axis is split over tensor."""
  mesh = make_mesh(2, 2, 2)

  def program(kernels, x):
    body = lambda x, kernel: (jnp.tanh(x @ kernel), None)  # noqa: E731
    return jax.lax.scan(body, x, kernels)[0]

  kernels = jax.ShapeDtypeStruct(
    (5, 16, 16), jnp.float32, sharding=NamedSharding(mesh, P(None, "tensor"))
  )
  x = jax.ShapeDtypeStruct(
    (8, 16), jnp.float32, sharding=NamedSharding(mesh, P(("data", "fsdp")))
  )
  out = NamedSharding(mesh, P(("data", "fsdp")))
  text = jax.jit(program, out_shardings=out).lower(kernels, x).compile()
  each = collectives(text.as_text(), dict(mesh.shape))
  sums = [one for one in each if one.kind == "all-reduce"]
  assert [(one.axis, one.count) for one in sums] == [("tensor", 5)]
  assert sums[0].bytes == 2 * 16 * 4  # [8 / 4, 16] in float32
  assert sums[0].total == 5 * sums[0].bytes
  assert "dot_general" in sums[0].operation
