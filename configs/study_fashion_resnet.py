"""Is SR-STE's gap to dense training Adam's? A small ResNet on Fashion-MNIST.

Command:   python launch/study.py --config configs/study_fashion_resnet.py \\
             --out docs/results/fashion_resnet
           With :search after the file, the search for the learning rates, which
           does not read the test split.
Data:      Debian's package dataset-fashion-mnist, at 14 x 14 pixels.
Hardware:  two CPU cores.
Hours:     6 cells of 1 seed in the search and 5 of 3 seeds in the study, 21
           runs of 500 steps; .12 of processor time.

The claims are in docs/results/fashion_resnet_claims.md. STEP (arXiv 2302.01172)
reports that SR-STE loses little to dense training with SGD and momentum, and
much with Adam. Both optimizers have the learning rate at which the dense
network's loss on the validation images was lowest.
"""

from figs_jax.analysis import study

# Chosen by the search, by validation loss: .3528 of .3764, .3528, .3669 and
# .3227 of .4080, .3397, .3227. AdamW's is the largest trial.
_RATES = {"sgd": 0.1, "adamw": 1e-2}
_TRIALS = {"sgd": (0.03, 0.1, 0.3), "adamw": (1e-3, 3e-3, 1e-2)}
_OPTIMIZERS = {
  "sgd": {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4},
  "adamw": {"name": "adamw", "weight_decay": 0.01},
}
_SMALLEST = {"loss": 0.01, "accuracy": 0.5}  # nats, points
# better, worse (recipe and setting), and whether they are claimed to be equal.
_CLAIMS = {
  "SR-STE loses under AdamW": (("dense", "adamw"), ("sr_ste", "adamw"), False),
  "SR-STE as dense under SGD": (("dense", "sgd"), ("sr_ste", "sgd"), True),
  "STEP over SR-STE under AdamW": (
    ("step", "adamw"),
    ("sr_ste", "adamw"),
    False,
  ),
}


def _setting(optimizer: str, rate: float):
  return {"optimizer": {**_OPTIMIZERS[optimizer], "learning_rate": rate}}


def get_config(arg: str = ""):
  if arg not in ("", "search"):
    raise ValueError(f"expected nothing or search, got {arg!r}")
  config = study.default_config()
  config.base = "configs/fashion_resnet.py"
  config.name = "fashion_resnet"
  config.common = {
    "total_steps": 500,
    "checkpoint_every": 500,
    "optimizer": {"warmup_steps": 25, "clip": 0.0},
    "data": {"image_size": 14},
  }
  config.dense_warmup = 0.0125
  config.patterns = {"1:4": "hidden: 1:4"}
  config.recipes = {
    name: {"name": name} for name in ("dense", "sr_ste", "step")
  }
  if arg == "search":
    config.name = "fashion_resnet_search"
    config.first_seed = 1000  # the study has 0, 1, 2, ...
    config.common.data.train_split = "train[:90%]"
    config.common.data.eval_split = "train[90%:]"
    config.settings = {
      f"{name} lr {rate:.0e}": _setting(name, rate)
      for name, rates in _TRIALS.items()
      for rate in rates
    }
    config.grids = {
      "rates": {
        "recipes": ("dense",),
        "patterns": ("1:4",),
        "settings": tuple(config.settings),
        "seeds": 1,
      }
    }
    return config
  config.settings = {
    name: _setting(name, rate) for name, rate in _RATES.items()
  }
  config.grids = {
    "both": {
      "recipes": ("dense", "sr_ste"),
      "patterns": ("1:4",),
      "settings": ("sgd", "adamw"),
      "seeds": 3,
    },
    "step": {
      "recipes": ("step",),
      "patterns": ("1:4",),
      "settings": ("adamw",),
      "seeds": 3,
    },
  }
  config.claims = {
    f"{name}, {metric}": {
      "better": better[0],
      "better_setting": better[1],
      "worse": worse[0],
      "worse_setting": worse[1],
      "metric": metric,
      "patterns": ("1:4",),
      "smallest": smallest,
      "family": f"{'equal' if equal else 'claims'}, {metric}",
      "equal": equal,
    }
    for metric, smallest in _SMALLEST.items()
    for name, (better, worse, equal) in _CLAIMS.items()
  }
  return config
