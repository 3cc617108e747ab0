"""Per-example results of a study: differences of two cells by test example.

A file OUT/examples/NAME.npz has `seed` int[S], `examples` int n, `correct`
uint8[S, ceil(n / 8)] (bits packed along the examples), `loss` float16[S, n] and
optionally `weight` float[n], such as the number of tokens of an example.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

_ARRAYS = {"accuracy": "correct", "loss": "loss"}
Seeds = Mapping[int, tuple[str, float]]  # file and metric of each seed


def example_differences(
  one: Seeds, other: Seeds, metric: str, out: Path
) -> np.ndarray | None:
  """Differences per seed and example for `statistics.bootstrap_interval`.

  With weights w of mean 1, the difference d of an example becomes
  D + w (d - D), where D is the weighted mean of all: its first-order effect on
  D where examples are resampled together with their weights.

  Args:
    one: Files and metrics of a cell by seed.
    other: Files and metrics of the cell to subtract, of the same seeds.
    metric: Column of study.csv.
    out: Directory that the files are relative to.

  Returns:
    Differences, float64[seeds, examples], in the metric's own scale. None if
    the metric has no per-example results, a file is missing, or the weighted
    mean of the examples is not the metric (for text, accuracy counts tokens,
    but `correct` whole targets).

  Raises:
    ValueError: If a file lacks a seed, or files differ in the number or the
      weights of their examples.
  """
  array = _ARRAYS.get(metric)
  names = sorted({name for cell in (one, other) for name, _ in cell.values()})
  if array is None or not all((out / name).is_file() for name in names):
    return None
  files = {name: _load(out / name, array) for name in names}
  weights = files[names[0]][1]
  for name, (_, weight) in files.items():
    if not np.array_equal(weight, weights):
      raise ValueError(
        f"{out}: expected the same test examples in {names[0]} and {name}, got"
        f" {len(weights)} and {len(weight)} or other weights"
      )
  sides = []
  for cell in (one, other):
    values = np.stack(
      [_of_seed(files, s, name) for s, (name, _) in cell.items()]
    )
    metrics = np.array([value for _, value in cell.values()])
    # float16 has 11 bits; half an example is less than any difference.
    close = 2e-3 * np.maximum(1, abs(metrics)) if array == "loss" else 1e-6
    if (abs(values @ weights / len(weights) - metrics) > close).any():
      return None
    sides.append(values)
  differences = sides[0] - sides[1]
  mean = (differences @ weights).mean() / len(weights)
  return mean + weights * (differences - mean)


class Split(NamedTuple):
  """The size of a test split.

  Attributes:
    examples: Number of examples.
    tokens: Number of target tokens; that of the examples if each is one label.
  """

  examples: int
  tokens: int


def split_of(names: Iterable[str], out: str | Path) -> Split | None:
  """The test split of the first file that exists; None without one."""
  for name in names:
    path = Path(out, str(name))
    if name and path.is_file():
      with np.load(path) as file:
        count = int(file["examples"])
        if "weight" not in file.files:
          return Split(count, count)
        return Split(count, round(file["weight"].sum(dtype=np.float64)))
  return None


def _load(path: Path, array: str) -> tuple[dict[int, np.ndarray], np.ndarray]:
  """float64[n] by seed, and the weights of the examples with mean 1."""
  with np.load(path) as file:
    count, values = int(file["examples"]), file[array]
    if array == "correct":
      values = np.unpackbits(values, axis=1, count=count)
    weights = np.ones(count)
    if "weight" in file.files:
      weights = file["weight"].astype(np.float64)
    seeds = file["seed"].tolist()
  by_seed = dict(zip(seeds, values.astype(np.float64)))
  return by_seed, weights / weights.mean()


def _of_seed(
  files: Mapping[str, tuple[dict[int, np.ndarray], np.ndarray]],
  seed: int,
  name: str,
) -> np.ndarray:
  by_seed, _ = files[name]
  if seed not in by_seed:
    raise ValueError(
      f"{name}: expected results of seed {seed}, got those of {sorted(by_seed)}"
    )
  return by_seed[seed]
