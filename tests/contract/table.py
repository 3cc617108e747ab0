"""The table that every recipe joins by one row.

A row is a recipe with its options, and the pieces of NumPy (from `pieces`) that
compute the same. `tests/contract` then checks the whole contract of a recipe on
it. For a recipe of your own add a line to ROWS.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from . import pieces
from .pieces import (
  TOTAL,
  Anew,
  Cleared,
  exponential,
  frozen,
  geometric,
  linear,
  pulled,
  regrown,
  stairs,
)

COMMON = {"dense": 0.2, "finetune": 0.2, "refresh_every": 1}


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
  """A recipe, its options, and what it computes in numpy.

  Attributes:
    name: Name of the recipe.
    given: Options of the recipe; defaults of common ones are `COMMON`.
    pattern: Pattern of both kernels, or one for each, "1:16, 1:4".
    patterns: Pattern schedule, from `pieces`.
    stages: Stage schedule, from `pieces`.
    leak: Leak, from `pieces`.
    choose: Criterion, from `pieces`.
    adam: Optimizer, from `pieces`.
    grad: Gradient mode.
    backward: Weight of SR-STE's term inside the backward pass.
    soft: Whether the forward pass is S-STE's.
    switches: Whether the masks start with STEP's flag.
    by_chance: Whether masks are refreshed at random steps.
    exact: Whether every refresh keeps exactly n per group, else at most n.
    points: n of the nested patterns, if a step trains several.
    sampled: Number of them that a step draws.
    ties: Whether the reference keeps the same ones of equal scores.
  """

  name: str
  given: dict[str, Any] = dataclasses.field(default_factory=dict)
  pattern: str = "1:4"
  patterns: Callable = pieces.direct
  stages: Callable = pieces.equal
  leak: Callable = pieces.hard
  choose: Callable = pieces.largest
  adam: Callable = pieces.Adam
  grad: str = "ste"
  backward: float = 0.0
  soft: bool = False
  switches: bool = False
  by_chance: bool = False
  exact: bool = True
  ties: bool = True
  points: tuple[int, ...] = ()
  sampled: int = 1

  @property
  def options(self) -> dict[str, Any]:
    return {**COMMON, **self.given}

  @property
  def targets(self) -> dict[str, tuple[int, int]]:
    """(n, m) of the two kernels."""
    parts = [part.split(":") for part in self.pattern.split(", ")]
    pairs = [(int(n), int(m)) for n, m in parts]
    return {"fc1": pairs[0], "fc2": pairs[-1]}

  @property
  def rules(self) -> str:
    """The pattern as `recipes.create` and `sparsify` take it."""
    parts = self.pattern.split(", ")
    if len(parts) == 1:
      return self.pattern
    return f"fc1/kernel: {parts[0]}, fc2/kernel: {parts[1]}"

  @property
  def id(self) -> str:
    given = [f"{k}={v}" for k, v in self.given.items()]
    return "-".join([self.name, *given, self.pattern.replace(", ", "+")])


# What several rows share.
_STEP = {"t_min": 0.1, "t_max": 0.5}
_SWITCH = {"t_min": 4, "t_max": 10}  # in updates: no sooner than `dense` ends
# With STEP's thresholds the seeds switch at steps 7 and 11, and at 5 and 9.

# The first row of each recipe is the one that all containers are given.
ROWS = (
  Row("dense", patterns=pieces.never),
  Row("ste", {"refresh_every": 3}),
  Row("ste", {"refresh_every": 0}, "2:4, 1:8"),
  Row(
    "ste", {"transposable": True}, "2:4", choose=pieces.both_ways, ties=False
  ),
  Row("sr_ste", {"decay": 0.5}, adam=pulled(0.5)),
  Row(
    "sr_ste", {"decay": 0.5, "mode": "decoupled"}, "2:4",
    adam=pulled(0.5, "decoupled"),
  ),
  Row("sr_ste", {"decay": 0.5, "mode": "backward"}, backward=0.5),
  Row("annealed_decay", {"decay": 0.5}, adam=pulled(0.5, until=10)),
  Row(
    "annealed_decay", {"decay": 0.5, "mode": "decoupled", "until": 0.3},
    adam=pulled(0.5, "decoupled", until=6),
  ),
  Row("mask_decay", leak=stairs(1 / 16), grad="damped"),
  Row("mask_decay", {"omega": 0.25}, "2:4", leak=stairs(0.25), grad="damped"),
  Row(
    "mask_decay", {"omega": 0.3, "freq": 2, "grad_mode": "ste"},
    leak=stairs(0.3, 2),
  ),
  Row("structure_decay", {}, "1:16, 1:4", patterns=pieces.aqt, grad="masked"),
  Row(
    "structure_decay", {"freq": 2, "grad_mode": "ste"}, "1:8",
    patterns=pieces.aqt, stages=pieces.every(2),
  ),
  Row("mdgf_linear", leak=linear()),
  Row(
    "mdgf_linear", {"beta": 0.15, "grad_mode": "damped"}, "2:4",
    leak=linear(0.15), grad="damped",
  ),
  Row("mdgf_exp", leak=exponential()),
  Row("mdgf_exp", {"zero_at": 0.5}, leak=exponential(zero_at=0.5)),
  Row(
    "mdgf_exp", {"beta": 0.3, "grad_mode": "damped", "refresh_every": 2},
    leak=exponential(0.3), grad="damped",
  ),
  Row("sdgf_stepwise", {}, "1:16, 1:8", patterns=pieces.halves),
  Row(
    "sdgf_stepwise", {"grad_mode": "masked"}, patterns=pieces.halves,
    grad="masked",
  ),
  Row("sdgf_geometric", {}, "1:2, 1:4", patterns=geometric(16)),
  Row(
    "sdgf_geometric", {"k": 4, "grad_mode": "masked", "refresh_every": 5},
    patterns=geometric(4), grad="masked",
  ),
  Row("figs", patterns=geometric(8)),
  Row(
    "figs", {"nested": True, "k": 4}, "2:4", patterns=geometric(4),
    choose=pieces.nested, exact=False,
  ),
  Row("mdgf_sdgf", patterns=geometric(16), leak=exponential()),
  Row(
    "mdgf_sdgf",
    {"structure": "stepwise", "decay": "linear", "grad_mode": "damped"},
    "1:8", patterns=pieces.halves, leak=linear(), grad="damped",
  ),
  Row(
    "step", {**_STEP, "threshold": 2.3e-5}, switches=True,
    adam=frozen(**_SWITCH, limit=2.3e-5),
  ),
  Row(
    "step",
    {
      **_STEP, "threshold": 0.0, "bias_correct": False, "eps_in_root": True,
    },
    "2:4",
    switches=True,
    adam=frozen(**_SWITCH, limit=0, correct=False, in_root=True),
  ),
  Row(
    "step",
    {
      **_STEP, "threshold": 0.0355, "criterion": "relative",
      "mean": "geometric", "refresh_every": 7,
    },
    switches=True,
    adam=frozen(**_SWITCH, limit=0.0355, relative=True, geo=True),
  ),
  Row(
    "asp", {"dense": 0.5, "refresh_every": 0}, "2:4",
    grad="masked", adam=Cleared,
  ),
  Row("one_shot", {"dense": 0.8, "refresh_every": 0}, grad="masked"),
  Row(
    "one_shot",
    {"criterion": "saliency", "grad_mode": "ste", "refresh_every": 0},
    "2:4, 1:8", choose=pieces.salient,
  ),
  Row("one_shot", {"criterion": "random"}, choose=pieces.drawn, grad="masked"),
  Row(
    "gradual", {}, "1:8", patterns=pieces.countdown, stages=pieces.cubic,
    grad="masked",
  ),
  Row(
    "gradual", {"criterion": "saliency", "grad_mode": "ste"}, "2:16, 1:4",
    patterns=pieces.countdown, stages=pieces.cubic, choose=pieces.salient,
  ),
  Row(
    "gradual", {"criterion": "random"}, patterns=pieces.countdown,
    stages=pieces.cubic, choose=pieces.drawn, grad="masked",
  ),
  Row(
    "rigl", {"dense": 0.0, "share": 0.8, "refresh_every": 3}, "2:8",
    choose=regrown("gradient", 0.8), adam=Anew,
  ),
  Row(
    "rigl", {"until": 0.5}, "2:4", choose=regrown("gradient", 0.3, 0.5),
    adam=Anew,
  ),
  Row(
    "set", {"dense": 0.0, "share": 0.8, "refresh_every": 3}, "2:8",
    choose=regrown("random", 0.8), adam=Anew,
  ),
  Row(  # the parts of a layer are in tests/nn/test_adapters.py
    "slope", {"dense": 0.0, "refresh_every": 0, "rank": 0,
              "double_pruned": False},
    "2:4", grad="masked", adam=Cleared,
  ),
  Row(
    "sparse_then_dense", {"refresh_every": 0}, "2:4, 1:8",
    patterns=pieces.then_dense, stages=pieces.last_at_end, choose=pieces.drawn,
    grad="masked", adam=Cleared,
  ),
  Row(
    "sparse_then_dense",
    {
      "criterion": "magnitude", "grad_mode": "ste", "decay": 0.5,
      "refresh_every": 3,
    },
    "2:4", patterns=pieces.then_dense, stages=pieces.last_at_end,
    adam=pulled(0.5),
  ),
  Row("nested", {"patterns": "1:4,2:4,3:4,4:4"}, points=(1, 2, 3, 4)),
  Row(
    "nested", {"dense": 0.0, "sampled": 9}, "1:8", points=(1, 2, 4, 8),
    sampled=2,
  ),
  Row("s_ste", {"dense": 0.0}, "2:4", soft=True),
  Row("s_ste", {"refresh_every": 4}, "1:4, 2:8", soft=True),
  Row(
    "transposable", {"decay": 0.5, "refresh_every": 3}, "2:4",
    choose=pieces.both_ways, adam=pulled(0.5), ties=False,
  ),
  Row("cosine_leak", {"chance": 0.3}, leak=pieces.cosine, by_chance=True),
)  # fmt: skip
FIRST = tuple(
  row
  for i, row in enumerate(ROWS)
  if row.name not in {other.name for other in ROWS[:i]}
)
assert TOTAL == 20  # the steps that the rows above are written for
