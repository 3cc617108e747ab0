"""Images of one's own in class folders, `folder:DIR`.

    DIR/cat/1.png  DIR/cat/2.jpg  DIR/dog/1.png

Classes are the folders of DIR in sorted order; images lie at any depth below
them. If DIR has a folder train and another of test, validation, val and valid,
these are the splits, each with class folders. Without a test part, every fifth
image of a class is held out, in the order of paths.

DIR may also be what `datasets` saved, with a column image or img and one of
classes.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from figs_jax.data import image_bytes, saved_datasets
from figs_jax.data.image_bytes import Item
from figs_jax.data.opened import Opened, Options

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


@dataclasses.dataclass(frozen=True)
class _File:
  """A file of a class, and what decides whether it has changed."""

  split: str
  label: int
  path: Path
  size: int
  changed_ns: int


def open_folder(root: Path, options: Options) -> Opened:
  """Opens a folder of images; reads all files, but decodes none.

  Args:
    root: Folder of class folders, or of splits.
    options: Whether images may differ in size.

  Raises:
    ValueError: If there are fewer than two classes, a class is empty, a file is
      not an image, or sizes differ; the message names the file.
    OSError: If a file cannot be read.
  """
  if saved_datasets.is_saved(root):
    files = saved_datasets.files_of(root)
    states = [file.stat() for file in files]
    key = tuple((state.st_size, state.st_mtime_ns) for state in states)
    return _open_saved(root, options, key)
  names, listed = _listing(root)
  return _open_files(root, options, tuple(names), tuple(listed))


@functools.lru_cache(maxsize=8)
def _open_files(
  root: Path, options: Options, names: Sequence[str], files: Sequence[_File]
) -> Opened:
  items = [
    Item(file.split, file.label, str(file.path), file.path.read_bytes)
    for file in files
  ]
  return image_bytes.opened(root, names, lambda: items, options)


@functools.lru_cache(maxsize=8)
def _open_saved(root: Path, options: Options, key: Any) -> Opened:
  del key  # changes with the files
  splits = saved_datasets.splits_of(root)
  train = splits["train"]
  image, label = _columns(train)
  names = train.names(label)
  if names is None:
    raise ValueError(
      f"{root}: expected a ClassLabel in column {label}, got"
      f" {train.features[label]}; use class_encode_column of datasets"
    )

  def items() -> Iterator[Item]:
    for split, saved in splits.items():
      for where, row in saved.rows():
        name, content = row.get(label), row.get(image)
        raw = content.get("bytes") if isinstance(content, dict) else None
        if not isinstance(raw, bytes):
          raise ValueError(f"{where}: {image}: expected an image, got none")
        if name not in names:
          raise ValueError(
            f"{where}: {label}: expected a class of train, got {name}"
          )
        yield Item(split, names.index(name), where, lambda raw=raw: raw)

  return image_bytes.opened(root, names, items, options)


def _columns(saved: saved_datasets.Saved) -> tuple[str, str]:
  """Columns of images and labels."""
  columns = saved.features
  images = [name for name in ("image", "img") if name in columns]
  labels = [name for name in columns if saved.names(name) is not None]
  if "label" in columns:
    labels = ["label"]
  if not images or len(labels) != 1:
    raise ValueError(
      f"{saved.path}: expected a column image or img and one of classes, called"
      f" label if there are several, got {', '.join(columns) or 'none'}; use"
      " rename_column of datasets"
    )
  return images[0], labels[0]


def _listing(root: Path) -> tuple[list[str], list[_File]]:
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
  return names, files


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
