"""One nested model on Fashion-MNIST, beside separate and cut ones.

Command:   python launch/study.py --config configs/study_fashion_nested.py \\
             --out docs/results/fashion_nested
Data:      Debian's package dataset-fashion-mnist.
Hardware:  two CPU cores, 10 to 15 s a seed, three times that of a nested one;
             55 runs, .5 hours of processor time.

The ViT and its training are those of configs/study_fashion_vit.py. The claims
are in docs/results/nested_claims.md. A step of the recipe `nested` makes three
passes: at 8:8, at 1:8, and at 2:8 or 4:8. Cut models are trained at one pattern
and keep more of the largest |w| of each group after training, or fewer. With
the setting "3x", separate models train for as many passes as the nested one.
"""

from figs_jax.analysis import study

_SPARSE = ("1:8", "2:8", "4:8")
_CUT = "cut from 1:8"
_SMALLEST = {"loss": 0.01, "accuracy": 0.5}  # nats, points


# Name, better, its setting, worse, its setting, patterns, family.
_CLAIMS = (
  ("nested as separate", "nested", "", "ste", "", _SPARSE, "equal"),
  ("nested as dense", "nested", "", "dense", "", ("8:8",), "equal"),
  (
    "nested over FiGS cut", "nested", "", "figs", _CUT,
    ("2:8", "4:8", "8:8"), "cut",
  ),
  (
    "nested over dense cut, sparsest", "nested", "", "dense cut", "",
    ("1:8",), "cut",
  ),
  (
    "nested over dense cut", "nested", "", "dense cut", _CUT, ("2:8",), "cut",
  ),
  (
    "separate over nested, equal passes", "ste", "3x", "nested", "", _SPARSE,
    "passes",
  ),
  (
    "dense over nested, equal passes", "dense", "3x", "nested", "", ("8:8",),
    "passes",
  ),
)  # fmt: skip


def _claims():
  return {
    f"{name}, {metric}": {
      "better": better,
      "worse": worse,
      "metric": metric,
      "patterns": patterns,
      "smallest": smallest,
      "family": f"{family}, {metric}",
      "better_setting": better_setting,
      "worse_setting": worse_setting,
      "equal": family == "equal",
    }
    for metric, smallest in _SMALLEST.items()
    for (
      name, better, better_setting, worse, worse_setting, patterns, family,
    ) in _CLAIMS
  }  # fmt: skip


def get_config(arg: str = ""):
  if arg:
    raise ValueError(f"expected nothing after the file, got {arg!r}")
  config = study.default_config()
  config.name = "fashion_nested"
  config.base = "configs/fashion_vit.py"
  config.common = {
    "variant": "custom/14",
    "total_steps": 1500,
    "checkpoint_every": 4500,
    "optimizer": {"warmup_steps": 75, "learning_rate": 1e-3},
    "model": {"width": 128, "mlp_dim": 128, "depth": 1, "heads": 4},
  }
  config.dense_warmup = 0.0125
  config.engines = ("figs:16x16:alpha=15",)
  config.patterns = {f"{n}:8": f"ff: {n}:8" for n in (1, 2, 4, 8)}
  config.settings = {"": {}, _CUT: {}, "3x": {"total_steps": 4500}}
  config.recipes = {
    "dense": {"name": "dense"},
    "ste": {"name": "ste"},
    "figs": {"name": "figs", "points": "1:8,2:8,4:8,8:8"},
    "dense cut": {
      "name": "ste",
      "dense": 1.0,
      "finetune": 0.0,
      "points": "1:8,2:8,4:8",
    },
    "nested": {"name": "nested", "patterns": "1:8,2:8,4:8,8:8"},
  }
  config.grids = {
    "nested": {"recipes": ("nested",), "patterns": ("1:8",), "seeds": 5},
    "separate": {"recipes": ("dense", "ste"), "patterns": _SPARSE, "seeds": 5},
    "cut": {
      "recipes": ("figs", "dense cut"),
      "patterns": ("1:8",),
      "seeds": 5,
    },
    "passes": {
      "recipes": ("dense", "ste"),
      "patterns": _SPARSE,
      "settings": ("3x",),
      "seeds": 5,
    },
  }
  config.claims = _claims()
  return config
