"""The time beside a model's products: norms, softmax, activations, embeddings.

A pass moves its operands and its result once, and arithmetic hides behind:

  cycles = max(ceil(bytes / bandwidth), ceil(values / stream width))        (1)

An engine whose memory has no limit still takes values at its input ports. In
this model no pass is fused with a product or another pass, as where each is a
kernel of its own; a model with everything fused takes the time of its products
alone. A compiler's fusion lies between.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from figs_jax.engine.int64 import INT64_MAX, ceil_div
from figs_jax.engine.layers import NonGemm
from figs_jax.engine.spec import UNLIMITED, Engine


def non_gemm_cycles(
  passes: Sequence[NonGemm], engine: Engine, itemsize: int | Fraction = 2
) -> np.ndarray:
  """Cycles of each pass (1), count included: int64, (..., passes).

  Args:
    passes: Passes beside the products, as from `figs_jax.models.non_gemms_of`.
    engine: Engine; its fields may be arrays (..., 1), which describe several.
    itemsize: Bytes per value.

  Raises:
    ValueError: If the bytes of all passes do not fit int64.

  >>> from figs_jax.engine.spec_text import parse
  >>> norm = NonGemm("norm", "norm", reads=1000, writes=1000, count=3)
  >>> specs = "ws", "ws:dram_bw=4"
  >>> [int(non_gemm_cycles([norm], parse(x)).sum()) for x in specs]
  [189, 3000]
  """
  total = sum(itemsize * (x.reads + x.writes) * x.count for x in passes)
  if total > INT64_MAX:
    raise ValueError(
      f"non-GEMM passes: {total:,} bytes do not fit int64; use a smaller batch"
    )
  values = np.array([x.reads + x.writes for x in passes], np.int64)
  counts = np.array([x.count for x in passes], np.int64)
  memory = np.asarray(engine.memory_bandwidth)
  # An unlimited memory takes no time at all, not a cycle per pass.
  size, unit = Fraction(itemsize).as_integer_ratio()
  moved = ceil_div(size * values, memory * unit) * (memory < UNLIMITED)
  return np.maximum(moved, ceil_div(values, engine.stream_values)) * counts
