"""How a training step is spread over devices, and what a device keeps."""

from __future__ import annotations

import dataclasses
from numbers import Integral, Real
from typing import Any

from figs_jax.engine.chips import DTYPES
from figs_jax.engine.spec import nearest
from figs_jax.engine.studies.cluster.network import check_fields

# Share of the roofline that dense products reach: the median of eleven calls of
# 3,072 rows and more on an A100 (PyTorch issues 90119 and 96147).
MEASURED_EFFICIENCY = 0.71
# Which activations the backward pass computes again, none to all.
RECOMPUTE = ("none", "selective", "full")


@dataclasses.dataclass(frozen=True)
class Parallel:
  """How a step is spread: data x tensor x pipeline devices.

  Attributes:
    data: Replicas, each with its share of the batch.
    tensor: Devices that share every block.
    pipeline: Stages of whole blocks.
    microbatches: Parts of a replica's batch, one after the other.
    overlap: Whether the exchange of gradients and weights between replicas
      hides behind the compute that it does not wait for.
    interleave: Chunks of blocks per stage (virtual stages, arXiv 2104.04473).
    zero: Stage of ZeRO (arXiv 1910.02054): replicas share optimizer states (1),
      gradients too (2), weights too (3).
    recompute: Activations that the backward pass computes again: "none",
      "selective" (attention's products) or "full" (whole blocks).
    sequence: Whether the tensor group shares the rest of a block's activations
      along the sequence (arXiv 2205.05198).

  Raises:
    ValueError: If a number is not a positive integer, `zero` not from 0 to 3,
      `recompute` unknown, or `overlap` or `sequence` not a bool.
  """

  data: int = 1
  tensor: int = 1
  pipeline: int = 1
  microbatches: int = 1
  overlap: bool = False
  interleave: int = 1
  zero: int = 0
  recompute: str = "none"
  sequence: bool = False

  def __post_init__(self):
    numbers = ("data", "tensor", "pipeline", "microbatches", "interleave")
    check_fields(self, Integral, *numbers)
    check_fields(self, Integral, "zero", zero=True)
    if self.zero > 3:
      raise ValueError(f"Parallel zero: expected 0 to 3, got {self.zero}")
    if self.recompute not in RECOMPUTE:
      raise ValueError(
        f"Parallel recompute: unknown {self.recompute!r},"
        f" {nearest(self.recompute, RECOMPUTE)}"
      )
    check_bools(self, "overlap", "sequence")

  @property
  def devices(self) -> int:
    """Number of devices."""
    return self.data * self.tensor * self.pipeline


@dataclasses.dataclass(frozen=True)
class BytesPerValue:
  """Bytes that a device keeps per value: 16-bit training with Adam.

  Attributes:
    value: Bytes of a weight or an activation in use.
    gradient: Bytes of a gradient.
    states: Bytes of a weight's optimizer state: a 32-bit copy and two moments.
    mask: Bytes of a masked weight's entry in its mask; JAX takes one for a
      bool.

  Raises:
    ValueError: If a number is not an integer from 1 (`states` and `mask`: from
      0).
  """

  value: int = 2
  gradient: int = 2
  states: int = 12
  mask: int = 1

  def __post_init__(self):
    check_fields(self, Integral, "value", "gradient")
    check_fields(self, Integral, "states", "mask", zero=True)


@dataclasses.dataclass(frozen=True)
class Assumptions:
  """What the figures assume of kernels and model.

  Attributes:
    efficiency: Share of the engine's own rate that products of matrices reach,
      above 0 and up to 1.
    fused_attention: Whether attention's logits stay on chip (FLAT,
      FlashAttention): neither stored nor moved, and computed again in the
      backward pass.
    dropout: Whether blocks have dropout, whose masks are stored.
    packed: Whether sparse layers keep the values in use as N:M values and
      indices instead of a dense copy beside a mask.
    embedding: Weights of tables that no product reads, on the first stage.
    dtype: Data type of the operands of products, one of
      `figs_jax.engine.chips.DTYPES`; "" goes by the bytes of a value.

  Raises:
    ValueError: If `efficiency` is out of range, `embedding` is negative,
      `dtype` is unknown, or another field is not a bool.
  """

  efficiency: float | int = 1.0
  fused_attention: bool = False
  dropout: bool = True
  packed: bool = False
  embedding: int = 0
  dtype: str = ""

  def __post_init__(self):
    check_fields(self, Real, "efficiency")
    if self.efficiency > 1:
      raise ValueError(
        "Assumptions efficiency: expected a share from 0 to 1, got"
        f" {self.efficiency!r}"
      )
    check_fields(self, Integral, "embedding", zero=True)
    check_bools(self, "fused_attention", "dropout", "packed")
    if self.dtype not in ("", *DTYPES):
      raise ValueError(
        f"Assumptions dtype: unknown {self.dtype!r},"
        f" {nearest(self.dtype, DTYPES)}"
      )


def check_bools(owner: Any, *names: str) -> None:
  """Raises ValueError for a field that is not a bool."""
  for name in names:
    value = getattr(owner, name)
    if not isinstance(value, bool):
      raise ValueError(
        f"{type(owner).__name__} {name}: expected True or False, got {value!r}"
      )
