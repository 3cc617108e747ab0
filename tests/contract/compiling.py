"""Compiling is most of what these tests take: it is done quickly."""

import functools

import jax


@functools.cache
def quick():
  """Compiler options for programs that run twenty steps."""
  options = {}
  for name, value in (
    ("xla_backend_optimization_level", 0),
    ("xla_cpu_use_fusion_emitters", False),  # not in every version of XLA
  ):
    try:
      jax.jit(lambda x: x, compiler_options={name: value})(0.0)
    except jax.errors.JaxRuntimeError:
      continue
    options[name] = value
  return options


def compiled(fn, **options):
  return jax.jit(fn, compiler_options=quick(), **options)
