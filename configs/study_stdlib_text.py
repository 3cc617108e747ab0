"""Recipes on the text of Python's library, from one dense T5.

Command:   python launch/train.py --config configs/stdlib_t5_short.py:dense \\
             --workdir runs/stdlib_t5_short
           python launch/study.py --config configs/study_stdlib_text.py \\
             --out docs/results/stdlib_text
Data:      the running Python's own library; docs/results.md names its version.
Hardware:  two CPU cores, 15 s a seed.

All runs, dense ones too, go on for 600 steps from the weights of the first
command, which have left the plateau of unigrams; runs from scratch leave it at
steps that depend on the seed (docs/results/text_search.md). Seeds differ in the
order of the data. The learning rate is from configs/study_text_search.py, the
claims are in docs/results/text_claims.md.
"""

from figs_jax.analysis import study

_RECIPES = ("dense", "sr_ste", "mdgf_exp", "figs", "step", "ste")
_PATTERNS = ("1:8", "1:16")
_CLAIMS = {  # (better, worse)
  "FiGS over SR-STE": ("figs", "sr_ste"),
  "MdGf-Exp over SR-STE": ("mdgf_exp", "sr_ste"),
  "STEP over SR-STE": ("step", "sr_ste"),
}


def get_config():
  config = study.default_config()
  config.name = "stdlib_text"
  config.base = "configs/stdlib_t5_short.py"
  config.common = {
    "init_from": "runs/stdlib_t5_short",
    "seed": 0,
    "total_steps": 600,
    "checkpoint_every": 600,
    "optimizer": {"warmup_steps": 30, "learning_rate": 2e-3},
    "data": {"eval_split": "test[50%:]"},
  }
  config.dense_warmup = 0.0125
  config.recipes = {name: {"name": name} for name in _RECIPES}
  config.patterns = {nm: f"ff: {nm}" for nm in _PATTERNS}
  config.grids = {
    "a": {"recipes": _RECIPES, "patterns": _PATTERNS, "seeds": 5},
  }
  config.claims = {
    f"{name}, loss": {
      "better": better,
      "worse": worse,
      "metric": "loss",
      "patterns": _PATTERNS,
      "smallest": 0.005,
      "family": "claims, loss",
    }
    for name, (better, worse) in _CLAIMS.items()
  }
  return config
