"""Seeds of one run read the data that runs of each seed alone read."""

import json
import runpy
import shutil

import numpy as np
import pytest

from figs_jax.data import train_batches
from figs_jax.train import data_position, loop
from figs_jax.train.checkpoint import named_leaves
from figs_jax.train.config import ConfigError, completed, plain
from figs_jax.train.log_writer import read_log
from figs_jax.train.seeds import take
from figs_jax.train.tasks import task_of
from figs_jax.train.workdir import restore
from tests.programs import REPO

pytestmark = pytest.mark.standard_promotion
FIELDS = {
  "total_steps": 6,
  "checkpoint_every": 3,
  "log_every": 1,
  "diagnose_every": 0,
  "grad_accum_steps": 2,
  "mixup": 0.2,
  "data.augment": "standard",
  "data.eval_split": "test[:90]",
  "recipe.dense": 0.0,
  "seed": 5,
}
SEEDS = {"seeds": 3, "seeds_mode": "map", "mesh.data": 2}


def losses(workdir):
  """Training losses by name, [steps] each."""
  rows = [row for row in read_log(workdir) if "loss" in row]
  names = [name for name in rows[0] if name.startswith("loss")]
  return {name: [row[name] for row in rows] for name in names}


def assert_same_leaves(one, other, **tolerance):
  one, other = named_leaves(one), named_leaves(other)
  assert one.keys() == other.keys()
  for name, leaf in one.items():
    np.testing.assert_allclose(leaf, other[name], err_msg=name, **tolerance)


def resumed_after(step, whole, workdir, config):
  """The end of a copy of a run from which all after a step is taken."""
  shutil.copytree(whole, workdir)
  for later in (workdir / "checkpoints").iterdir():
    if later.name.isdigit() and int(later.name) > step:
      shutil.rmtree(later)
  assert loop.train(config, workdir)["finished"]
  return restore(workdir)


@pytest.fixture(scope="module")
def own(tmp_path_factory, tiny_config):
  """Workdir of a run with three seeds on two devices."""
  workdir = tmp_path_factory.mktemp("own")
  loop.train(tiny_config("ste", **SEEDS, **FIELDS), workdir)
  return workdir


@pytest.mark.slow
def test_three_seeds_equal_three_runs(own, tmp_path, tiny_config):
  _, state, _ = restore(own)
  for i in (0, 2):
    fields = FIELDS | {"seed": FIELDS["seed"] + i}
    loop.train(tiny_config("ste", **fields), tmp_path / str(i))
    lone = losses(tmp_path / str(i))["loss"]
    assert losses(own)[f"loss/seed{i}"] == pytest.approx(lone, rel=1e-4)
    _, wanted, _ = restore(tmp_path / str(i))
    assert_same_leaves(take(state, i).params, wanted.params, atol=1e-4)


@pytest.mark.slow
def test_resuming_is_bit_equal(own, tmp_path, tiny_config):
  config = tiny_config("ste", **SEEDS, **FIELDS)
  _, state, _ = resumed_after(3, own, tmp_path / "copy", config)
  assert_same_leaves(state, restore(own)[1], rtol=0)
  assert losses(tmp_path / "copy") == losses(own)
  config.data.order = "shared"
  with pytest.raises(ConfigError, match="another data.order"):
    loop.train(config, tmp_path / "copy")


@pytest.mark.slow
def test_runs_without_the_field_go_on_as_shared(
  tmp_path, tiny_config, monkeypatch, caplog
):
  fields = FIELDS | {"seeds": 2, "grad_accum_steps": 1}
  shared = tiny_config("ste", **fields, **{"data.order": "shared"})

  def without(config):
    saved = plain(config)
    del saved["data"]["order"]
    return saved

  with monkeypatch.context() as before:
    before.setattr(loop, "plain", without)
    loop.train(shared, tmp_path / "whole")
  config = tiny_config("ste", **fields)
  whole = restore(tmp_path / "whole")
  assert whole[0].config.data.order == "shared"
  again = resumed_after(3, tmp_path / "whole", tmp_path / "copy", config)
  assert_same_leaves(again[1], whole[1], rtol=0)
  assert again[0].config.data.order == "shared"
  assert config.data.order == "own"  # the caller's is left alone
  assert "going on with data.order=shared" in caplog.text
  caplog.clear()
  assert loop.train(config, tmp_path / "copy")["finished"]  # and so the next
  assert "going on with data.order=shared" in caplog.text


def test_streams_of_a_configuration(tiny_config):
  def batch_of(**fields):
    return next(task_of(tiny_config(**fields)).train_batches(16))

  def wanted(seed):
    options = {"augment": "none", "data_dir": tiny_config().data.data_dir}
    return next(train_batches("digits", "train", 16, seed=seed, **options))

  base = {"seed": 5, "data.seed": 20}
  shared = base | {"data.order": "shared"}
  cases = [
    (base | {"seeds": 2}, [wanted(25), wanted(26)]),
    (base, wanted(25)),
    ({}, wanted(0)),  # as before there were orders
    (shared | {"seeds": 2}, wanted(20)),
    (shared, wanted(20)),
  ]
  for fields, streams in cases:
    batch = batch_of(**fields)
    for name, values in batch.items():
      expected = (
        np.stack([stream[name] for stream in streams])
        if isinstance(streams, list)
        else streams[name]
      )
      np.testing.assert_array_equal(values, expected)


def test_a_saved_configuration_without_the_field_is_shared(
  tiny_config, tmp_path
):
  saved = plain(tiny_config())
  assert completed(saved)["data"]["order"] == "own"
  del saved["data"]["order"]
  assert completed(saved)["data"]["order"] == "shared"
  (tmp_path / "config.json").write_text(json.dumps(saved))
  repeat = runpy.run_path(str(REPO / "launch" / "again.py"))["get_config"]
  assert repeat(str(tmp_path / "config.json")).data.order == "shared"


@pytest.mark.parametrize(
  ("order", "name", "kept"),
  [
    ("own", "seed", False),
    ("shared", "seed", True),
    ("own", "data.order", False),
  ],
)
def test_a_position_means_nothing_in_another_stream(order, name, kept):
  position = {"next_example": 32}
  moved = data_position.moved(position, 16, [name], order)
  assert moved == (position if kept else None)
