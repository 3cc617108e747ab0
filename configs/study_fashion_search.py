"""Search for the regime of study_fashion_vit.py: capacity, then knobs.

Command:   python launch/study.py --config configs/study_fashion_search.py
Data:      Debian's package dataset-fashion-mnist; the test split is not read.
Hardware:  two CPU cores.

Grid `capacity`: which small ViT loses accuracy at 1:32, so that recipes can
differ. The width is at least 8 · 32 = 256 where FiGS shall start at 8:256.
Grid `knobs`: as many trials of each recipe, among them the published default.
"""

from figs_jax.analysis import study

_SIZES = {
  # patch, width, depth, heads
  "w128 p14": (14, 128, 1, 4),
  "w256 p14": (14, 256, 1, 4),
  "w128 p7": (7, 128, 1, 4),
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
    "dense": {"name": "dense"},
    "sr_ste": {"name": "sr_ste"},
    "figs": {"name": "figs"},
  }
  qkvo = "q: {0}, k: {0}, v: {0}, o: {0}"
  config.patterns = {
    "1:8": "ff: 1:8",
    "1:32": "ff: 1:32",
    "all 1:8": f"ff: 1:8, {qkvo.format('1:8')}",
    "all 1:32": f"ff: 1:32, {qkvo.format('1:32')}",
  }
  config.settings = {name: _size(*size) for name, size in _SIZES.items()}
  config.grids = {
    "capacity": {
      "recipes": ("dense", "sr_ste", "figs"),
      "patterns": ("1:8", "1:32", "all 1:8", "all 1:32"),
      "settings": tuple(_SIZES),
      "seeds": 3,
    }
  }
  return config
