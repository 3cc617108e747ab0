"""Data of one's own in launch/train.py: trained on, or one line and code 2."""

import json
import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from figs_jax.data import train_batches
from figs_jax.train import data_position
from tests.programs import assert_one_clear_line, in_one_process

pytestmark = [pytest.mark.standard_promotion, pytest.mark.slow]
VIT, T5 = "--config=configs/digits_vit.py", "--config=configs/stdlib_t5.py"
TINY = [
  "--config.model.width=16", "--config.model.depth=1",
  "--config.total_steps=2", "--config.optimizer.warmup_steps=1",
  "--config.batch_size=4", "--config.pattern=ff: 1:4",
]  # fmt: skip


def folder(root, sizes=(4, 4)):
  for name in "ab":
    (root / name).mkdir(parents=True)
    for i, size in enumerate([4] * 5 + [sizes[name == "b"]]):
      image = np.full((size, size), 40 * i, np.uint8)
      Image.fromarray(image).save(root / name / f"{i}.png")
  return root


def jsonl(path, **more):
  rows = [{"text": f"t{i}", "label": "ab"[i % 2]} | more for i in range(12)]
  path.write_text("\n".join(map(json.dumps, rows)))
  return path


def test_programs_train_or_say_what_is_wrong(tmp_path):
  cases = {"good": (T5, f"text:{jsonl(tmp_path / 'a.jsonl')}", ())}
  (folder(tmp_path / "empty") / "c").mkdir()
  cases["empty"] = VIT, f"folder:{tmp_path}/empty", ("empty/c", "empty folder")
  name = f"folder:{folder(tmp_path / 'mixed', (4, 6))}"
  cases["mixed"] = VIT, name, ("mixed/b/5.png", "mixed/a/0.png", "got 6 x 6")
  (folder(tmp_path / "cut") / "b/3.png").write_bytes(b"\x89PNG")
  cases["cut"] = VIT, f"folder:{tmp_path}/cut", ("cut/b/3.png", "Pillow")
  name = f"text:{jsonl(tmp_path / 'b.jsonl', text='', review='x')}"
  cases["text"] = T5, name, ("b.jsonl: line 1: text: expected text",)
  (tmp_path / "c.csv").write_text("review,label\nx,1\n")
  cases["column"] = T5, f"text:{tmp_path}/c.csv", ("c.csv", "got review, label")
  np.savez(tmp_path / "d.npz", image=np.zeros((3, 4, 4), np.uint8),
           label=np.array([0, 1, -1]))  # fmt: skip
  cases["label"] = VIT, f"npz:{tmp_path}/d.npz", ("d.npz: label: row 2", "-1")
  cases["kind"] = VIT, f"text:{tmp_path / 'a.jsonl'}", ("'image' and 'label'",)
  calls = [
    [
      config, f"--config.data.name={name}", f"--workdir={tmp_path}/run_{case}",
      f"--config.data.data_dir={tmp_path}/data",
      "--config.data.eval_split=test", *TINY,
    ]
    for case, (config, name, _) in cases.items()
  ]  # fmt: skip
  done = dict(zip(cases, in_one_process("launch/train.py", *calls)))
  code, output, errors = done.pop("good")
  assert code == 0, errors
  assert "eval/accuracy" in output
  for case, each in done.items():
    assert_one_clear_line(each, *cases[case][2])
    assert not (tmp_path / f"run_{case}").exists()


def test_changed_data_are_noticed_when_a_run_goes_on(tmp_path, caplog):
  caplog.set_level(logging.WARNING, "figs_jax")
  options = {"seed": 0, "data_dir": str(tmp_path / "data")}
  name = f"folder:{folder(tmp_path / 'x')}"
  batches = train_batches(name, "train", 4, **options)
  position = {"next_example": 8} | data_position.data_set(batches)
  assert data_position.is_of(
    position, train_batches(name, "train", 4, **options)
  )
  shutil.copy(tmp_path / "x/b/4.png", tmp_path / "x/b/3.png")
  changed = train_batches(name, "train", 4, **options)
  assert not data_position.is_of(position, changed)
  (line,) = [x for x in caplog.messages if "starting an epoch" in x]
  assert line.count("folder/x_") == 2
