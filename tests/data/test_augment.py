"""Crops against brute force, sizes as promised, digits never mirrored."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from figs_jax.data import augment
from figs_jax.data.randaugment import OPERATIONS, RandAugment

few = settings(deadline=None, max_examples=30)
seeds = st.integers(0, 2**32 - 1)


def random_images(seed, count=3, height=8, width=8, channels=1):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (count, height, width, channels), np.uint8)


def shifts(image, pad):
  """All crops of an image on black, by brute force."""
  height, width, channels = image.shape
  black = np.zeros((height + 2 * pad, width + 2 * pad, channels), np.uint8)
  black[pad : pad + height, pad : pad + width] = image
  return [
    black[y : y + height, x : x + width]
    for y in range(2 * pad + 1)
    for x in range(2 * pad + 1)
  ]


def is_among(image, candidates):
  return any(np.array_equal(image, c) for c in candidates)


@few
@given(seed=seeds, pad=st.integers(0, 3), channels=st.sampled_from([1, 3]))
def test_shift_crop_is_one_of_the_shifts(seed, pad, channels):
  images = random_images(seed, channels=channels)
  out = augment.shift_crop(images, np.random.default_rng(seed), size=8, pad=pad)
  assert out.dtype == np.uint8
  for image, shifted in zip(images, out):
    assert is_among(shifted, shifts(image, pad))


def test_shift_crop_reaches_every_shift_and_mirrors_half():
  image = random_images(0)[0]
  out = augment.shift_crop(
    [image] * 2000, np.random.default_rng(0), size=8, pad=1, flip=True
  )
  plain = shifts(image, 1)
  mirrored = [x[:, ::-1] for x in plain]
  counts = [
    sum(np.array_equal(cropped, c) for cropped in out) for c in plain + mirrored
  ]
  assert sum(counts) == 2000
  assert min(counts) > 60, "18 outcomes, 111 of each expected"


def test_digits_are_shifted_but_never_mirrored():
  image = random_images(1)[0]
  train, _ = augment.standard("digits", (8, 8, 1), 8, "standard")
  rng = np.random.default_rng(0)
  candidates = shifts(image, 1)
  for cropped in train([image] * 200, rng):
    assert is_among(cropped, candidates)


@few
@given(
  seed=seeds,
  height=st.integers(1, 60),
  width=st.integers(1, 60),
  size=st.integers(1, 24),
  channels=st.sampled_from([1, 3]),
)
def test_any_size_becomes_the_size_asked_for(
  seed, height, width, size, channels
):
  images = list(random_images(seed, 2, height, width, channels))
  rng = np.random.default_rng(seed)
  for fn in (
    augment.random_resized_crop,
    augment.central_crop,
    augment.resize,
  ):
    out = fn(images, rng, size=size)
    assert out.shape == (2, size, size, channels)
    assert out.dtype == np.uint8


@few
@given(seed=seeds, height=st.integers(1, 300), width=st.integers(1, 300))
def test_random_boxes_lie_inside_and_are_legal(seed, height, width):
  rng = np.random.default_rng(seed)
  area, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
  left, top, right, bottom = augment._random_box(
    height, width, rng, area, ratio
  )
  assert 0 <= left < right <= width
  assert 0 <= top < bottom <= height
  if min(height, width) >= 32:  # where rounding to pixels matters little
    w, h = right - left, bottom - top
    assert 0.9 * ratio[0] <= w / h <= 1.1 * ratio[1]
    assert w * h >= 0.9 * area[0] * height * width


def test_random_resized_crop_covers_the_range_of_areas():
  rng = np.random.default_rng(0)
  boxes = [
    augment._random_box(200, 200, rng, (0.08, 1.0), (3 / 4, 4 / 3))
    for _ in range(2000)
  ]
  areas = np.array([(r - x) * (b - y) for x, y, r, b in boxes]) / 200**2
  assert areas.min() < 0.1
  assert areas.max() > 0.9
  # Uniform on [.08, 1] but for large boxes that did not fit and were redrawn.
  assert 0.42 < areas.mean() < 0.54


@pytest.mark.parametrize(("height", "width"), [(300, 400), (400, 300)])
def test_central_crop_is_resize_then_crop(height, width):
  # Smooth, so that filtering in one step or two makes little difference.
  y, x = np.mgrid[0:height, 0:width]
  smooth = 127 + 80 * np.sin(y / 40) + 40 * np.cos(x / 30)
  image = np.repeat(smooth[..., None], 3, axis=-1).astype(np.uint8)
  scale = 256 / min(height, width)
  resized = Image.fromarray(image).resize(
    (round(width * scale), round(height * scale)), Image.Resampling.BILINEAR
  )
  left, top = (resized.width - 224) // 2, (resized.height - 224) // 2
  wanted = np.asarray(resized.crop((left, top, left + 224, top + 224)))
  (cropped,) = augment.central_crop([image], np.random.default_rng(0), size=224)
  assert np.abs(cropped.astype(int) - wanted.astype(int)).max() <= 3


def test_images_of_the_right_size_stay_bit_equal():
  images = random_images(2, channels=3)
  _, evaluate = augment.standard("cifar10", (8, 8, 3), 8, "standard")
  np.testing.assert_array_equal(
    evaluate(images, np.random.default_rng(0)), images
  )
  np.testing.assert_array_equal(
    evaluate(list(images), np.random.default_rng(0)), images
  )


def test_other_sets_of_fixed_shape_are_not_mirrored():
  image = random_images(3, height=16, width=16)[0]
  train, _ = augment.standard("mnist", (16, 16, 1), 16, "standard")
  for shifted in train([image] * 50, np.random.default_rng(0)):
    assert is_among(shifted, shifts(image, 2))


def test_none_trains_on_what_evaluation_sees():
  train, evaluate = augment.standard(
    "imagenet2012", (None, None, 3), 16, "none"
  )
  images = random_images(4, height=20, width=30, channels=3)
  rng = np.random.default_rng(0)
  np.testing.assert_array_equal(train(images, rng), evaluate(images, rng))


@few
@given(
  seed=seeds,
  channels=st.sampled_from([1, 3]),
  magnitude=st.floats(0, 30),
  operation=st.sampled_from(sorted(OPERATIONS)),
)
def test_every_operation_keeps_size_and_mode(
  seed, channels, magnitude, operation
):
  image = augment._to_pil(random_images(seed, 1, 9, 12, channels)[0])
  before = image.tobytes()
  out = OPERATIONS[operation](
    image, magnitude / 10, np.random.default_rng(seed)
  )
  assert (out.size, out.mode) == (image.size, image.mode)
  assert image.tobytes() == before


def test_operations_at_known_strengths():
  pixels = random_images(5, 1, 6, 6, 3)[0]
  rng = np.random.default_rng(0)

  def apply(name, level):
    return np.asarray(OPERATIONS[name](Image.fromarray(pixels), level, rng))

  np.testing.assert_array_equal(apply("invert", 1.5), 255 - pixels)
  for name in ("color", "contrast", "brightness", "sharpness"):
    np.testing.assert_array_equal(apply(name, 0.5), pixels)
  for name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
    np.testing.assert_array_equal(apply(name, 0.0), pixels)
  np.testing.assert_array_equal(apply("posterize", 1.5), pixels & 0b11111100)
  np.testing.assert_array_equal(
    apply("solarize", 0.5), np.where(pixels < 128, pixels, 255 - pixels)
  )
  np.testing.assert_array_equal(apply("solarize", 1.5), pixels)
  added = np.minimum(pixels.astype(int) + 110, 255)
  np.testing.assert_array_equal(
    apply("solarize_add", 1.0), np.where(pixels < 128, added, pixels)
  )
  assert apply("brightness", 1.5).mean() > pixels.mean()


def test_geometry_moves_by_the_share_that_it_says():
  pixels = np.zeros((224, 224, 1), np.uint8)
  pixels[112, 112] = 255
  image = augment._to_pil(pixels)
  shifts_seen = {
    int(np.argwhere(np.asarray(out) == 255)[0][1]) - 112
    for out in (
      OPERATIONS["translate_x"](image, 0.5, np.random.default_rng(seed))
      for seed in range(8)
    )
  }
  assert shifts_seen == {-50, 50}, "100 pixels at level 10, either way"
  cut = np.asarray(OPERATIONS["cutout"](image, 1.0, np.random.default_rng(1)))
  assert 0 < (cut == 128).sum() <= 80 * 80


def test_randaugment_draws_all_operations_and_obeys_the_generator():
  image = augment._to_pil(random_images(6, 1, 16, 16, 3)[0])
  policy = RandAugment.parse("rand-m15-n2")
  outputs = {
    policy(image, np.random.default_rng(seed)).tobytes() for seed in range(60)
  }
  assert len(outputs) > 40
  again = [policy(image, np.random.default_rng(7)).tobytes() for _ in range(2)]
  assert again[0] == again[1]
  none = RandAugment(magnitude=15.0, layers=0)
  assert none(image, np.random.default_rng(0)).tobytes() == image.tobytes()


@pytest.mark.parametrize("text", ["rand", "rand-m15", "rand-m15-n2-mstd0.5"])
def test_other_spellings_are_refused(text):
  with pytest.raises(ValueError, match="rand-m15-n2"):
    RandAugment.parse(text)
