"""A study of minutes: five recipes on scikit-learn's digits.

Command:   python launch/study.py --config configs/study_digits.py
Hardware:  two CPU cores, 3 s a seed.
"""

from figs_jax.analysis import study


def get_config():
  config = study.default_config()
  config.name = "digits"
  config.base = "configs/digits_vit.py"
  config.common = {"total_steps": 300}
  config.recipes = {
    "dense": {"name": "dense"},
    "sr_ste": {"name": "sr_ste"},
    "figs": {"name": "figs"},
    "figs k=2": {"name": "figs", "k": 2},
  }
  config.patterns = {"1:4": "ff: 1:4", "1:16": "ff: 1:16"}
  config.grids = {
    "all": {
      "recipes": ("dense", "sr_ste", "figs", "figs k=2"),
      "patterns": ("1:4", "1:16"),
      "seeds": 4,
    }
  }
  config.claims = {
    "FiGS over SR-STE": {
      "better": "figs",
      "worse": "sr_ste",
      "metric": "loss",
      "patterns": ("1:4", "1:16"),
      "smallest": 0.02,
    }
  }
  return config
