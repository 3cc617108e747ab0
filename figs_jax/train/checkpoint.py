"""Saving and restoring states with Orbax: named leaves, verified by checksum.

A step holds two items, which appear together or not at all: `state` (one array
per leaf, under its path) and `meta` (configuration, versions, position of the
data, metrics, and every leaf's shape, dtype and crc32, under one SHA-256).
Orbax silently casts a wrong dtype and does not notice flipped bits; the checks
against `meta` do. Steps of figs_jax 0.1 have no SHA-256, and items of their own
for position and metrics.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from figs_jax.core.tree import path_str
from figs_jax.train import distributed, machine
from figs_jax.train._later_json import LaterJsonSave
from figs_jax.train.checksums import checksums, checksums_of_now

T = TypeVar("T")
FORMAT = "figs_jax/2"
_WITHOUT_DIGEST = "figs_jax/1"
_log = logging.getLogger("figs_jax")
_ABSL = logging.getLogger("absl")  # of Orbax
# Seconds to let Orbax's other reads finish after one has failed: an error that
# they report after the program has ended cannot be caught.
_GRACE = 0.3
_VERSIONED = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


class CheckpointError(ValueError):
  """A checkpoint is missing, foreign, truncated or damaged."""


class MismatchError(CheckpointError):
  """A checkpoint is intact but belongs to another model or optimizer."""


class SaveError(RuntimeError):
  """A checkpoint cannot be written; the message names the last good one."""


class Checkpointer:
  """Saves and restores one run's states under `workdir/checkpoints`.

  A save copies every leaf to the host, then takes its checksum and writes it in
  the background. Nothing is written or deleted before the first `save`, so a
  reader may open the checkpoints of a run in progress.

  Args:
    workdir: Directory of the run; made absolute.
    keep: Number of newest steps to keep.
    best: Metric whose best step is kept as well (higher is better), or None.
  """

  def __init__(
    self,
    workdir: str | Path,
    *,
    keep: int = 2,
    best: str | None = "accuracy",
  ):
    self.path = Path(workdir).resolve() / "checkpoints"
    self._keep, self._best = keep, best
    self._open: ocp.CheckpointManager | None = None
    self._metrics: dict[int, dict[str, float]] = {}  # by step
    self._logged: set[str] = set()
    self._last_save: int | None = None

  def _manager(self) -> ocp.CheckpointManager:
    if self._open is None:
      # For good: threads of a failed save log their errors after `close`.
      _ABSL.addFilter(_is_not_of_save)
      # Metrics are ours to keep: Orbax reads those of all steps at once, fails
      # if one is damaged, and takes NaN for the best.
      self._open = ocp.CheckpointManager(
        self.path,
        options=ocp.CheckpointManagerOptions(
          preservation_policy=_NewestAndBest(self._keep, self._metric)
        ),
        item_names=("state", "meta"),
      )
    return self._open

  def _metric(self, step: int) -> float | None:
    """The metric that chooses the best step; None if it was not measured.

    Raises:
      CheckpointError: If the step cannot be read.
    """
    if self._best is None:
      return None
    if step not in self._metrics:
      self._metrics[step] = _finite(self._meta(step)["metrics"])
    return self._metrics[step].get(self._best)

  def steps(self) -> list[int]:
    """Saved steps in ascending order; other directories are ignored."""
    if not self.path.is_dir():
      return []
    names = (p.name for p in self.path.iterdir() if p.is_dir())
    return sorted(int(name) for name in names if name.isdigit())

  def save(
    self,
    step: int,
    state: Any,
    data: dict[str, Any],
    config: dict[str, Any],
    metrics: dict[str, float] | None = None,
  ) -> None:
    """Writes a step in the background.

    Args:
      step: Number of the step.
      state: Tree of arrays.
      data: Position of the data iterator, as plain values.
      config: Configuration of the run, for later checks.
      metrics: Metrics that choose the best step; None if not measured. A NaN or
        infinite one counts as not measured.

    Raises:
      CheckpointError: If the step exists already.
      SaveError: If the step before it could not be written, as for a full disk.
    """
    if step in self.steps():
      raise CheckpointError(
        f"{self.path / str(step)}: this step is saved already; restore it, or"
        " use a new workdir"
      )
    leaves = named_leaves(state)
    self._metrics[step] = _finite(metrics or {})
    # What follows in the background must not see later changes.
    plain = json.dumps(
      {
        "config": config,
        "data": data,
        "metrics": self._metrics[step],
        "machine": machine.current(),
        "versions": _versions(),
      }
    )
    types = {k: (list(v.shape), str(v.dtype)) for k, v in leaves.items()}
    sums, returned = checksums_of_now(leaves), threading.Event()

    def meta() -> dict[str, Any]:
      returned.wait()  # hashing is not to slow what training waits for
      crcs = sums()
      described = {
        name: {"shape": shape, "dtype": dtype, "crc32": crcs[name]}
        for name, (shape, dtype) in types.items()
      }
      content = json.loads(plain) | {"leaves": described}
      return {"format": FORMAT, "sha256": _digest(content), "content": content}

    items = ocp.args.Composite(
      state=ocp.args.StandardSave(leaves), meta=LaterJsonSave(meta)
    )
    with self._writing():
      try:
        self._manager().save(step, args=items, force=True)
      finally:
        returned.set()
    self._last_save = step

  def meta(self, step: int | None = None) -> dict[str, Any]:
    """The `meta` of a step: config, versions, data, metrics and leaves.

    Args:
      step: Step to read. Defaults to the newest one that can be read.

    Raises:
      CheckpointError: If no step, or not the given one, can be read.
    """
    return self._newest(step, self._meta)

  def restore(
    self,
    abstract: Any,
    step: int | None = None,
    *,
    check: Callable[[dict[str, Any]], None] | None = None,
  ) -> tuple[Any, dict[str, Any], int]:
    """Restores (state, data position, step), verified leaf by leaf.

    Args:
      abstract: State of arrays or `jax.ShapeDtypeStruct`s; their shardings
        place the result.
      step: Step to restore. Defaults to the newest good one; one line of the
        log says which was taken, and why no newer one. With several processes,
        a step is good only if every process can read it.
      check: Function of the step's configuration, which may refuse it by an
        error before anything else is read.

    Raises:
      CheckpointError: If no step, or not the given one, can be restored.
    """

    def read(candidate: int) -> tuple[Any, dict[str, Any], int]:
      with _by_all():
        items = self._read(abstract, candidate, check)
      # Checksums of arrays that span processes need every process's shards.
      with _by_all():
        state = self._verified(abstract, candidate, items)
      return state, items["meta"]["data"], candidate

    return self._newest(step, read)

  def set_aside_after(self, step: int) -> None:
    """Moves the steps after `step`, which `restore` skipped, to `damaged/`."""
    skipped = [later for later in self.steps() if later > step]
    damaged = self.path.parent / "damaged"
    distributed.barrier("all processes have listed the damaged steps")
    for later in skipped if distributed.is_first() else ():
      damaged.mkdir(exist_ok=True)
      target = damaged / f"{later}-{time.time_ns()}"
      (self.path / str(later)).rename(target)
      _log.warning("step %d is damaged; moved to %s", later, target)
    distributed.barrier("the damaged steps are moved")
    if self._open is not None:
      self._open.reload()

  def wait(self) -> None:
    """Returns once all saves are on disk.

    Raises:
      SaveError: If one could not be written.
    """
    if self._open is not None:
      with self._writing():
        self._open.wait_until_finished()

  def close(self) -> None:
    """Waits for all saves and closes the directory.

    Raises:
      SaveError: If one could not be written.
    """
    manager, self._open = self._open, None
    if manager is not None:
      with self._writing():
        manager.close()

  def last_good(self, error: Exception | None = None) -> str:
    """Words that name the newest step on disk, after this error."""
    steps = self.steps()
    # Under a save in progress, files that are gone give errors of many kinds.
    refused = error is not None and _errno(error) not in (None, errno.ENOENT)
    if not steps and not refused and self._last_save is not None:
      return (
        f"the checkpoints in {self.path}, of which the last save was step"
        f" {self._last_save}, were deleted"
      )
    if not steps:
      return "no checkpoint was saved yet"
    return f"the last good checkpoint is step {steps[-1]} in {self.path}"

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # Orbax raises many types
      if distributed.may_be_of_peer(error):
        raise
      raise SaveError(
        f"{self.path}: a checkpoint cannot be written ({_reason(error)});"
        f" {self.last_good(error)}"
      ) from error

  def __enter__(self) -> Checkpointer:
    return self

  def __exit__(self, *exc: object) -> None:
    self.close()

  def _newest(self, step: int | None, read: Callable[[int], T]) -> T:
    """`read` of a step, by default of the newest that it can read."""
    steps = self.steps()
    if not steps:
      runs = sorted(self.path.parent.glob(f"*/{self.path.name}"))
      example = f", such as {runs[0].parent}" if runs else ""
      raise CheckpointError(
        f"{self.path}: no checkpoint here; set --workdir to a run{example}"
      )
    if step is not None:
      if step in steps:
        return read(step)
      listed = ", ".join(map(str, steps))
      raise CheckpointError(f"{self.path}: no step {step}; saved: {listed}")
    errors: list[str] = []
    for candidate in reversed(steps):
      try:
        result = read(candidate)
      except MismatchError:
        raise
      except CheckpointError as error:
        errors.append(str(error))
      else:
        if errors:
          self._log_once(f"{'; '.join(errors)}; taking step {candidate}")
        return result
    raise CheckpointError(
      f"{self.path}: none of the steps {steps} can be read: {'; '.join(errors)}"
    )

  def _log_once(self, line: str) -> None:
    if line not in self._logged:
      self._logged.add(line)
      _log.warning("%s", line)

  def _meta(self, step: int) -> dict[str, Any]:
    """The verified `meta` of a step, in the layout of today."""
    where = self.path / str(step)
    try:
      meta = _orbax(where, meta=ocp.args.JsonRestore())["meta"]
    except Exception as error:  # Orbax raises many types on damaged files
      raise CheckpointError(
        f"{where}: not a complete figs_jax checkpoint ({_first_line(error)})"
      ) from error
    form = meta.get("format") if isinstance(meta, dict) else None
    if form == _WITHOUT_DIGEST:
      return self._without_digest(where, meta)
    if form != FORMAT:
      raise CheckpointError(
        f"{where}: foreign or damaged; its meta lacks the format {FORMAT!r}"
      )
    if meta.get("sha256") != _digest(meta.get("content")):
      raise CheckpointError(
        f"{where}: meta is damaged; its SHA-256 differs from the saved one"
      )
    return meta["content"]

  def _without_digest(self, where: Path, meta: dict[str, Any]) -> Any:
    """The `meta` of a step of figs_jax 0.1."""
    self._log_once(
      f"{self.path}: saved by figs_jax 0.1, without a SHA-256; configuration"
      " and data position cannot be verified"
    )
    try:
      data = _orbax(where, data=ocp.args.JsonRestore())["data"]
    except Exception as error:  # Orbax raises many types on damaged files
      raise CheckpointError(
        f"{where}: its data position is damaged ({_first_line(error)})"
      ) from error
    try:
      metrics = _finite(json.loads((where / "metrics/metrics").read_text()))
    except (OSError, ValueError, TypeError, AttributeError):
      metrics = {}  # not measured, or damaged
    if not isinstance(data, dict) or not {"config", "leaves"} <= meta.keys():
      raise CheckpointError(f"{where}: its meta or data position is damaged")
    return meta | {"data": data, "metrics": metrics}

  def _read(
    self,
    abstract: Any,
    step: int,
    check: Callable[[dict[str, Any]], None] | None,
  ) -> dict[str, Any]:
    """The items of a step, in so far as this process holds them.

    Raises:
      MismatchError: If the step does not fit `abstract`.
      CheckpointError: If this process cannot read its share.
    """
    where = self.path / str(step)
    meta, wanted = self._meta(step), named_leaves(abstract)
    if check is not None:
      check(meta["config"])
    _compare(where, meta["leaves"], wanted)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = {
      name: jax.ShapeDtypeStruct(
        leaf.shape,
        leaf.dtype,
        # From the leaf itself, since a key's raw data has none.
        sharding=getattr(old, "sharding", None) or here,
      )
      for (name, leaf), old in zip(wanted.items(), jax.tree.leaves(abstract))
    }
    try:
      items = _orbax(where, state=ocp.args.StandardRestore(target))
    except Exception as error:  # Orbax raises many types on damaged files
      time.sleep(_GRACE)
      raise CheckpointError(
        f"{where}: damaged or truncated ({_first_line(error)})"
      ) from error
    return {"state": items["state"], "meta": meta}

  def _verified(self, abstract: Any, step: int, items: dict[str, Any]) -> Any:
    """The state in `items`, with the structure of `abstract`.

    Raises:
      CheckpointError: If the checksum of a leaf is wrong.
    """
    leaves, saved = items["state"], items["meta"]["leaves"]
    for name, checksum in checksums(leaves).items():
      if checksum != saved[name]["crc32"]:
        raise CheckpointError(
          f"{self.path / str(step)}: {name} is damaged; its crc32 differs from"
          " the saved one"
        )
    return from_leaves(abstract, leaves)


class _NewestAndBest(policies.PreservationPolicy):
  """Keeps the newest steps, the best one, and those that cannot be read.

  Args:
    keep: Number of newest steps.
    metric: Function of a step that returns its metric, or None.
  """

  def __init__(self, keep: int, metric: Callable[[int], float | None]):
    self._keep, self._metric = keep, metric

  def should_preserve(
    self, checkpoints: Sequence[Any], *, context: Any
  ) -> Sequence[bool]:
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept, metrics = set(steps[-self._keep :]), {}
    for step in steps:
      try:
        if (metric := self._metric(step)) is not None:
          metrics[step] = metric
      except CheckpointError:
        kept.add(step)  # damaged steps are set aside, not deleted
    if metrics:  # of equal ones, the newest
      kept.add(max(metrics, key=lambda step: (metrics[step], step)))
    return [step in kept for step in steps]


@functools.cache
def _versions() -> dict[str, str]:
  return {name: importlib.metadata.version(name) for name in _VERSIONED}


def _finite(metrics: dict[str, float]) -> dict[str, float]:
  """The metrics that can be compared.

  >>> _finite({"accuracy": float("nan"), "loss": 2})
  {'loss': 2.0}
  """
  return {k: float(v) for k, v in metrics.items() if math.isfinite(v)}


def _digest(content: Any) -> str:
  """SHA-256 of a JSON value, whatever the order of its keys.

  >>> _digest({"a": 1, "b": [2]}) == _digest({"b": (2,), "a": 1})
  True
  """
  plain = json.loads(json.dumps(content))  # keys become text
  return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _orbax(where: Path, **items: Any) -> Any:
  """Items of a step, read by this process alone.

  Orbax's manager synchronizes all processes after a read. If one of them fails
  to read, the others would wait forever.
  """
  me = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=me, active_processes={me}
  )
  options = ocp.CompositeOptions(multiprocessing_options=alone)
  handler = ocp.CompositeCheckpointHandler(composite_options=options)
  with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
    return reader.restore(where, args=ocp.args.Composite(**items))


@contextlib.contextmanager
def _by_all() -> Iterator[None]:
  """Raises a CheckpointError of one process in all of them."""
  error = None
  try:
    yield
  except CheckpointError as mine:
    error = mine
  failed = distributed.first_failure(None if error is None else str(error))
  if error is not None:
    raise error
  if failed:
    raise CheckpointError(failed)


def _compare(where: Path, saved: dict[str, Any], wanted: dict[str, Any]):
  """Raises a MismatchError at the first leaf that differs."""
  for name in sorted(saved.keys() ^ wanted.keys()):
    side = "holds" if name in saved else "lacks"
    raise MismatchError(
      f"{where}: the checkpoint {side} {name!r}, unlike the model of this"
      " configuration; use the configuration of the run"
    )
  for name, leaf in wanted.items():
    got = tuple(saved[name]["shape"]), saved[name]["dtype"]
    want = tuple(leaf.shape), str(leaf.dtype)
    if got != want:
      raise MismatchError(
        f"{where}: expected {name} as {want[1]}{list(want[0])}, got"
        f" {got[1]}{list(got[0])}; use the configuration of the run"
      )


def _is_not_of_save(record: logging.LogRecord) -> bool:
  """False for absl's record of an error that Orbax raises as well."""
  return not (record.exc_info and "/orbax/" in record.pathname)


def _reason(error: Exception) -> str:
  """What the operating system says in an error, or else its first line.

  >>> _reason(OSError(28, "No space left on device", "a"))
  'No space left on device'
  >>> _reason(ValueError("write of a: File too large [os_error_code='27']"))
  'File too large'
  """
  code = _errno(error)
  return _first_line(error) if code is None else os.strerror(code)


def _errno(error: Exception) -> int | None:
  """The operating system's number of an error, also in TensorStore's text."""
  if isinstance(error, OSError):
    return error.errno
  code = re.search(r"\[os_error_code='(\d+)'", str(error))
  return int(code[1]) if code else None


def _first_line(error: Exception) -> str:
  text = str(error).strip().splitlines()
  return f"{type(error).__name__}: {text[0][:200]}" if text else repr(error)


def named_leaves(state: Any) -> dict[str, Any]:
  """Arrays of a state by dotted path, with random keys as raw data.

  >>> sorted(named_leaves({"params": {"a": {"kernel": jnp.ones(2)}}}))
  ['params.a.kernel']
  """
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {path_str(p).replace("/", "."): _raw(leaf) for p, leaf in leaves}


def from_leaves(like: Any, leaves: dict[str, Any]) -> Any:
  """Inverse of `named_leaves`: a state with the structure of `like`.

  >>> state = {"key": jax.random.key(0), "kernel": jnp.ones(2)}
  >>> from_leaves(state, named_leaves(state))["key"].dtype
  key<fry>
  """
  flat, treedef = jax.tree_util.tree_flatten(like)
  built = [
    jax.random.wrap_key_data(leaves[name]) if _is_key(old) else leaves[name]
    for name, old in zip(named_leaves(like), flat)
  ]
  return jax.tree_util.tree_unflatten(treedef, built)


def _is_key(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf: Any) -> Any:
  if not _is_key(leaf):
    return leaf
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return jax.eval_shape(jax.random.key_data, leaf)
  return jax.random.key_data(leaf)
