"""Checkpoints: what comes back is what was saved, or one clear error."""

import gc
import hashlib
import json
import logging
import resource
import shutil
import time
import warnings
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from figs_jax.train import checkpoint
from figs_jax.train.checkpoint import (
  Checkpointer,
  CheckpointError,
  SaveError,
  named_leaves,
)
from figs_jax.train.checksums import checksums, checksums_of_now
from figs_jax.train.sharding import make_mesh


def example_state(value=1.0):
  return {
    "params": {"blocks": {0: {"kernel": jnp.full((4, 3), value, jnp.float32)}}},
    "masks": {"blocks": {0: {"kernel": jnp.eye(4, 3) > 0}}},
    "half": jnp.full(5, value, jnp.bfloat16),
    "none": None,
    "stream": jax.random.key(7),
    "step": jnp.int32(3),
  }


def raw(leaf):
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return np.asarray(jax.random.key_data(leaf))
  return np.asarray(leaf)


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(raw(x), raw(y))


def save_steps(workdir, steps, **options):
  with Checkpointer(workdir, **options) as checkpoints:
    for step in steps:
      checkpoints.save(
        step, example_state(step), {"next": step}, {"lr": 0.1}, None
      )


def test_round_trip_from_shapes_alone(tmp_path):
  save_steps(tmp_path, [1, 2])
  with Checkpointer(tmp_path) as checkpoints:
    state, data, step = checkpoints.restore(jax.eval_shape(example_state))
    assert checkpoints.meta()["config"] == {"lr": 0.1}
  assert (data, step) == ({"next": 2}, 2)
  assert_same(state, example_state(2))


def test_newest_and_best_are_kept(tmp_path):
  with Checkpointer(tmp_path, keep=2) as checkpoints:
    for step, accuracy in enumerate([0.1, 0.9, 0.2, 0.3, 0.4], start=1):
      checkpoints.save(step, example_state(), {}, {}, {"accuracy": accuracy})
  assert Checkpointer(tmp_path).steps() == [2, 4, 5]


def test_the_best_step_outlives_a_restart(tmp_path):
  for steps in ([(1, 0.9), (2, 0.1)], [(3, 0.2), (4, None), (5, 0.3)]):
    with Checkpointer(tmp_path, keep=2) as checkpoints:
      for step, accuracy in steps:
        metrics = None if accuracy is None else {"accuracy": accuracy}
        checkpoints.save(step, example_state(), {}, {}, metrics)
  assert Checkpointer(tmp_path).steps() == [1, 4, 5]


def test_nan_is_no_metric(tmp_path):
  """Orbax's own policy takes it for the best and deletes the best step."""
  accuracies = [0.9, 0.1, float("nan"), 0.2, 0.3]
  with Checkpointer(tmp_path, keep=1) as checkpoints:
    for step, accuracy in enumerate(accuracies, start=1):
      checkpoints.save(step, example_state(), {}, {}, {"accuracy": accuracy})
  assert Checkpointer(tmp_path).steps() == [1, 5]


def test_damaged_steps_are_set_aside_not_deleted(tmp_path):
  save_steps(tmp_path, [1, 2])
  with Checkpointer(tmp_path) as checkpoints:
    checkpoints.set_aside_after(1)
    assert checkpoints.steps() == [1]
    checkpoints.save(2, example_state(5), {}, {})
  (aside,) = (tmp_path / "damaged").iterdir()
  assert (aside / "state").is_dir()
  with Checkpointer(tmp_path) as checkpoints:
    assert_same(checkpoints.restore(example_state(), 2)[0], example_state(5))


def test_an_existing_step_is_never_overwritten(tmp_path):
  save_steps(tmp_path, [1])
  with pytest.raises(CheckpointError, match="saved already"):
    save_steps(tmp_path, [1])
  with Checkpointer(tmp_path) as checkpoints:
    assert_same(checkpoints.restore(example_state())[0], example_state(1))


def test_missing(tmp_path):
  with Checkpointer(tmp_path / "no") as checkpoints:
    with pytest.raises(CheckpointError, match="no checkpoint here"):
      checkpoints.restore(example_state())
  assert not (tmp_path / "no").exists()
  save_steps(tmp_path / "runs" / "a", [1])
  with Checkpointer(tmp_path / "runs") as checkpoints:
    with pytest.raises(CheckpointError, match="such as .*/runs/a$"):
      checkpoints.restore(example_state())
  save_steps(tmp_path, [1])
  with Checkpointer(tmp_path) as checkpoints:
    with pytest.raises(CheckpointError, match=r"no step 5; saved: 1"):
      checkpoints.restore(example_state(), 5)


def flip_bit(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(bytes(content))


def data_files(workdir, step):
  return sorted((workdir / "checkpoints" / str(step) / "state").rglob("d/*"))


# Orbax leaves reads under way when the first one fails; their late callbacks
# find the event loop closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "empty"])
def test_damage_falls_back_to_the_step_before(tmp_path, damage, caplog):
  save_steps(tmp_path, [1, 2])
  files = data_files(tmp_path, 2)
  assert files
  for path in files:
    if damage == "flip":
      flip_bit(path)
    elif damage == "truncate":
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "delete":
      path.unlink()
  if damage == "empty":
    (tmp_path / "checkpoints" / "7").mkdir()
  with (
    caplog.at_level(logging.WARNING, "figs_jax"),
    Checkpointer(tmp_path) as checkpoints,
  ):
    state, data, step = checkpoints.restore(example_state())
  expected = 2 if damage == "empty" else 1
  assert (data, step) == ({"next": expected}, expected)
  assert_same(state, example_state(expected))
  assert f"; taking step {expected}" in caplog.text
  if damage != "empty":
    with Checkpointer(tmp_path) as checkpoints:
      with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.restore(example_state(), 2)
  collect(caplog)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_flipped_bit_gives_another_run(tmp_path, caplog):
  """In any small file: that step, or with one line the one before."""
  save_steps(tmp_path, [1, 2])
  folder = tmp_path / "checkpoints" / "2"
  draw = np.random.default_rng(0)
  paths = sorted(p for p in folder.rglob("*") if p.is_file())
  # benchmarks/survival.py flips bits of the others too.
  for path in (p for p in paths if "state" not in p.parts):
    content, is_meta = path.read_bytes(), path.parent.name == "meta"
    bits = draw.integers(8 * len(content), size=16 if is_meta else 1)
    for damaged in (b"", *(flipped(content, int(bit)) for bit in bits)):
      path.write_bytes(damaged)
      caplog.clear()
      with Checkpointer(tmp_path) as checkpoints:
        checkpoints.meta()  # the line comes once
        state, data, step = checkpoints.restore(jax.eval_shape(example_state))
        assert checkpoints.meta(step)["config"] == {"lr": 0.1}
      assert data == {"next": step}
      assert_same(state, example_state(step))
      lines = [r.getMessage() for r in caplog.records if r.name == "figs_jax"]
      assert len(lines) == (step == 1)
      assert all(line.endswith("; taking step 1") for line in lines)
      if is_meta and path.name == "metadata":
        assert step == 1
    path.write_bytes(content)
  collect(caplog)


def collect(caplog):
  """Collects the reads that Orbax has left, while warnings are ignored."""
  caplog.clear()  # its records refer to them
  time.sleep(0.3)
  gc.collect()


def flipped(content, bit):
  changed = bytearray(content)
  changed[bit // 8] ^= 1 << bit % 8
  return bytes(changed)


def test_another_position_is_noticed(tmp_path):
  save_steps(tmp_path, [115])
  path = tmp_path / "checkpoints" / "115" / "meta" / "metadata"
  path.write_text(path.read_text().replace('"next": 115', '"next": 112'))
  with Checkpointer(tmp_path) as checkpoints:
    with pytest.raises(CheckpointError, match="115: meta is damaged; its SHA"):
      checkpoints.restore(example_state(), 115)


@pytest.mark.parametrize("damaged", [b"", b"{}", b"[]", b"\xff"])
def test_only_the_step_that_is_read_can_stop_a_run(tmp_path, damaged):
  save_steps(tmp_path, [1, 2, 3], keep=3)
  path = tmp_path / "checkpoints" / "1" / "meta" / "metadata"
  path.write_bytes(damaged)
  with Checkpointer(tmp_path, keep=2) as checkpoints:
    assert checkpoints.restore(example_state())[2] == 3
    checkpoints.save(4, example_state(4), {}, {})
  # The damaged step is nobody's to delete.
  assert Checkpointer(tmp_path).steps() == [1, 3, 4]


def described(leaves):
  return {
    name: {
      "shape": list(leaf.shape),
      "dtype": str(leaf.dtype),
      "crc32": zlib.crc32(np.asarray(leaf).tobytes()),
    }
    for name, leaf in leaves.items()
  }


def save_as_before(workdir, step):
  """A step of figs_jax/2 whose meta was complete before Orbax began to write.

  Its SHA-256 is that of the sorted JSON, computed here with the standard
  library alone.
  """
  import orbax.checkpoint as ocp

  leaves = named_leaves(example_state(step))
  content = {
    "config": {"lr": 0.1},
    "data": {"next": step},
    "metrics": {},
    "versions": {},
    "leaves": described(leaves),
  }
  text = json.dumps(content, sort_keys=True)
  meta = {
    "format": "figs_jax/2",
    "sha256": hashlib.sha256(text.encode()).hexdigest(),
    "content": content,
  }
  with ocp.CheckpointManager(workdir / "checkpoints") as manager:
    items = ocp.args.Composite(
      state=ocp.args.StandardSave(leaves), meta=ocp.args.JsonSave(meta)
    )
    manager.save(step, args=items)


def test_steps_written_by_orbax_alone_are_read_and_verified(tmp_path):
  for step in (1, 2):
    save_as_before(tmp_path, step)
  with Checkpointer(tmp_path) as checkpoints:
    state, data, step = checkpoints.restore(example_state())
    assert (data, step) == ({"next": 2}, 2)
    assert_same(state, example_state(2))
    checkpoints.save(3, example_state(3), {"next": 3}, {"lr": 0.1})
  path = tmp_path / "checkpoints/3/meta/metadata"
  path.write_text(path.read_text().replace('"next": 3', '"next": 2'))
  with Checkpointer(tmp_path) as checkpoints:
    assert checkpoints.restore(example_state())[2] == 2


def save_as_0_1(workdir, accuracies):
  """Steps in the layout of figs_jax 0.1."""
  import orbax.checkpoint as ocp

  state = named_leaves(example_state())
  leaves = described(state)
  meta = {"format": "figs_jax/1", "config": {"lr": 0.1}, "leaves": leaves}
  options = ocp.CheckpointManagerOptions(best_fn=lambda m: m["accuracy"])
  with ocp.CheckpointManager(
    workdir / "checkpoints", options=options
  ) as manager:
    for step, accuracy in enumerate(accuracies, start=1):
      items = ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        data=ocp.args.JsonSave({"next": step}),
        meta=ocp.args.JsonSave(meta),
      )
      metrics = None if accuracy is None else {"accuracy": accuracy}
      manager.save(step, args=items, metrics=metrics)


def test_steps_without_a_digest_are_read_with_a_note(tmp_path, caplog):
  save_as_0_1(tmp_path, [0.9, 0.1, None])
  with Checkpointer(tmp_path, keep=1) as checkpoints:
    state, data, step = checkpoints.restore(example_state())
    assert caplog.text.count("saved by figs_jax 0.1, without a SHA-256") == 1
    assert (data, step) == ({"next": 3}, 3)
    assert_same(state, example_state())
    checkpoints.save(4, example_state(), {}, {}, {"accuracy": 0.2})
  assert Checkpointer(tmp_path).steps() == [1, 4]
  path = tmp_path / "checkpoints" / "1" / "data" / "metadata"
  path.write_text("{")
  with Checkpointer(tmp_path) as checkpoints:
    with pytest.raises(CheckpointError, match="its data position is damaged"):
      checkpoints.restore(example_state(), 1)


def test_silent_corruption_is_noticed(tmp_path, monkeypatch):
  """Orbax restores a wrong value without a word; the checksum does not."""
  save_steps(tmp_path, [1])
  module = "figs_jax.train.checksums._crc32"
  with monkeypatch.context() as patch:
    patch.setattr(module, lambda array: 0)
    save_steps(tmp_path, [2])
  with Checkpointer(tmp_path) as checkpoints:
    with pytest.raises(CheckpointError, match="crc32 differs"):
      checkpoints.restore(example_state(), 2)


def test_a_full_disk_is_one_line_with_the_last_good_step(tmp_path, caplog):
  """As a limit on the size of files, which needs no file system of its own."""
  save_steps(tmp_path, [1])
  state = {"w": jax.random.normal(jax.random.key(0), (64, 1024))}
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  with Checkpointer(tmp_path) as checkpoints:
    try:
      resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
      checkpoints.save(2, state, {}, {})
      with pytest.raises(
        SaveError, match=r"\(File too large\); the last good .* step 1 in"
      ):
        checkpoints.wait()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    checkpoints.save(3, state, {}, {})
  assert not caplog.records  # no traceback of Orbax
  assert Checkpointer(tmp_path).steps() == [1, 3]


def test_deleted_checkpoints_are_named_by_their_last_step(tmp_path):
  with Checkpointer(tmp_path / "run") as checkpoints:
    checkpoints.save(2, example_state(), {}, {})
    checkpoints.wait()
    shutil.rmtree(tmp_path / "run")
    words = checkpoints.last_good()
  assert "the last save was step 2, were deleted" in words


def test_a_first_save_that_fails_was_not_deleted(tmp_path):
  state = {"w": jax.random.normal(jax.random.key(0), (64, 1024))}
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  with Checkpointer(tmp_path) as checkpoints:
    try:
      resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
      checkpoints.save(1, state, {}, {})
      with pytest.raises(SaveError, match="; no checkpoint was saved yet"):
        checkpoints.wait()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_the_reason_of_a_failed_save_is_the_system_s():
  """TensorStore's message holds its specification before or after the code."""
  spec = """[tensorstore_spec='{\\"create\\":true}']"""
  for tail in ("[os_error_code='27']", f"{spec} [os_error_code='27']"):
    error = ValueError(f"OUT_OF_RANGE: write of a: File too large {tail}")
    assert checkpoint._reason(error) == "File too large"


def test_a_peer_that_dies_in_a_save_is_no_full_disk(tmp_path, monkeypatch):
  with Checkpointer(tmp_path) as checkpoints:
    checkpoints.save(1, example_state(), {}, {})
    checkpoints.wait()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(TimeoutError):
      with checkpoints._writing():
        raise TimeoutError("Timeout waiting at barrier 'checkpoint'.")
    monkeypatch.undo()
    with pytest.raises(SaveError, match="cannot be written"):
      with checkpoints._writing():
        raise TimeoutError("of a file system")


def test_foreign_checkpoint(tmp_path):
  import orbax.checkpoint as ocp

  with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
    manager.save(3, args=ocp.args.StandardSave({"w": jnp.ones(2)}))
  with Checkpointer(tmp_path) as checkpoints:
    with pytest.raises(CheckpointError, match="none of the steps"):
      checkpoints.restore(example_state())
    with pytest.raises(CheckpointError, match="not a complete figs_jax"):
      checkpoints.restore(example_state(), 3)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"extra": jnp.ones(2)}, "lacks 'extra'"),
    (
      {"half": jnp.ones(6, jnp.bfloat16)},
      r"half as bfloat16\[6\], got bfloat16\[5\]",
    ),
    ({"half": jnp.ones(5)}, r"half as float32\[5\], got bfloat16"),
  ],
)
def test_another_architecture_is_refused(tmp_path, change, message):
  """Orbax itself would cast a wrong dtype in silence."""
  save_steps(tmp_path, [1])
  with Checkpointer(tmp_path) as checkpoints:
    with pytest.raises(CheckpointError, match=message):
      checkpoints.restore({**example_state(), **change})


def test_restores_onto_a_mesh(tmp_path):
  state = {"w": jnp.arange(32.0).reshape(4, 8)}
  with Checkpointer(tmp_path) as checkpoints:
    checkpoints.save(1, state, {}, {})
  place = NamedSharding(make_mesh(2, 4), PartitionSpec(None, "fsdp"))
  target = {"w": jax.ShapeDtypeStruct((4, 8), jnp.float32, sharding=place)}
  with Checkpointer(tmp_path) as checkpoints:
    restored = checkpoints.restore(target)[0]
  assert restored["w"].sharding == place
  np.testing.assert_array_equal(restored["w"], state["w"])


def test_a_checkpoint_of_eight_devices_restores_on_one_and_four(tmp_path):
  eight = NamedSharding(make_mesh(8, 1), PartitionSpec())
  state = jax.device_put(example_state(3), eight)
  with Checkpointer(tmp_path) as checkpoints:
    checkpoints.save(1, state, {}, {})
  shapes = jax.eval_shape(example_state)
  four = NamedSharding(make_mesh(4, 1), PartitionSpec())
  placed = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=four), shapes
  )
  for target, count in ((shapes, 1), (placed, 4)):
    with Checkpointer(tmp_path) as checkpoints:
      restored = checkpoints.restore(target)[0]
    assert_same(restored, example_state(3))
    for leaf in jax.tree.leaves(restored):
      assert len(leaf.sharding.device_set) == count


def test_a_donated_state_is_saved_as_it_was(tmp_path):
  """Saving goes on in the background while the next step reuses buffers."""
  step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  state = {"w": jnp.zeros((512, 1024)), "v": jnp.zeros((512, 1024))}
  with Checkpointer(tmp_path, keep=20) as checkpoints:
    for i in range(10):
      checkpoints.save(i, state, {}, {})
      for _ in range(5):
        state = step(state)
  with Checkpointer(tmp_path) as checkpoints:
    for i in range(10):
      restored = checkpoints.restore(jax.eval_shape(lambda: state), i)[0]
      np.testing.assert_array_equal(restored["w"], np.full((512, 1024), 5 * i))


def test_arrays_are_hashed_after_the_save_has_returned(tmp_path, monkeypatch):
  """As they were then, though the next step may reuse their memory."""
  hashed = []
  monkeypatch.setattr(
    "figs_jax.train.checksums._crc32",
    lambda array: hashed.append(0) or zlib.crc32(array.tobytes()),
  )
  begun, save = [], Checkpointer._manager

  class Slow:
    def __init__(self, manager):
      self._manager = manager

    def __getattr__(self, name):
      return getattr(self._manager, name)

    def save(self, *args, **kwargs):
      self._manager.save(*args, **kwargs)
      time.sleep(0.2)  # all that Orbax does at once, and more
      begun.append(len(hashed))

  monkeypatch.setattr(Checkpointer, "_manager", lambda s: Slow(save(s)))
  step = jax.jit(lambda x: x + 1, donate_argnums=0)
  value = jnp.zeros((64, 64))
  with Checkpointer(tmp_path) as checkpoints:
    checkpoints.save(1, {"w": value}, {}, {})
    for _ in range(5):
      value = step(value)
  assert begun == [0] and hashed
  with Checkpointer(tmp_path) as checkpoints:
    restored = checkpoints.restore({"w": value})[0]["w"]
  np.testing.assert_array_equal(restored, np.zeros((64, 64)))


@pytest.mark.parametrize(
  "spec", [(), ("fsdp",), (None, "fsdp"), ("data", "fsdp")], ids=str
)
def test_checksums_are_of_the_whole_array(spec):
  array = np.random.default_rng(0).normal(size=(8, 12)).astype(np.float32)
  place = NamedSharding(make_mesh(2, 4), PartitionSpec(*spec))
  # A copy, since JAX may share the memory of a NumPy array.
  leaves = {"split": jax.device_put(array.copy(), place), "numpy": array.T}
  wanted = {
    "split": zlib.crc32(array.tobytes()),
    "numpy": zlib.crc32(array.T.tobytes()),
  }
  later = checksums_of_now(leaves)
  array.fill(0)
  assert checksums({"split": leaves["split"]})["split"] == wanted["split"]
  assert later() == wanted


def test_no_warning_on_the_quiet_path(tmp_path):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    save_steps(tmp_path, [1])
