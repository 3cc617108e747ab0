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
    "cores": usable_cores(),
    "processor": processor(),
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


def usable_cores() -> int:
  """Number of cores on which this process may run.

  >>> 1 <= usable_cores() <= os.cpu_count()
  True
  """
  if hasattr(os, "sched_getaffinity"):  # on Linux
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def processor() -> str:
  """Name of the processor."""
  return _cpuinfo("model name") or platform.processor() or platform.machine()


def processor_features() -> str:
  """Instruction sets of the processor; "" where the system lists none."""
  return _cpuinfo("flags") or _cpuinfo("Features")  # on x86, on Arm


def _cpuinfo(name: str) -> str:
  """The first value of an entry of /proc/cpuinfo, or ""."""
  text = _CPUINFO.read_text() if _CPUINFO.exists() else ""
  entry = re.search(rf"^{name}\s*: (.*)", text, re.MULTILINE)
  return entry[1] if entry else ""
