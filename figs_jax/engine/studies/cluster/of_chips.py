"""Engines and clusters of a chip's name, from its data sheet."""

from __future__ import annotations

from typing import Any

from figs_jax.engine import chips
from figs_jax.engine.spec import Engine, nearest
from figs_jax.engine.spec_text import parse
from figs_jax.engine.studies.cluster.network import Cluster
from figs_jax.engine.studies.cluster.parallel import MEASURED_EFFICIENCY

# Devices of scale-up domains other than a node of 8: GB200 NVL72, Trainium's
# UltraServers, pods of Google's TPUs (docs.cloud.google.com/tpu/docs).
_DOMAINS = {
  "gb200": 72, "v3": 1024, "v4": 4096, "v5e": 256, "v5p": 8960, "v6e": 256,
  "v7x": 9216, "trainium2": 64, "trainium3": 144,
}  # fmt: skip
_DOMAIN = 8
# Kinds of engines that run a chip by its name, the first that knows it. Tensor
# cores have measured rates; the others are rooflines.
_KINDS = ("tensorcore", "gpu", "tpu")


def engine_of(chip: str) -> tuple[Engine, float]:
  """The engine of a chip's name or of a spec, and its default efficiency.

  The efficiency is the measured one where a name stands for a roofline, else 1.

  Args:
    chip: Name of a chip, as in "h100", or spec, as in "gpu:h100".

  Raises:
    ValueError: If the chip or spec is unknown.

  >>> [(str(engine), x) for engine, x in map(engine_of, ("h100", "v5e"))]
  [('tensorcore:h100', 1.0), ('tpu:v5e', 0.71)]
  """
  for kind in _KINDS:
    if chips.find(kind, chip):
      measured = MEASURED_EFFICIENCY if kind != "tensorcore" else 1.0
      return parse(f"{kind}:{chip}"), measured
  try:
    engine = parse(chip)
    is_roofline = ":" not in chip and not engine.is_array
    return engine, MEASURED_EFFICIENCY if is_roofline else 1.0
  except ValueError as error:
    if ":" in chip:
      raise
    known = {name for kind in _KINDS for name in chips.names(kind)}
    raise ValueError(
      f"unknown chip {chip!r}, {nearest(chip, known)}; or give a spec with its"
      " own peak and bandwidth, as in gpu:mine:peak=989000:hbm=3350"
    ) from error


def cluster_of(engine: Engine, devices: int, **given: Any) -> Cluster:
  """The cluster of a chip's data sheet, with what the flags give in its place.

  Args:
    engine: Engine of each device.
    devices: Number of devices.
    **given: Fields of `Cluster`; None stands for the data sheet's.

  Raises:
    ValueError: If the data sheet lacks a field that is not given, or as
      `Cluster`.

  >>> cluster_of(engine_of("h100")[0], 64, inter=None).inter
  50
  """
  sheet = engine.sheet() if hasattr(engine, "sheet") else None
  name = getattr(engine, "chip", "")
  values: dict[str, Any] = {"per_node": _DOMAINS.get(name, _DOMAIN)}
  if sheet is not None:
    values |= {"intra": sheet.link, "inter": sheet.network}
    values |= {"memory": sheet.memory}
  values |= {key: x for key, x in given.items() if x is not None}
  for field, what in (
    ("intra", "bandwidth within a node"),
    ("inter", "bandwidth between nodes"),
    ("memory", "size of the memory"),
  ):
    if values.get(field) is None:
      raise ValueError(f"{engine}: its {what} is not known; add --{field}")
  return Cluster(devices, **values)
