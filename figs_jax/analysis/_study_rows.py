"""The rows of a study on disk: study.csv, configurations, per-example results.

study.csv is tidy: one row per cell and seed, sorted, with one column for every
field of training in which the cells differ and for the order of the data.
Beside it are configs.json, the configuration of each fingerprint, and
examples/, an .npz per run.

The i-th of n shards writes the same files to shards/i-of-n, so that tasks on
several machines need no lock that spans them. Rows of the study are those of
all these directories; `Store.gather` merges them into one.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import importlib.metadata
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from figs_jax.analysis._study_cells import digits_of, of_cell
from figs_jax.export.atomic_write import replacing
from figs_jax.train.config import ConfigError, completed

_CSV, _CONFIGS, _FAILED = "study.csv", "configs.json", "failed.csv"
_SHARDS = "shards"
# The first columns, in this order; all others follow by name.
_FIRST = (
  "study", "grid", "cell", "recipe", "pattern", "rules", "setting", "seed",
  "accuracy", "loss", "config", "version", "step", "examples", "stages",
)  # fmt: skip
_ALWAYS = ("data.order",)  # fields with a column whether they differ or not
_OF_FAILED = ("study", "grid", "cell", "seeds", "error")

Row = dict[str, str]


def read(out: str | Path) -> list[Row]:
  """The rows of OUT/study.csv and of its shards, as text, each one once.

  The column `config` is the fingerprint that this version of figs_jax gives the
  configuration, with defaults for fields that it did not have.

  Raises:
    ConfigError: If a file is not a study's.
  """
  rows: dict[tuple[str, str], Row] = {}
  for part in _parts(Path(out)):
    for row in _rows_of(part):
      if row.get("examples"):
        file = part.relative_to(out) / row["examples"]
        row = row | {"examples": file.as_posix()}
      rows.setdefault((row["config"], row["seed"]), row)
  return list(rows.values())


def has_rows(out: Path) -> bool:
  """Whether a directory, or one of its shards, holds a study.csv.

  Args:
    out: Directory.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   before = has_rows(Path(folder))
  ...   Path(folder, "shards/1-of-2").mkdir(parents=True)
  ...   Path(folder, "shards/1-of-2/study.csv").touch()
  ...   before, has_rows(Path(folder))
  (False, True)
  """
  return any((part / _CSV).is_file() for part in _parts(out))


def _parts(out: Path) -> list[Path]:
  """A study's directory and those of its shards."""
  return [out, *sorted(out.glob(f"{_SHARDS}/*-of-*"))]


def _rows_of(out: Path) -> list[Row]:
  """The rows of one study.csv."""
  rows = _read(out / _CSV)
  for number, row in enumerate(rows, 2):
    if not row.get("config") or not (row.get("seed") or "").isdigit():
      raise ConfigError(
        f"{out / _CSV}, line {number}: expected a row of a study, with"
        " columns 'config' and 'seed'; use another --out"
      )
  now = {old: key for old, (key, _) in _current(out).items()}
  return [
    row | {"config": now.get(row["config"], row["config"])} for row in rows
  ]


def _current(out: Path) -> dict[str, tuple[str, dict[str, Any]]]:
  """Saved fingerprint -> today's, and the fields with today's defaults."""
  result = {}
  for key, saved in _configs(out).items():
    # Rows at another pattern than the run's have this field as well.
    point = {name: saved[name] for name in ("point",) if name in saved}
    run = {name: v for name, v in saved.items() if name not in point}
    try:
      whole = completed(traverse_util.unflatten_dict(run, sep="."))
    except ConfigError:  # of a recipe of one's own, or of another version
      result[key] = key, saved
    else:
      fields = of_cell(whole) | point
      result[key] = digits_of(fields), fields
  return result


def _read(path: Path) -> list[Row]:
  try:
    with path.open(newline="", encoding="utf-8") as file:
      return list(csv.DictReader(file))
  except FileNotFoundError:
    return []
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise ConfigError(f"{path}: cannot be read ({error})") from error


class Store:
  """The rows in one directory, which several processes may add to.

  Args:
    out: Directory of the study, made if it is missing.
    study: Name of the study.
    shard: (i, n) to write to OUT/shards/i-of-n; (1, 1) to write to OUT.
  """

  def __init__(
    self, out: str | Path, study: str, shard: tuple[int, int] = (1, 1)
  ):
    self.root, self.study = Path(out), study
    share, shares = shard
    self.out = self.root
    if shares > 1:
      self.out = self.root / _SHARDS / f"{share}-of-{shares}"
    try:
      self.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise ConfigError(
        f"--out {out}: {error.strerror}; name another directory"
      ) from error

  def rows(self) -> list[Row]:
    """All rows of the study, those of other shards too, as text."""
    return read(self.root)

  def add(
    self,
    shared: Mapping[str, Any],
    config: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    examples: Mapping[str, np.ndarray],
    name: str,
  ) -> None:
    """Adds the rows of a run, in place of others of its cell and seeds.

    Args:
      shared: Columns of all rows, among them "config", its fingerprint.
      config: Fields of the run's configuration by dotted name.
      rows: Other columns, one mapping per seed.
      examples: Arrays of `figs_jax.train.examples`.
      name: Name of the file of per-example results.
    """
    file = Path("examples", f"{name}.npz")
    (self.out / file).parent.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(
      buffer,
      seed=examples["seed"],
      correct=np.packbits(examples["correct"], axis=1),
      examples=examples["correct"].shape[1],
      loss=examples["loss"].astype(np.float16),
      weight=examples["weight"].astype(np.float32),
    )
    new = [
      {key: text(value) for key, value in {**shared, **row}.items()}
      | {
        "study": self.study,
        "version": importlib.metadata.version("figs_jax"),
        "examples": str(file),
      }
      for row in rows
    ]
    with self._locked():
      _write(self.out / file, buffer.getvalue())
      self._merge(new, {str(shared["config"]): dict(config)})
      self._succeed(str(shared["cell"]), {int(row["seed"]) for row in rows})

  def merge(self, other: str | Path) -> None:
    """Adds the rows and the per-example results of another directory.

    Args:
      other: Directory of a study.

    Raises:
      ConfigError: If a file there is not a study's.
    """
    with self._locked():
      for part in _parts(Path(other)):
        self._merge_part(part)

  def gather(self) -> None:
    """Adds the rows of the shards, and lists the cells that failed there."""
    with self._locked():
      _, *shards = _parts(self.out)
      for part in shards:
        self._merge_part(part)
      seeds_of: dict[str, set[int]] = {}
      for row in self.rows():
        seeds_of.setdefault(row["cell"], set()).add(int(row["seed"]))
      for part in shards:
        for row in _read(part / _FAILED):
          self._add_failed(row)
      for cell, seeds in seeds_of.items():
        self._succeed(cell, seeds)

  def _merge_part(self, part: Path) -> None:
    rows = _rows_of(part)
    for name in {row["examples"] for row in rows if row.get("examples")}:
      source = part / "examples" / Path(name).name
      if source.is_file():  # they are large, so a clone may lack them
        (self.out / "examples").mkdir(exist_ok=True)
        _write(self.out / "examples" / source.name, source.read_bytes())
    if rows:
      self._merge(rows, dict(_current(part).values()))

  def fail(self, cell: str, grid: str, seeds: Sequence[int], why: str) -> None:
    """Adds a row to failed.csv.

    Args:
      cell: Name of the cell.
      grid: Name of its grid.
      seeds: Seeds of the run.
      why: Its error, in one line.
    """
    row = {
      "study": self.study,
      "grid": grid,
      "cell": cell,
      "seeds": " ".join(map(str, seeds)),
      "error": why,
    }
    with self._locked():
      self._add_failed(row)

  def _add_failed(self, row: Row) -> None:
    rows = _read(self.out / _FAILED)
    same = ("study", "cell", "seeds")
    rows = [r for r in rows if any(r[key] != row[key] for key in same)]
    _write(self.out / _FAILED, _csv([*rows, row], _OF_FAILED))

  def _succeed(self, cell: str, seeds: set[int]) -> None:
    """Removes seeds of a cell from failed.csv, and the file if it is empty."""
    path = self.out / _FAILED
    rows = _read(path)
    left = []
    for row in rows:
      if (row["study"], row["cell"]) == (self.study, cell):
        failed = [s for s in row["seeds"].split() if int(s) not in seeds]
        row = row | {"seeds": " ".join(failed)}
      if row["seeds"]:
        left.append(row)
    if left:
      _write(path, _csv(left, _OF_FAILED))
    else:
      path.unlink(missing_ok=True)

  def _merge(self, new: Sequence[Row], configs: dict[str, Any]) -> None:
    configs = dict(_current(self.out).values()) | configs
    rows = {
      (row["config"], int(row["seed"])): row for row in _rows_of(self.out)
    }
    rows |= {(row["config"], int(row["seed"])): row for row in new}
    used = {key: configs[key] for key, _ in rows if key in configs}
    fields = sorted({*differing(used.values()), *_ALWAYS})
    result = []
    for row in rows.values():
      kept = {k: v for k, v in row.items() if not k.startswith("config.")}
      own = used.get(row["config"], {})
      result.append(
        kept | {f"config.{name}": text(own.get(name, "")) for name in fields}
      )
    result.sort(key=lambda row: (row["study"], row["cell"], int(row["seed"])))
    columns = {name: None for row in result for name in row}
    others = sorted(columns.keys() - set(_FIRST))
    others.sort(key=lambda name: name.startswith("config."))
    # Rows last: a process that is killed in between leaves no row without one.
    body = json.dumps(used, indent=1, sort_keys=True) + "\n"
    _write(self.out / _CONFIGS, body.encode())
    _write(self.out / _CSV, _csv(result, (*_FIRST, *others)))

  @contextlib.contextmanager
  def _locked(self) -> Iterator[None]:
    """Excludes other processes that write to the directory."""
    descriptor = os.open(self.out, os.O_RDONLY)
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX)
      yield
    finally:
      os.close(descriptor)


def differing(configs: Iterable[Mapping[str, Any]]) -> list[str]:
  """Names of the fields that differ, or that only some have.

  >>> differing([{"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}])
  ['b', 'c']
  """
  configs = list(configs)
  names = {name for config in configs for name in config}
  missing = object()
  return sorted(
    name
    for name in names
    if any(
      c.get(name, missing) != configs[0].get(name, missing) for c in configs
    )
  )


def text(value: Any) -> str:
  """A value as a cell of the CSV; NaN and None are empty.

  >>> text(0.1), text(None), text(float("nan")), text([1, 2]), text(True)
  ('0.1', '', '', '[1, 2]', 'true')
  """
  if value is None or (isinstance(value, float) and math.isnan(value)):
    return ""
  return value if isinstance(value, str) else json.dumps(value)


def _configs(out: Path) -> dict[str, Any]:
  try:
    return json.loads((out / _CONFIGS).read_text())
  except FileNotFoundError:
    return {}
  except (OSError, ValueError) as error:
    raise ConfigError(f"{out / _CONFIGS}: cannot be read ({error})") from error


def _csv(rows: Iterable[Mapping[str, str]], columns: Sequence[str]) -> bytes:
  buffer = io.StringIO(newline="")
  writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  return buffer.getvalue().encode()


def _write(path: Path, content: bytes) -> None:
  with replacing(path, overwrite=True) as part:
    part.write_bytes(content)
