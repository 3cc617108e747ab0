"""Layers whose kernel may carry an N:M mask.

`SparseLinear(..., pattern=None)` is `nnx.Linear`. With a pattern the layer
holds a mask and a leak beside its kernel. Its forward pass is that of the Flax
layer on the effective kernel of `core.flow`, so every option of the Flax layer
keeps its meaning.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
from flax import nnx

from figs_jax.core._flow import Flow, GradMode, flow
from figs_jax.core.groups import other_axis
from figs_jax.core.mask_bits import unpack_mask
from figs_jax.core.masks import nm_mask
from figs_jax.core.pattern import NM, parse_pattern
from figs_jax.core.rules import check_groups
from figs_jax.core.soft import s_ste
from figs_jax.core.types import Array, Bool, Float
from figs_jax.nn.initializers import drawing_dtype
from figs_jax.nn.kernel_axes import (
  Axis,
  contraction_axis,
  einsum_axis,
  kernel_name,
  kernel_of,
  stacked_shape,
  token_axes,
)
from figs_jax.nn.logical_axes import with_split_columns
from figs_jax.nn.neural_gradient import (
  NeuralGradient,
  constant,
  constant_layer,
  forked,
)
from figs_jax.nn.variables import Leak, Mask, Scale, placement


class Masked(nnx.Module):
  """Adds a mask to the dense layer that follows in the bases of the class.

  Attributes:
    pattern: `NM`, or None for an ordinary layer (static).
    group_axis: Kernel axes of the groups, negative (static).
    flow: `Flow` of the masked kernel (static), see `nn.with_flow`.
    kernel_mask: `Mask`; only with a pattern. Starts as the N:M mask of
      |kernel|.
    leak: `Leak`; only with a pattern. Starts at 0.
    scale: `Scale`; only with a pattern and a soft flow.
    neural_gradient: `NeuralGradient`; only with a pattern and a flow that
      prunes the neural gradient.
    input_pattern: `NM` of the input's features, or None (static); see
      `prune_inputs`.
    input_grad: Gradient of the dropped entries of the input (static).
    words: Logical axes of the kernel (static); empty before `with_flow`.
    adapter: `nnx.LoRA` whose output is added; only after `with_adapters`.

  Args:
    *args: Arguments of the dense layer.
    pattern: `NM` or text such as "1:8"; None (or n = m) is dense.
    group_axis: Kernel axes of the groups; a tuple is flattened in order.
      Defaults to the contracted axes.
    grad_mode: `ste`, `damped` or `masked`, see `core.flow`.
    **kwargs: Arguments of the dense layer.

  Raises:
    ValueError: If pattern or grad_mode is invalid, or m does not divide the
      length of the group axis.
  """

  dense_type: ClassVar[type[nnx.Module]]
  kernel: nnx.Param
  pattern: NM | None
  group_axis: Axis | None
  flow: Flow
  kernel_mask: Mask
  leak: Leak
  scale: Scale
  neural_gradient: NeuralGradient
  adapter: nnx.LoRA
  input_pattern: NM | None = None
  input_grad: GradMode = "masked"
  words: tuple[str | None, ...] = ()

  def __init__(
    self,
    *args: Any,
    pattern: NM | str | None = None,
    group_axis: Axis | None = None,
    grad_mode: GradMode = "ste",
    **kwargs: Any,
  ):
    dtype = jnp.dtype(kwargs.get("param_dtype", jnp.float32))
    super().__init__(*args, **kwargs | {"param_dtype": drawing_dtype(dtype)})
    if dtype != drawing_dtype(dtype):
      self._cast(dtype)
    self.group_axis = _negative(group_axis, self.kernel.ndim)
    set_pattern(self, pattern, grad_mode)

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    """The call of the dense layer with the effective kernel."""
    if self.input_pattern is not None:
      x, *more = args
      kept = nm_mask(jnp.abs(x), self.input_pattern, -1)
      args = (flow(x, kept, 0.0, self.input_grad), *more)
    if self.pattern is None:
      out = super().__call__(*args, **kwargs)
    else:
      out = self._product(self.dense_type.__call__, args, kwargs)
      out = with_split_columns(out, self.words)
    adapter = getattr(self, "adapter", None)
    return out if adapter is None else out + adapter(*args)

  def _product(self, call: Any, args: Any, kwargs: Any) -> Any:
    """A method of the dense layer with the effective kernel."""
    kernel = self.effective_kernel()
    pruned = getattr(self, "neural_gradient", None)
    if pruned is not None and pruned.deterministic:
      pruned = None
    if pruned is None and not self.flow.double_pruned:
      return call(_dense(self, kernel), *args, **kwargs)
    # Copied before the call, so that both have the same random streams.
    branch = _dense(constant_layer(self), kernel)
    backward = jax.lax.stop_gradient(self._backward_kernel(kernel))
    out = call(_dense(self, backward), *args, **kwargs)
    args, kwargs = constant((args, kwargs))
    weight_out = call(branch, *args, **kwargs)
    if pruned is None:
      return forked(out, weight_out)
    return pruned(out, weight_out, token_axes(self, out.ndim))

  def _backward_kernel(self, kernel: Any) -> Any:
    """The kernel of the input gradient: with SLoPe, pruned along both axes."""
    if not self.flow.double_pruned or self.pattern is None:
      return kernel
    other = other_axis(kernel.ndim, cast(Axis, self.group_axis))
    # W^{R,C} of 2405.16325, eq. 6, but chosen at every step by |W^R|.
    kept = nm_mask(jnp.abs(kernel), self.pattern, other)
    dense = self.leak[...] == 1  # as in a dense phase
    return jnp.where(kept | dense, kernel, jnp.zeros((), kernel.dtype))

  def _cast(self, dtype: Any) -> None:
    """Makes this the dtype of the parameters, which were drawn in float32."""
    for param in (self.kernel, getattr(self, "bias", None)):
      if isinstance(param, nnx.Param):
        param.set_value(param[...].astype(dtype))
    self.param_dtype = dtype

  @property
  def grad_mode(self) -> GradMode:
    """The gradient mode of pruned entries."""
    return self.flow.grad_mode

  def effective_kernel(self) -> Float[Array, "*shape"]:
    """w * (m + D * not m) or the soft kernel, with its gradient rule."""
    kernel = self.kernel[...]
    if self.pattern is None:
      return kernel
    mask, leak = self.kernel_mask[...], self.leak[...]
    if self.flow.soft:
      axis = cast(Axis, self.group_axis)  # there is a pattern
      mask = unpack_mask(mask, kernel.shape)
      return s_ste(kernel, mask, self.scale[...], self.pattern, axis, leak)
    return flow(kernel, mask, leak, self.flow.grad_mode, self.flow.decay)


class SparseLinear(Masked, nnx.Linear):
  """`nnx.Linear` with a mask; groups lie on the input features.

  The arguments are those of `nnx.Linear` and `Masked`.

  >>> layer = SparseLinear(8, 4, pattern="1:4", rngs=nnx.Rngs(0))
  >>> layer.kernel_mask.shape, int(layer.kernel_mask[...].sum())
  ((8, 4), 8)
  """

  dense_type = nnx.Linear

  def __init__(self, *args: Any, **kwargs: Any):
    kwargs.setdefault("dot_general", rows_dot_general)
    super().__init__(*args, **kwargs)


class SparseLinearGeneral(Masked, nnx.LinearGeneral):
  """`nnx.LinearGeneral` with a mask; groups lie on all input features.

  >>> layer = SparseLinearGeneral(
  ...   (2, 4), 3, axis=(-2, -1), pattern="1:8", rngs=nnx.Rngs(0))
  >>> layer.group_axis, int(layer.kernel_mask[...].sum())
  ((-3, -2), 3)
  """

  dense_type = nnx.LinearGeneral


class SparseEinsum(Masked, nnx.Einsum):
  """`nnx.Einsum` with a mask; groups lie on the contracted letters.

  >>> layer = SparseEinsum(
  ...   "bti,ihd->bthd", (8, 2, 4), pattern="2:4", rngs=nnx.Rngs(0))
  >>> layer.group_axis
  -3
  """

  dense_type = nnx.Einsum

  def __init__(self, einsum_str: str | None, *args: Any, **kwargs: Any):
    if einsum_str is None:
      einsum_axis(None, 0)  # raises a clearer message than Flax
    super().__init__(einsum_str, *args, **kwargs)


class SparseConv(Masked, nnx.Conv):
  """`nnx.Conv` with a mask; groups lie on the input features.

  A convolution with stride equal to kernel size is one matrix product; use
  `group_axis=(-4, -3, -2)` to group along its whole contraction.

  >>> layer = SparseConv(4, 8, (3, 3), pattern="2:4", rngs=nnx.Rngs(0))
  >>> layer.kernel_mask.shape
  (3, 3, 4, 8)
  """

  dense_type = nnx.Conv


class SparseConvTranspose(Masked, nnx.ConvTranspose):
  """`nnx.ConvTranspose` with a mask; groups lie on the input features.

  >>> layer = SparseConvTranspose(4, 8, (2, 2), pattern="2:4", rngs=nnx.Rngs(0))
  >>> layer.kernel_mask.shape, layer.group_axis
  ((2, 2, 4, 8), -2)
  """

  dense_type = nnx.ConvTranspose


class SparseEmbed(Masked, nnx.Embed):
  """`nnx.Embed` with a mask; groups lie on the features.

  The mask holds for the rows that are looked up and for the product with all of
  them, `attend`. Whoever reads `embedding` gets the masked table, as a model
  does that multiplies by `embed.embedding[...].T`.

  >>> layer = SparseEmbed(8, 4, pattern="2:4", rngs=nnx.Rngs(0))
  >>> int((layer(jnp.arange(8)) != 0).sum()), layer.attend(jnp.ones(4)).shape
  (16, (8,))
  """

  dense_type = nnx.Embed

  def __call__(self, inputs: Any, out_sharding: Any = None) -> Any:
    """Rows of the masked table."""
    # Only `attend` is a product with a neural gradient to prune.
    table = _dense(self, self.effective_kernel())
    return table(inputs, out_sharding=out_sharding)

  def attend(self, query: Any, out_sharding: Any = None) -> Any:
    """The product of queries with all rows of the masked table."""
    attend = cast(type[nnx.Embed], self.dense_type).attend
    return self._product(attend, (query,), {"out_sharding": out_sharding})

  @property
  def kernel(self) -> nnx.Param:  # pyrefly: ignore[bad-override]
    """The parameter, without its mask."""
    return vars(self)["embedding"]

  @property
  def embedding(self) -> Any:
    """The table as a variable; masked, it is a copy and not the parameter."""
    if getattr(self, "pattern", None) is None:
      return self.kernel
    return self.kernel.replace(self.effective_kernel())

  @embedding.setter
  def embedding(self, table: nnx.Param) -> None:
    vars(self)["embedding"] = table


_SPARSE_TYPES: dict[type, type[Masked]] = {
  kind.dense_type: kind
  for kind in (
    SparseLinear,
    SparseLinearGeneral,
    SparseEinsum,
    SparseConv,
    SparseConvTranspose,
    SparseEmbed,
  )
}


@functools.cache
def sparse_type(dense_type: type[nnx.Module]) -> type[Masked]:
  """The masked version of a layer class; made on demand for a subclass.

  >>> sparse_type(nnx.Linear)
  <class 'figs_jax.nn.layers.SparseLinear'>
  """
  if issubclass(dense_type, Masked):
    return dense_type
  if dense_type in _SPARSE_TYPES:
    return _SPARSE_TYPES[dense_type]
  embeds = issubclass(dense_type, nnx.Embed)
  bases = (SparseEmbed if embeds else Masked, dense_type)
  return type(f"Sparse{dense_type.__name__}", bases, {"dense_type": dense_type})


def rows_dot_general(
  x: Float[Array, "*rows inputs"],
  kernel: Float[Array, "inputs outputs"],
  dimension_numbers: Any = None,
  *,
  out_sharding: Any = None,
  **options: Any,
) -> Float[Array, "*rows outputs"]:
  """`jax.lax.dot_general` of a linear layer, as a product of two matrices.

  With more axes of rows, the gradient of the kernel would contract several axes
  at once, for which XLA first copies the transposed gradient of the output,
  and on a CPU recomputes what leads to it column by column. This layout has no
  such copy, and the sums are the same.
  """
  if out_sharding is not None:  # it names all axes
    return jax.lax.dot_general(
      x, kernel, dimension_numbers, out_sharding=out_sharding, **options
    )
  rows = x.reshape(-1, x.shape[-1])
  out = jax.lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), **options)
  return out.reshape(*x.shape[:-1], -1)


def set_pattern(
  layer: Masked,
  pattern: NM | str | None,
  grad_mode: GradMode = "ste",
  shared: tuple[Mask, Leak] | None = None,
  path: str | None = None,
) -> None:
  """Gives the layer the mask of a pattern, in place; None removes the mask.

  The layer gets a plain flow with this gradient mode.

  Args:
    layer: Layer with `group_axis` set, or None for the contracted axes.
    pattern: `NM` or text such as "1:8"; None (or n = m) is dense.
    grad_mode: `ste`, `damped` or `masked`, see `core.flow`.
    shared: Mask and leak of a layer that holds the same kernel.
    path: Path of the layer in error messages.

  Raises:
    ValueError: If pattern or grad_mode is invalid, or m does not divide the
      length of the group axis.
  """
  flow = Flow(grad_mode)
  nm = None if pattern is None else parse_pattern(pattern)
  if nm is not None and nm.is_dense:
    nm = None
  if layer.group_axis is None:
    layer.group_axis = contraction_axis(layer)
  layer.pattern, layer.flow = nm, flow
  for name in ("kernel_mask", "leak", "scale", "neural_gradient"):
    if hasattr(layer, name):
      delattr(layer, name)
  if nm is None:
    return
  path = path or f"{type(layer).__name__}.kernel"
  axis = layer.group_axis
  if axis is None:
    raise ValueError(
      f"{path}: expected a contracted axis for the groups of {nm}, got none;"
      " pass group_axis= or pattern=None"
    )
  lead = stacked_shape(layer, path)
  check_groups(path, tuple(layer.kernel.shape), nm, axis)
  if shared is None:
    shared = _variables(layer.kernel, nm, axis, lead)
  layer.kernel_mask, layer.leak = shared


def _dense(layer: Masked, kernel: Float[Array, "*shape"]) -> Any:
  """The dense layer with the same attributes, but this kernel."""
  # A second object, so that the first stays unchanged.
  view = object.__new__(layer.dense_type)
  vars(view).update(vars(layer))
  vars(view)[kernel_name(layer)] = kernel_of(layer).replace(kernel)
  return view


def _variables(
  kernel: nnx.Variable, pattern: NM, axis: Axis, lead: tuple[int, ...]
) -> tuple[Mask, Leak]:
  """Mask and leak; abstract (shape and dtype) if the kernel is."""
  weights = kernel.get_raw_value()
  if isinstance(weights, jax.ShapeDtypeStruct):
    mask = jax.ShapeDtypeStruct(
      weights.shape, jnp.bool_, sharding=weights.sharding
    )
    leak = jax.ShapeDtypeStruct(lead, jnp.float32)
  else:
    mask = _magnitude_mask(kernel[...], pattern, axis)
    leak = jnp.zeros(lead, jnp.float32)
  return Mask(mask, **placement(kernel)), Leak(leak)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _magnitude_mask(
  kernel: Float[Array, "*shape"], pattern: NM, axis: Axis
) -> Bool[Array, "*shape"]:
  return nm_mask(jnp.abs(kernel), pattern, axis)


def _negative(axis: Axis | None, ndim: int) -> Axis | None:
  if axis is None:
    return None
  if isinstance(axis, int):
    return axis if axis < 0 else axis - ndim
  return tuple(a if a < 0 else a - ndim for a in axis)
