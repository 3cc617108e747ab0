"""What a resumed run keeps when a change of its configuration is allowed."""

import itertools

import numpy as np
import pytest

from figs_jax.core.tree import flatten
from figs_jax.train import loop
from figs_jax.train.checkpoint import Checkpointer
from figs_jax.train.config import ConfigError
from figs_jax.train.experiment import build
from figs_jax.train.sharding import make_mesh


def resumed(config, workdir):
  """(masks, data position) of the newest checkpoint, as training resumes it."""
  experiment = build(config)
  mesh = make_mesh()
  places = experiment.shardings(mesh)
  checkpoints = Checkpointer(workdir)
  state, position = loop._begin(experiment, checkpoints, places, mesh)
  checkpoints.close()
  masks = flatten(state.masks)
  masks = {path: np.asarray(m) for path, m in masks.items() if m is not None}
  return masks, position


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_masks_are_taken_anew_only_where_they_depend_on_the_change(
  tiny_config, tmp_path, caplog
):
  """Saliency masks cannot be had again from the weights alone."""
  options = {"total_steps": 10, "recipe.dense": 0.5, "recipe.finetune": 0.1}
  options |= {"recipe.criterion": "saliency"}
  loop.train(tiny_config("one_shot", **options), tmp_path)
  same, position = resumed(tiny_config("one_shot", **options), tmp_path)
  assert position["next_example"] == 160
  allowed = ("optimizer.learning_rate", "total_steps", "batch_size", "data")
  rate = {"optimizer.learning_rate": 1e-4, "allow_change": allowed}
  rate["batch_size"] = 32
  rate, position = resumed(tiny_config("one_shot", **options | rate), tmp_path)
  assert position["next_example"] == 160
  longer = options | {
    "total_steps": 12,
    "allow_change": allowed,
    "data.seed": 1,
  }
  longer, position = resumed(tiny_config("one_shot", **longer), tmp_path)
  assert position is None
  assert "another data.seed: the saved position means nothing" in caplog.text
  for path, mask in same.items():
    np.testing.assert_array_equal(rate[path], mask)
  assert any((longer[path] != mask).any() for path, mask in same.items())


@pytest.mark.slow
@pytest.mark.standard_promotion
@pytest.mark.parametrize("flip", [False, True])
def test_arrays_stay_as_they_are_saved(flip, tiny_config, tmp_path):
  """Refused before anything is read, and nothing in the run changes."""
  fields = {
    "mask_storage": ["bool", "bits"],
    "param_dtype": ["float32", "bfloat16"],
  }
  kept, other = (
    {name: both[i] for name, both in fields.items()} for i in (flip, not flip)
  )
  loop.train(tiny_config("ste", total_steps=1, **kept), tmp_path)
  files = {x: x.stat().st_mtime_ns for x in tmp_path.rglob("[0-9]*/*")}
  for name, allowed in itertools.product(fields, (False, True)):
    changed = kept | {"total_steps": 2, name: other[name]}
    changed["allow_change"] = (name, "total_steps") if allowed else ()
    with pytest.raises(ConfigError) as error:
      loop.train(tiny_config("ste", **changed), tmp_path)
    text = str(error.value)
    assert f"expected --config.{name}={kept[name]}" in text
    assert f"got '{other[name]}'" in text and "\n" not in text
    assert "allow_change" not in text
  assert files and files == {x: x.stat().st_mtime_ns for x in files}
