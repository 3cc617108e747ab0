"""How often a function is compiled, whatever becomes of jax's caches.

`jitted._cache_size()` is no count: it is 0 in a process whose 8,192 shared
entries are taken, as they are late in a run of the whole suite.
"""

import contextlib
from collections.abc import Iterator

import jax

EVENT = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilations(name: str) -> Iterator[list[float]]:
  """The seconds of each compilation of the function of a name, as they come."""
  seconds: list[float] = []

  def listener(event: str, duration: float, *, fun_name: str = "", **_: object):
    if event == EVENT and fun_name in (name, f"jit({name})"):
      seconds.append(duration)

  jax.monitoring.register_event_duration_secs_listener(listener)
  try:
    yield seconds
  finally:
    jax.monitoring.unregister_event_duration_listener(listener)
