"""Crops, flips and sizes: uint8 images in, one uint8 array out.

An augmentation is a function of (images, rng): `images` is an array
[batch, h, w, c] or a list of arrays [h, w, c] of any sizes, the result an
array [batch, size, size, c]. Deterministic ones ignore the generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from PIL import Image

from figs_jax.data.randaugment import RandAugment

Images = np.ndarray | Sequence[np.ndarray]
Augment = Callable[[Images, np.random.Generator], np.ndarray]

# Eval keeps 224 of 256 pixels.
_CENTRAL_FRACTION = 0.875
_BILINEAR = Image.Resampling.BILINEAR


def standard(
  name: str,
  image_shape: tuple[int | None, int | None, int],
  size: int,
  augment: str,
) -> tuple[Augment, Augment]:
  """(train, eval) preprocessing of a data set.

  | data set              | train                            | eval          |
  |-----------------------|----------------------------------|---------------|
  | digits                | pad 1, random crop; never a flip | as it is      |
  | cifar10, cifar100     | pad 4, random crop, flip         | as it is      |
  | other, of fixed shape | pad size/8, random crop          | as it is      |
  | sizes that vary       | random resized crop, flip        | central crop  |

  Images "as it is" are still resized if their side differs from `size`.

  Args:
    name: Name of the data set.
    image_shape: Shape (height, width, channels); None where it varies.
    size: Side of the resulting images in pixels.
    augment: "none" (the same preprocessing as for evaluation), "standard" (the
      table), or RandAugment after the table, as in "rand-m15-n2".

  Returns:
    Two functions from images, uint8 [h, w, c] each, and a generator to uint8
    [n, size, size, c].

  Raises:
    ValueError: If `augment` has another value.

  >>> train, evaluate = standard("cifar10", (32, 32, 3), 32, "standard")
  >>> images = np.full((2, 32, 32, 3), 9, np.uint8)
  >>> rng = np.random.default_rng(0)
  >>> evaluate(images, rng) is images
  True
  >>> int(train(images, rng).min())  # black at the edges
  0
  """
  height, width, _ = image_shape
  if height is None or width is None:
    evaluate = partial(central_crop, size=size)
    train = partial(random_resized_crop, size=size)
  else:
    evaluate = partial(resize, size=size)
    pad = {"digits": 1, "cifar10": 4, "cifar100": 4}.get(name, height // 8)
    # Mirroring changes the meaning of digits and letters: flip photos only.
    flip = name in ("cifar10", "cifar100")
    train = partial(shift_crop, size=size, pad=pad, flip=flip)
  if augment == "none":
    return evaluate, evaluate
  if augment == "standard":
    return train, evaluate
  if not augment.startswith("rand"):
    raise ValueError(
      f"Unknown augment={augment!r}: expected 'none', 'standard' or RandAugment"
      " as in 'rand-m15-n2'"
    )
  extra = RandAugment.parse(augment)
  return partial(_then_each, first=train, second=extra), evaluate


def is_vectorised(augment: Augment, image_shape, size: int) -> bool:
  """Whether a batch takes a few array operations instead of a PIL loop.

  Args:
    augment: Function from `standard`.
    image_shape: Shape (height, width, channels) of the images.
    size: Side of the resulting images in pixels.

  >>> shape = (32, 32, 3)
  >>> [is_vectorised(standard("cifar10", shape, size, "standard")[0], shape,
  ...   size) for size in (32, 64)]
  [True, False]
  """
  fn = augment.func if isinstance(augment, partial) else augment
  same = tuple(image_shape[:2]) == (size, size)
  return same and fn in (shift_crop, resize)


def shift_crop(
  images: Images,
  rng: np.random.Generator,
  *,
  size: int,
  pad: int,
  flip: bool = False,
) -> np.ndarray:
  """Shifts each image by up to `pad` pixels over black, then resizes it.

  Args:
    images: Images of one shape, uint8 [n, h, w, c].
    rng: Generator of the shifts.
    size: Side of the results in pixels.
    pad: Largest shift in pixels, in each direction.
    flip: Whether to mirror half of the images.

  >>> images = np.full((2, 3, 3, 1), 7, np.uint8)
  >>> shift_crop(images, np.random.default_rng(0), size=3, pad=0)[0, ..., 0]
  array([[7, 7, 7],
         [7, 7, 7],
         [7, 7, 7]], dtype=uint8)
  """
  stack = np.asarray(images)
  batch, height, width, channels = stack.shape
  shape = (batch, height + 2 * pad, width + 2 * pad, channels)
  padded = np.zeros(shape, np.uint8)
  padded[:, pad : pad + height, pad : pad + width] = stack
  # Four numbers of each image: one block of Philox, see `pipeline`.
  draws = rng.random((batch, 4))
  y, x = (draws[:, :2] * (2 * pad + 1)).astype(int).T[:, :, None, None]
  rows, columns = np.arange(height)[:, None], np.arange(width)
  out = padded[np.arange(batch)[:, None, None], y + rows, x + columns]
  if flip:
    mirrored = draws[:, 2] < 0.5
    out = np.where(mirrored[:, None, None, None], out[:, :, ::-1], out)
  return resize(out, rng, size=size)


def random_resized_crop(
  images: Images,
  rng: np.random.Generator,
  *,
  size: int,
  area: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
  """Inception's crop (Szegedy et al. 2015, arXiv:1409.4842) and random mirror.

  Draws a box with a uniform share of the area and a log-uniform width/height
  ratio until it fits into the image, at most ten times, and falls back to the
  largest central box whose ratio is allowed.

  Args:
    images: Images, uint8 [h, w, c] each.
    rng: Generator of the boxes and mirrors.
    size: Side of the results in pixels.
    area: Smallest and largest share of the image's area.
    ratio: Smallest and largest width / height.

  >>> images = [np.zeros((h, 40, 3), np.uint8) for h in (60, 30)]
  >>> random_resized_crop(images, np.random.default_rng(0), size=8).shape
  (2, 8, 8, 3)
  """
  out = []
  for image in images:
    height, width = image.shape[:2]
    box = _random_box(height, width, rng, area, ratio)
    crop = _to_pil(image).resize((size, size), _BILINEAR, box=box)
    pixels = _to_array(crop)
    out.append(pixels[:, ::-1] if rng.random() < 0.5 else pixels)
  return np.stack(out)


def _random_box(height, width, rng, area, ratio):
  """(left, top, right, bottom) in whole pixels."""
  for _ in range(10):
    target = height * width * rng.uniform(*area)
    aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    w = round(math.sqrt(target * aspect))
    h = round(math.sqrt(target / aspect))
    if 0 < w <= width and 0 < h <= height:
      left = int(rng.integers(width - w + 1))
      top = int(rng.integers(height - h + 1))
      return (left, top, left + w, top + h)
  w = min(width, max(round(height * ratio[1]), 1))
  h = min(height, max(round(width / ratio[0]), 1))
  left, top = (width - w) // 2, (height - h) // 2
  return (left, top, left + w, top + h)


def central_crop(
  images: Images, rng: np.random.Generator, *, size: int
) -> np.ndarray:
  """Crops the central square of 0.875 times the short side and resizes it.

  Equivalent to resizing the short side to size / 0.875 and cropping the
  center, in one step.

  Args:
    images: Images, uint8 [h, w, c] each.
    rng: Not used.
    size: Side of the results in pixels.

  >>> image = np.zeros((8, 16, 1), np.uint8)
  >>> image[:, 5:11] = 9  # the central 7 of 16 columns are left
  >>> rng = np.random.default_rng(0)
  >>> central_crop([image], rng, size=7)[0, 0, :, 0].tolist()
  [5, 9, 9, 9, 9, 9, 5]
  """
  out = []
  for image in images:
    height, width = image.shape[:2]
    half = _CENTRAL_FRACTION * min(height, width) / 2
    y, x = height / 2, width / 2
    box = (x - half, y - half, x + half, y + half)
    crop = _to_pil(image).resize((size, size), _BILINEAR, box=box)
    out.append(_to_array(crop))
  return np.stack(out)


def resize(
  images: Images, rng: np.random.Generator, *, size: int
) -> np.ndarray:
  """Resizes to size x size; images of that size are returned unchanged.

  Args:
    images: Images, uint8 [h, w, c] each.
    rng: Not used.
    size: Side of the results in pixels.

  >>> image = np.full((6, 9, 1), 7, np.uint8)
  >>> rng = np.random.default_rng(0)
  >>> resize([image], rng, size=2)[..., 0].tolist()
  [[[7, 7], [7, 7]]]
  """
  out = []
  if isinstance(images, np.ndarray) and images.shape[1:3] == (size, size):
    return images
  for image in images:
    if image.shape[:2] != (size, size):
      image = _to_array(_to_pil(image).resize((size, size), _BILINEAR))
    out.append(image)
  return np.stack(out)


def _then_each(
  images: Images,
  rng: np.random.Generator,
  *,
  first: Augment,
  second: RandAugment,
) -> np.ndarray:
  cropped = first(images, rng)
  return np.stack([_to_array(second(_to_pil(x), rng)) for x in cropped])


def _to_pil(image: np.ndarray) -> Image.Image:
  grey = image.shape[-1] == 1
  return Image.fromarray(np.ascontiguousarray(image[..., 0] if grey else image))


def _to_array(image: Image.Image) -> np.ndarray:
  pixels = np.asarray(image)
  return pixels[..., None] if pixels.ndim == 2 else pixels
