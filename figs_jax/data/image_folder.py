"""Images of one's own in class folders, `folder:DIR`.

    DIR/cat/1.png  DIR/cat/2.jpg  DIR/dog/1.png

Classes are the folders of DIR in sorted order; images lie at any depth below
them. If DIR has a folder train and another of test, validation, val and valid,
these are the splits, each with class folders. Without a test part, every fifth
image of a class is held out, in the order of paths.

An image becomes 8-bit gray if all are gray, and else RGB: of 16 bits the higher
8 are taken, transparent pixels lie over white, an animation is its first frame,
and JPEG and other photos are turned as their EXIF data say. JPEG files that
need none of it are stored as they are, all others as PNG.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import ExifTags, Image, ImageOps

from figs_jax.data.opened import Opened, Options, held_out

# Folders that are splits, and the names of these.
_SPLITS = {
  "train": "train",
  "test": "test",
  "validation": "validation",
  "val": "validation",
  "valid": "validation",
}
# Left by file managers.
_LITTER = ("desktop.ini", "thumbs.db")
_COLORS = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L")
_GRAYS = ("1", "L", "LA", *_SIXTEEN_BITS)


@dataclasses.dataclass(frozen=True)
class _File:
  """A file of a class, and what decides whether it has changed."""

  split: str
  label: int
  path: Path
  size: int
  changed_ns: int


@dataclasses.dataclass(frozen=True)
class _Header:
  """What an image file says before it is decoded.

  Attributes:
    digest: SHA-256 of the file.
    shape: (height, width) of the upright image.
    is_gray: Whether it has no colors.
  """

  digest: bytes
  shape: tuple[int, int]
  is_gray: bool


def open_folder(root: Path, options: Options) -> Opened:
  """Opens a folder of images; reads all files, but decodes none.

  Args:
    root: Folder of class folders, or of splits.
    options: Whether images may differ in size.

  Raises:
    ValueError: If there are no two classes, a class is empty, a file is not an
      image, or sizes differ; the message names the file.
    OSError: If a file cannot be read.
  """
  names, files = _listing(root)
  headers, digest = _headers(root, files)
  first = headers[0]
  gray = all(header.is_gray for header in headers)
  shape: tuple[int | None, int | None] = first.shape
  for file, header in zip(files, headers):
    if header.shape != first.shape:
      if not options.mixed_sizes:
        (h, w), (h0, w0) = header.shape, first.shape
        raise ValueError(
          f"{file.path}: expected {w0} x {h0} pixels, as in {files[0].path},"
          f" got {w} x {h}; resize them, or crop and resize each to"
          " data.image_size with --config.data.mixed_sizes=True"
        )
      shape = None, None
      break
  features = {
    "image": tfds.features.Image(
      shape=(*shape, 1 if gray else 3), encoding_format="png"
    ),
    "label": tfds.features.ClassLabel(names=names),
  }
  splits = _splits(root, files)
  encode = functools.partial(_encoded, gray=gray)

  def examples() -> dict[str, Iterator[dict[str, Any]]]:
    return {split: _of_part(part, encode) for split, part in splits.items()}

  def check() -> None:
    for _ in _in_threads(encode, [file.path for file in files]):
      pass

  return Opened(root, digest, features, examples, check)


def _of_part(
  files: Iterable[_File], encode: Callable[[Path], Any]
) -> Iterator[dict[str, Any]]:
  for file in files:
    yield {"image": encode(file.path), "label": file.label}


def _splits(root: Path, files: Sequence[_File]) -> dict[str, list[_File]]:
  """Files by split, with a test part."""
  splits: dict[str, list[_File]] = {}
  for file in files:
    splits.setdefault(file.split, []).append(file)
  if len(splits) == 1:
    labels = np.array([file.label for file in files])
    test = held_out(str(root), labels, "folders train and test")
    splits = {
      "train": [file for file, is_test in zip(files, test) if not is_test],
      "test": [file for file, is_test in zip(files, test) if is_test],
    }
  return splits


def _listing(root: Path) -> tuple[list[str], tuple[_File, ...]]:
  """The classes, and the files of all splits in order."""
  if not root.is_dir():
    raise ValueError(f"{root}: expected a folder of class folders, got none")
  folders = _folders(root)
  splits = set(folders) & set(_SPLITS)
  parts = {"train": root}
  if "train" in splits and len(splits) > 1:
    if extra := sorted(set(folders) - splits):
      raise ValueError(
        f"{root}: expected no folders beside those of the splits"
        f" ({', '.join(sorted(splits))}), got {extra[0]}; remove it"
      )
    parts = {_SPLITS[name]: root / name for name in _SPLITS if name in splits}
    if len(parts) < len(splits):
      raise ValueError(
        f"{root}: expected one folder of validation, val and valid, got"
        f" {', '.join(sorted(splits - {'train', 'test'}))}; merge them"
      )
  names: list[str] = []
  files: list[_File] = []
  for split, part in parts.items():
    classes = _folders(part)
    if split == "train":
      names = classes
      if len(names) < 2:
        raise ValueError(
          f"{part}: expected two or more class folders, got"
          f" {', '.join(names) or 'none'}; make one for each class"
        )
    for name in classes:
      if name not in names:
        raise ValueError(
          f"{part / name}: expected a class of {parts['train']}"
          f" ({', '.join(names[:8])}{', ...' * (len(names) > 8)}), got {name}"
        )
      paths = sorted(_files(part / name))
      if not paths:
        raise ValueError(
          f"{part / name}: expected images of class {name}, got an empty folder"
        )
      for path in paths:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
          raise ValueError(f"{path}: expected an image, got no regular file")
        files.append(
          _File(
            split, names.index(name), path, status.st_size, status.st_mtime_ns
          )
        )
  return names, tuple(files)


def _is_litter(name: str) -> bool:
  return name.startswith(".") or name.lower() in _LITTER


def _folders(part: Path) -> list[str]:
  """Names of the folders of a split; images beside them are refused."""
  names = []
  suffixes = Image.registered_extensions()
  for path in part.iterdir():
    if _is_litter(path.name):
      continue
    if path.is_dir():
      try:
        path.name.encode()
      except UnicodeEncodeError:
        raise ValueError(
          f"{part}: expected names in UTF-8, got the folder {path.name!r}"
        ) from None
      names.append(path.name)
    elif path.suffix.lower() in suffixes:
      raise ValueError(
        f"{path}: expected images in class folders, got one beside them; move"
        " it into the folder of its class"
      )
  return sorted(names)


def _files(folder: Path) -> Iterator[Path]:
  """Files at any depth. Links to files are read, links to folders refused."""
  for place, names, files in os.walk(folder):
    names[:] = [name for name in names if not _is_litter(name)]
    for name in names:
      if (path := Path(place, name)).is_symlink():
        raise ValueError(
          f"{path}: expected a folder of images, got a link to one; link the"
          " class folder, or its files"
        )
    yield from (Path(place, name) for name in files if not _is_litter(name))


@functools.lru_cache(maxsize=8)
def _headers(root: Path, files: tuple[_File, ...]) -> tuple[list[_Header], str]:
  """The header of each file, and the digest of all paths and contents."""
  headers = list(_in_threads(_header, [file.path for file in files]))
  digest = hashlib.sha256()
  for file, header in zip(files, headers):
    digest.update(os.fsencode(file.path.relative_to(root)) + b"\0")
    digest.update(header.digest)
  return headers, digest.hexdigest()


def _in_threads(
  function: Callable[[Path], Any], paths: Sequence[Path]
) -> Iterator[Any]:
  """Results in order; Pillow decodes outside of Python's lock."""
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    for start in range(0, len(paths), 1024):  # an error ends the pool soon
      yield from pool.map(function, paths[start : start + 1024])


def _header(path: Path) -> _Header:
  raw = path.read_bytes()
  try:
    with Image.open(io.BytesIO(raw)) as image:
      width, height = image.size
      if _orientation(image) >= 5:  # turned by 90 degrees
        width, height = height, width
      is_gray = image.mode in _GRAYS or _is_deep_png(image)
      mode = None if is_gray or image.mode in _COLORS else image.mode
  except Exception as error:  # Pillow raises many kinds
    raise _unreadable(path, error) from error
  if mode:
    raise ValueError(
      f"{path}: expected an image of 8 or 16 bits per channel, got one of"
      f" Pillow's mode {mode}; convert it to RGB"
    )
  return _Header(hashlib.sha256(raw).digest(), (height, width), is_gray)


def _unreadable(path: Path, error: Exception) -> ValueError:
  what = str(error).partition(" <_io.BytesIO")[0].splitlines()
  return ValueError(
    f"{path}: expected an image, got a file that Pillow cannot read"
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


def _encoded(path: Path, *, gray: bool) -> bytes:
  """The image as JPEG or PNG with one channel if gray, and else three."""
  raw = path.read_bytes()
  mode = "L" if gray else "RGB"
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
    raise _unreadable(path, error) from error


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
