"""Image files of one's own: what they are before they are decoded, and pixels.

An image becomes 8-bit gray if all are gray, and else RGB: of 16 bits the higher
8 are taken, transparent pixels lie over white, an animation is its first frame,
and photos are turned as their EXIF data say. JPEG files that need none of it
are stored as they are, all others as PNG.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import ExifTags, Image, ImageOps

from figs_jax.data.opened import Opened, Options, held_out

_COLORS = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L")
_GRAYS = ("1", "L", "LA", *_SIXTEEN_BITS)


class Item(NamedTuple):
  """An image file, or one inside of a table.

  Attributes:
    split: Its split.
    label: Its class, from 0.
    where: Its place, for errors.
    read: Function that returns the content of the file.
  """

  split: str
  label: int
  where: str
  read: Callable[[], bytes]


@dataclasses.dataclass(frozen=True)
class _Header:
  """What an image file says before it is decoded.

  Attributes:
    where: Its place, for errors.
    split, label: Same as in `Item`.
    digest: SHA-256 of the file, in hexadecimal.
    shape: (height, width) of the upright image.
    is_gray: Whether it has no colors.
  """

  where: str
  split: str
  label: int
  digest: str
  shape: tuple[int, int]
  is_gray: bool


def opened(
  path: Path,
  names: Sequence[str],
  items: Callable[[], Iterable[Item]],
  options: Options,
) -> Opened:
  """Opens images of one's own; reads all of them, but decodes none.

  Args:
    path: Their directory.
    names: Names of the classes.
    items: Function that returns the images in order.
    options: Whether images may differ in size.

  Raises:
    ValueError: If a file is not an image, or sizes differ.
    OSError: If a file cannot be read.
  """
  headers = list(_in_threads(_header, items()))
  if not headers:
    raise ValueError(f"{path}: expected images, got none")
  digest = hashlib.sha256(repr(tuple(names)).encode())
  for header in headers:
    digest.update(f"{header.split} {header.label} {header.digest}".encode())
  shape = _shape(headers, options)
  features = {
    "image": tfds.features.Image(shape=shape, encoding_format="png"),
    "label": tfds.features.ClassLabel(names=names),
  }
  splits = [header.split for header in headers]
  if set(splits) == {"train"}:
    labels = np.array([header.label for header in headers])
    test = held_out(str(path), labels, "a test part, as folders train and test")
    splits = np.where(test, "test", "train").tolist()
  encode = functools.partial(_encoded, mode="L" if shape[-1] == 1 else "RGB")

  def part(split: str) -> Iterator[dict[str, Any]]:
    for item, its_split in zip(items(), splits):
      if its_split == split:
        yield {"image": encode(item), "label": item.label}

  def check() -> None:
    for _ in _in_threads(encode, items()):
      pass

  return Opened(
    path,
    digest.hexdigest(),
    features,
    lambda: {split: part(split) for split in dict.fromkeys(splits)},
    check,
  )


def _shape(
  headers: Sequence[_Header], options: Options
) -> tuple[int | None, int | None, int]:
  """(height, width, channels) of all images; None where they differ."""
  first = headers[0]
  channels = 1 if all(header.is_gray for header in headers) else 3
  for header in headers:
    if header.shape != first.shape:
      if options.mixed_sizes:
        return None, None, channels
      (h, w), (h0, w0) = header.shape, first.shape
      raise ValueError(
        f"{header.where}: expected {w0} x {h0} pixels, as in {first.where}, got"
        f" {w} x {h}; resize them, or crop and resize each to data.image_size"
        " with --config.data.mixed_sizes=True"
      )
  return *first.shape, channels


def _in_threads(
  function: Callable[[Item], Any], items: Iterable[Item]
) -> Iterator[Any]:
  """Results in order; Pillow decodes outside of Python's lock."""
  rest = iter(items)
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    # Some at a time, so that an error ends it soon.
    while some := list(itertools.islice(rest, 256)):
      yield from pool.map(function, some)


def _header(item: Item) -> _Header:
  raw = item.read()
  try:
    with Image.open(io.BytesIO(raw)) as image:
      width, height = image.size
      if _orientation(image) >= 5:  # turned by 90 degrees
        width, height = height, width
      is_gray = image.mode in _GRAYS or _is_deep_png(image)
      mode = None if is_gray or image.mode in _COLORS else image.mode
  except Exception as error:  # Pillow raises many kinds
    raise _unreadable(item, error) from error
  if mode:
    raise ValueError(
      f"{item.where}: expected an image of 8 or 16 bits per channel, got one of"
      f" Pillow's mode {mode}; convert it to RGB"
    )
  return _Header(
    item.where,
    item.split,
    item.label,
    hashlib.sha256(raw).hexdigest(),
    (height, width),
    is_gray,
  )


def _unreadable(item: Item, error: Exception) -> ValueError:
  what = str(error).partition(" <_io.BytesIO")[0].splitlines()
  return ValueError(
    f"{item.where}: expected an image, got a file that Pillow cannot read"
    f" ({what[0] if what else type(error).__name__}); remove or repair it"
  )


def _orientation(image: Image.Image) -> int:
  # Pillow decodes a whole PNG to find its EXIF data.
  if image.format == "PNG":
    return 1
  return image.getexif().get(ExifTags.Base.Orientation, 1)


def _is_deep_png(image: Image.Image) -> bool:
  """Whether it is a PNG of 16-bit grays, which Pillow < 11 opens as I."""
  return image.format == "PNG" and image.mode == "I"


def _encoded(item: Item, *, mode: str) -> bytes:
  """The image as JPEG or PNG of Pillow's mode L or RGB."""
  raw = item.read()
  try:
    with Image.open(io.BytesIO(raw)) as image:
      image.load()
      is_upright = _orientation(image) == 1
      if image.format == "JPEG" and image.mode == mode and is_upright:
        return raw
      buffer = io.BytesIO()
      _converted(image, mode).save(buffer, format="png")
      return buffer.getvalue()
  except Exception as error:  # Pillow raises many kinds
    raise _unreadable(item, error) from error


def _converted(image: Image.Image, mode: str) -> Image.Image:
  """An upright image of mode L or RGB."""
  if _orientation(image) != 1:
    image = ImageOps.exif_transpose(image)
  if image.mode in _SIXTEEN_BITS or _is_deep_png(image):
    # Pillow would cut 256..65535 to 255.
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image)
  return image.convert(mode)
