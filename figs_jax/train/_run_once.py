"""Programs that run once: on a CPU, compiling them takes longest.

XLA inlines a jitted function wherever it is called: the random draws of a model
with 12 blocks are compiled 12 times over. In a loop, they are compiled once.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, jaxpr_as_fun

_CALLS = ("jit", "random_fold_in")
_LEVEL = "xla_backend_optimization_level"
_LARGE = 2**24  # numbers from which on optimized code saves time


def run_once(program: ClosedJaxpr, shardings: Sequence[Any]) -> list[jax.Array]:
  """Compiles and runs a program without arguments; see `compiled_once`.

  Args:
    program: Jaxpr of a function without arguments and side effects.
    shardings: Shardings of the results.

  >>> place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  >>> run_once(jax.make_jaxpr(lambda: jnp.ones(2) + 1)(), [place])
  [Array([2., 2.], dtype=float32)]
  """
  return compiled_once(program, shardings)()


def compiled_once(
  program: ClosedJaxpr, shardings: Sequence[Any]
) -> jax.stages.Compiled:
  """Compiles a program without arguments.

  On a CPU, equal calls are compiled once and most optimization is skipped, so
  that the last bit may differ; XLA_FLAGS win. On an accelerator, results are
  created where they live, without the stacks of the loops.

  Args:
    program: Jaxpr of a function without arguments and side effects.
    shardings: Shardings of the results.

  >>> place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  >>> program = jax.make_jaxpr(lambda: jnp.ones((8, 4)))()
  >>> compiled = compiled_once(program, [place])
  >>> compiled.memory_analysis().output_size_in_bytes
  128
  """
  if jax.default_backend() != "cpu":
    fun = jaxpr_as_fun(program)
    return jax.jit(fun, out_shardings=shardings).lower().compile()
  lowered = jax.jit(share_calls(program), out_shardings=shardings).lower()
  if _LEVEL in os.environ.get("XLA_FLAGS", ""):
    return lowered.compile()
  size = sum(aval.size for aval in program.out_avals)
  options = {
    _LEVEL: "0" if size < _LARGE else "1",
    "xla_cpu_use_fusion_emitters": False,
  }
  try:
    return lowered.compile(options)
  except jax.errors.JaxRuntimeError as error:
    if "No such compile option" not in str(error):
      raise
    return lowered.compile()  # another version of XLA


def share_calls(program: ClosedJaxpr) -> Callable[[], list[Any]]:
  """The function of a jaxpr without arguments, with equal calls in one loop.

  Calls of a jitted function or of `jax.random.fold_in` are equal if only the
  values of their arguments differ. A loop holds the equal calls that do not
  depend on one another.

  Args:
    program: Jaxpr of a function without arguments and side effects.

  Returns:
    Function that returns arrays, NumPy's where the program has constants.

  >>> def draws():
  ...   keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(4)]
  ...   return [jax.random.normal(key, (2,)) for key in keys]
  >>> shared = share_calls(jax.make_jaxpr(draws)())
  >>> [jax.jit(f).lower().as_text().count("call @_normal(")
  ...  for f in (draws, shared)]
  [4, 1]
  """
  depth: dict[Any, int] = defaultdict(int)  # calls above a variable
  calls: Any = defaultdict(lambda: defaultdict(list))
  others = defaultdict(list)
  for eqn in program.eqns:
    read = [atom for atom in eqn.invars if not isinstance(atom, Literal)]
    level = max((depth[variable] for variable in read), default=0)
    if eqn.primitive.name in _CALLS and eqn.invars:
      level += 1
      kind = (eqn.primitive, *eqn.params.items())
      calls[level][kind, *(atom.aval for atom in eqn.invars)].append(eqn)
    else:
      others[level].append(eqn)
    depth.update(dict.fromkeys(eqn.outvars, level))

  def run() -> list[Any]:
    values = dict(zip(program.jaxpr.constvars, program.consts))

    def arguments(atoms: Iterable[Any]) -> list[Any]:
      return [a.val if isinstance(a, Literal) else values[a] for a in atoms]

    for level in range(max(depth.values(), default=0) + 1):
      for equal in calls[level].values():
        columns = zip(*(arguments(eqn.invars) for eqn in equal))
        outs = jax.lax.map(
          lambda args, eqn=equal[0]: _apply(eqn, args),
          [jnp.stack(column) for column in columns],
        )
        for i, eqn in enumerate(equal):
          values.update(zip(eqn.outvars, [out[i] for out in outs]))
      for eqn in others[level]:
        values.update(zip(eqn.outvars, _apply(eqn, arguments(eqn.invars))))
    return arguments(program.jaxpr.outvars)

  return run


def _apply(eqn: JaxprEqn, args: list[Any]) -> list[Any]:
  params = eqn.primitive.get_bind_params(eqn.params)
  out = eqn.primitive.bind(*args, **params)
  return out if eqn.primitive.multiple_results else [out]
