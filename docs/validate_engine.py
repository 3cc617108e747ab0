"""Renews docs/engine_validation.md: what the engine model claims, beside facts.

    python docs/validate_engine.py

Every row holds a published, measured or stated value, what the model gives for
it now, the error, and how strong the claim is:

  prediction      no parameter of the model was set from the value; if public
                  facts only bound the value, and it lies outside, "missed"
  calibration     one was, so that agreement shows nothing
  bracket         public facts only bound it, and it lies between the bounds
  reconstruction  the engine itself is rebuilt from partial statements
  not reproduced  published, and the model gives no value for it

A test runs this and compares the page, so that it cannot fall behind the code.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from figs_jax.core.pattern import NM
from figs_jax.engine import (
  Area,
  Assumptions,
  BytesPerValue,
  Cluster,
  Decoder,
  Energy,
  Estimate,
  Gemm,
  Parallel,
  Systolic,
  Vegeta,
  cost,
  estimate,
  parse,
  row_covers,
  simulate,
  vegeta,
)
from figs_jax.engine.csr import intensity
from figs_jax.engine.roofline import amdahl
from figs_jax.engine.serving.buffer import best_subgraph
from figs_jax.engine.serving.subgraph import nested_model
from figs_jax.engine.studies import calibration, sparse24
from figs_jax.engine.studies.bandwidth import (
  iso_bandwidth_speedup,
  ledger,
  utilisation_bound,
)
from figs_jax.engine.studies.cluster.parallel import MEASURED_EFFICIENCY
from figs_jax.engine.studies.flat import flat_claims, flat_ideal, frame_claims

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "engine" / "data"
PAGE = ROOT / "docs" / "engine_validation.md"


class Claim(NamedTuple):
  """One row of the page."""

  what: str
  published: str
  model: str
  error: str
  kind: str


def rows_of(name: str) -> list[dict[str, str]]:
  """A file of reference rows."""
  with open(DATA / name) as file:
    return list(csv.DictReader(file))


def table_of(name: str) -> dict[str, np.ndarray]:
  """The columns of a file of reference rows: text, or numbers."""
  rows = rows_of(name)
  columns = {key: np.array([row[key] for row in rows]) for key in rows[0]}
  for key, column in columns.items():
    try:
      columns[key] = column.astype(float)
    except ValueError:
      continue
  return columns


def integers(table: dict[str, np.ndarray], *keys: str) -> list[np.ndarray]:
  return [table[key].astype(np.int64) for key in keys]


def number(value: float) -> str:
  """A number to four significant digits."""
  return f"{value:.4g}"


def against(what: str, published: float, model: float, kind: str) -> Claim:
  """A published number beside the model's, with the relative error."""
  percent = round(100 * (model / published - 1), 1) + 0.0  # no minus zero
  error = f"{percent:+.1f} %"
  return Claim(what, number(published), number(model), error, kind)


def rows_equal(
  what: str, measured: np.ndarray, model: np.ndarray, rtol: float = 0
) -> Claim:
  """A column that should be met exactly, or but for its rounding."""
  measured, model = np.broadcast_arrays(measured, model)
  wrong = int((~np.isclose(measured, model, rtol, 0)).sum())
  met = f"{measured.size - wrong} of {measured.size} equal"
  return Claim(what, f"{measured.size} rows", met, f"{wrong} rows", PREDICTION)


def between(what: str, published: float, low: float, high: float) -> Claim:
  """A number that public facts only bound: a bracket if it lies inside."""
  inside = low <= published <= high
  error, kind = ("inside", BRACKET) if inside else ("missed", PREDICTION)
  model = f"{number(low)} to {number(high)}"
  return Claim(what, number(published), model, error, kind)


PREDICTION, CALIBRATION = "prediction", "calibration"
BRACKET, RECONSTRUCTION = "bracket", "reconstruction"
NOT_REPRODUCED = "not reproduced"


def systolic_arrays() -> list[Claim]:
  table, claims = table_of("scalesim.csv"), []
  for dataflow in ("ws", "is", "os"):
    here = {k: v[table["dataflow"] == dataflow] for k, v in table.items()}
    M, N, K, R, C = integers(here, "M", "N", "K", "R", "C")
    got = Systolic(dataflow, R, C).counts(Gemm(M, N, K))
    claims += reported_by_scalesim(dataflow, here, got, SRAM)
  return [*claims, *look_up_tables()]


# Columns of words: activations, weights, outputs.
SRAM = "ifmap_sram_reads", "filter_sram_reads", "ofmap_sram_writes"
OURS = "ifmap_reads", "filter_reads", "ofmap_writes"


def reported_by_scalesim(
  what: str,
  table: dict[str, np.ndarray],
  got: dict[str, Any],
  columns: Sequence[str],
  activations: np.ndarray | None = None,
) -> list[Claim]:
  """Cycles and words of layers that SCALE-Sim ran in one dataflow.

  `activations` are the tool's own count, where that is not ours.
  """
  reads, note = got["ifmap_reads"], ""
  if activations is not None:
    reads, note = activations, " as the tool counts"
  ifmap, weights, outputs = (table[name] for name in columns)
  added, less = 0, ""
  if what.startswith("os"):
    M, N, R, C = integers(table, "M", "N", "R", "C")
    added = -(-M // R) * -(-N // C) * (R + C)
    less = " less the tool's own R + C per fold"
  return [
    rows_equal(f"{what}: cycles - 1", table["cycles_total"], got["cycles"] - 1),
    rows_equal(f"{what}: ifmap_sram_reads{note}", ifmap, reads, rtol=1e-12),
    rows_equal(f"{what}: filter_sram_reads", weights, got["filter_reads"]),
    rows_equal(
      f"{what}: ofmap_sram_writes{less}", outputs - added, got["ofmap_writes"]
    ),
  ]


def look_up_tables() -> list[Claim]:
  """SCALE-Sim's cycles as LLMCompass keeps them."""
  table, claims = table_of("llmcompass.csv"), []
  for dataflow in ("os", "ws", "is"):
    here = {k: v[table["dataflow"] == dataflow] for k, v in table.items()}
    M, N, K, R, C = integers(here, "M", "N", "K", "R", "C")
    got = Systolic(dataflow, R, C).counts(Gemm(M, N, K))
    what = f"{dataflow}: cycles - 1 in LLMCompass' tables"
    claims.append(rows_equal(what, here["cycles_total"], got["cycles"] - 1))
  return claims


def scalesim_ifmap_reads(
  dataflow: str, M: Any, N: Any, K: Any, C: Any, n: Any, m: Any
) -> np.ndarray:
  """Activations that SCALE-Sim's layer-wise mode counts, float64.

  It gives all outputs the same mask. "is" and "os" then read the kept
  activations; "ws" reads m / n for each of them, without rounding.
  """
  kept = K // m * n + np.minimum(K % m, n)
  return {
    "ws": -(-N // C) * M * kept * m / n,
    "is": M * kept / 1,
    "os": -(-N // C) * M * kept / 1,
  }[dataflow]


def sparse_systolic_arrays() -> list[Claim]:
  table = table_of("scalesim_sparse.csv")
  M, N, K, R, C = integers(table, "M", "N", "K", "R", "C")
  n, m = _patterns(table["NM"])
  got = Systolic("ws", R, C).counts(Gemm(M, N, K, n, m))
  reads, whole = table["ifmap_sram_reads"], K % m == 0
  counted = scalesim_ifmap_reads("ws", M, N, K, C, n, m)
  claims = [
    rows_equal("ws: cycles - 1", table["cycles_total"], got["cycles"] - 1),
    rows_equal(
      "ws: ifmap_sram_reads where m divides K",
      reads[whole],
      got["ifmap_reads"][whole],
    ),
    rows_equal("ws: ifmap_sram_reads as the tool counts", reads, counted),
    rows_equal(
      "ws: filter_sram_reads", table["filter_sram_reads"], got["filter_reads"]
    ),
  ]
  table = table_of("scalesim_ragged.csv")
  for dataflow in ("ws", "is", "os"):
    here = {k: v[table["dataflow"] == dataflow] for k, v in table.items()}
    M, N, K, R, C = integers(here, "M", "N", "K", "R", "C")
    n, m = _patterns(here["pattern"])
    got = Systolic(dataflow, R, C).counts(Gemm(M, N, K, n, m))
    counted = scalesim_ifmap_reads(dataflow, M, N, K, C, n, m)
    claims += reported_by_scalesim(
      f"{dataflow}, any K", here, got, OURS, counted
    )
  return claims


def _patterns(texts: np.ndarray) -> list[np.ndarray]:
  """n and m of a column."""
  patterns = [NM.parse(str(text)) for text in texts]
  return [np.array([getattr(nm, field) for nm in patterns]) for field in "nm"]


def vegeta_rtl() -> list[Claim]:
  table = table_of("vegeta_rtl.csv")
  alpha, K, M, T = integers(table, "ALPHA", "K", "M", "N")
  got = vegeta.tile_cycles(Vegeta(True, alpha, 2, K, M), T)
  mode = got["mode"]
  return [
    rows_equal("WL_cycles", table["WL_cycles"], got["load"]),
    rows_equal("mode_cycles", table["mode_cycles"], mode),
    rows_equal("start_to_end", table["start_to_end"], mode + 2),
  ]


def vegeta_paper() -> list[Claim]:
  modes = {
    "vegeta-d-1-1": 65, "vegeta-d-1-2": 49, "vegeta-s-1-2": 49,
    "vegeta-s-2-2": 41, "vegeta-s-4-2": 37, "vegeta-s-8-2": 35,
    "vegeta-s-16-2": 34,
  }  # fmt: skip
  counted = [int(vegeta.tile_cycles(parse(spec), 16)["mode"]) for spec in modes]
  tiles = [
    {"name": f"{n}:4", "M": 16, "N": 16, "K": 128 // n, "pattern": NM(n, 4)}
    for n in (4, 2, 1)
  ]
  tile = cost(tiles, "vegeta-s-16-2")
  (_, dense), (_, half), quarter = map(vegeta.spmm_speedup, (4, 2, 1))
  return [
    rows_equal(
      "cycles of a tile in 7 engines of 512 multipliers, T = 16",
      np.array(list(modes.values())),
      np.array(counted),
    ),
    rows_equal(
      "useful MACs of an SPMM tile at 4:4, 2:4 and 1:4: 8192",
      np.full(3, 8192),
      np.rint(tile.utilisation * tile.cycles * 512),
    ),
    *(
      against(
        f"unstructured, density {p}, mapped to N:4 by rows{how}",
        published,
        speedup(p),
        PREDICTION,
      )
      for how, speedup in (
        ("", lambda p: float(vegeta.unstructured_speedup(p))),
        (": cycles of a random mask of 4096 x 1024", _covered),
      )
      for p, published in ((0.1, 2.36), (0.05, 3.28))
    ),
    against("4:4 over the dense engine", 1.09, dense, CALIBRATION),
    against("2:4 over the dense engine", 2.20, half, PREDICTION),
    between("1:4 over the dense engine", 3.74, *quarter),
  ]


def _covered(density: float) -> float:
  """Speed-up of a random mask whose rows are covered one by one."""
  mask = np.random.default_rng(0).random((4096, 1024)) < density
  row = {"name": "", "M": 4096, "N": 1024, "K": 4096, "mask": mask}
  spec = "vegeta-s-16-2:granularity=row:overlap=full"
  return row_covers([row], spec)[0].row_speedup


# spec, pattern; each runs (M, K, N) = (6, 32, 20).
SIMULATED = (
  ("figs:8x2", "1:1"),
  ("figs:8x2", "1:2"),
  ("figs:8x2", "1:4"),
  ("figs:8x2", "1:8"),
  ("figs:8x2", "3:8"),
  ("figs:8x2:alpha=3", "2:16"),
  ("figs:8x2:alpha=3:block=4", "1:2"),
  ("figs:8x2:beta=2", "2:4"),
  ("figs:8x2:beta=2:mask_group=2", "1:4"),
  ("figs:8x2:sigma=2", "1:4"),
  ("figs:8x2:load=4", "1:8"),
  ("figs:8x2:bw_in=3", "1:4"),
  ("figs:8x2:bw_out=3", "1:4"),
  ("figs:8x2:overlap=weights", "1:4"),
  ("figs:8x2:overlap=full", "1:4"),
  ("figs:8x2:exchange=swap", "1:4"),
  ("figs:8x2:exchange=swap:overlap=full", "2:8"),
  ("vegeta-d-1-2:8x2", "1:1"),
  ("vegeta-s-1-2:8x2", "1:4"),
  ("vegeta-s-2-2:8x2:overlap=full", "2:4"),
)


def clocked(family: str) -> list[Claim]:
  """Simulated arrays beside the closed form, and the product they make."""
  random = np.random.default_rng(0)
  M, K, N = 6, 32, 20
  cycles, forms, right, total = [], [], 0, 0
  for spec, pattern in SIMULATED:
    if not spec.startswith(family):
      continue
    nm = NM.parse(pattern)
    x, w = random.integers(-9, 10, (M, K)), random.integers(1, 10, (K, N))
    # Outputs of a PE may share their mask.
    group = getattr(parse(spec), "mask_group", 1)
    mask = random.random((K // nm.m, nm.m, N // group)).argsort(1) < nm.n
    w *= mask.reshape(K, -1).repeat(group, 1)
    run = simulate(x, w, spec, nm)
    row = {"name": spec, "M": M, "N": N, "K": K, "pattern": nm, "mask": w != 0}
    forms.append(int(cost([row], spec).cycles[0]))
    cycles.append(run.cycles)
    right += bool((run.product == x @ w).all())
    total += 1
  same = rows_equal(
    "cycles of a clocked array, of the closed form",
    np.array(cycles),
    np.array(forms),
  )
  return [
    same._replace(kind=RECONSTRUCTION),
    Claim(
      "its product is x @ w",
      f"{total} rows",
      f"{right} of {total} equal",
      f"{total - right} rows",
      RECONSTRUCTION,
    ),
  ]


def figs() -> list[Claim]:
  def peak(spec, pattern, way):
    nm = NM.parse(pattern)
    return float(ledger(parse(spec), nm.n, nm.m)[way])

  bytes_per_cycle = (
    ("figs:32x16", "inputs", (64, 64)),
    ("vegeta-s-16-2", "inputs", (128, 256)),
    ("figs:32x16", "outputs", (128, 256)),
    ("vegeta-s-16-2", "outputs", (64, 64)),
  )
  claims = clocked("figs")
  for pattern, published in (("1:2", 2.4), ("1:4", 4.4)):
    nm = NM.parse(pattern)
    fitted, hidden = (
      float(iso_bandwidth_speedup(nm.n, nm.m, exposed))
      for exposed in (0.40, 0.0)
    )
    what = f"{pattern} over a baseline of equal input bandwidth"
    claims += [
      against(f"{what}, o / T = .40", published, fitted, CALIBRATION),
      against(f"{what} that hides o too", published, hidden, RECONSTRUCTION),
    ]
  for spec, way, stated in bytes_per_cycle:
    for pattern, expected in zip(("1:2", "1:4"), stated):
      claims.append(
        against(
          f"{spec} at {pattern}: bytes per cycle, {way}",
          expected,
          peak(spec, pattern, way),
          RECONSTRUCTION,
        )
      )
  return claims


# spec, pattern, I, O of arrays of 512 multipliers.
BOUNDED = (
  ("ws:32x16:sparse=false:overlap=full", "1:4", 32, 16),
  ("vegeta-d-1-2:overlap=full", "1:2", 32, 16),
  ("vegeta-s-16-2:overlap=full", "1:4", 128, 16),
  ("figs:32x16:overlap=full", "1:4", 32, 64),
  ("figs:32x16:overlap=full:bw_in=16", "1:4", 16, 64),
  ("figs:32x16:overlap=full", "3:8", 32, 32),
)


def bounds() -> list[Claim]:
  """The share of their ports' bound that long streams reach."""
  claims = []
  for spec, pattern, inputs, outputs in BOUNDED:
    nm = NM.parse(pattern)
    row = {"name": spec, "M": 10**6, "N": 512, "K": 512, "pattern": nm}
    bound = float(utilisation_bound(inputs, outputs, nm.n / nm.m, 512))
    reached = float(cost([row], spec).utilisation[0])
    kind = RECONSTRUCTION if spec.startswith("figs") else PREDICTION
    what = f"{spec} at {pattern}: I = {inputs}, O = {outputs}"
    claims.append(against(what, bound, reached, kind))
  return claims


def trained(tokens: int, spec: str) -> float:
  """Speed-up of a training step of both linears of ViT-L's MLP by 2:4.

  Forward and the gradient of the inputs run sparse, that of the weights dense.
  """
  engine, times = parse(spec), []
  for n in (4, 2):
    products = [
      gemm
      for K, N in ((1024, 4096), (4096, 1024))
      for gemm in ((tokens, N, K, n), (tokens, K, N, n), (K, N, tokens, 4))
    ]
    M, N, K, n_ = np.array(products).T
    counts = engine.counts(Gemm(M, N, K, n_, 4))
    times.append(float(counts["cycles"].sum()))
  return times[0] / times[1]


def tensor_cores() -> list[Claim]:
  pairs = [
    sparse24.MeasuredPair.of(row) for row in rows_of("sparse24_measured.csv")
  ]
  measured = np.array([pair.speedup for pair in pairs])
  sparse = np.array([pair.sparse_us for pair in pairs])
  now, ideal = (
    sparse24.modelled(pairs, **fields)[:, 0] for fields in ({}, {"ideal": True})
  )
  left, _ = sparse24.left_one_out(pairs)
  fitted = [
    Claim(
      f"{pair.source}: {pair.chip}, {8 * pair.itemsize} bits, {pair.M} x"
      f" {pair.K} x {pair.N}",
      f"{pair.speedup:.2f}",
      f"{expected:.2f}; ideal {most:.2f}",
      f"{round(100 * (expected / pair.speedup - 1)) + 0:+d} %",
      CALIBRATION,
    )
    for pair, expected, most in zip(pairs, now[0] / now[1], ideal[0] / ideal[1])
  ]
  of = sparse24.geometric_error
  errors = [
    Claim(
      f"the factor by which {what} are off, each source left out of the fit",
      "1",
      f"{of(left_, truth):.2f}; ideal {of(best, truth):.2f}",
      "",
      PREDICTION,
    )
    for what, left_, best, truth in (
      ("these speed-ups", left[0] / left[1], ideal[0] / ideal[1], measured),
      ("the 2:4 calls' times", left[1], ideal[1], sparse),
    )
  ]

  def ratio(M, N, K, itemsize=2, spec="tensorcore:a100"):
    gemm = Gemm(M, N, K, np.array([4, 2]), 4)
    dense, sparse = parse(spec).counts(gemm, itemsize)["cycles"]
    return float(dense / sparse)

  silicon = "tensorcore:a100:ideal=true"
  steps = [trained(25_216, s) for s in ("tensorcore:a100", silicon)]
  wide = (10_240, 10_240, 10_240, 1)
  return [
    *fitted,
    *errors,
    against(
      "A100, 16 bits, 12288 x 3072 x 768 by CUTLASS",
      1.40,
      ratio(12288, 768, 3072),
      PREDICTION,
    ),
    against("A100, 16 bits, 4096^3", 1.11, ratio(4096, 4096, 4096), PREDICTION),
    between(
      "A100, 8 bits, M = N = K = 10240; expected, and the silicon",
      1.95,
      ratio(*wide),
      ratio(*wide, spec=silicon),
    ),
    between(
      "ViT-L, the MLP forward and backward, 25216 tokens; expected, and the"
      " silicon",
      1.3,
      *steps,
    ),
    against(
      "RetinaNet on Orin by Amdahl's law at a sparse share of .714",
      15.66 / 10.07,
      amdahl(0.714, 2.0),
      CALIBRATION,
    ),
    *(
      against(
        f"metadata of 2:4 over its values, {bits} bits",
        share,
        NM(2, 4).metadata_bits / bits,
        PREDICTION,
      )
      for bits, share in ((16, 0.125), (8, 0.25))
    ),
    against(
      "FLOP per byte of CSR times a vector",
      0.167,
      intensity(10**6),
      PREDICTION,
    ),
  ]


# spec, data type, M, N, K and the TFLOP/s measured there.
MATMULS = (
  ("gpu:a100", "bf16", 1024, 10_240, 5120, 271.2),
  ("gpu:h100", "bf16", 2048, 2048, 13_312, 794.5),
  ("gpu:b200", "bf16", 1792, 16_128, 3072, 1745.0),
  ("gpu:gb200", "bf16", 4096, 9728, 2048, 1822.0),
  ("gpu:b300", "bf16", 12_288, 18_432, 1024, 1769.0),
  ("gpu:mi300x", "bf16", 10_240, 15_360, 8192, 668.4),
  ("gpu:mi355x", "bf16", 12_288, 8192, 8192, 1565.0),
  ("gpu:h100", "fp8", 1024, 9216, 14_336, 1402.6),
  ("gpu:b200", "fp8", 15_360, 4096, 3072, 3432.5),
)
# spec, data type, pattern, chips and the PFLOP/s stated of them together.
SYSTEMS = (
  ("trainium2", "bf16", "dense", 16, 10.7),
  ("trainium2", "fp8", "dense", 16, 20.8),
  ("trainium2", "bf16", "4:16", 16, 41.0),
  ("trainium3", "bf16", "dense", 144, 96.624),
  ("trainium3", "fp8", "dense", 144, 362.448),
)


def tera(spec: str, dtype: str, M: int, N: int, K: int, pattern: str) -> float:
  """TFLOP/s of a product, counting the weights that are left out."""
  row = {"name": spec, "M": M, "N": N, "K": K, "pattern": pattern}
  return 2e-3 * M * N * K / float(cost([row], spec, dtype=dtype).cycles[0])


def chips() -> list[Claim]:
  claims = [
    against(
      f"{spec}, {dtype}, {M} x {N} x {K}, TFLOP/s",
      measured,
      tera(spec, dtype, M, N, K, "dense"),
      PREDICTION,
    )
    for spec, dtype, M, N, K, measured in MATMULS
  ]
  cube = (2**15,) * 3
  return claims + [
    against(
      f"{count} x {spec}, {dtype}, {pattern}, PFLOP/s",
      stated,
      count * tera(spec, dtype, *cube, pattern) / 1000,
      CALIBRATION,
    )
    for spec, dtype, pattern, count, stated in SYSTEMS
  ]


# N, K of the layers of Llama 7B to 65B; each with 256, ..., 4096 rows.
LLAMA = np.array(
  [(h * a, h * b)
   for h, wide in ((2048, 2.75), (4096, 2.6875), (5120, 2.7), (8192, 2.6875))
   for a, b in ((1, 1), (3, 1), (1, wide), (wide, 1))]
  + [(6656, 6656), (19_968, 6656), (6656, 17_920), (17_920, 6656)]
).astype(int)  # fmt: skip
PACKED = {
  "nm-spmm:a100:hbm=1935": (1.827, 2.381, 3.450, 6.311),
  "nm-spmm:rtx4090": (1.454, 1.882, 2.709, 4.323),
}


def packed_kernels() -> list[Claim]:
  claims = []
  rows = [
    {"name": "", "M": M, "N": N, "K": K}
    for M in (256, 512, 1024, 2048, 4096)
    for N, K in LLAMA.tolist()
  ]
  for spec, means in PACKED.items():
    dense = cost(rows, spec, dtype="float32").cycles
    for n, mean in zip((16, 12, 8, 4), means):
      sparse = [row | {"pattern": NM(n, 32)} for row in rows]
      gains = dense / cost(sparse, spec, dtype="float32").cycles
      model = float(np.exp(np.log(gains).mean()))
      what = f"{spec}, {n}:32 over cuBLAS, mean of {len(rows)} products"
      claims.append(against(what, mean, model, PREDICTION))
  return claims


# M of 128:2:M -> the speed-up over cuBLAS on an RTX 3090.
VENOM = {4: 1.814, 8: 3.326, 20: 6.711, 100: 12.846}
RTX_3090 = "tensorcore:rtx3090:peak=71000:hbm=936:units=82"


def vectors() -> list[Claim]:
  rows = [
    {"name": "", "M": tokens, "N": N, "K": K}
    for tokens in (4096, 8192)
    for h in (768, 1024)
    for N, K in ((h, h), (4 * h, h), (h, 4 * h))
  ]
  claims = []
  for m, mean in VENOM.items():
    sparse = [row | {"pattern": f"128:2:{m}"} for row in rows]
    for how in ("", ":ideal=true"):
      spec = RTX_3090 + how
      gains = cost(rows, spec).cycles / cost(sparse, spec).cycles
      model = float(np.exp(np.log(gains).mean()))
      what = f"128:2:{m}, mean of {len(rows)} products{how and ', silicon'}"
      claims.append(against(what, mean, model, PREDICTION))
  return claims


def tpu_latencies() -> list[Claim]:
  claims = []
  sizes = {"128": "32 to 128", "1024": "128 to 1024", "4096": "1024 to 4096"}
  published = {"128": (3.1, 2.7), "1024": (7.2, 11.7), "4096": (6.2, 8.4)}
  for name, text in sizes.items():
    table = table_of(f"tpu_gemm_{name}.csv")
    M, N, K = integers(table, "dim_m", "dim_n", "dim_k")
    measured = table["fusion_avg"]
    cycles = calibration.systolic_cycles(M, N, K)
    claims.append(
      rows_equal(
        f"{text}: the file's systolic cycles, 128 x 128",
        table["scale_sim_cycles"],
        cycles,
      )
    )
    fits = (
      (
        "call + FLOPs + bytes in + bytes out",
        calibration.fit_latency,
        [M, N, K],
      ),
      ("a line through systolic cycles", calibration.fit_cycles, [cycles]),
    )
    for (what, fit, columns), expected in zip(fits, published[name]):
      errors = calibration.cross_validated(fit, columns, measured)
      mape = f"{100 * errors.mean():.1f} %"
      claims.append(
        Claim(f"{text}: MAPE of {what}", f"{expected} %", mape, "", PREDICTION)
      )
  return claims


def energies() -> list[Claim]:
  table = (
    ("float16", 1.1, 0.4),
    ("float32", 3.7, 0.9),
  )
  claims = []
  for dtype, mult, add in table:
    got = Energy.of(dtype)
    for what, published, model in (
      ("mult", mult, got.mult),
      ("add", add, got.add),
    ):
      claims.append(
        against(f"{dtype} {what}, pJ", published, model, CALIBRATION)
      )
  default = Energy()
  return [
    *claims,
    against(
      "64 bits of an 8 KB SRAM, pJ", 10, 8 * default.sram_byte, CALIBRATION
    ),
    against("32 bits of DRAM, pJ", 640, 4 * default.dram_byte, CALIBRATION),
  ]


def attention() -> list[Claim]:
  claims = []
  for claim in flat_claims():
    what = f"FLAT, {claim.platform}, baseline ends at the {claim.baseline}"
    low, high = claim.ideal
    claims.append(between(f"{what}: ideal machine", claim.published, low, high))
    low, high = claim.mean
    mean = between(f"{what}: our model", claim.published, low, high)
    claims.append(mean._replace(kind=PREDICTION))
  stated = between(
    "FLAT, edge: ideal machine at 1 GHz and 50 GB/s",
    1.94,
    *flat_ideal(32 * 32, 50),
  )
  for claim in frame_claims():
    what = f"FRAME, {claim.system}, {claim.keys} keys, unfused over fused"
    claims.append(against(what, claim.published, claim.model, PREDICTION))
  return [stated, *claims]


# Parts of the table that areas are put together from: an area, what it is of.
AREAS = (
  ("16-bit floating multiplier", 1640, lambda: Area.of("float16").mult),
  ("32-bit floating adder", 4184, lambda: Area.of("float16").add),
  ("8-bit multiplier", 282, lambda: Area.of("int8").mult),
  ("32-bit adder", 137, lambda: Area.of("int8").add),
  ("DFF_X1, a bit of a register", 4.522, lambda: Area().register_bit),
  ("MUX2_X1, a bit of a 2:1 multiplexer", 1.862, lambda: Area().mux_bit),
)


def areas() -> list[Claim]:
  return [
    against(f"{what}, µm²", published, model(), CALIBRATION)
    for what, published, model in AREAS
  ]


class Trained(NamedTuple):
  """A training step that was measured: a decoder on a cluster of GPUs."""

  decoder: Decoder
  chip: str
  cluster: Cluster
  batch: int
  parallel: Parallel


def step_of(run: Trained, **assume: float) -> Estimate:
  """The step as modelled, gradients in 32 bits."""
  return estimate(
    lambda batch: (1, run.decoder.table(batch)), f"gpu:{run.chip}", run.cluster,
    run.parallel, run.batch, sizes=BytesPerValue(gradient=4),
    assume=Assumptions(**assume),
  )  # fmt: skip


# The least and the most that products and overlap can be: the slowest of eleven
# dense calls measured on an A100 and nothing hidden, or the data sheet's peak.
_SLOW, _FAST = {"efficiency": 0.61}, {"efficiency": 1.0}


def rates(
  run: Trained, flops: float, chunks: int = 1, **assume: Any
) -> tuple[float, float]:
  """TFLOP/s per GPU, at least and at most."""
  ends = []
  for more, way in (
    (_SLOW, {}),
    (_FAST, {"overlap": True, "interleave": chunks}),
  ):
    parallel = dataclasses.replace(run.parallel, **way)
    step = step_of(run._replace(parallel=parallel), **more, **assume)
    ends.append(flops / step.ns / run.cluster.devices / 1e3)
  return ends[0], ends[1]


def cluster_memory() -> list[Claim]:
  """Figure 1 of arXiv 2205.05198, and figure 1 of arXiv 1910.02054."""
  claims = []
  for name, run, published in SELECTIVE:
    steps = [
      step_of(run._replace(parallel=dataclasses.replace(run.parallel, **way)))
      for way in ({}, {"recompute": "selective", "sequence": True})
    ]
    kept = sum(steps[0].bytes[x] for x in ("weights", "gradients", "optimizer"))
    activations = [step.bytes["activations"] for step in steps]
    kinds = ("weights and optimizer", "activations", "with both techniques")
    for what, figure, model in zip(kinds, published, (kept, *activations)):
      row = against(f"{name}: {what}, GiB", figure, model / 2**30, PREDICTION)
      claims.append(row)

  def at(batch: int) -> tuple[int, list[dict[str, Any]]]:
    size = {"M": batch, "N": 7500, "K": 10_000}
    return 1, [{"name": f"blocks/{i}/ff", **size} for i in range(100)]

  for zero, published in enumerate((120, 31.4, 16.6, 1.9)):
    way = Parallel(64, zero=zero)
    kept = estimate(at, "gpu:a100", Cluster(64), way, 64).bytes
    states = sum(kept[x] for x in ("weights", "gradients", "optimizer"))
    # Without the layer that is gathered for a while.
    states -= 2 * 7500 * 10_000 * (zero == 3)
    what = f"ZeRO {zero}: 7.5e9 weights on 64 devices, GB"
    claims.append(against(what, published, states / 1e9, PREDICTION))
  return claims


def cluster_steps() -> list[Claim]:
  claims = []
  for (name, run, _), seconds in zip(SELECTIVE, SELECTIVE_SECONDS):
    ways = (
      ("whole blocks again", {"recompute": "full"}),
      ("with both techniques", {"recompute": "selective", "sequence": True}),
    )
    for (what, way), published in zip(ways, seconds):
      parallel = dataclasses.replace(run.parallel, **way)
      each = run._replace(parallel=parallel)
      ends = [step_of(each, **end).ns / 1e9 for end in (_FAST, _SLOW)]
      what = f"{name}, {run.cluster.devices} A100, {what}: seconds a step"
      claims.append(between(what, published, *ends))
      middle = step_of(each, efficiency=MEASURED_EFFICIENCY).ns / 1e9
      claims.append(against(f"{what}, at 0.71", published, middle, PREDICTION))
  for name, run, chunks, published in MEGATRON:
    flops = run.decoder.megatron_flops(run.batch)
    what = f"{name} on {run.cluster.devices} A100: TFLOP/s per GPU"
    claims.append(between(what, published, *rates(run, flops, chunks)))
  for devices, micro, published in ((384, 4, 144), (768, 2, 88), (1536, 1, 44)):
    count = 1536 // devices // micro
    way = Parallel(devices, 1, 1, count, zero=3, recompute="full")
    run = Trained(GPT3, "a100", Cluster(devices), 1536, way)
    ends = rates(run, GPT3.megatron_flops(1536))
    what = f"175B by ZeRO 3 alone on {devices} A100: TFLOP/s per GPU"
    claims.append(between(what, published, *ends))
  for data, published in ((64, 430), (128, 400)):
    way = Parallel(data, 8, 16, 2048 // data, zero=1, sequence=True)
    cluster = Cluster(data * 128, intra=450, inter=50)
    run = Trained(LLAMA_405B, "h100", cluster, 2048, way)
    flops = 6.0 * sum(
      r["M"] * r["N"] * r["K"] * r.get("count", 1)
      for r in LLAMA_405B.rows(2048)
    )
    ends = rates(run, flops, 8, fused_attention=True, dropout=False)
    what = f"Llama 3 405B on {data * 128} H100: TFLOP/s per GPU"
    claims.append(between(what, published, *ends))
  return claims


def _selective(h: int, layers: int, heads: int, p: int, v: int, b: int):
  """A run of table 3 of arXiv 2205.05198: 8 p GPUs, 8 ways of tensors."""
  batch = 8 * p if p > 1 else 4
  parallel = Parallel(1, 8, p, batch // b, interleave=v)
  decoder = Decoder(h, layers, heads)
  return Trained(decoder, "a100", Cluster(8 * p), batch, parallel)


# Name, run, and GiB of figure 1; seconds of table 5.
SELECTIVE = (
  ("22B", _selective(6144, 48, 64, 1, 1, 4), (45.56, 59.25, 9.563)),
  ("175B", _selective(12288, 96, 96, 8, 3, 1), (45.56, 66.84, 12.35)),
  ("530B", _selective(20480, 105, 128, 35, 3, 1), (31.64, 114.02, 23.08)),
  ("1T", _selective(25600, 128, 160, 64, 1, 1), (32.96, 131.25, 26.56)),
)
SELECTIVE_SECONDS = (
  (1.42, 1.10), (18.13, 13.75), (49.05, 37.83), (94.42, 71.49)
)  # fmt: skip


def _megatron(
  h: int, layers: int, heads: int, p: int, devices: int, batch: int
):
  """A run of table 1 of arXiv 2104.04473: microbatches of one sequence."""
  data = devices // (8 * p)
  parallel = Parallel(data, 8, p, batch // data, recompute="full")
  decoder = Decoder(h, layers, heads)
  return Trained(decoder, "a100", Cluster(devices), batch, parallel)


# Name, run, the most chunks per stage, TFLOP/s.
MEGATRON = (
  ("76B", _megatron(10240, 60, 80, 4, 1024, 1792), 3, 140),
  ("146B", _megatron(12288, 80, 96, 8, 1536, 2304), 2, 148),
  ("1T", _megatron(25600, 128, 160, 64, 3072, 3072), 2, 163),
)
GPT3 = Decoder(12288, layers=96, heads=96)
# 126 blocks and the two that its first and last stage go without.
LLAMA_405B = Decoder(
  16384, layers=128, heads=128, seq=8192, ffn=53248, kv_heads=8, gated=True,
  vocab=128256,
)  # fmt: skip


def resnet50() -> list[dict[str, Any]]:
  """The 54 products of ResNet-50 (v1.5) on an image of 224 x 224."""
  rows = [{"name": "stem", "M": 112**2, "N": 64, "K": 7 * 7 * 3}]
  width = 64
  for stage, blocks in enumerate((3, 4, 6, 3)):
    inner, size = 64 << stage, (56 >> stage) ** 2
    for block in range(blocks):
      # The 3 x 3 convolution of a stage's first block halves the sides.
      before = size * (4 if stage and not block else 1)
      sizes = [(before, inner, width), (size, inner, 9 * inner)]
      sizes.append((size, 4 * inner, inner))
      if not block:
        sizes.append((size, 4 * inner, width))
      width = 4 * inner
      for i, (M, N, K) in enumerate(sizes):
        name = f"{stage}/{block}/{i}"
        rows.append({"name": name, "M": M, "N": N, "K": K})
  return [*rows, {"name": "head", "M": 1, "N": 1000, "K": 2048}]


def serving() -> list[Claim]:
  model = nested_model(resnet50(), "ws:36x36", ["1:1"], itemsize=1)
  cached = best_subgraph(model, int(model.weight_bytes[0])).cached
  before, after = (model.query(x).dram_bytes[0] for x in (None, cached))
  saved = 100 * float(1 - after / before)
  missing = {
    "SUSHI: latency saved, up to": "25 %",
    "SUSHI: accuracy of the answers gained, up to": "0.98 %",
  }
  return [
    between("SUSHI: off-chip energy saved, up to, per cent", 78.7, saved, 100),
    *(Claim(x, y, "", "", NOT_REPRODUCED) for x, y in missing.items()),
  ]


def not_reproduced() -> list[Claim]:
  rows = (
    ("COMET: a training step, one cluster over another, up to", "7.7"),
    ("COMET: a training step, from more memory, up to", "1.4"),
  )
  return [Claim(what, value, "", "", NOT_REPRODUCED) for what, value in rows]


# heading -> the text above its table, and the rows.
SECTIONS: dict[str, tuple[str, Callable[[], list[Claim]]]] = {
  "Systolic arrays": (
    "SCALE-Sim 3.0.0 ran 150 layers. It counts one cycle less than the closed"
    " form, and adds R + C words per fold to the outputs of an output-"
    "stationary array, which no array writes. LLMCompass (github.com/"
    "PrincetonUniversity/LLMCompass, 2e015fd) keeps what SCALE-Sim reported in"
    " `systolic_array_model/look_up_table_*.csv`: the closed form equals all"
    " 55,234 rows of its five output-stationary arrays, 8 x 8 to 128 x 128"
    " (2884 of them are distinct), and all 4335 rows of `look_up_table_old.csv`"
    " in the three dataflows. A few of each are below.",
    systolic_arrays,
  ),
  "N:M on systolic arrays": (
    "SCALE-Sim 3.0.0 in its layer-wise mode: 36 weight-stationary layers, and"
    " layers of any K in all dataflows (`tests/engine/scalesim_oracle.py` runs"
    " them). Of a last part of K mod m weights it keeps n at most. It gives all"
    " outputs the same mask, so that `is` and `os` read the kept activations"
    " only; `ws` reads m / n for each, without rounding and past the end of K."
    " This count is a number of its own below: in the closed form outputs have"
    " masks of their own, and all K activations are read. The tool's row-wise"
    " mode gives 2 whatever is asked and its sparse utilisation passes 100 %;"
    " neither is modelled.",
    sparse_systolic_arrays,
  ),
  "VEGETA, the authors' RTL": (
    "Simulations of the published RTL. `L1_load`, what its test bench takes to"
    " fill memories, has no formula here.",
    vegeta_rtl,
  ),
  "VEGETA, the paper": (
    "arXiv 2302.08687. The 9 % that its sparse engine gains at 4:4 come from"
    " the processor in front of it, which is not modelled: 1.09 is put in. What"
    " 2:4 gives then follows; 1:4 lies between a tile bound by loading one"
    " 64-byte line per processor cycle and one bound by compute.",
    vegeta_paper,
  ),
  "VEGETA, clocked": (
    "A cycle-level simulator of ours with real operands. How many weights of a"
    " block run it takes from the function that the closed form uses, and where"
    " loads overlap fully it waits for a last one, as the closed form charges"
    " it. All else, down to when the last result leaves, follows from moving"
    " registers.",
    lambda: clocked("vegeta"),
  ),
  "FIGS": (
    "The FiGS slides state alpha, beta, swap registers, their aim and speed-ups"
    " of up to 2.4 and 4.4 at 1:2 and 1:4 over engines and at settings that"
    " they do not give. The array here is our reconstruction: the simulator"
    " shows that it computes the right product in these cycles, not that it is"
    " theirs. It takes the length of blocks and what they hold from the closed"
    " form's own functions, packs and exchanges by itself, and waits for a last"
    " load where loads overlap fully. One parameter, o / T, is chosen for both"
    " speed-ups. The ledger (16-bit inputs, 32-bit sums) is stated by us, not"
    " published, and shows that the cost moves from the input ports to those of"
    " the partial sums.",
    figs,
  ),
  "The bound of the ports": (
    "A weight-stationary array of P multipliers that takes I values per cycle"
    " and holds O outputs uses at most min(1, I O (n / m) / P) of them for an"
    " n:m weight. Beside it the utilisation of a million rows through 512 x 512"
    " weights; at 3:8 two outputs of 3 fill 6 of 8 rows.",
    bounds,
  ),
  "2:4 tensor cores and CSR": (
    "Speed-ups of 2:4 over dense calls, expected and of the silicon. The first"
    " 16 are fitted by four numbers; what those are worth where they were not"
    " fitted is below them (docs/why_no_speedup.md). Forward and the input"
    " gradient of ViT-L run sparse, the weight gradient dense. The share of"
    " RetinaNet that is sparse is itself read off its two times.",
    tensor_cores,
  ),
  "Chips of 2023 to 2026": (
    "Dense products: the best that a search over shapes in PyTorch measured on"
    " each chip (stas00/ml-engineering, 2026-08-22), beside the roofline at the"
    " same shape, which no kernel reaches. Trainium: what AWS states of a"
    " trn2.48xlarge and a Trn3 Gen2 UltraServer, beside that many of the chips"
    " of its other pages. We know of no measured product with sparse weights on"
    " it.",
    chips,
  ),
  "N:M in packed kernels": (
    "NM-SpMM (arXiv 2503.01253): geometric means, by us, of the speed-ups in"
    " its repository (143c1be), float32 on CUDA cores. An A100 of the PCIe form"
    " has 1935 GB/s. The model is the bound that the kernels approach, so that"
    " it is above; nothing is published in 16 bits or on tensor cores.",
    packed_kernels,
  ),
  "V:N:M on tensor cores": (
    "VENOM (arXiv 2310.02065): geometric means, by us, of the best kernel over"
    " cuBLAS in its repository (8ddaf38), half precision on an RTX 3090 (71"
    " TFLOP/s with FP32 sums, 936 GB/s). What calls on an A100 and H100 suggest"
    " is too little for that card; the silicon runs out of bandwidth where"
    " cuBLAS, which the gain is over, is far from its peak.",
    vectors,
  ),
  "TPU latencies": (
    "Measured GEMMs of a TPU, times in the file's microseconds, fitted and"
    " judged by five-fold cross-validation: a call's time never enters the fit"
    " that predicts it. The percentages beside are of the same two models on"
    " all rows of that file, twice as many as here. Below 128 the line through"
    " cycles is the better one.",
    tpu_latencies,
  ),
  "Energy": (
    "Horowitz, ISSCC 2014, 45 nm: a table that is put in. No energy of a whole"
    " chip has been compared.",
    energies,
  ),
  "Area": (
    "Horowitz's table (ISSCC 2014) with the areas that Dally's tutorial (NIPS"
    " 2015) gives beside it, TSMC 45 nm, and cells of the NanGate 45 nm Open"
    " Cell Library: a table that is put in. What an array has of each part is"
    " our count, a reconstruction; no layout, synthesis or published area of an"
    " engine has been compared.",
    areas,
  ),
  "Fused attention": (
    "arXiv 2107.06419 publishes means without the lengths behind them or how"
    " its baseline overlaps memory with compute. Each row spans a baseline that"
    " hides all of its memory time and one that hides none. An ideal machine"
    " brackets the edge figure; our model does not reach it, and both miss the"
    " cloud figure. FRAME is the roofline of FLAT's authors"
    " (maestro-project/frame); its ratios were printed by its own code for"
    " logit and attend, 64 x 12 heads of 64, with the logits on chip where"
    " fused. Ours are of the same processors with logits that cross twice; at"
    " 512 keys FRAME adds the logits' time on chip, and we hide it.",
    attention,
  ),
  "Memory of a cluster": (
    "What a GPU keeps of Megatron's models without recomputation, and with"
    " selective recomputation and sequence parallelism, figure 1 of arXiv"
    " 2205.05198; figure 1 of ZeRO, arXiv 1910.02054.",
    cluster_memory,
  ),
  "Steps on clusters": (
    "Published training steps on DGX A100 (300 GB/s in a node, 25 GB/s per GPU"
    " between them) and Grand Teton H100 (450 and 50 GB/s). Each row spans"
    " products at the slowest rate of eleven dense calls measured on an A100"
    " (0.61 of its roofline) with nothing hidden and, where the source leaves"
    " it open, without interleaving, and products at the data sheet's peak with"
    " hidden exchange. Beside the seconds of arXiv 2205.05198, table 5, the"
    " same step at the calls' median of 0.71 with nothing hidden. TFLOP/s of"
    " Megatron-LM: arXiv 2104.04473, tables 1 and 2, by its equation (3); of"
    " Llama 3: arXiv 2407.21783, table 4. ZeRO 3 alone falls off with the"
    " number of GPUs in its measurements and not in the model, whose rings"
    " reach the data sheet's bandwidth over hundreds of nodes.",
    cluster_steps,
  ),
  "Serving nested models": (
    "SUSHI (MLSys 2023, arXiv 2306.17266) keeps a part of a weight-shared"
    " network in an FPGA and chooses sub-networks and that part by query; we"
    " could read its abstract, which gives three figures. Energy off chip is"
    " proportional to bytes here, so that what a buffer saves lies between the"
    " weights' share of them where inputs and outputs of every product cross as"
    " well, and all where none does. ResNet-50 in 8 bits stands in for its"
    " networks, with all weights on chip. The latency needs the layers of its"
    " sub-networks, the size of its buffer, the bandwidths of its boards and"
    " its cycles without waiting; the accuracy, those of its sub-networks and"
    " its stream of queries. Without them neither is bounded by facts. That"
    " nothing is saved without a buffer, and all weights' bytes with one that"
    " holds them, are tests (docs/serving.md).",
    serving,
  ),
  "Published and not reproduced": (
    "`engine.estimate` models a step on many devices after COMET (arXiv"
    " 2211.16648), without the settings behind its figures.",
    not_reproduced,
  ),
}


def all_claims() -> dict[str, list[Claim]]:
  """The rows under each heading."""
  return {heading: rows() for heading, (_, rows) in SECTIONS.items()}


def page(claims: dict[str, list[Claim]]) -> str:
  """The whole page."""
  text = [
    "# What the engine model claims, beside facts",
    "Written by `python docs/validate_engine.py` from the code; a test compares"
    " the two. Nothing here was measured on sparse hardware by us.",
    "* **prediction**: no parameter of the model was set from the value; one"
    " that\n  public facts only bound, and not between the bounds, missed;\n"
    "* **calibration**: one was, so that agreement shows nothing;\n"
    "* **bracket**: public facts only bound the value, and it lies between the"
    " bounds;\n"
    "* **reconstruction**: the engine itself is rebuilt from partial"
    " statements;\n"
    "* **not reproduced**: published, and the model gives nothing for it.",
  ]
  for heading, (above, _) in SECTIONS.items():
    lines = [
      "| | published, measured or stated | model | error | kind |",
      "|---|---|---|---|---|",
      *(f"| {' | '.join(claim)} |" for claim in claims[heading]),
    ]
    text += [f"## {heading}", above, "\n".join(lines)]
  return "\n\n".join(text) + "\n"


if __name__ == "__main__":
  PAGE.write_text(page(all_claims()))
