# Written by docs/draw_recipes.py.
from typing import Any, Literal

from figs_jax.core.pattern import NM
from figs_jax.core.rules import Rules
from figs_jax.recipes.bound_leaf import BoundLeaf as BoundLeaf
from figs_jax.recipes.bound_recipe import BoundRecipe as BoundRecipe
from figs_jax.recipes.citations import cite as cite
from figs_jax.recipes.recipe import Moment as Moment
from figs_jax.recipes.recipe import Recipe as Recipe
from figs_jax.recipes.registry import RecipeFunction as RecipeFunction
from figs_jax.recipes.registry import create as create
from figs_jax.recipes.registry import function_of as function_of
from figs_jax.recipes.registry import names as names
from figs_jax.recipes.registry import options as options
from figs_jax.recipes.registry import register as register
from figs_jax.recipes.timeline import Switch as Switch
from figs_jax.recipes.timeline import Timeline as Timeline

def __getattr__(name: str) -> Any: ...
def annealed_decay(
  pattern: NM | Rules | str,
  total_steps: int,
  *,
  decay: float | int = 0.0002,
  until: float | int = 0.5,
  mode: Literal["into_grad", "decoupled"] = "into_grad",
  dense: float | int = 0.0125,
  finetune: float | int = 0.1,
  refresh_every: int = 1,
  transposable: bool = False,
  mvue: NM | str = "",
) -> Recipe:
  """SR-STE whose decay grows, α t up to T0, then stays (arXiv 2407.20584)."""

def asp(
  pattern: NM | Rules | str,
  total_steps: int,
  *,
  dense: float | int = 0.5,
  finetune: float | int = 0.1,
  refresh_every: int = 0,
  transposable: bool = False,
  mvue: NM | str = "",
) -> Recipe:
  """Prune the trained network once, then train it again (arXiv 2104.08378)."""

def dense(
  pattern: NM | Rules | str,
  total_steps: int,
  *,
  dense: float | int = 0.0125,
  finetune: float | int = 0.1,
  refresh_every: int = 1,
  transposable: bool = False,
  mvue: NM | str = "",
) -> Recipe:
  """No sparsity: the whole run is one dense phase, every mask all True."""

def figs(
  pattern: NM | Rules | str,
  total_steps: int,
  *,
  k: int = 8,
  grad_mode: Literal["ste", "masked"] = "ste",
  nested: bool = False,
  dense: float | int = 0.0125,
  finetune: float | int = 0.1,
  refresh_every: int = 1,
  transposable: bool = False,
  mvue: NM | str = "",
) -> Recipe:
  """`sdgf_geometric` with k = 8: 1:4 is reached by 8:32, 4:16, 2:8, 1:4."""

def gradual(
  pattern: NM | Rules | str,
  total_steps: int,
  *,
  criterion: Literal["magnitude", "saliency", "random"] = "magnitude",
  grad_mode: Literal["masked", "ste"] = "masked",
  dense: float | int = 0.0125,
  finetune: float | int = 0.1,
  refresh_every: int = 1,
  transposable: bool = False,
  mvue: NM | str = "",
) -> Recipe:
  """Gradual pruning, n falls from M to N along a cubic (arXiv 1710.01878)."""

def mask_decay(
  pattern: NM | Rules | str,
  total_steps: int,
  *,
  omega: float | int = 0.0625,
  freq: int | None = None,
  grad_mode: Literal["damped", "ste"] = "damped",
  dense: float | int = 0.0125,
  finetune: float | int = 0.1,
  refresh_every: int = 0,
  transposable: bool = False,
  mvue: NM | str = "",
) -> Recipe:
  """Mask decay by stairs, D = max(1 - d ω, 0) (arXiv 2209.07617)."""

def mdgf_exp(
  pattern: NM | Rules | str,
  total_steps: int,
  *,
  beta: float | int | None = None,
  zero_at: float | int | None = None,
  grad_mode: Literal["ste", "damped"] = "ste",
  dense: float | int = 0.0125,
  finetune: float | int = 0.1,
  refresh_every: int = 1,
  transposable: bool = False,
  mvue: NM | str = "",
) -> Recipe:
  """Mask decay, D = exp(-β j), cut to 0 below 1e-3 (arXiv 2402.04744)."""

def mdgf_linear(
  pattern: NM | Rules | str,
  total_steps: int,
  *,
  beta: float | int | None = None,
  zero_at: float | int | None = None,
  grad_mode: Literal["ste", "damped"] = "ste",
  dense: float | int = 0.0125,
  finetune: float | int = 0.1,
  refresh_every: int = 1,
  transposable: bool = False,
  mvue: NM | str = "",
) -> Recipe:
  """Mask decay, D = max(1 - β j, 0), j steps after dense (arXiv 2402.04744)."""

def mdgf_sdgf(
  pattern: NM | Rules | str,
  total_steps: int,
  *,
  structure: Literal["geometric", "stepwise"] = "geometric",
  k: int = 16,
  decay: Literal["exponential", "linear"] = "exponential",
  zero_at: float | int | None = None,
  grad_mode: Literal["ste", "damped", "masked"] = "ste",
  dense: float | int = 0.0125,
  finetune: float | int = 0.1,
  refresh_every: int = 1,
  transposable: bool = False,
  mvue: NM | str = "",
) -> Recipe:
  """MdGf and SdGf at once: a sequence of patterns under a falling D."""

def nested(
  pattern: NM | Rules | str,
  total_steps: int,
  *,
  patterns: str = "",
  sampled: int = 1,
  distill: bool = False,
  dense: float | int = 0.0,
  finetune: float | int = 0.1,
  refresh_every: int = 1,
  transposable: bool = False,
  mvue: NM | str = "",
) -> Recipe:
  """One model for several n:m, by the sandwich rule (arXiv 1903.05134)."""

def one_shot(
  pattern: NM | Rules | str,
  total_steps: int,
  *,
  criterion: Literal["magnitude", "saliency", "random"] = "magnitude",
  grad_mode: Literal["masked", "ste"] = "masked",
  dense: float | int = 0.9,
  finetune: float | int = 0.1,
  refresh_every: int = 0,
  transposable: bool = False,
  mvue: NM | str = "",
) -> Recipe:
  """Prune the trained network once, and fine-tune a little or not at all."""

def rigl(
  pattern: NM | Rules | str,
  total_steps: int,
  *,
  share: float | int = 0.3,
  until: float | int = 0.75,
  scope: Literal["group", "leaf"] = "group",
  seed: int = 0,
  dense: float | int = 0.0,
  finetune: float | int = 0.1,
  refresh_every: int = 0,
  transposable: bool = False,
  mvue: NM | str = "",
) -> Recipe:
  """Sparse from the start, grows by the gradient (arXiv 1911.11134)."""

def s_ste(
  pattern: NM | Rules | str,
  total_steps: int,
  *,
  dense: float | int = 0.0,
  finetune: float | int = 0.1,
  refresh_every: int = 1,
  transposable: bool = False,
  mvue: NM | str = "",
) -> Recipe:
  """Kept weights are soft-thresholded and rescaled (arXiv 2409.09099)."""

def sdgf_geometric(
  pattern: NM | Rules | str,
  total_steps: int,
  *,
  k: int = 16,
  grad_mode: Literal["ste", "masked"] = "ste",
  nested: bool = False,
  dense: float | int = 0.0125,
  finetune: float | int = 0.1,
  refresh_every: int = 1,
  transposable: bool = False,
  mvue: NM | str = "",
) -> Recipe:
  """Structure decay, kN:kM, ..., 2N:2M, N:M (arXiv 2402.04744)."""

def sdgf_stepwise(
  pattern: NM | Rules | str,
  total_steps: int,
  *,
  grad_mode: Literal["ste", "masked"] = "ste",
  dense: float | int = 0.0125,
  finetune: float | int = 0.1,
  refresh_every: int = 1,
  transposable: bool = False,
  mvue: NM | str = "",
) -> Recipe:
  """Structure decay, (M-1):M, M/2:M, M/4:M, ..., N:M (arXiv 2402.04744)."""

def set(
  pattern: NM | Rules | str,
  total_steps: int,
  *,
  share: float | int = 0.3,
  until: float | int = 0.75,
  scope: Literal["group", "leaf"] = "group",
  seed: int = 0,
  dense: float | int = 0.0,
  finetune: float | int = 0.1,
  refresh_every: int = 0,
  transposable: bool = False,
  mvue: NM | str = "",
) -> Recipe:
  """Sparse from the start, grows at random (arXiv 1707.04780)."""

def slope(
  pattern: NM | Rules | str,
  total_steps: int,
  *,
  double_pruned: bool = True,
  rank: int = 8,
  lazy: float | int = 0.01,
  dense: float | int = 0.0,
  finetune: float | int = 0.0,
  refresh_every: int = 0,
  transposable: bool = False,
  mvue: NM | str = "",
) -> Recipe:
  """Fixed masks, a double-pruned backward pass, late adapters (2405.16325)."""

def sparse_then_dense(
  pattern: NM | Rules | str,
  total_steps: int,
  *,
  criterion: Literal["random", "magnitude"] = "random",
  grad_mode: Literal["masked", "ste"] = "masked",
  decay: float | int = 0.0,
  dense: float | int = 0.0,
  finetune: float | int = 0.2,
  refresh_every: int = 0,
  transposable: bool = False,
  mvue: NM | str = "",
) -> Recipe:
  """Sparse pre-training, then dense fine-tuning (arXiv 2303.10464)."""

def sr_ste(
  pattern: NM | Rules | str,
  total_steps: int,
  *,
  decay: float | int = 0.0002,
  mode: Literal["into_grad", "decoupled", "backward"] = "into_grad",
  dense: float | int = 0.0125,
  finetune: float | int = 0.1,
  refresh_every: int = 1,
  transposable: bool = False,
  mvue: NM | str = "",
) -> Recipe:
  """STE with a decay of pruned weights towards zero (arXiv 2102.04010)."""

def ste(
  pattern: NM | Rules | str,
  total_steps: int,
  *,
  dense: float | int = 0.0125,
  finetune: float | int = 0.1,
  refresh_every: int = 1,
  transposable: bool = False,
  mvue: NM | str = "",
) -> Recipe:
  """Hard N:M masks from |w|, straight-through gradients, nothing else."""

def step(
  pattern: NM | Rules | str,
  total_steps: int,
  *,
  t_min: float | int = 0.1,
  t_max: float | int = 0.5,
  criterion: Literal["absolute", "relative"] = "absolute",
  mean: Literal["arithmetic", "geometric"] = "arithmetic",
  threshold: float | int | None = None,
  bias_correct: bool = True,
  window: int | None = None,
  eps_in_root: bool = False,
  dense: float | int = 0.0125,
  finetune: float | int = 0.1,
  refresh_every: int = 1,
  transposable: bool = False,
  mvue: NM | str = "",
) -> Recipe:
  """STEP: dense until Adam"s second moment has settled (arXiv 2302.01172)."""

def structure_decay(
  pattern: NM | Rules | str,
  total_steps: int,
  *,
  freq: int | None = None,
  grad_mode: Literal["masked", "ste"] = "masked",
  dense: float | int = 0.0125,
  finetune: float | int = 0.1,
  refresh_every: int = 0,
  transposable: bool = False,
  mvue: NM | str = "",
) -> Recipe:
  """Structure decay, 15:16, 4:16, 2:16, 1:16 (arXiv 2209.07617)."""

def transposable(
  pattern: NM | Rules | str,
  total_steps: int,
  *,
  decay: float | int = 0.0002,
  mode: Literal["into_grad", "decoupled"] = "into_grad",
  dense: float | int = 0.0125,
  finetune: float | int = 0.1,
  refresh_every: int = 40,
  transposable: bool = True,
  mvue: NM | str = "",
) -> Recipe:
  """Masks N:M along both axes, with SR-STE"s decay (arXiv 2404.01847)."""
