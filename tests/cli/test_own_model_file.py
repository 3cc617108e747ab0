"""A model class from a user's file: trained, read, and reported when faulty."""

import hashlib
import json
import shutil

import jax
import numpy as np
import pytest

from figs_jax import export
from tests.programs import REPO, assert_one_clear_line, in_one_process

pytestmark = pytest.mark.slow
NET = REPO / "tests" / "models" / "own_net.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A directory with a class of images, and files of model classes."""
  from PIL import Image

  place = tmp_path_factory.mktemp("own")
  rng = np.random.default_rng(0)
  for i in range(40):
    name = place / "photos" / f"class{i % 2}" / f"{i}.png"
    name.parent.mkdir(parents=True, exist_ok=True)
    values = rng.integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(values).save(name)
  shutil.copy(NET, place / "mine.py")
  (place / "broken.py").write_text("class Net(:\n")
  (place / "faulty.py").write_text("import flax\n\n\nflax.absent\n")
  (place / "linen.py").write_text("class Net:\n  pass\n")
  return place


@pytest.fixture(scope="module")
def trained(folder):
  """Results of launch/train.py: mistakes, and a run of two seeds."""
  plain = [
    f"--workdir={folder / 'run'}",
    "--config=launch/own_model.py:ste",
    f"--config.data.name=folder:{folder / 'photos'}",
    f"--config.data.data_dir={folder / 'data'}",
    "--config.total_steps=2",
    "--config.batch_size=8",
    "--format=json",
  ]
  mine = f"--model_file={folder / 'mine.py'}:Net"
  return in_one_process(
    "launch/train.py",
    plain,
    [*plain, f"--model_file={folder / 'broken.py'}:Net"],
    [*plain, f"--model_file={folder / 'faulty.py'}:Net"],
    [*plain, f"--model_file={folder / 'linen.py'}:Net"],
    [*plain, f"--model_file={folder / 'none.py'}:Net"],
    [*plain, f"--model_file={folder / 'mine.py'}:Nett"],
    [*plain, f"--model_file={folder / 'mine.py'}"],
    [plain[0], "--config=configs/digits_vit.py:sr_ste", mine],
    [*plain, mine, "--config.model.wide=3"],
    [*plain, mine, "--config.pattern=ff: 1:4"],
    [*plain, mine, "--config.seeds=2", "--config.model.width=8"],
  )


def test_mistakes_get_one_line(trained, folder):
  several = (
    ["expected a model class of your own", "--model_file mine.py:Net"],
    [f"--model_file {folder / 'broken.py'}, line 1: SyntaxError"],
    [f"--model_file {folder / 'faulty.py'}, line 4: AttributeError"],
    ["a subclass of flax.nnx.Module, got the class Net"],
    [f"--model_file {folder / 'none.py'}: no such file"],
    ["no class Nett; did you mean 'Net'?"],
    ["expected FILE:CLASS, got no class; known: Net"],
    ["--config=launch/own_model.py:sr_ste"],
    ["--config.model.wide: unknown field", "model.width"],
    ["--config.pattern: Rule 'ff'", "hidden stands for"],
  )
  for result, words in zip(trained, several, strict=False):
    assert_one_clear_line(result, *words)


def test_the_run_keeps_the_name_and_the_hash_of_the_file(trained, folder):
  code, output, errors = trained[-1]
  assert code == 0, errors
  assert json.loads(output)["finished"]
  saved = json.loads((folder / "run" / "config.json").read_text())
  assert (saved["family"], saved["model"]["width"]) == ("Net", 8)
  assert saved["model_file"] == f"{folder / 'mine.py'}:Net"
  text = (folder / "mine.py").read_bytes()
  assert saved["model_sha256"] == hashlib.sha256(text).hexdigest()
  stored = b"".join(
    path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()
  )
  assert b"def __call__" not in stored  # no code


@pytest.mark.usefixtures("trained")
def test_it_is_evaluated_with_the_file_given_again(folder):
  plain = ["--workdir", folder / "run"]
  mine = [*plain, "--model_file", f"{folder / 'mine.py'}:Net"]
  refused, result = in_one_process(
    "launch/evaluate.py",
    plain,
    [*mine, "--engines=ws:4x4", "--format=json"],
  )
  assert_one_clear_line(refused, f"add --model_file {folder / 'mine.py'}:Net")
  code, output, errors = result
  assert code == 0, errors
  values = json.loads(output)
  assert values["layers"] == {"conv/kernel": True}
  assert len(values["accuracies"]) == 2 and values["speedup"] > 0


@pytest.mark.usefixtures("trained")
def test_it_has_rows_and_can_be_exported(folder):
  mine = ["--model_file", f"{folder / 'mine.py'}:Net"]
  size = "Net:width=8:image_size=8:in_channels=1:num_classes=2"
  of_run, of_class, unknown = in_one_process(
    "launch/engine.py",
    [*mine, "--workdir", folder / "run", "--engines=ws:4x4", "--format=csv"],
    [*mine, f"--model={size}", "--pattern=hidden: 1:4", "--engines=ws:4x4",
     "--format=csv"],
    [*mine, "--model=Net:wide=3"],
  )  # fmt: skip
  assert_one_clear_line(unknown, "'wide'", "did you mean 'width'")
  for code, output, errors in (of_run, of_class):
    assert code == 0, errors
    lines = [line for line in output.splitlines() if "conv" in line]
    assert lines and "1:4" in lines[0]
  file, program = folder / "net.safetensors", folder / "net.stablehlo"
  plain = ["--workdir", folder / "run", *mine]
  packed, traced = in_one_process(
    "launch/export.py",
    [*plain, f"--out={file}", "--format=packed"],
    [*plain, f"--out={program}", "--format=stablehlo", "--platforms=cpu"],
  )
  assert packed[0] == traced[0] == 0, packed[2] + traced[2]
  assert export.read(file)["norm/var"].shape == (8,)
  assert "float32 [batch, 8, 8, 1]" in traced[1]
  logits = jax.jit(export.read_program(program))(np.ones((3, 8, 8, 1)))
  assert logits.shape == (3, 2)
