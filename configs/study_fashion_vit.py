"""Recipes on Fashion-MNIST: which one loses least, and by how much.

Command:   python launch/study.py --config configs/study_fashion_vit.py \\
             --grid a --out docs/results/fashion_vit
           With :train_flops after the file, sparse cells train for as many
           steps as the training FLOPs of the dense baseline allow.
Data:      Debian's package dataset-fashion-mnist.
Hardware:  two CPU cores, 10 to 15 s a seed.

A ViT of width 128, depth 1 and 4 tokens, the regime that
configs/study_fashion_search.py chose. The claims are in docs/results/claims.md.
Its learning rate was the best one of each recipe there, and no recipe did
better with another knob than its published default.
"""

from figs_jax.analysis import study

_CHOSEN = ("dense", "sr_ste", "mdgf_exp", "figs", "sdgf_stepwise", "step")
_OTHERS = {
  "ste": {"name": "ste"},
  "sr_ste decoupled": {"name": "sr_ste", "mode": "decoupled"},
  "sr_ste backward": {"name": "sr_ste", "mode": "backward"},
  # 2e-4 / 65536: what remains if the term is added before unscaling.
  "sr_ste unscaled": {"name": "sr_ste", "decay": 3e-9},
  "sr_ste no warm-up": {"name": "sr_ste", "dense": 0.0},
  "sr_ste long warm-up": {"name": "sr_ste", "dense": 0.2},
  "mdgf_linear": {"name": "mdgf_linear"},
  "mdgf_linear damped": {"name": "mdgf_linear", "grad_mode": "damped"},
  "mdgf_exp damped": {"name": "mdgf_exp", "grad_mode": "damped"},
  "figs k=4": {"name": "figs", "k": 4},
  "sdgf_geometric": {"name": "sdgf_geometric"},
  "mdgf_sdgf": {"name": "mdgf_sdgf"},
  "step no bias correction": {"name": "step", "bias_correct": False},
  "s_ste": {"name": "s_ste"},
  "annealed_decay": {"name": "annealed_decay"},
  "asp": {"name": "asp", "dense": 0.5},
  "gradual": {"name": "gradual"},
  "rigl": {"name": "rigl"},
}
_PATTERNS = {
  "2:4": "ff: 2:4",
  "1:4": "ff: 1:4",
  "1:8": "ff: 1:8",
  "1:16": "ff: 1:16",
  "1:32": "ff: 1:32",
  "qk 1:8": "ff: 1:8, q: 1:8, k: 1:8",
  "qkvo 1:8": "ff: 1:8, q: 1:8, k: 1:8, v: 1:8, o: 1:8",
}
# (better, worse, patterns); each is claimed of the loss and of the accuracy.
_CLAIMS = {
  "FiGS over SR-STE": ("figs", "sr_ste", ("1:8", "1:16", "1:32", "qk 1:8")),
  "MdGf-Exp over SR-STE": ("mdgf_exp", "sr_ste", ("1:16", "1:32")),
  "SdGf-Geometric over SdGf-Stepwise": (
    "figs",
    "sdgf_stepwise",
    ("1:8", "1:16", "1:32"),
  ),
  "STEP over SR-STE": ("step", "sr_ste", ("1:8", "1:16", "1:32")),
}
_EQUAL = {
  "MdGf-Exp as SR-STE": ("mdgf_exp", "sr_ste", ("2:4",)),
}
_MECHANISMS = {
  "SR-STE over its unscaled term": (
    "sr_ste",
    "sr_ste unscaled",
    ("1:8", "1:32"),
  ),
  "SR-STE into the gradient over decoupled": (
    "sr_ste",
    "sr_ste decoupled",
    ("1:8", "1:32"),
  ),
  "warm-up over none": (
    "sr_ste long warm-up",
    "sr_ste no warm-up",
    ("1:8", "1:32"),
  ),
}
_SMALLEST = {"loss": 0.005, "accuracy": 0.2}  # nats, points


def _claims(flops: bool):
  claims = {}
  for metric, smallest in _SMALLEST.items():
    for family, group in (
      ("claims", _CLAIMS),
      ("equal", _EQUAL),
      ("mechanisms", _MECHANISMS),
    ):
      for name, (better, worse, patterns) in group.items():
        if flops:
          patterns = tuple(p for p in patterns if p in ("1:8", "1:32"))
        if not patterns or (flops and family != "claims"):
          continue
        claims[f"{name}, {metric}"] = {
          "better": better,
          "worse": worse,
          "metric": metric,
          "patterns": patterns,
          "smallest": smallest,
          "family": f"{family}, {metric}",
          "equal": group is _EQUAL,
        }
  return claims


def get_config(arg: str = ""):
  if arg not in ("", "train_flops"):
    raise ValueError(f"expected nothing or train_flops, got {arg!r}")
  flops = bool(arg)
  config = study.default_config()
  config.name = "fashion_vit_flops" if flops else "fashion_vit"
  config.base = "configs/fashion_vit.py"
  config.budget = arg or "steps"
  config.common = {
    "variant": "custom/14",
    "total_steps": 1500,
    "checkpoint_every": 1500,
    "optimizer": {"warmup_steps": 75, "learning_rate": 1e-3},
    "model": {"width": 128, "mlp_dim": 128, "depth": 1, "heads": 4},
  }
  config.dense_warmup = 0.0125
  config.engines = ("figs:16x16:alpha=15", "vegeta-s-16-2")
  config.dtypes = ("bfloat16", "int8")
  config.patterns = _PATTERNS
  config.settings = {"": {}, "shared order": {"data": {"order": "shared"}}}
  config.recipes = {
    **{name: {"name": name} for name in _CHOSEN},
    **_OTHERS,
  }
  sparse = _CHOSEN[1:]
  config.grids = {
    "a": {
      "recipes": _CHOSEN,
      "patterns": ("1:8", "1:32"),
      "seeds": 8,
    },
  }
  if not flops:
    config.grids.b = {
      "recipes": sparse,
      "patterns": ("1:16", "qk 1:8", "qkvo 1:8"),
      "seeds": 8,
    }
    config.grids.c1 = {
      "recipes": ("mdgf_exp", "sr_ste"),
      "patterns": ("2:4",),
      "seeds": 8,
    }
    config.grids.c2 = {
      "recipes": (
        "sr_ste unscaled",
        "sr_ste decoupled",
        "sr_ste no warm-up",
        "sr_ste long warm-up",
      ),
      "patterns": ("1:8", "1:32"),
      "seeds": 8,
    }
    config.grids.order = {  # what the error bar lacks if seeds share an order
      "recipes": ("dense", "sr_ste", "figs"),
      "patterns": ("1:8",),
      "settings": ("shared order",),
      "seeds": 8,
    }
    config.grids.c3 = {
      "recipes": (*sparse, *_OTHERS),
      "patterns": ("1:4", "1:8", "1:16", "1:32"),
      "seeds": 5,
    }
  config.claims = _claims(flops)
  return config
