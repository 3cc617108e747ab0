"""Search for the learning rate of study_stdlib_text.py.

Command:   python launch/study.py --config configs/study_text_search.py
Data:      that of configs/stdlib_t5_short.py; the test split is not read.
Hardware:  two CPU cores.

Each recipe gets its published knobs at the same three learning rates. The sizes
come from docs/results/text_search.md.
"""

import runpy
from pathlib import Path

_RECIPES = ("dense", "sr_ste", "figs")
_RATES = {"lr 1e-3": 1e-3, "lr 2e-3": 2e-3, "lr 4e-3": 4e-3}
_STUDY = Path(__file__).parent / "study_stdlib_text.py"


def get_config():
  config = runpy.run_path(str(_STUDY))["get_config"]()
  config.name = "text_search"
  config.first_seed = 1000  # the study has 0, 1, 2, ...
  config.common.data.eval_split = "validation"
  config.recipes = {name: {"name": name} for name in _RECIPES}
  config.patterns = {"1:16": "ff: 1:16"}
  config.settings = {
    name: {"optimizer": {"learning_rate": rate}}
    for name, rate in _RATES.items()
  }
  config.grids = {
    "rates": {
      "recipes": _RECIPES,
      "patterns": ("1:16",),
      "settings": tuple(config.settings),
      "seeds": 1,
    }
  }
  config.claims = {}
  return config
