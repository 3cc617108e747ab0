"""Orbax behind one page: named leaves, checksums, and the newest good step.

A step holds three items: `state` (one array per leaf, under its path), `data`
(the iterator's position) and `meta` (configuration, versions, and every leaf's
shape, dtype and crc32). Orbax casts a wrong dtype in silence and does not
notice flipped bits; the checks against `meta` do.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from figs_jax.train import distributed
from figs_jax.train.leaves import crc32, from_leaves, named_leaves

FORMAT = "figs_jax/1"
_log = logging.getLogger("figs_jax")
# Seconds for the reads that are still under way when another one has failed:
# what they report after the end of the program nobody can catch.
_GRACE = 0.3
_VERSIONED = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


class CheckpointError(ValueError):
  """A checkpoint that is missing, foreign, truncated or damaged."""


class MismatchError(CheckpointError):
  """A whole checkpoint, but of another model or optimizer."""


class Checkpointer:
  """Saves and restores one run's states under `workdir/checkpoints`.

  A save first copies every leaf to the host and takes its checksum; writing
  then goes on in the background.

  Args:
    workdir: of the run; made absolute.
    keep: how many of the newest steps stay.
    best: name of the metric whose best step also stays (higher is better),
      None keeps no such step.

  Nothing is written or deleted before the first `save`, so that who only reads
  may do so beside a run.
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

  def _manager(self) -> ocp.CheckpointManager:
    if self._open is None:
      kept: list[Any] = [policies.LatestN(self._keep)]
      if self._best:
        kept.append(
          policies.BestN(
            get_metric_fn=lambda metrics: metrics[self._best],
            n=1,
            keep_checkpoints_without_metrics=False,
          )
        )
      self._open = ocp.CheckpointManager(
        self.path,
        options=ocp.CheckpointManagerOptions(
          preservation_policy=policies.AnyPreservationPolicy(kept),
          # Without a best_fn Orbax does not keep metrics on disk, and a
          # reopened manager would not know the best step.
          best_fn=(lambda m: m[self._best]) if self._best else None,
        ),
        item_names=("state", "data", "meta"),
      )
    return self._open

  def steps(self) -> list[int]:
    """Saved steps, ascending; directories of other names are not ours."""
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
    """Writes a step in the background; an existing step is an error.

    Args:
      step: its number.
      state: a tree of arrays.
      data: the position of the data's iterator, as plain values.
      config: of the run, for later checks.
      metrics: what the best step is chosen by; None where none was measured.

    Raises:
      CheckpointError: the step exists already.
    """
    if step in self.steps():
      raise CheckpointError(
        f"{self.path / str(step)}: this step is saved already; restore it or"
        " choose another workdir"
      )
    leaves = named_leaves(state)
    meta = {
      "format": FORMAT,
      "config": config,
      "versions": {p: importlib.metadata.version(p) for p in _VERSIONED},
      "leaves": {
        name: {
          "shape": list(leaf.shape),
          "dtype": str(leaf.dtype),
          "crc32": crc32(leaf),
        }
        for name, leaf in leaves.items()
      },
    }
    self._manager().save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(leaves),
        data=ocp.args.JsonSave(data),
        meta=ocp.args.JsonSave(meta),
      ),
      metrics=metrics,
      force=True,
    )

  def meta(self, step: int | None = None) -> dict[str, Any]:
    """The `meta` of a step.

    Args:
      step: None takes the newest one that can be read.

    Raises:
      CheckpointError: none (or not the one asked for) can be read.
    """
    for candidate in self._candidates(step):
      try:
        return self._meta(candidate)
      except CheckpointError as error:
        self._fall_back(step, error)
    raise self._none_left()

  def restore(
    self, abstract: Any, step: int | None = None
  ) -> tuple[Any, dict[str, Any], int]:
    """(state, data position, step) of a step, verified leaf by leaf.

    Args:
      abstract: a state of arrays or `jax.ShapeDtypeStruct`s; shardings on
        them place the result.
      step: None takes the newest good one, and says on the log what was
        wrong with those that it passes over. A step that one process of
        several cannot read is good for none of them.

    Raises:
      CheckpointError: none (or not the one asked for) can be restored.
    """
    for candidate in self._candidates(step):
      try:
        with _by_all():
          items = self._read(abstract, candidate)
        # Of arrays over several processes all must have read theirs.
        with _by_all():
          state = self._verified(abstract, candidate, items)
        return state, items["data"], candidate
      except CheckpointError as error:
        self._fall_back(step, error)
    raise self._none_left()

  def set_aside_after(self, step: int) -> None:
    """Moves the steps beyond `step`, which restore passed, to `damaged/`."""
    later = [found for found in self.steps() if found > step]
    aside = self.path.parent / "damaged"
    distributed.barrier("set aside: all have seen them")
    for found in later if distributed.is_first() else ():
      aside.mkdir(exist_ok=True)
      place = aside / f"{found}-{time.time_ns()}"
      (self.path / str(found)).rename(place)
      _log.warning("step %d is set aside in %s", found, place)
    distributed.barrier("set aside: they are gone")
    if self._open is not None:
      self._open.reload()

  def wait(self) -> None:
    """Returns when the saves under way are on disk."""
    if self._open is not None:
      self._open.wait_until_finished()

  def close(self) -> None:
    """Waits for the saves under way and lets the directory go."""
    if self._open is not None:
      self.wait()
      self._open.close()
      self._open = None

  def __enter__(self) -> Checkpointer:
    return self

  def __exit__(self, *exc: object) -> None:
    self.close()

  def _candidates(self, step: int | None) -> Iterator[int]:
    steps = self.steps()
    if not steps:
      runs = sorted(self.path.parent.glob(f"*/{self.path.name}"))
      such = f", such as {runs[0].parent}" if runs else ""
      raise CheckpointError(
        f"{self.path}: no checkpoint here; give the --workdir of a run{such}"
      )
    if step is None:
      yield from reversed(steps)
    elif step in steps:
      yield step
    else:
      listed = ", ".join(map(str, steps))
      raise CheckpointError(f"{self.path}: no step {step}; there are {listed}")

  def _fall_back(self, step: int | None, error: CheckpointError) -> None:
    if step is not None or isinstance(error, MismatchError):
      raise error
    _log.warning("%s; trying the step before it", error)

  def _none_left(self) -> CheckpointError:
    return CheckpointError(
      f"{self.path}: none of the steps {self.steps()} can be read; see the"
      " messages above"
    )

  def _meta(self, step: int) -> dict[str, Any]:
    where = self.path / str(step)
    try:
      meta = _orbax(where, meta=ocp.args.JsonRestore())["meta"]
    except Exception as error:  # whatever a damaged directory makes Orbax raise
      raise CheckpointError(
        f"{where}: not a whole figs_jax checkpoint ({_first_line(error)})"
      ) from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
      raise CheckpointError(
        f"{where}: foreign checkpoint; its meta does not say {FORMAT!r}"
      )
    return meta

  def _read(self, abstract: Any, step: int) -> dict[str, Any]:
    """The items of a step, which fits `abstract`, as far as they can be read.

    Raises:
      CheckpointError: this process cannot read what it should have of it.
    """
    where = self.path / str(step)
    meta, wanted = self._meta(step), named_leaves(abstract)
    _compare(where, meta["leaves"], wanted)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = {
      name: jax.ShapeDtypeStruct(
        leaf.shape,
        leaf.dtype,
        # Of the leaf itself: the raw data of a key has lost it.
        sharding=getattr(old, "sharding", None) or here,
      )
      for (name, leaf), old in zip(wanted.items(), jax.tree.leaves(abstract))
    }
    try:
      items = _orbax(
        where,
        state=ocp.args.StandardRestore(target),
        data=ocp.args.JsonRestore(),
      )
    except Exception as error:  # whatever a damaged file makes Orbax raise
      time.sleep(_GRACE)
      raise CheckpointError(
        f"{where}: damaged or truncated ({_first_line(error)})"
      ) from error
    return {"state": items["state"], "data": items["data"], "meta": meta}

  def _verified(self, abstract: Any, step: int, items: dict[str, Any]) -> Any:
    """The state in `items`, as `abstract` is built.

    Raises:
      CheckpointError: a leaf is not what was saved.
    """
    leaves, saved = items["state"], items["meta"]["leaves"]
    # All of them first: of a leaf over several processes each asks the others.
    found = {name: crc32(leaf) for name, leaf in leaves.items()}
    for name, digest in found.items():
      if digest != saved[name]["crc32"]:
        raise CheckpointError(
          f"{self.path / str(step)}: {name} is damaged, its crc32 differs from"
          " the saved one"
        )
    return from_leaves(abstract, leaves)


def _orbax(where: Path, **items: Any) -> Any:
  """Items of a step as this process reads them, waiting for no other.

  Orbax's manager has all processes meet after a read; one that could not read
  would not come, and the others wait for ever.
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
  """What is a CheckpointError in one process is one in all of them."""
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
  """Raises MismatchError at the first leaf that differs."""
  for name in sorted(saved.keys() ^ wanted.keys()):
    side = "holds" if name in saved else "lacks"
    raise MismatchError(
      f"{where}: the checkpoint {side} {name!r}, unlike the model of this"
      " configuration; use the configuration it was trained with"
    )
  for name, leaf in wanted.items():
    got = tuple(saved[name]["shape"]), saved[name]["dtype"]
    want = tuple(leaf.shape), str(leaf.dtype)
    if got != want:
      raise MismatchError(
        f"{where}: {name} is {got[1]}{list(got[0])} in the checkpoint but"
        f" {want[1]}{list(want[0])} in this configuration"
      )


def _first_line(error: Exception) -> str:
  text = str(error).strip().splitlines()
  return f"{type(error).__name__}: {text[0][:200]}" if text else repr(error)
