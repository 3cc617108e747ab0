"""Pixels are scaled by the mean and standard deviation of each channel."""

import json
import logging

import numpy as np
import pytest

from figs_jax.data import eval_batches, pixels, train_batches
from figs_jax.data.pixels import HALF, PixelScale
from figs_jax.models import pretrained
from figs_jax.train.experiment import build
from figs_jax.train.loop import train
from figs_jax.train.schema import ConfigError, check
from figs_jax.train.workdir import initial_weights

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, 5, 4, 3), np.uint8)


def test_half_is_bit_for_bit_the_usual_scale():
  usual = IMAGES.astype(np.float32)
  usual *= np.float32(1 / 127.5)
  usual -= np.float32(1)
  np.testing.assert_array_equal(HALF(IMAGES), usual)
  assert PixelScale.parse() == HALF


@pytest.mark.parametrize(
  ("mean", "std"), [("imagenet", "imagenet"), ("0.1", "0.2,0.3,0.4")]
)
def test_channels_are_scaled_by_the_formula(mean, std):
  scale = PixelScale.parse(mean, std)
  wanted = (IMAGES.astype(np.float64) / 255 - scale.mean) / scale.std
  got = scale(IMAGES)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, wanted, atol=3e-6)


def test_imagenet_is_the_published_pair():
  """Krizhevsky's statistics, as in torchvision's transforms."""
  assert pixels.NAMED["imagenet"] == (
    (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  )  # fmt: skip


def test_both_kinds_of_batches_are_scaled(digits_dir):
  scale = PixelScale.parse("0.1", "0.2")
  options = {"image_size": 8, "data_dir": digits_dir}
  for plain, scaled in (
    (
      next(train_batches("digits", "train", 4, seed=0, **options)),
      next(train_batches("digits", "train", 4, seed=0, scale=scale, **options)),
    ),
    (
      next(iter(eval_batches("digits", "test", 4, **options))),
      next(iter(eval_batches("digits", "test", 4, scale=scale, **options))),
    ),
  ):
    share = (plain["image"] + 1) / 2
    np.testing.assert_allclose(scaled["image"], (share - 0.1) / 0.2, atol=1e-5)


def test_a_number_for_each_channel_or_one(tiny_config, tmp_path):
  config = tiny_config("ste")
  config.data.mean = config.data.std = "imagenet"
  with pytest.raises(ValueError, match="mean: expected 1 number for .*, got 3"):
    train(config, tmp_path / "run")
  assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
  ("mean", "std", "message"),
  [
    ("imagenet", "half", "data.std: expected the name of both, or numbers"),
    ("0.5", "half", "data.std: expected the name of both, or numbers"),
    (
      "1.5",
      "0.5",
      r"expected 'half', 'imagenet', or numbers in \[0",
    ),
    ("0.5", "0", r"data.std: expected .* numbers in \(0, 10\] between commas"),
    ("image-net", "0.5", "data.mean: expected 'half', .* got 'image-net'"),
    ("nan", "0.5", "data.mean: expected 'half'"),
    ("", "0.5", "data.mean: expected 'half'"),
  ],
)
def test_wrong_scales_are_one_line(tiny_config, mean, std, message):
  config = tiny_config("ste")
  config.data.mean, config.data.std = mean, std
  with pytest.raises(ConfigError, match=message):
    check(config)


HALVES, IMAGENET = [0.5] * 3, list(pixels.NAMED["imagenet"][0])


@pytest.mark.parametrize(
  ("name", "fields", "warned"),
  [
    (None, None, False),
    (
      "preprocessor_config.json",
      {"image_mean": HALVES, "image_std": HALVES},
      0,
    ),
    (
      "preprocessor_config.json",
      {"image_mean": IMAGENET, "image_std": [0.229, 0.224, 0.225]},
      # For the one channel of gray images.
      "--config.data.mean=0.449 --config.data.std=0.226",
    ),
    (
      "config.json",
      {"pretrained_cfg": {"mean": [0.0] * 3, "std": [1.0] * 3}},
      "--config.data.mean=0.0 --config.data.std=1.0",
    ),
    ("config.json", {"family": "vit"}, False),
    ("preprocessor_config.json", [], False),
  ],
)
def test_a_file_beside_published_weights_is_compared(
  tmp_path, tiny_config, caplog, name, fields, warned
):
  config = tiny_config("ste")
  model = build(config).model(0)
  pretrained.save(model, tmp_path / "model.safetensors")
  if name:
    (tmp_path / name).write_text(json.dumps(fields))
  config.init_from = str(tmp_path / "model.safetensors")
  caplog.set_level(logging.WARNING, "figs_jax")
  initial_weights(build(config))
  assert len(caplog.messages) == bool(warned)
  if warned:
    assert caplog.messages[0].endswith(f"set {warned}")
