"""Reads training runs: history, comparisons, studies, plots and reports.

Names are resolved on first use, so that importing the package needs neither
Orbax nor matplotlib.
"""

import importlib
from typing import Any

_MODULES = {
  "_study_claims": ("Judgement", "judge"),
  "_study_page": ("write_results",),
  "_study_pairs": ("study_frame",),
  "_study_summary": ("write_summary",),
  "gradient_noise": ("GradientNoise", "noise_rows"),
  "history": ("History", "MaskEvolution", "histories", "mask_evolution"),
  "html_report": ("report_html",),
  "noise_correlation": ("NoiseAndLoss", "noise_and_loss"),
  "pareto": ("ParetoPoint", "pareto_front", "pareto_points"),
  "plots": (
    "plot_gradient_variance", "plot_mask_changes", "plot_masks", "plot_noise",
    "plot_pareto", "plot_training",
  ),
}  # fmt: skip
_EXPORTS = {name: room for room, names in _MODULES.items() for name in names}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
  if name in _EXPORTS:
    module = importlib.import_module(f"figs_jax.analysis.{_EXPORTS[name]}")
    return getattr(module, name)
  raise AttributeError(f"module 'figs_jax.analysis' has no attribute {name!r}")


def __dir__() -> list[str]:
  return __all__
