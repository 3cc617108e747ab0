"""STEP's Adam put into an optimizer that was built with optax's.

optax keeps what a transform was built from in the closures of its functions.
Three of them are read here, each recognised by its qualified name: `chain`, the
wrapper that lets a member of a chain ignore extra arguments, and
`scale_by_adam`. Whatever is not recognised stays a closed box.
"""

from __future__ import annotations

from typing import Any

import optax

from figs_jax.optim.step_adam import scale_by_step_adam

_ADAFACTOR = {"adafactor", "scale_by_factored_rms"}
_ADAM = {"b1", "b2", "eps", "eps_root", "mu_dtype", "nesterov"}


def replace_adam(
  tx: optax.GradientTransformation, **step_options: Any
) -> optax.GradientTransformationExtraArgs:
  """The same chain with its `scale_by_adam` replaced by `scale_by_step_adam`.

  b1, b2, eps, eps_root and mu_dtype are taken from the chain. A chain that
  already holds a `scale_by_step_adam` is returned as it is.

  Args:
    tx: `optax.adam(...)`, `optax.adamw(...)` or any `optax.chain`, nested or
      not, with exactly one plain `scale_by_adam`.
    **step_options: of `scale_by_step_adam`.

  Raises:
    ValueError: `tx` is no such chain, as with Nesterov momentum or when another
      wrapper (`inject_hyperparams`, `MultiSteps`, `masked`) hides the Adam;
      Adafactor anywhere in it.

  >>> tx = replace_adam(optax.adamw(1e-3), t_min=10, t_max=50)
  >>> type(tx.init({})[0]).__name__
  'ScaleByStepAdamState'
  """
  members = _flat(tx)
  if any(_made_by(m, "scale_by_step_adam", "figs_jax") for m in members):
    return optax.with_extra_args_support(tx)
  if _reaches(tx, _ADAFACTOR):
    raise ValueError(
      "STEP cannot freeze Adafactor's second moment: it is factored into row"
      " and column means, so neither |v_t - v_{t-1}| nor a frozen v* exists per"
      " coordinate, and its decay tends to 1, so that it would always seem"
      " settled; use figs_jax.optim.step_adamw(learning_rate, t_min=...,"
      " t_max=..., mu_dtype=jnp.bfloat16), or another recipe"
    )
  adams = [member for member in members if _settings(member)]
  if len(adams) != 1:
    raise ValueError(
      "STEP replaces the scale_by_adam of the optimizer, which must be an"
      " optax.chain (optax.adam, optax.adamw, ...) with exactly one plain"
      f" scale_by_adam, but {len(adams)} were found; build it with"
      " figs_jax.optim.step_adamw(learning_rate, t_min=..., t_max=...), and put"
      " wrappers such as optax.MultiSteps around the result"
    )
  return _replaced(tx, step_options)


def _replaced(tx: Any, options: dict[str, Any]) -> Any:
  tx = _unwrapped(tx)
  settings, members = _settings(tx), _members(tx)
  if settings:
    return scale_by_step_adam(**settings, **options)
  if members:
    return optax.chain(*(_replaced(member, options) for member in members))
  return tx


def _flat(tx: Any) -> list[Any]:
  """The transforms of a chain, those of nested chains among them."""
  tx = _unwrapped(tx)
  members = _members(tx)
  if not members:
    return [tx]
  return [inner for member in members for inner in _flat(member)]


def _members(tx: Any) -> list[Any]:
  """What `optax.chain` was given; nothing for anything else."""
  if not _made_by(tx, "chain"):
    return []
  inits = _closure(tx.init).get("init_fns", ())
  updates = _closure(tx.update).get("update_fns", ())
  return [
    optax.GradientTransformationExtraArgs(init, update)
    for init, update in zip(inits, updates)
  ]


def _unwrapped(tx: Any) -> Any:
  """The transform behind what makes it ignore extra arguments."""
  while _made_by(tx, "with_extra_args_support"):
    inner = _closure(tx.update).get("tx")
    if inner is None:
      break
    tx = inner
  return tx


def _settings(tx: Any) -> dict[str, Any] | None:
  """The arguments of a plain `optax.scale_by_adam`, else None."""
  found = _closure(tx.update)
  if not _made_by(tx, "scale_by_adam") or set(found) != _ADAM:
    return None
  if found.pop("nesterov"):
    return None
  return found


def _reaches(thing: Any, makers: set[str], seen: tuple[Any, ...] = ()) -> bool:
  """Whether an optax function of one of these names is behind a transform.

  Follows closures, containers and bound methods, so that it also looks into the
  wrappers that stay closed to `_members`.
  """
  if any(thing is other for other in seen):
    return False
  seen = (*seen, thing)
  if isinstance(thing, dict):
    inside = [*thing.values()]
  elif isinstance(thing, (tuple, list)):
    inside = [*thing]
  elif isinstance(thing, optax.MultiSteps):
    if "MultiSteps" in makers:
      return True
    inside = [thing.inner_opt]
  elif callable(thing):
    module = getattr(thing, "__module__", None) or ""
    name = getattr(thing, "__qualname__", "").split(".")[0]
    if module.split(".")[0] == "optax" and name in makers:
      return True
    inside = [*_closure(thing).values(), getattr(thing, "__self__", None)]
  else:
    return False
  return any(_reaches(part, makers, seen) for part in inside)


def accumulates(tx: Any) -> bool:
  """Whether `optax.MultiSteps` is somewhere in an optimizer.

  Args:
    tx: an `optax.MultiSteps` or a transformation.

  >>> sgd = optax.sgd(0.1)
  >>> accumulates(optax.MultiSteps(sgd, 2)), accumulates(sgd)
  (True, False)
  """
  return _reaches(tx, {"MultiSteps"})


def _made_by(tx: Any, maker: str, package: str = "optax") -> bool:
  module = getattr(tx.update, "__module__", None) or ""
  name = getattr(tx.update, "__qualname__", "")
  here = module.split(".")[0] == package
  return here and name.startswith(f"{maker}.<locals>.")


def _closure(fn: Any) -> dict[str, Any]:
  """The names a function closes over, with their values."""
  names = getattr(getattr(fn, "__code__", None), "co_freevars", ())
  cells = getattr(fn, "__closure__", None) or ()
  return {name: cell.cell_contents for name, cell in zip(names, cells)}
