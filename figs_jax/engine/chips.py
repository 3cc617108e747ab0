"""Chips by name: peaks by data type, memories and links, with their sources.

Every figure is the vendor's, from the document in its row, on the date in its
row. Peaks are dense; what the silicon reaches on sparse weights stands beside.
Where a sheet prints a rate with 2:4 sparsity only, the dense one is half of it.
Figures that a vendor does not state, or states differently from page to page,
are left out.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

# Bits of one value of each data type. tf32 is stored in 4 bytes.
DTYPES = {
  "float32": 32,
  "tf32": 32,
  "bf16": 16,
  "fp16": 16,
  "fp8": 8,
  "int8": 8,
  "fp4": 4,
}
CHECKED = "2026-11-30"


class Chip(NamedTuple):
  """A processor's data sheet.

  Attributes:
    form: Module and memory that the figures are of.
    peaks: Dense GFLOP/s (GOP/s of integers) of each data type that it has.
    sparse: GFLOP/s that its units for sparse weights reach, by data type,
      counting the weights that are left out.
    hbm: GB/s of its memory.
    memory: Bytes of its memory.
    side: Side of its matrix unit; on a GPU that of one tensor core instruction
      (kernels pad to larger tiles).
    source: Document of the vendor.
    link: GB/s in each direction to the other chips of a scale-up domain
      (NVLink, Infinity Fabric, ICI, NeuronLink), all links together, or None.
    network: GB/s in each direction of a chip's share of the network between
      such domains, in the vendor's own system, or None.
    aliases: Further names.
    via: What reproduces the document, where it was read there.
    date: Day on which the figures were compared with the document.
  """

  form: str
  peaks: Mapping[str, int]
  sparse: Mapping[str, int]
  hbm: int
  memory: int
  side: int
  source: str
  link: int | float | None = None
  network: int | float | None = None
  aliases: tuple[str, ...] = ()
  via: str = ""
  date: str = CHECKED

  @property
  def peak(self) -> int:
    """Dense GFLOP/s in bf16."""
    return self.peaks["bf16"]


def _rates(**tflops: int | float) -> dict[str, int]:
  """GFLOP/s by data type from TFLOP/s; `half` stands for bf16 and fp16."""
  half = tflops.pop("half", None)
  named = tflops if half is None else tflops | {"bf16": half, "fp16": half}
  return {x: round(named[x] * 1000) for x in DTYPES if x in named}


_GB, _GIB = 10**9, 2**30
_TPU = "https://docs.cloud.google.com/tpu/docs/"
_V5P_BLOG = "Introducing Cloud TPU v5p, Google Cloud blog, 2023-12-06"
_NEURON = (
  "https://awsdocs-neuron.readthedocs-hosted.com/en/latest/about-neuron/arch/"
  "neuron-hardware/"
)
_HOPPER = _rates(float32=67, tf32=494.5, half=989, fp8=1979, int8=1979)
_HOPPER_SPARSE = _rates(tf32=989, half=1979, fp8=3958, int8=3958)
_GARDEN = "https://glennklockwood.com/garden/processors"
_TABLES = "https://github.com/stas00/ml-engineering, compute/accelerator"

TPUS = {
  "v3": Chip(
    "32 GiB HBM2",
    _rates(bf16=123),
    {},
    hbm=900,
    memory=32 * _GIB,
    side=128,
    source=f"TPU v3, {_TPU}v3",
  ),
  "v4": Chip(
    "32 GiB HBM2",
    _rates(bf16=275, int8=275),
    {},
    hbm=1228,
    memory=32 * _GIB,
    side=128,
    source=f"TPU v4, {_TPU}v4 (1200 GB/s); 1228: {_V5P_BLOG}",
  ),
  "v5e": Chip(
    "16 GB HBM2",
    _rates(bf16=197, int8=393),
    {},
    hbm=819,
    memory=16 * _GB,
    side=128,
    link=200,
    network=3.125,
    source=f"TPU v5e, {_TPU}v5e (819 GB/s; of late 800 GiB/s)",
  ),
  "v5p": Chip(
    "95 GiB HBM2e",
    _rates(bf16=459, fp8=459, int8=918),
    {},
    hbm=2765,
    memory=95 * _GIB,
    side=128,
    link=600,
    network=6.25,
    source=f"TPU v5p, {_TPU}v5p; int8: {_V5P_BLOG}",
  ),
  "v6e": Chip(
    "32 GB HBM",
    _rates(bf16=918, fp8=918, int8=1836),
    {},
    hbm=1638,
    memory=32 * _GB,
    side=256,
    link=400,
    network=12.5,
    aliases=("trillium",),
    source=f"TPU v6e, {_TPU}v6e; fp8: TPU7x (Ironwood), {_TPU}tpu7x",
  ),
  "v7x": Chip(
    "192 GiB HBM3E",
    _rates(bf16=2307, fp8=4614),
    {},
    hbm=7380,
    memory=192 * _GIB,
    side=256,
    link=600,
    network=12.5,
    aliases=("v7", "ironwood", "tpu7x"),
    source=f"TPU7x (Ironwood), {_TPU}tpu7x",
  ),
}
GPUS = {
  "a100": Chip(
    "SXM, 80 GB HBM2e",
    _rates(float32=19.5, tf32=156, half=312, int8=624),
    _rates(tf32=312, half=624, int8=1248),
    hbm=2039,
    memory=80 * _GB,
    side=16,
    link=300,
    network=25,
    aliases=("a100-80gb",),
    source="NVIDIA A100 Tensor Core GPU data sheet; network: DGX A100",
    via=f"{_TABLES}; {_GARDEN}/A100",
  ),
  "a100-40gb": Chip(
    "SXM, 40 GB HBM2",
    _rates(float32=19.5, tf32=156, half=312, int8=624),
    _rates(tf32=312, half=624, int8=1248),
    hbm=1555,
    memory=40 * _GB,
    side=16,
    link=300,
    network=25,
    source="NVIDIA A100 Tensor Core GPU data sheet; network: DGX A100",
    via=f"{_TABLES}; {_GARDEN}/A100",
  ),
  "h100": Chip(
    "SXM, 80 GB HBM3",
    _HOPPER,
    _HOPPER_SPARSE,
    hbm=3350,
    memory=80 * _GB,
    side=16,
    link=450,
    network=50,
    source="NVIDIA H100 Tensor Core GPU data sheet; network: DGX H100",
    via=f"{_TABLES}; {_GARDEN}/h100",
  ),
  "h200": Chip(
    "SXM, 141 GB HBM3e",
    _HOPPER,
    _HOPPER_SPARSE,
    hbm=4800,
    memory=141 * _GB,
    side=16,
    link=450,
    network=50,
    source="NVIDIA H200 Tensor Core GPU data sheet; network: DGX H200",
    via=f"{_TABLES}; {_GARDEN}/h100",
  ),
  "h20": Chip(
    "SXM, 96 GB HBM3",
    _rates(float32=44, tf32=74, half=148, fp8=296, int8=296),
    {},
    hbm=4000,
    memory=96 * _GB,
    side=16,
    link=450,
    source="none of NVIDIA's is public; rates with sparsity are not printed",
    via="https://willitrunai.com/gpus/h20-96gb",
  ),
  "b200": Chip(
    "SXM, 180 GB HBM3e",
    _rates(float32=75, tf32=1125, half=2250, fp8=4500, int8=4500, fp4=9000),
    _rates(tf32=2250, half=4500, fp8=9000, int8=9000, fp4=18000),
    hbm=8000,
    memory=180 * _GB,
    side=16,
    link=900,
    network=50,
    source="NVIDIA HGX B200 (eight GPUs); memory, network: DGX B200 data sheet",
    via=f"{_TABLES}; {_GARDEN}/B200",
  ),
  "gb200": Chip(
    "one GPU of a GB200 superchip, 186 GB HBM3e",
    _rates(float32=80, tf32=1250, half=2500, fp8=5000, int8=5000, fp4=10000),
    _rates(tf32=2500, half=5000, fp8=10000, int8=10000, fp4=20000),
    hbm=8000,
    memory=186 * _GB,
    side=16,
    link=900,
    network=50,
    source="NVIDIA GB200 NVL72 (superchips of two GPUs)",
    via=f"{_TABLES}; {_GARDEN}/B200",
  ),
  "b300": Chip(
    "SXM, 270 GB HBM3e",
    _rates(float32=75, tf32=1125, half=2250, fp8=4500),
    _rates(tf32=2250, half=4500, fp8=9000),
    hbm=8000,
    memory=270 * _GB,
    side=16,
    link=900,
    network=100,
    source="NVIDIA HGX B300 (eight GPUs); network: DGX B300 data sheet; its"
    " pages differ on fp4 and int8",
    via=f"{_TABLES}; {_GARDEN}/B300; memory: https://verda.com/blog/"
    "gb300-nvl72-architecture",
  ),
  "l40s": Chip(
    "PCIe, 48 GB GDDR6",
    _rates(float32=91.6, tf32=183, half=362.05, fp8=733, int8=733),
    _rates(tf32=366, half=733, fp8=1466, int8=1466),
    hbm=864,
    memory=48 * _GB,
    side=16,
    source="NVIDIA L40S data sheet",
    via="https://www.mullet.se/product.html?product_id=355414",
  ),
  "rtx4090": Chip(
    "PCIe, 24 GB GDDR6X; products summed in FP32",
    _rates(float32=82.6, tf32=82.6, half=165.2, fp8=330.3, int8=660.6),
    _rates(tf32=165.2, half=330.4, fp8=660.6, int8=1321.2),
    hbm=1008,
    memory=24 * _GB,
    side=16,
    aliases=("4090", "rtx-4090"),
    source="NVIDIA Ada GPU Architecture, appendix A",
    via="https://waredb.com/processor/nvidia-geforce-rtx-4090",
  ),
  "rtx5090": Chip(
    "PCIe, 32 GB GDDR7; products summed in FP32",
    _rates(float32=104.8, tf32=104.8, half=209.5, fp8=419, int8=838, fp4=1676),
    _rates(tf32=209.5, half=419, fp8=838, int8=1676, fp4=3352),
    hbm=1792,
    memory=32 * _GB,
    side=16,
    aliases=("5090", "rtx-5090"),
    source="NVIDIA RTX Blackwell GPU Architecture, appendix A",
    via="https://www.spheron.network/blog/nvidia-rtx-5090-specs (memory, fp4)",
  ),
  "mi300x": Chip(
    "OAM, 192 GB HBM3",
    _rates(float32=163.4, tf32=653.7, half=1307.4, fp8=2614.9, int8=2614.9),
    _rates(tf32=1307.4, half=2614.9, fp8=5229.8, int8=5229.8),
    hbm=5300,
    memory=192 * _GB,
    side=16,
    link=448,
    source="MI300 series microarchitecture, https://rocm.docs.amd.com/en/latest/"
    "conceptual/gpu-arch/mi300.html; sparse, link: MI300X data sheet",
  ),
  "mi355x": Chip(
    "OAM, 288 GB HBM3E",
    _rates(float32=157.3, half=2516.6, fp8=5033.2, int8=5033.2, fp4=10066.3),
    _rates(half=5033.2, fp8=10066.3, int8=10066.3),
    hbm=8000,
    memory=288 * _GB,
    side=16,
    link=535.5,
    source="AMD Instinct MI355X data sheet",
    via=f"{_TABLES}; https://gangliao.me/blog/2026/"
    "amd-gpu-architecture-deep-dive",
  ),
}
TRAINIUMS = {
  "trainium2": Chip(
    "96 GiB HBM3",
    _rates(float32=181, tf32=667, half=667, fp8=1299),
    _rates(tf32=2563, half=2563, fp8=2563),
    hbm=2900,
    memory=96 * _GIB,
    side=128,
    link=640,
    network=25,
    aliases=("trn2",),
    source=f"Trainium2 Architecture, {_NEURON}trainium2.html; network: EFA of"
    " trn2.48xlarge",
  ),
  "trainium3": Chip(
    "144 GiB HBM3e",
    _rates(float32=183, tf32=671, half=671, fp8=2517, fp4=2517),
    _rates(tf32=2517, half=2517),
    hbm=4900,
    memory=144 * _GIB,
    side=128,
    link=1280,
    network=25,
    aliases=("trn3",),
    source=f"Trainium3 Architecture, {_NEURON}trainium3.html; network: EFA of"
    " Trn3 UltraServers",
  ),
}
# Kind of engine -> the chips that it knows; bounds come last.
CHIPS = {
  "tensorcore": {name: chip for name, chip in GPUS.items() if chip.sparse},
  "gpu": GPUS,
  "tpu": TPUS,
  "csr": GPUS | TPUS | TRAINIUMS,
  "nm-spmm": GPUS,
  "trainium2": TRAINIUMS,
  "trainium3": TRAINIUMS,
}


def itemsize_of(dtype: str) -> int | Fraction:
  """Bytes per value of a data type: an integer, or 1/2 of fp4.

  >>> itemsize_of("tf32"), itemsize_of("fp4")
  (4, Fraction(1, 2))
  """
  size = Fraction(DTYPES[dtype], 8)
  return int(size) if size.denominator == 1 else size


def find(kind: str, name: str) -> tuple[str, Chip] | None:
  """The name and the data sheet of a chip that a kind of engine knows, or None.

  Aliases and capitals are read too.

  >>> find("tpu", "Ironwood")[0], find("gpu", "h300")
  ('v7x', None)
  """
  word = name.lower()
  for known, chip in CHIPS[kind].items():
    if word == known or word in chip.aliases:
      return known, chip
  return None


def names(kind: str) -> list[str]:
  """Names of the chips that a kind of engine knows, aliases included."""
  chips = CHIPS[kind]
  return [*chips, *(alias for chip in chips.values() for alias in chip.aliases)]


def specs(name: str) -> list[str]:
  """Specs of the engines that a chip's name may stand for, the best first.

  A name that no chip has is read as the chip of the nearest name.

  >>> specs("H100"), specs("trn2"), specs("v5")
  (['tensorcore:h100', 'gpu:h100'], ['trainium2'], ['tpu:v5e', 'tpu:v5p'])
  >>> specs("abacus")
  []
  """
  word, kinds = name.lower(), ("tensorcore", "gpu", "tpu", "trainium2")
  known = dict.fromkeys(x for kind in kinds for x in names(kind))
  near = [word] if word in known else []
  near = near or sorted(difflib.get_close_matches(word, known, n=2, cutoff=0.7))
  pairs = [(kind, find(kind, x)) for x in near for kind in kinds]
  made = [
    pair[0] if kind == "trainium2" else f"{kind}:{pair[0]}"
    for kind, pair in pairs
    if pair is not None
  ]
  return list(dict.fromkeys(made))


def markdown() -> str:
  """All chips as the documentation's table, with TFLOP/s dense / sparse.

  >>> print(markdown().splitlines()[5].partition(" | TPU")[0])
  | `v5p` | 95 GiB HBM2e | bf16 459, fp8 459, int8 918 | 2765 | 600
  """
  lines = [
    "| chip | form | TFLOP/s, dense / sparse | GB/s | link GB/s | source |",
    "|---|---|---|---|---|---|",
  ]
  for name, chip in (TPUS | GPUS | TRAINIUMS).items():
    rates = ", ".join(
      f"{dtype} {peak / 1000:g}{_beside(chip.sparse.get(dtype))}"
      for dtype, peak in chip.peaks.items()
      if dtype != "fp16"
    )
    called = ", ".join(f"`{word}`" for word in (name, *chip.aliases))
    link = "" if chip.link is None else f"{chip.link:g}"
    source = chip.source + (f" (read in {chip.via})" if chip.via else "")
    cells = called, chip.form, rates, f"{chip.hbm}", link, source
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def _beside(sparse: int | None) -> str:
  return "" if sparse is None else f" / {sparse / 1000:g}"
