"""How to spread a training step over a cluster: time, memory and cost.

  python launch/cluster.py --model gpt:width=25600,layers=128,heads=160
    --seq 2048 --batch 1024 --devices 1024 --chip h100
  python launch/cluster.py --model vit:L/16 --pattern "ff: 2:4" --batch 4096
    --devices 64,128,...,512 --chip a100 --format png --out cluster.png
  python launch/cluster.py --model gpt:width=12288,layers=96,heads=96
    --batch 1536 --devices 256 --chip h100 --memory 40 --tier_memory 512
    --tier_bandwidth 64 --where "tensor<=8; zero<=1"

Every way of data, tensor, pipeline and sequence parallelism that divides the
model and the batch, with ZeRO, recomputation and interleaving, is put through
the model. Standard output holds the report and nothing else.
"""

import io
import logging
import os
import textwrap
from typing import Any

from absl import flags

# The closed forms are small: no accelerator is taken for them unasked.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from figs_jax import cli

_MODEL = flags.DEFINE_string(
  "model",
  None,
  "Decoder by its sizes, as in gpt:width=25600,layers=128,heads=160 (and ffn,"
  " kv_heads, gated, vocab), or model by name, as in vit:B/16.",
)
_SEQ = flags.DEFINE_integer(
  "seq", None, "Tokens of a sequence; 2048 for gpt:, else the model's own.",
  lower_bound=1, upper_bound=2**30,
)  # fmt: skip
_BATCH = flags.DEFINE_integer(
  "batch", None, "Sequences or images of a step of the whole cluster.",
  lower_bound=1, upper_bound=2**30,
)  # fmt: skip
_PATTERN = flags.DEFINE_string(
  "pattern", None, 'Rules, as in "ff: 2:4", or one n:m for every kernel.'
)
_TRANSPOSABLE = flags.DEFINE_bool(
  "transposable",
  False,
  "Masks are N:M along both axes, so that input gradients run sparse too.",
)
_DEVICES = flags.DEFINE_string(
  "devices", None, "Number of devices, or several, as in 256,512,...,2048."
)
_CHIP = flags.DEFINE_string(
  "chip",
  None,
  "Chip by name, as in h100 or v5p, or the spec of an engine, as in"
  " tensorcore:h100:ideal=true.",
)
_DTYPE = flags.DEFINE_string(
  "dtype",
  "bf16",
  "Data type of the products. Values are kept in 16 bits, in 32 for float32 and"
  " tf32.",
)
_PER_NODE = flags.DEFINE_integer(
  "per_node", None, "Devices of a node or scale-up domain; 8 for most GPUs."
)
_INTRA = flags.DEFINE_float(
  "intra", None, "GB/s that a device sends within its node; the chip's."
)
_INTER = flags.DEFINE_float(
  "inter", None, "GB/s that a device sends to other nodes; the chip's."
)
_MEMORY = flags.DEFINE_float("memory", None, "GB of a device; the chip's.")
_TIER_MEMORY = flags.DEFINE_float(
  "tier_memory", 0.0, "GB of a device's expansion tier, such as CXL memory."
)
_TIER_BANDWIDTH = flags.DEFINE_float(
  "tier_bandwidth", 64.0, "GB/s between a device and its tier."
)
_TIERED = flags.DEFINE_list(
  "tiered",
  ["optimizer", "activations", "gradients", "weights"],
  "States that may move to the tier.",
)
_PRICE = flags.DEFINE_float(
  "price", 1.0, "Price of a device-hour; 1 counts device-hours."
)
_EFFICIENCY = flags.DEFINE_float(
  "efficiency",
  None,
  "Share of the engine's rate that products reach. By default 1 on tensor"
  " cores, whose rates are measured, and for a spec; 0.71 on other chips.",
)
_OVERLAP = flags.DEFINE_bool(
  "overlap", True, "Replicas' exchange hides behind compute where it can."
)
_FUSED = flags.DEFINE_bool(
  "fused_attention", False, "Logits stay on chip, as in FlashAttention."
)
_DROPOUT = flags.DEFINE_bool(
  "dropout", True, "Blocks have dropout, whose masks are stored."
)
_PACKED = flags.DEFINE_bool(
  "packed", False, "Sparse weights in use are kept as values and indices."
)
_GRADIENT_BYTES = flags.DEFINE_enum(
  "gradient_bytes", "2", ["2", "4"], "Bytes of a gradient."
)
_WHERE = flags.DEFINE_string(
  "where",
  None,
  "Conditions on the placements, as in 'tensor<=8; zero==1; recompute<2'"
  " (recompute: 0 none, 1 selective, 2 full).",
)
_TOP = flags.DEFINE_integer(
  "top", 10, "Number of the fastest placements that are listed.", lower_bound=1
)
_FORMAT = flags.DEFINE_enum(
  "format", "table", ["table", "csv", "json", "md", "png"], "What is printed."
)
_OUT = flags.DEFINE_string(
  "out", None, "File to write in place of standard output."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace --out.")


def main() -> None:
  cli.quiet()
  _check_flags()
  from figs_jax.cli import clusters
  from figs_jax.engine import estimate_all
  from figs_jax.engine.studies.cluster.of_chips import cluster_of, engine_of

  try:
    devices = _devices()
    work = clusters.workload(
      str(_MODEL.value),
      _PATTERN.value,
      seq=_SEQ.value,
      transposable=_TRANSPOSABLE.value,
    )
    engine, efficiency = engine_of(str(_CHIP.value))
    cluster = cluster_of(
      engine,
      devices[0],
      per_node=_PER_NODE.value,
      intra=_INTRA.value,
      inter=_INTER.value,
      memory=_bytes(_MEMORY.value),
      tier_memory=_bytes(_TIER_MEMORY.value),
      tier_bandwidth=_TIER_BANDWIDTH.value,
      price=_PRICE.value,
    )
    batch: int = _BATCH.value or 0
    made = estimate_all(
      work.phase_at, engine, cluster, batch, devices=devices,
      overlap=_OVERLAP.value, where=_WHERE.value, tiered=_TIERED.value,
      **_settings(work, efficiency),
    )  # fmt: skip
    if not made.fits.any():
      cli.fail(clusters.shortfall(made, cluster))
    if _FORMAT.value == "png":
      data = _picture(made, cluster, work, batch)
    else:
      text = clusters.report(
        made, work, engine, cluster, batch, _FORMAT.value, _TOP.value
      )
      data = f"{text}\n".encode()
  except ValueError as error:
    cli.fail(str(error))
  if _OUT.value:
    cli.write_output(_OUT.value, data, overwrite=_OVERWRITE.value)
  else:
    cli.emit(data)
  logging.getLogger("figs_jax").info(
    f"Tried {len(made):,} placements, {int(made.fits.sum()):,} fit."
  )


def _check_flags() -> None:
  for flag in (_MODEL, _BATCH, _DEVICES, _CHIP):
    if flag.value in (None, ""):
      cli.fail(f"--{flag.name} is missing; see --help")
  if _TRANSPOSABLE.value and not _PATTERN.value:
    cli.fail("--transposable goes with --pattern; add one")
  if _PACKED.value and not _PATTERN.value:
    cli.fail("--packed goes with --pattern; add one")
  if _FORMAT.value == "png" and not _OUT.value:
    cli.fail("--format png: add --out FILE.png")
  if _OUT.value:
    cli.check_output(_OUT.value, overwrite=_OVERWRITE.value)


def _devices() -> tuple[int, ...]:
  from figs_jax.engine.sweeps.text import read_values

  values = read_values("devices", str(_DEVICES.value))
  for value in values:
    if not isinstance(value, int) or not 0 < value <= 2**24:
      raise ValueError(
        f"--devices: expected integers from 1 to {2**24:,}, got {value!r}"
      )
  return values


def _bytes(gigabytes: float | None) -> int | None:
  return None if gigabytes is None else round(gigabytes * 1e9)


def _settings(work: Any, efficiency: float) -> dict[str, Any]:
  """Bytes per value and assumptions, from the flags."""
  from figs_jax.engine import Assumptions, BytesPerValue

  wide = _DTYPE.value in ("float32", "tf32")
  given = _EFFICIENCY.value
  return {
    "sizes": BytesPerValue(
      value=4 if wide else 2,
      gradient=4 if wide else int(_GRADIENT_BYTES.value),
      states=8 if wide else 12,
    ),
    "assume": Assumptions(
      efficiency=efficiency if given is None else given,
      fused_attention=_FUSED.value,
      dropout=_DROPOUT.value,
      packed=_PACKED.value,
      embedding=work.embedding,
      dtype=_DTYPE.value,
    ),
  }


def _picture(made: Any, cluster: Any, work: Any, batch: int) -> bytes:
  from figs_jax.engine.studies.cluster.plots import placements_figure

  title = f"{work.label}, batch {batch:,}, {_DEVICES.value} x {_CHIP.value}"
  out = io.BytesIO()
  figure = placements_figure(made, cluster.memory, title)
  figure.savefig(out, format="png")
  return out.getvalue()


def columns() -> str:
  from figs_jax.engine.studies.cluster import placements

  names = (*placements.CHOICES, "ns", "memory", "cost", *placements.TIME)
  text = ", ".join((*names, *placements.MEMORY))
  lines = textwrap.wrap(text, 78, initial_indent="  ", subsequent_indent="  ")
  return "\n".join(["COLUMNS of --where", *lines, ""])


if __name__ == "__main__":
  cli.run(main, more_help=columns)
