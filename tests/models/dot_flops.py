"""FLOPs of every matrix product in a traced function, for any model."""

import math

import jax


def dot_flops(fn, *args) -> int:
  """2 M K N of every product and convolution that `fn(*args)` traces to.

  A scan counts as often as it runs; products in a conditional, or in a loop of
  unknown length, are refused. Arguments may be abstract.

  >>> def loop(x):
  ...   return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=5)[0]
  >>> dot_flops(loop, jax.ShapeDtypeStruct((4, 4), "float32")) == 5 * 2 * 4**3
  True
  """
  return _count(jax.make_jaxpr(fn)(*args).jaxpr)


def _count(jaxpr) -> int:
  total = 0
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
      (contracted, _), _ = params["dimension_numbers"]
      left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
      total += 2 * math.prod(out) * math.prod(left[i] for i in contracted)
    elif name == "conv_general_dilated":
      kernel, out = (
        equation.invars[1].aval.shape,
        equation.outvars[0].aval.shape,
      )
      features = kernel[params["dimension_numbers"].rhs_spec[0]]
      total += 2 * math.prod(out) * math.prod(kernel) // features
    inner = sum(_count(each) for each in _inside(params))
    assert not inner or name not in ("while", "cond"), f"{name}: how often?"
    total += inner * (params["length"] if name == "scan" else 1)
  return total


def _inside(params):
  for value in params.values():
    for each in value if isinstance(value, (tuple, list)) else (value,):
      each = getattr(each, "jaxpr", each)
      if hasattr(each, "eqns"):
        yield each
