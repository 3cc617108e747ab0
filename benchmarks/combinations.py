"""Options together: each run ends in exact masks, or is refused in one line.

Runs of a few steps are drawn so that every pair of values of two options comes
in as few runs as a greedy search finds: families, recipes, patterns,
optimizers, dtypes, meshes of eight virtual devices, seeds, accumulation, packed
and streamed texts and more. Each is trained whole, and again with an
interruption; both must end with the same bits, the masks of the finished model
must hold its patterns, and it must evaluate. A configuration may be refused,
in one line and before its workdir is made. The program exits with 1 if
anything else happens.

  python benchmarks/combinations.py --runs 40 --seed 0 [--only REGEX]
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import logging
import math
import os
import random
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
  (
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
  )
)

import contextlib

import jax
import numpy as np

import figs_jax as figs
from figs_jax import nn, recipes
from figs_jax.core.tree import flatten
from figs_jax.data import DataError
from figs_jax.train import default_config, evaluate, loop, schema, seeds
from figs_jax.train.checkpoint import named_leaves
from figs_jax.train.workdir import restore

STEPS, STOP = 6, 3
MODELS: dict[str, dict[str, Any]] = {
  "vit": {"width": 16, "heads": 2, "depth": 2, "mlp_dim": 32, "pool": "gap"},
  "swin_v2": {"width": 16, "heads": 2, "depths": (2, 2), "window": 2},
  "resnet": {
    "width": 16, "depths": (1, 1), "block": "basic", "stem": "cifar",
  },
  "t5": {"width": 16, "heads": 2, "depth": 2, "head_dim": 8, "mlp_dim": 32},
  "gpt2": {"width": 16, "heads": 2, "depth": 2, "mlp_dim": 32},
  "llama": {
    "width": 16, "heads": 2, "depth": 2, "mlp_dim": 32, "kv_heads": 2,
  },
  "bert": {"width": 16, "heads": 2, "depth": 2, "mlp_dim": 32},
}  # fmt: skip
VARIANTS = {"vit": "custom/4", "swin_v2": "custom/2"}
IMAGES = ("vit", "swin_v2", "resnet")
# Options and their values, each a dict of fields; fields that a family lacks
# are left out.
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
  "recipe": {name: {} for name in recipes.names()},
  "family": {name: {} for name in MODELS},
  "pattern": {
    "1:4": {"pattern": "ff: 1:4"},
    "2:4": {"pattern": "ff: 2:4"},
    "two": {"pattern": "ff: 1:8, qkv: 2:4"},
    "vnm": {"pattern": "ff: 8:2:4"},
  },
  "optimizer": {
    name: {"optimizer.name": name, "optimizer.schedule": "constant"}
    for name in ("adamw", "sgd", "lion", "adafactor", "muon", "schedule_free")
  },
  "dtype": {
    "float32": {},
    "bfloat16": {"model.dtype": "bfloat16"},
    "masters": {"model.dtype": "bfloat16", "param_dtype": "bfloat16"},
  },
  "masks": {"bool": {}, "bits": {"mask_storage": "bits"}},
  "mesh": {
    "1": {},
    "data": {"mesh.data": 2},
    "fsdp": {"mesh.fsdp": 2},
    "tensor": {"mesh.tensor": 2},
    "2x2x2": {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2},
  },
  "seeds": {
    "none": {},
    "together": {"seeds": 2, "seeds_mode": "vmap"},
    "in turn": {"seeds": 2, "seeds_mode": "map"},
    "shared": {"seeds": 2, "data.order": "shared"},
  },
  "blocks": {
    "written out": {},
    "scanned": {"model.scan": True},
    "recomputed": {"model.scan": True, "model.remat": True},
    "dots": {"model.remat": True, "model.remat_policy": "dots"},
  },
  "accumulation": {"1": {}, "2": {"grad_accum_steps": 2}},
  "ema": {"none": {}, "ema": {"ema_decay": 0.5}},
  "data": {
    "plain": {},
    "packed": {"data.pack": True},
    "stream": {"data.stream": True},
    "both": {"data.pack": True, "data.stream": True},
    "changed": {"mixup": 0.2, "data.augment": "standard"},
  },
  "model": {
    "plain": {},
    "dropout": {"model.dropout": 0.1, "model.drop_path": 0.1},
    "relu2": {"model.relu2": True, "activations": "ff_input: 2:4"},
    "activations": {"activations": "ff: 2:4"},
  },
  "loss": {
    "softmax": {},
    "smoothed": {"label_smoothing": 0.1},
    "bce": {"loss": "bce"},
  },
  "trained": {"all": {}, "part": {"train_only": ".*kernel"}},
}
Case = dict[str, str]


class Interruption:
  """A writer whose run ends at a step, as by a lost machine."""

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Ends the run."""
    if step == STOP:
      raise InterruptedError("enough")

  def close(self) -> None:
    """Nothing to close."""


def pairs(case: Case) -> set[tuple[str, str, str, str]]:
  """All pairs of two options with their values."""
  return {
    (a, case[a], b, case[b]) for a, b in itertools.combinations(OPTIONS, 2)
  }


def drawn(count: int, seed: int, only: str) -> list[Case]:
  """Cases, each that of 200 random ones which has most new pairs."""
  rng = random.Random(seed)
  seen: set[tuple[str, str, str, str]] = set()
  cases: list[Case] = []
  while len(cases) < count:
    tried = []
    while len(tried) < 200:
      case = {name: rng.choice([*values]) for name, values in OPTIONS.items()}
      if re.search(only, title(case)):
        tried.append(case)
    best = max(tried, key=lambda case: len(pairs(case) - seen))
    seen |= pairs(best)
    cases.append(best)
  every = sum(
    len(OPTIONS[a]) * len(OPTIONS[b])
    for a, b in itertools.combinations(OPTIONS, 2)
  )
  print(f"{len(seen)} of {every} pairs in {count} runs")
  return cases


def title(case: Case) -> str:
  """The options that differ from the first value of each."""
  return ", ".join(
    f"{name}={value}"
    for name, value in case.items()
    if name in ("recipe", "family") or value != next(iter(OPTIONS[name]))
  )


def write_texts(root: Path) -> None:
  """JSON lines in one file, and in several as c4 has them."""
  rng = np.random.default_rng(0)
  parts = [f"many/train-{i:05}-of-00004.jsonl" for i in range(4)]
  for name in ("one/train.jsonl", *parts):
    path = root / name
    path.parent.mkdir(exist_ok=True)
    rows = [
      {"text": "to be " * rng.integers(1, 9), "target": "or not"}
      for _ in range(24)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluated = path.with_name("validation.jsonl")
    evaluated.write_text('{"text": "to be", "target": "or"}\n' * 8)


def configuration(case: Case, root: Path) -> Any:
  """The configuration of a case."""
  family = case["family"]
  config = default_config(case["recipe"], family)
  config.variant = VARIANTS.get(family, "custom")
  fields = {f"model.{k}": v for k, v in MODELS[family].items()}
  fields |= {
    "total_steps": STEPS, "checkpoint_every": 2, "log_every": 1,
    "diagnose_every": 2, "batch_size": 16, "progress": False, "keep": 1,
    "optimizer.warmup_steps": 2.0, "optimizer.learning_rate": 1e-3,
    "data.data_dir": str(root / "data"), "data.eval_batch_size": 8,
    "recalibrate_batch_norm": 2, "log.tensorboard": "off",
  }  # fmt: skip
  if family in IMAGES:
    fields |= {"data.image_size": 8, "data.eval_split": "test[:16]"}
  else:
    fields |= {
      "data.name": f"text:{root / 'one'}", "data.input_length": 32,
      "data.shuffle_buffer": 16, "data.eval_split": "validation",
    }  # fmt: skip
    if case["data"] in ("stream", "both"):
      fields["data.name"] = f"text:{root / 'many'}"
  if family == "t5" and case["data"] in ("plain", "packed"):
    fields |= {"data.target_column": "target", "data.target_length": 16}
  for name in OPTIONS:
    fields |= OPTIONS[name][case[name]]
  if case["recipe"] == "nested" and case["pattern"] == "1:4":
    fields["recipe.patterns"] = "1:4,2:4"
  if family == "resnet":
    fields["pattern"] = re.sub("ff|qkv", "hidden", fields["pattern"])
  known = schema.flat(config.to_dict())
  config.update_from_flattened_dict(
    {name: value for name, value in fields.items() if name in known}
  )
  return config


def arrays(workdir: Path) -> dict[str, Any]:
  """The arrays of the newest step."""
  _, state, step = restore(workdir)
  assert step == STEPS
  return {k: np.asarray(leaf) for k, leaf in named_leaves(state).items()}


def check_masks(workdir: Path) -> None:
  """That the finished model of each seed holds its patterns."""
  _, state, _ = restore(workdir)
  for one in seeds.singles(state):
    net = one.finished()
    params = flatten(nn.split(net)[1])
    for path, leaf in nn.masked_leaves(net).items():
      if isinstance(leaf.pattern, figs.NM):
        assert figs.is_nm(params[path], leaf.pattern, axis=leaf.axis), path


def outcome(case: Case, root: Path) -> tuple[str, str]:
  """Whether a case was trained, refused or diverged, and a line about it.

  Raises:
    Exception: If anything else happens.
  """
  config = configuration(case, root)
  whole, parts = root / "whole", root / "parts"
  try:
    schema.check(config)
    result = loop.train(config, whole)
  except (ValueError, DataError) as error:
    line = str(error)
    if whole.exists() or "\n" in line or len(line) > 400:
      raise
    return "refused", line
  except loop.Diverged as error:
    return "diverged", str(error)
  assert result["finished"] and math.isfinite(result["eval/loss"]), result
  with contextlib.suppress(InterruptedError):
    loop.train(config, parts, writers=[Interruption()])
  loop.train(config, parts)
  one, other = arrays(whole), arrays(parts)
  assert one.keys() == other.keys()
  for name, array in one.items():
    np.testing.assert_array_equal(array, other[name], err_msg=name)
  check_masks(whole)
  again, trained = evaluate(whole)["loss"], result["eval/loss"]
  assert math.isclose(again, trained, rel_tol=1e-4), (again, trained)
  return "trained", f"loss {trained:.3f}"


def main() -> int:
  """Runs all cases."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--runs", type=int, default=40, help="number of runs")
  parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
  parser.add_argument("--only", default="", help="regular expression of titles")
  words = parser.parse_args()
  logging.disable(logging.WARNING)
  counts: collections.Counter[str] = collections.Counter()
  with tempfile.TemporaryDirectory() as folder:
    jax.config.update("jax_compilation_cache_dir", f"{folder}/programs")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    sources = Path(folder, "sources")
    (sources / "data").mkdir(parents=True)
    write_texts(sources)
    for i, case in enumerate(drawn(words.runs, words.seed, words.only)):
      root = Path(folder, str(i))
      root.mkdir()
      for name in ("one", "many", "data"):
        (root / name).symlink_to(sources / name)
      began = time.process_time()
      try:
        what, why = outcome(case, root)
      except Exception:  # whatever it is, it is the row of this case
        what, why = "wrong", traceback.format_exc()
      counts[what] += 1
      seconds = time.process_time() - began
      print(f"{i:3} {what:8} {seconds:4.0f} s  {title(case)}: {why}")
      jax.clear_caches()
  print(dict(counts))
  return int(counts["wrong"] > 0)


if __name__ == "__main__":
  sys.exit(main())
