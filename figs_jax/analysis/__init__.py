"""Reads training runs: history, comparisons, plots and reports.

Names are resolved on first use, so that importing the package needs neither
Orbax nor matplotlib.
"""

import importlib
from typing import Any

_EXPORTS = {
  "ComparisonRow": "figs_jax.analysis._compare",
  "History": "figs_jax.analysis.history",
  "MaskEvolution": "figs_jax.analysis.history",
  "ParetoPoint": "figs_jax.analysis.pareto",
  "compare": "figs_jax.analysis._compare",
  "comparison_table": "figs_jax.analysis._compare",
  "histories": "figs_jax.analysis.history",
  "mask_evolution": "figs_jax.analysis.history",
  "pareto_front": "figs_jax.analysis.pareto",
  "pareto_points": "figs_jax.analysis.pareto",
  "plot_comparison": "figs_jax.analysis._compare",
  "plot_gradient_variance": "figs_jax.analysis.plots",
  "plot_mask_changes": "figs_jax.analysis.plots",
  "plot_masks": "figs_jax.analysis.plots",
  "plot_pareto": "figs_jax.analysis.plots",
  "plot_training": "figs_jax.analysis.plots",
  "report_html": "figs_jax.analysis.html_report",
  "write_json": "figs_jax.analysis._compare",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
  if name in _EXPORTS:
    return getattr(importlib.import_module(_EXPORTS[name]), name)
  raise AttributeError(f"module 'figs_jax.analysis' has no attribute {name!r}")


def __dir__() -> list[str]:
  return __all__
