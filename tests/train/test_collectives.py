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
