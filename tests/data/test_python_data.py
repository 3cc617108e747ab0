"""Data of a program give the batches that the same data give as a file."""

import logging

import grain
import numpy as np
import pytest

from figs_jax.data import (
  DataError,
  find_texts,
  sources,
  text_batches,
  train_batches,
)
from figs_jax.data.opened import Options
from figs_jax.data.python_data import PythonData
from figs_jax.train.experiment import build
from figs_jax.train.loop import train
from figs_jax.train.workdir import restore

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 8, 8, 1), np.uint8)
LABELS = np.arange(40) % 3
EXAMPLES = [{"image": x, "label": y} for x, y in zip(IMAGES, LABELS)]
PAIRS = [(f"{w} film {i}", w) for i in range(6) for w in ("bad", "good")]


def same(first, second, steps=5):
  for _ in range(steps):
    one, two = next(first), next(second)
    assert one.keys() == two.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize("kind", ["list", "grain", "gray", "pair"])
@pytest.mark.parametrize("split", ["train", "test[:50%]"])
def test_images_give_the_batches_of_a_file(tmp_path, kind, split):
  arrays = {"image": IMAGES, "label": LABELS}
  data = EXAMPLES
  if kind == "grain":
    data = grain.MapDataset.source(EXAMPLES).map(lambda x: x | {"more": 1})
  if kind == "gray":
    data = [{"image": x["image"][..., 0], "label": x["label"]} for x in data]
  if kind == "pair":
    data = EXAMPLES, EXAMPLES[:10]
    arrays |= {"test_image": IMAGES[:10], "test_label": LABELS[:10]}
  np.savez(tmp_path / "a.npz", **arrays)
  options = {"seed": 3, "data_dir": str(tmp_path / "data")}
  same(
    train_batches(PythonData(data), split, 3, **options),
    train_batches(f"npz:{tmp_path / 'a.npz'}", split, 3, **options),
  )


@pytest.mark.parametrize("other", ["label", "target"])
def test_texts_give_the_batches_of_a_file(tmp_path, other):
  lines = [f"text,{other}", *(f"{x},{y}" for x, y in PAIRS)]
  (tmp_path / "a.csv").write_text("\n".join(lines))
  options = {"input_length": 12, "target_length": 6}
  options["data_dir"] = str(tmp_path / "data")
  own = [{"text": x, other: y} for x, y in PAIRS]
  texts = (
    find_texts(PythonData(own), **options),
    find_texts(f"text:{tmp_path / 'a.csv'}", **options),
  )
  same(*(text_batches.train_batches(one, "train", 3, seed=0) for one in texts))
  first, second = (
    list(text_batches.eval_batches(one, "test", 2)) for one in texts
  )
  same(iter(first), iter(second), len(first))


def test_sizes_may_differ_with_leave():
  other = [{"image": np.zeros((9, 8), np.uint8), "label": 0}]
  line = (
    r"train: example 40: expected an image of shape \[8, 8, 1\], as in train"
  )
  with pytest.raises(ValueError, match=line):
    PythonData(EXAMPLES + other)
  data = PythonData(EXAMPLES + other, Options(mixed_sizes=True))
  assert sources.describe_builder(data).image_shape == (None, None, 1)


def changed(index, **fields):
  examples = list(EXAMPLES)
  examples[index] = examples[index] | fields
  return examples


@pytest.mark.parametrize(
  ("data", "message"),
  [
    ([], "data: train: expected examples, got none"),
    (iter(EXAMPLES), "expected examples with a length and indices"),
    (grain.MapDataset.source(EXAMPLES).repeat(), "an endless data set; do not"),
    ({"test": EXAMPLES}, "expected a split train, or a tuple .*, got test"),
    ([*EXAMPLES, 3], "train: example 40: expected a dict, got int"),
    ([{"label": 3}], "example 0: expected an entry image, got label"),
    (changed(7, image=IMAGES[0] / 255), "7: image: expected uint8 .* float64"),
    (changed(7, image=IMAGES[0, 0, 0]), r"example 7: image: .* uint8 \[1\]"),
    (changed(7, label="cat"), "example 7: label: expected an integer .* 'cat'"),
    (
      changed(7, label=-1),
      "example 7: label: expected an integer of 0 or more",
    ),
    (changed(7, label=5), "train: expected examples of every class .* class 3"),
    ((EXAMPLES, changed(7, label=5)), "test: example 7: .* from 0 to 2, .* 5"),
    (EXAMPLES[:4], "data: train: expected a class with at least 5 examples"),
    ([{"text": "a", "label": 3}], "two or more labels in column label"),
    ([{"text": "a", "target": ""}], "example 0: target: expected text, got an"),
    ([{"text": "a"}], "data: train: example 0: expected a column target"),
  ],
)
def test_wrong_data_are_one_line(data, message):
  with pytest.raises(ValueError, match=message) as raised:
    PythonData(data)
  assert "\n" not in str(raised.value)


@pytest.mark.standard_promotion
def test_a_run_is_resumed_with_its_data(tmp_path, tiny_config, caplog):
  config = tiny_config("ste", batch_size=8, total_steps=2, checkpoint_every=1)
  whole = train(config, tmp_path / "whole", data=EXAMPLES)
  assert config.data.name == "digits"
  assert whole["step"] == 2
  with pytest.raises(DataError, match="give them as data= to train"):
    restore(tmp_path / "whole")
  experiment, _, step = restore(tmp_path / "whole", data=EXAMPLES)
  assert (step, experiment.config.data.name) == (2, "python")
  config.total_steps = 3
  config.allow_change = ("total_steps",)
  caplog.set_level(logging.WARNING, "figs_jax")
  train(config, tmp_path / "whole", data=EXAMPLES[:30])
  (line,) = [x for x in caplog.messages if "training examples" in x]
  assert "with 34 training examples, got python" in line
  config.data.name = "python"
  with pytest.raises(DataError, match="expected the data of the program"):
    build(config)
