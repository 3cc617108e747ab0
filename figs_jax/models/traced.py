"""The matrix products of any NNX model, read from one abstract trace.

The call of the model is traced to a jaxpr, and nothing runs. Each `dot_general`
and `conv_general_dilated` in it is a product, also inside `jit`, `scan`,
`while`, `cond`, `remat` and functions with a gradient of their own. Parameters
are followed through casts, transposes, reshapes, slices and elementwise
arithmetic (such as masking) to the products that they enter; a product of a
parameter is named by its path and has the pattern of its mask.

  dot_general    batch x (M x K)(K x N), K x N the parameter
  convolution    groups x (M x K)(K x N), M = images x output positions,
                 K = kernel positions x input channels / groups,
                 N = output channels / groups; padding is multiplied like data
  transposed     M = images x input positions, K = input channels / groups,
  convolution    N = kernel positions x output channels / groups

A scan runs its products once per step. A `while` loop must count up to a
constant, as `fori_loop` does. Of the branches of a `cond`, the one with the
most FLOPs counts. Products of activations alone are attention's "qk" and "av",
if an exponential lies between two that fit each other, and else "matmul".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.extend import core as jex

from figs_jax.core.tree import MaskedKernel, flatten
from figs_jax.models.kernel_layout import Kernel, Part, conv_parts
from figs_jax.nn import masked_leaves, merge, split

_CALLS = frozenset((
  "jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint",
  "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr",
))  # fmt: skip
_PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot_general")
_EXPONENTIALS = ("exp", "exp2", "logistic")
_SIZED = ("slice", "dynamic_slice", "pad", "rev")


@dataclasses.dataclass(eq=False)
class Product:
  """`count` products (M x K)(K x N) of a forward pass.

  Attributes:
    name: Path of the parameter without "/kernel", or a name of its own.
    M: Rows of the activations.
    N: Columns of the weight.
    K: Length of the contraction.
    count: Number of such products.
    kernel: Parameter that is the K x N operand, or None.
    groups: Parts of the parameter in (stack, K, N) of its mask, or None if
      they cannot be followed.
    pattern: Pattern along K, or None.
  """

  name: str
  M: int
  N: int
  K: int
  count: int
  kernel: Kernel | None = None
  groups: tuple[tuple[Part, ...], ...] | None = None
  pattern: Any = None

  @property
  def row(self) -> dict[str, Any]:
    """The row of `figs_jax.models.gemms_of`."""
    return {
      "name": self.name, "M": self.M, "N": self.N, "K": self.K,
      "pattern": self.pattern, "count": self.count,
    }  # fmt: skip

  @property
  def flops(self) -> int:
    return 2 * self.M * self.N * self.K * self.count

  def masks(self, stored: Any) -> np.ndarray | None:
    """A mask of the parameter's shape as (stack, K, N), or None.

    Args:
      stored: Mask of the parameter's shape.
    """
    kernel = self.kernel
    if kernel is None or self.groups is None or not kernel.whole:
      return None
    return kernel.laid_out(np.asarray(stored), self.groups)


@dataclasses.dataclass(frozen=True)
class _Value:
  """What is known of an array in the trace.

  Attributes:
    active: Whether it depends on the input of the model.
    kernel: Parameter that it holds, if it is not active.
    origins: Last products before it.
    exponential: Whether an exponential lies between those and it.
  """

  active: bool = False
  kernel: Kernel | None = None
  origins: tuple[Product, ...] = ()
  exponential: bool = False

  @property
  def rank(self) -> int:
    """0 of activations, 1 of constants, 2 of parameters."""
    return 0 if self.active else 1 if self.kernel is None else 2


_CONSTANT = _Value()


def traced_products(model: nnx.Module, example: Any) -> list[Product]:
  """Traces a forward pass in evaluation mode and lists its products.

  Args:
    model: Any NNX module, sparse or not, possibly abstract.
    example: Input of the call: an array or a `jax.ShapeDtypeStruct`, a tuple of
      arguments, or a dictionary of keyword arguments. Leaves other than arrays
      are passed as they are.

  Raises:
    ValueError: If the call fails, or the number of a product's runs or the
      groups of a masked kernel cannot be read from the trace.

  >>> layer = nnx.Conv(4, 8, (3, 3), padding="VALID", rngs=nnx.Rngs(0))
  >>> image = jax.ShapeDtypeStruct((2, 6, 6, 4), np.float32)
  >>> [product.row for product in traced_products(layer, image)]
  ... # doctest: +NORMALIZE_WHITESPACE
  [{'name': 'kernel', 'M': 32, 'N': 8, 'K': 36, 'pattern': None, 'count': 1}]
  """
  graphdef, params, masks, rest = jax.tree.map(_abstract, split(model))
  leaves, tree = jax.tree.flatten(example)
  is_array = [hasattr(leaf, "shape") and hasattr(leaf, "dtype")
              for leaf in leaves]  # fmt: skip
  arrays = [_abstract(x) for x, yes in zip(leaves, is_array) if yes]

  def call(params: Any, rest: Any, masks: Any, arrays: list[Any]) -> Any:
    net = merge(graphdef, params, masks, 0.0, rest)
    net.eval()
    given = iter(arrays)
    full = [next(given) if y else x for x, y in zip(leaves, is_array)]
    inputs = jax.tree.unflatten(tree, full)
    if isinstance(inputs, Mapping):
      return net(**inputs)
    return net(*inputs) if isinstance(inputs, tuple) else net(inputs)

  try:
    closed = jax.make_jaxpr(call)(params, rest, masks, arrays)
  except Exception as error:  # whatever a user's own call raises
    shapes = ", ".join(f"{x.dtype}{list(x.shape)}" for x in arrays)
    reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    raise ValueError(
      f"{type(model).__name__}: expected a model that can be called with"
      f" example ({shapes or 'no arrays'}), got {reason}"
    ) from error
  walk = _Walk(masked_leaves(model))
  values = [
    _Value(kernel=Kernel.of(path, leaf.shape))
    for tree in (params, rest)
    for path, leaf in flatten(tree).items()
  ]
  values += [_CONSTANT] * len(jax.tree.leaves(masks))
  values += [_Value(active=True)] * len(arrays)
  try:
    walk.jaxpr(closed.jaxpr, values, 1)
  except ValueError as error:
    raise ValueError(f"{type(model).__name__}: {error}") from error
  return _merged(walk.products)


def _abstract(leaf: Any) -> Any:
  if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
  return leaf


def _merged(products: Iterable[Product]) -> list[Product]:
  """The products in order, equal ones of one parameter as one."""
  kinds: dict[Any, Product] = {}
  for product in products:
    sizes = product.M, product.N, product.K
    kind = (product.name, *sizes, product.kernel, product.groups)
    if kind in kinds:
      kinds[kind].count += product.count
    else:
      kinds[kind] = product
  return list(kinds.values())


class _Walk:
  """A walk along a jaxpr that collects products.

  Attributes:
    masked: Masked kernels by path.
    products: Products so far.
  """

  def __init__(self, masked: Mapping[str, MaskedKernel]):
    self.masked = masked
    self.products: list[Product] = []

  def jaxpr(self, jaxpr: Any, inputs: Sequence[_Value], times: int) -> Any:
    """The values of the outputs of a jaxpr that runs a number of times."""
    known = dict(zip(jaxpr.invars, inputs))

    def read(atom: Any) -> _Value:
      is_literal = isinstance(atom, jex.Literal)
      return _CONSTANT if is_literal else known.get(atom, _CONSTANT)

    for eqn in jaxpr.eqns:
      values = self.equation(eqn, [read(x) for x in eqn.invars], times)
      known |= zip(eqn.outvars, values)
    return [read(x) for x in jaxpr.outvars]

  def equation(self, eqn: Any, inputs: list[_Value], times: int) -> Any:
    """The values of the outputs of one equation."""
    name = eqn.primitive.name
    if name in _CALLS:
      return self.jaxpr(_inner(eqn), inputs, times)
    method = getattr(self, f"_{name}", None)
    if method is not None:
      return method(eqn, inputs, times)
    if _has_products(eqn):
      raise ValueError(
        f"expected products in calls, loops and branches, got one inside"
        f" {name!r}, whose runs a trace does not tell; write its rows (name, M,"
        " N, K, pattern, count) for the engine yourself"
      )
    if any(value.active for value in inputs):
      return [_joined(inputs, name in _EXPONENTIALS)] * len(eqn.outvars)
    if name == "optimization_barrier":
      return inputs
    return [self._derived(eqn, inputs, var.aval) for var in eqn.outvars]

  def _derived(self, eqn: Any, inputs: list[_Value], out: Any) -> _Value:
    """The value of an array that parameters and constants alone decide."""
    kernels = [
      (value.kernel, var.aval)
      for value, var in zip(inputs, eqn.invars)
      if value.kernel is not None
    ]
    if not kernels:
      return _CONSTANT
    name, params = eqn.primitive.name, eqn.params
    # Of a kernel and its scale, the kernel; of two kernels, a masked one.
    kernel, aval = max(
      kernels,
      key=lambda pair: (
        pair[1].size, pair[0].axes is not None, pair[0].path in self.masked
      ),
    )  # fmt: skip
    if name == "transpose":
      kernel = kernel.transposed(params["permutation"])
    elif name == "broadcast_in_dim":
      kernel = kernel.broadcast(out.ndim, params["broadcast_dimensions"])
    elif name == "squeeze":
      kernel = kernel.without(params["dimensions"])
    elif name == "reshape":
      kernel = kernel.reshaped(out.shape)
    elif name in _SIZED:
      kernel = kernel.sliced()
    elif out.shape != aval.shape:
      kernel = kernel.lost()
    return _Value(kernel=kernel)

  def _scan(self, eqn: Any, inputs: list[_Value], times: int) -> Any:
    params, body = eqn.params, eqn.params["jaxpr"].jaxpr
    # Slices have an axis less inside the body; jax 0.12 no longer counts them.
    carried = sum(
      inside.aval.ndim == outside.aval.ndim
      for inside, outside in zip(body.outvars, eqn.outvars, strict=True)
    )
    sliced = sum(
      inside.aval.ndim < outside.aval.ndim
      for inside, outside in zip(body.invars, eqn.invars, strict=True)
    )
    first = len(inputs) - carried - sliced
    consts, rest = inputs[:first], inputs[first + carried :]
    carry = inputs[first : first + carried]
    slices = [
      dataclasses.replace(value, kernel=value.kernel and value.kernel.scanned())
      for value in rest
    ]
    times *= params["length"]
    carry = self._settled(
      carry, lambda now: self.jaxpr(body, [*consts, *now, *slices], times)
    )
    outs = self.jaxpr(body, [*consts, *carry, *slices], times)
    stacked = [
      dataclasses.replace(value, kernel=value.kernel and value.kernel.lost())
      for value in outs[carried:]
    ]
    return [*outs[:carried], *stacked]

  def _while(self, eqn: Any, inputs: list[_Value], times: int) -> Any:
    params = eqn.params
    body = params["body_jaxpr"].jaxpr
    first = params["cond_nconsts"] + params["body_nconsts"]
    consts, carry = inputs[params["cond_nconsts"] : first], inputs[first:]
    if _holds_products(body) or _holds_products(params["cond_jaxpr"].jaxpr):
      times *= _steps(eqn)
    carry = self._settled(
      carry, lambda now: self.jaxpr(body, [*consts, *now], times)
    )
    return self.jaxpr(body, [*consts, *carry], times)

  def _settled(self, carry: list[_Value], step: Any) -> list[_Value]:
    """The values of a loop's carry that hold at every step."""
    while True:
      seen = len(self.products)
      after = step(carry)
      del self.products[seen:]
      both = [
        dataclasses.replace(old, active=True, kernel=None)
        if new.active
        else old
        if old.kernel == new.kernel
        else dataclasses.replace(old, kernel=None)
        for old, new in zip(carry, after)
      ]
      if both == carry:
        return carry
      carry = both

  def _cond(self, eqn: Any, inputs: list[_Value], times: int) -> Any:
    index, *operands = inputs
    seen, runs = len(self.products), []
    for branch in eqn.params["branches"]:
      outs = self.jaxpr(branch.jaxpr, operands, times)
      runs.append((outs, self.products[seen:]))
      del self.products[seen:]
    _, most = max(runs, key=lambda run: sum(p.flops for p in run[1]))
    self.products += most
    results = []
    for several in zip(*(outs for outs, _ in runs)):
      value = _joined(several)
      if not (value.active or index.active) and len(set(several)) == 1:
        value = several[0]
      active = value.active or index.active
      results.append(dataclasses.replace(value, active=active))
    return results

  def _dot_general(self, eqn: Any, inputs: list[_Value], times: int) -> Any:
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    left, right = (var.aval.shape for var in eqn.invars[:2])
    sides = [
      _Side(value, shape, contracted, batch)
      for value, shape, contracted, batch in zip(
        inputs, (left, right), (lc, rc), (lb, rb)
      )
    ]
    # The weight is a parameter, or else a constant; the right one of two.
    x, weight = sorted(sides, key=lambda side: side.value.rank)
    many = math.prod(left[i] for i in lb)
    product = Product("", x.free, weight.free, x.length, times * many)
    kernel = weight.value.kernel
    if kernel is not None:
      axes = kernel.axes
      chosen = None if axes is None else (
        [part for i in weight.batch for part in axes[i]],
        [part for i in weight.contracted for part in axes[i]],
        [part for i in weight.places for part in axes[i]],
      )  # fmt: skip
      self._of_kernel(product, kernel, chosen)
    else:
      self._of_activations(product, x, weight)
    return self._result(product, inputs)

  def _conv_general_dilated(
    self, eqn: Any, inputs: list[_Value], times: int
  ) -> Any:
    params = eqn.params
    numbers = params["dimension_numbers"]
    image, kernel_shape, out = (
      var.aval.shape for var in (*eqn.invars, *eqn.outvars)
    )
    outputs, channels, *window = numbers.rhs_spec
    split_batch = params["batch_group_count"]
    groups = params["feature_group_count"] * split_batch
    images = image[numbers.lhs_spec[0]] // split_batch
    K = kernel_shape[channels]
    N = kernel_shape[outputs] // groups
    positions = math.prod(kernel_shape[i] for i in window)
    if transposed := math.prod(params["lhs_dilation"]) > 1:
      N *= positions
      M = images * math.prod(image[i] for i in numbers.lhs_spec[2:])
    else:
      K *= positions
      M = images * math.prod(out[i] for i in numbers.out_spec[2:])
    product = Product("", M, N, K, times * groups)
    value, weight = inputs[0], inputs[1]
    kernel = weight.kernel
    if kernel is None:
      product.name = _common_name([value, weight], "convolution")
    else:
      self._of_kernel(
        product, kernel, conv_parts(kernel, numbers.rhs_spec, groups,
                                     transposed)
      )  # fmt: skip
    return self._result(product, inputs)

  def _ragged_dot_general(
    self, eqn: Any, inputs: list[_Value], times: int
  ) -> Any:
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (lc, rc), (lb, _) = numbers.dot_dimension_numbers
    left, right = (var.aval.shape for var in eqn.invars[:2])
    several = numbers.rhs_group_dimensions
    if not several:
      raise ValueError(
        "ragged_dot_general: expected one kernel for each group of rows; write"
        " its rows (name, M, N, K, pattern, count) for the engine yourself"
      )
    many, K = (math.prod(left[i] for i in axes) for axes in (lb, lc))
    M = math.prod(left) // (many * K)
    N = math.prod(right) // (many * K * math.prod(right[i] for i in several))
    product = Product("", M, N, K, times * many)
    kernel = inputs[1].kernel
    if kernel is None:
      product.name = _common_name(inputs[:2], "matmul")
    else:
      axes, used = kernel.axes, {*rc, *several}
      chosen = None if axes is None else (
        [part for i in several for part in axes[i]],
        [part for i in rc for part in axes[i]],
        [part for i, x in enumerate(axes) if i not in used for part in x],
      )  # fmt: skip
      self._of_kernel(product, kernel, chosen)
      product.groups = None  # each kernel sees rows that only a run knows
    return self._result(product, inputs)

  def _of_kernel(
    self, product: Product, kernel: Kernel, chosen: Any | None
  ) -> None:
    """Names a product by its kernel and reads the pattern along K.

    Args:
      product: Product, whose other fields are known.
      kernel: Its K x N operand.
      chosen: Parts of the kernel in its batch, K and N; None if unknown.
    """
    product.name, product.kernel = kernel.name, kernel
    masked = self.masked.get(kernel.path)
    if chosen is None:
      if masked is not None:
        raise ValueError(
          f"{kernel.path}: expected casts, transposes, reshapes, slices and"
          " elementwise arithmetic between a masked kernel and its product, or"
          " its groups cannot be followed"
        )
      return
    batch, K, N = chosen
    # Groups are the fastest axes of K, whatever else is contracted.
    grouped: set[int] = set()
    if masked is not None:
      axes = masked.axis if isinstance(masked.axis, tuple) else (masked.axis,)
      grouped = {axis % len(kernel.shape) for axis in axes}
      if grouped <= {p.axis for p in K} and not grouped & {p.axis for p in N}:
        product.pattern = masked.pattern
    K = sorted(K, key=lambda part: (part.axis in grouped, part.place))
    N = sorted(N, key=lambda part: part.place)
    product.groups = ((*kernel.stack, *batch), tuple(K), tuple(N))

  def _of_activations(self, product: Product, x: _Side, weight: _Side) -> None:
    """Names a product of activations, and pairs attention's two products."""
    product.name = _common_name([x.value, weight.value], "matmul")
    for side, other in ((x, weight), (weight, x)):
      if not side.value.exponential:
        continue
      for first in side.value.origins:
        lines, keys, depth = side.free, side.length, other.free
        fits = {first.M, first.N} == {lines, keys} and depth == first.K
        if first.kernel or not fits or first.count != product.count:
          continue
        first.M, first.N, first.name = lines, keys, _sibling(first, "qk")
        product.M, product.N, product.name = lines, depth, _sibling(first, "av")
        return

  def _result(self, product: Product, inputs: Sequence[_Value]) -> list[_Value]:
    self.products.append(product)
    active = any(value.active for value in inputs)
    return [_Value(active=active, origins=(product,))]


class _Side:
  """An operand of `dot_general`."""

  def __init__(
    self,
    value: _Value,
    shape: Sequence[int],
    contracted: Sequence[int],
    batch: Sequence[int],
  ):
    used = {*contracted, *batch}
    self.value, self.contracted, self.batch = value, contracted, batch
    self.places = [i for i in range(len(shape)) if i not in used]
    self.free = math.prod(shape[i] for i in self.places)
    self.length = math.prod(shape[i] for i in contracted)


def _joined(values: Iterable[_Value], exponential: bool = False) -> _Value:
  """The value of an array that depends on all of these."""
  values = list(values)
  origins = dict.fromkeys(origin for x in values for origin in x.origins)
  return _Value(
    active=any(value.active for value in values),
    origins=tuple(origins),
    exponential=exponential or any(value.exponential for value in values),
  )


def _common_name(values: Sequence[_Value], last: str) -> str:
  """A name in the innermost module that all origins share."""
  paths = [x.name.split("/")[:-1] for value in values for x in value.origins]
  shared = []
  for parts in zip(*paths):
    if len(set(parts)) > 1:
      break
    shared.append(parts[0])
  return "/".join([*shared, last])


def _sibling(product: Product, last: str) -> str:
  stem, slash, _ = product.name.rpartition("/")
  return f"{stem}{slash}{last}"


def _inner(eqn: Any) -> Any:
  """The jaxpr that an equation calls."""
  for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
    if key in eqn.params:
      inner = eqn.params[key]
      return getattr(inner, "jaxpr", inner)
  raise ValueError(f"{eqn.primitive.name}: expected a jaxpr in its parameters")


def _has_products(eqn: Any) -> bool:
  """Whether the jaxprs of an equation's parameters hold products."""
  leaves = jax.tree.leaves(
    list(eqn.params.values()),
    is_leaf=lambda x: isinstance(x, jex.Jaxpr | jex.ClosedJaxpr),
  )
  return any(
    _holds_products(getattr(leaf, "jaxpr", leaf))
    for leaf in leaves
    if isinstance(leaf, jex.Jaxpr | jex.ClosedJaxpr)
  )


def _holds_products(jaxpr: Any) -> bool:
  return any(
    eqn.primitive.name in _PRODUCTS or _has_products(eqn) for eqn in jaxpr.eqns
  )


def _steps(eqn: Any) -> int:
  """How often a while loop runs that counts up to a constant."""
  params = eqn.params
  test, body = params["cond_jaxpr"], params["body_jaxpr"].jaxpr
  first = params["cond_nconsts"] + params["body_nconsts"]
  start = {i: x.val for i, x in enumerate(eqn.invars[first:])
           if isinstance(x, jex.Literal)}  # fmt: skip
  compare = test.jaxpr.eqns
  if len(compare) == 1 and compare[0].primitive.name == "lt":
    now, end = compare[0].invars
    carried = list(test.jaxpr.invars)[params["cond_nconsts"] :]
    if isinstance(end, jex.Literal) and now in carried:
      place = carried.index(now)
      counter = body.invars[params["body_nconsts"] + place]
      adds = [
        e for e in body.eqns
        if body.outvars[place] in e.outvars and e.primitive.name == "add"
        and counter in e.invars[:1] and isinstance(e.invars[1], jex.Literal)
      ]  # fmt: skip
      if adds and place in start:
        step = int(adds[0].invars[1].val)
        return max(-(-(int(end.val) - int(start[place])) // step), 0)
  raise ValueError(
    "expected a while loop that counts up to a constant around a product, got"
    " one whose steps only a run tells; use scan, or fori_loop with constant"
    " bounds"
  )
