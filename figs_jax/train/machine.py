"""What decides the bits of a run, beside its configuration.

XLA splits sums over the cores that it may use, and compiles for the processor.
On another machine a resumed run goes on correctly, but its floats round
differently.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jaxlib

_CPUINFO = Path("/proc/cpuinfo")


def current() -> dict[str, Any]:
  """Cores, processor, devices and compiler of this process, as JSON values.

  >>> sorted(current())
  ['XLA_FLAGS', 'cores', 'device', 'devices', 'jax', 'jaxlib', 'processor']
  """
  return {
    "cores": _usable_cores(),
    "processor": _processor(),
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
    "jax": jax.__version__,
    "jaxlib": jaxlib.__version__,
    "XLA_FLAGS": " ".join(sorted(os.environ.get("XLA_FLAGS", "").split())),
  }


def changed(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
  """Words for what differs; "" if nothing does. Missing values are unknown.

  >>> changed({"cores": 2}, {"cores": 1, "jaxlib": "0.10.2"})
  'cores 1 (was 2)'
  """
  return ", ".join(
    f"{name} {value!r} (was {saved[name]!r})"
    for name, value in now.items()
    if name in saved and saved[name] != value
  )


def _usable_cores() -> int:
  if hasattr(os, "sched_getaffinity"):  # on Linux
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _processor() -> str:
  text = _CPUINFO.read_text() if _CPUINFO.exists() else ""
  if name := re.search(r"model name\s*: (.*)", text):
    return name[1]
  return platform.processor() or platform.machine()
