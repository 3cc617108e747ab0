"""Search for the regime of study_fashion_vit.py: capacity, then knobs.

Command:   python launch/study.py --config configs/study_fashion_search.py
Data:      Debian's package dataset-fashion-mnist; the test split is not read.
Hardware:  two CPU cores.

Grids `capacity` and `other sizes`: which small ViT loses accuracy at 1:32, so
that recipes can differ. FiGS starts at 8:64 and 8:128 in a ViT of width 128, at
1:32 with 4:128. Grid `knobs`: five trials of each recipe, among them the
published default.
"""

from figs_jax.analysis import study

_SIZES = {
  # patch, width, depth, heads
  "w128 p14": (14, 128, 1, 4),
  "w256 p14": (14, 256, 1, 4),
  "w128 p7": (7, 128, 1, 4),
}
# Trials of each recipe beside its published default: three learning rates that
# all of them get (the base has 2e-3), and one knob of its own.
_RATES = {
  " lr 5e-4": {"config": {"optimizer": {"learning_rate": 5e-4}}},
  " lr 1e-3": {"config": {"optimizer": {"learning_rate": 1e-3}}},
  " lr 4e-3": {"config": {"optimizer": {"learning_rate": 4e-3}}},
}
_KNOBS = {
  "dense": {" lr 8e-3": {"config": {"optimizer": {"learning_rate": 8e-3}}}},
  "sr_ste": {" decay 2e-3": {"decay": 2e-3}},
  "mdgf_exp": {" zero at half": {"zero_at": 0.5}},
  "figs": {" finetune half": {"finetune": 0.5}},
  "sdgf_stepwise": {" finetune half": {"finetune": 0.5}},
  "step": {" switch by fifth": {"t_max": 0.2}},
}


def _size(patch: int, width: int, depth: int, heads: int):
  return {
    "variant": f"custom/{patch}",
    "model": {
      "width": width,
      "mlp_dim": width,
      "depth": depth,
      "heads": heads,
    },
  }


def get_config():
  config = study.default_config()
  config.name = "fashion_search"
  config.base = "configs/fashion_vit.py"
  config.first_seed = 1000  # the study has 0, 1, 2, ...
  config.common = {
    "total_steps": 1500,
    "checkpoint_every": 1500,
    "seeds_mode": "vmap",
    "optimizer": {"warmup_steps": 75},
    "data": {"train_split": "train[:90%]", "eval_split": "train[90%:]"},
  }
  config.recipes = {
    f"{name}{label}": {"name": name, **trial}
    for name, own in _KNOBS.items()
    for label, trial in {"": {}, **_RATES, **own}.items()
  }
  qkvo = "q: {0}, k: {0}, v: {0}, o: {0}"
  config.patterns = {
    "1:8": "ff: 1:8",
    "1:32": "ff: 1:32",
    "all 1:8": f"ff: 1:8, {qkvo.format('1:8')}",
    "all 1:32": f"ff: 1:32, {qkvo.format('1:32')}",
  }
  config.settings = {name: _size(*size) for name, size in _SIZES.items()}
  config.settings["w128 p14 long"] = _size(*_SIZES["w128 p14"]) | {
    "total_steps": 3000
  }
  config.grids = {
    "capacity": {
      "recipes": ("dense", "sr_ste", "figs"),
      "patterns": ("1:8", "1:32", "all 1:8", "all 1:32"),
      "settings": ("w128 p14",),
      "seeds": 3,
    },
    "knobs": {
      "recipes": tuple(config.recipes),
      "patterns": ("1:32",),
      "settings": ("w128 p14",),
      "seeds": 3,
    },
    "other sizes": {
      "recipes": ("dense", "sr_ste"),
      "patterns": ("1:32",),
      "settings": ("w256 p14", "w128 p7", "w128 p14 long"),
      "seeds": 3,
    },
  }
  return config
