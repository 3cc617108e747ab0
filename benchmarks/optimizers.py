"""Every optimizer of optax under every kind of recipe and wrapper.

A case takes three training steps of a tiny model and passes if they compile
once, the loss and the weights stay finite, and the finished kernel is exactly
N:M. The program prints how many of the seven wrappers pass for each optimizer
and recipe, and every other case with its reason.

  python benchmarks/optimizers.py --optimizers adamw,lion --recipes rigl
"""

from __future__ import annotations

import argparse
import datetime
import platform
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from optax import contrib

import figs_jax as figs
from figs_jax import recipes
from figs_jax.train.state import TrainState, update

_OPTAX = (
  "adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad"
  " fromage lamb lars lion nadam nadamw novograd optimistic_adam_v2"
  " optimistic_gradient_descent radam rmsprop rprop sgd sign_sgd signum sm3"
  " yogi"
)
_CONTRIB = (
  "acprop ademamix adopt cocob dadapt_adamw dog dowg madgrad momo momo_adam"
  " muon prodigy schedule_free_sgd simplified_ademamix"
)
# Learning rate -> optimizer. Those with a state of their own for the step size
# take it where they take one.
OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
  **{name: getattr(optax, name) for name in _OPTAX.split()},
  "momentum": lambda lr: optax.sgd(lr, momentum=0.9),
  "factored adafactor": lambda lr: optax.adafactor(
    lr, min_dim_size_to_factor=2
  ),
  "noisy_sgd": lambda lr: optax.noisy_sgd(lr, key=0),
  "optimistic_adam": lambda lr: optax.optimistic_adam(lr, 1.0),
  "polyak_sgd": optax.polyak_sgd,
  **{name: getattr(contrib, name) for name in _CONTRIB.split()},
  "galore": lambda lr: contrib.galore(lr, rank=2),
  "mechanize": lambda lr: contrib.mechanize(optax.adam(lr)),
  "sam": lambda lr: contrib.sam(
    optax.adam(lr), optax.chain(contrib.normalize(), optax.sgd(0.05))
  ),
  "schedule_free": lambda lr: contrib.schedule_free(optax.sgd(lr), lr),
  "schedule_free_adamw": contrib.schedule_free_adamw,
  "reduce_on_plateau": lambda lr: optax.chain(
    optax.adam(lr), contrib.reduce_on_plateau()
  ),
  "lbfgs": optax.lbfgs,
}

# Optimizers that need more than gradients; the report says why.
LEFT_OUT: dict[str, Callable[[Any], optax.GradientTransformation]] = {
  "lookahead": lambda lr: optax.lookahead(optax.adam(lr), 2, 0.5),
  "sophia": contrib.sophia,
  "dpsgd": lambda lr: contrib.dpsgd(lr, 1.0, 1.0, 0),
  "sam, opaque": lambda lr: contrib.sam(
    optax.adam(lr), optax.sgd(0.05), opaque_mode=True
  ),
}

RECIPES: dict[str, dict[str, Any]] = {
  "ste": {},
  "sr_ste": {},
  "figs": {},
  "asp": {"dense": 0.25},
  "rigl": {},
  "step": {"dense": 0.0, "t_min": 0.0, "t_max": 0.25},
}

# For STEP: the same optimizers around the recipe's own Adam.
WITH_ADAM: dict[str, Callable[..., Sequence[Any]]] = {
  "adam": lambda adam, lr: (adam,),
  "adamw": lambda adam, lr: (adam, optax.add_decayed_weights(1e-4)),
  "lamb": lambda adam, lr: (adam, optax.scale_by_trust_ratio()),
}

LABELS = {"fc": "a", "out": "b"}  # of branches, not of leaves
WRAPPERS: dict[str, Callable[..., Any]] = {
  "plain": lambda recipe, make: recipe.transform(make(1e-2)),
  "chain": lambda recipe, make: optax.chain(
    optax.clip_by_global_norm(1.0), recipe.transform(make(1e-2))
  ),
  "MultiSteps": lambda recipe, make: optax.MultiSteps(
    recipe.transform(make(1e-2)), 2
  ),
  "inject_hyperparams": lambda recipe, make: optax.inject_hyperparams(
    lambda learning_rate: recipe.transform(make(learning_rate))
  )(learning_rate=1e-2),
  "masked": lambda recipe, make: optax.masked(
    recipe.transform(make(1e-2)), {"fc": True, "out": False}
  ),
  "multi_transform": lambda recipe, make: recipe.transform(
    optax.multi_transform({"a": make(1e-2), "b": optax.sgd(1e-2)}, LABELS)
  ),
  "apply_if_finite": lambda recipe, make: optax.apply_if_finite(
    recipe.transform(make(1e-2)), 3
  ),
}
# What the recipe step says to an optimizer without its Adam.
REFUSALS = "STEP needs scale_by_step_adam", "STEP cannot freeze Adafactor's"


class Net(nnx.Module):
  """One sparse and one dense kernel."""

  def __init__(self):
    rngs = nnx.Rngs(0)
    self.fc = nnx.Linear(8, 4, use_bias=False, rngs=rngs)
    self.out = nnx.Linear(4, 2, use_bias=False, rngs=rngs)

  def __call__(self, x):
    return self.out(jnp.tanh(self.fc(x)))


def squared(model: Any, x: Any, key: Any) -> tuple[Any, dict[str, Any]]:
  """Mean squared distance from 1."""
  del key
  return jnp.mean((model(x) - 1) ** 2), {}


def case(optimizer: str, recipe_name: str, wrapper: str) -> str:
  """`ok`, `refused` (by STEP), or why the case fails, in one line."""
  options = {"dense": 0.0} | RECIPES[recipe_name]
  recipe = recipes.create(recipe_name, "fc/.*: 1:4", 4, **options)

  def make(lr: Any) -> optax.GradientTransformation:
    if recipe_name == "step" and optimizer in WITH_ADAM:
      parts = WITH_ADAM[optimizer](recipe.scale_by_adam(), lr)
      return optax.chain(*parts, optax.scale_by_learning_rate(lr))
    return (OPTIMIZERS | LEFT_OUT)[optimizer](lr)

  try:
    return _outcome(recipe, WRAPPERS[wrapper](recipe, make))
  except Exception as error:  # any failure is a row of the report
    line = str(error).split("\n")[0]
    if recipe_name == "step" and line.startswith(REFUSALS):
      return "refused"
    return f"{type(error).__name__}: {line}"


def _outcome(recipe: recipes.Recipe, tx: Any) -> str:
  model = figs.sparsify(Net(), recipe)
  state = TrainState.create(model, recipe, tx, loss=squared)
  traces = []

  def one(*args):
    traces.append(1)
    return update(*args)

  step = jax.jit(one, donate_argnums=0)
  x = jnp.linspace(-1, 1, 32).reshape(4, 8)
  for _ in range(3):
    state, metrics = step(state, x)
  leaves = (metrics["loss"], *jax.tree.leaves(state.params))
  if not all(bool(jnp.isfinite(leaf).all()) for leaf in leaves):
    return "not finite"
  kernel = figs.nn.split(state.finished())[1]["fc"]["kernel"]
  if not figs.is_nm(kernel, "1:4"):
    return "not N:M"
  return "ok" if len(traces) == 1 else f"{len(traces)} compilations"


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for flag, known in (("optimizers", OPTIMIZERS), ("recipes", RECIPES)):
    parser.add_argument(
      f"--{flag}",
      type=lambda text: text.split(","),
      default=list(known),
      help=f"comma-separated names of {', '.join(known)}",
    )
  args = parser.parse_args()
  jax.config.update("jax_disable_most_optimizations", True)

  print(
    f"{datetime.date.today()}, Python {platform.python_version()},"
    f" jax {jax.__version__}, optax {optax.__version__}\n"
  )
  print("| optimizer |", " | ".join(args.recipes), "|")
  print("|---|", "---|" * len(args.recipes), sep="")
  failures, count = [], 0
  for optimizer in args.optimizers:
    cells = []
    for recipe in args.recipes:
      outcomes = {w: case(optimizer, recipe, w) for w in WRAPPERS}
      count += len(outcomes)
      if set(outcomes.values()) == {"refused"}:
        cells.append("refused")
        continue
      cells.append(f"{list(outcomes.values()).count('ok')}/{len(WRAPPERS)}")
      failures += [
        f"* {optimizer}, {recipe}, {wrapper}: {outcome}"
        for wrapper, outcome in outcomes.items()
        if outcome != "ok"
      ]
    print(f"| {optimizer} |", " | ".join(cells), "|", flush=True)
  print(f"\n{count} cases, {len(failures)} others:\n")
  print("\n".join(failures) or "none")
  print("\nLeft out:\n")
  for name in LEFT_OUT:
    print(f"* {name}: {case(name, 'ste', 'plain')}")


if __name__ == "__main__":
  main()
