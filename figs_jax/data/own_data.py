"""Data of one's own, without a builder: `folder:DIR`, `npz:FILE`, `text:FILE`.

Each is written once as array_record, under a name that holds the SHA-256 of
its content, so that changed content is prepared again.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from figs_jax.data import bundled, image_folder, npz_images, text_table
from figs_jax.data.opened import DEFAULTS, Opened, Options

_OPEN = {
  "folder": image_folder.open_folder,
  "npz": npz_images.open_file,
  "text": text_table.open_text,
}
# How the names of such data sets begin.
PREFIXES = tuple(f"{kind}:" for kind in _OPEN)
_log = logging.getLogger("figs_jax")


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """The base of the builders, one class for each state of a source."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}
  opened: Opened

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=f"Content of {self.opened.path.name}.",
      features=tfds.features.FeaturesDict(self.opened.features),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager
    parts = self.opened.examples()
    return {name: self._generate_examples(part) for name, part in parts.items()}

  def _generate_examples(
    self, examples: Iterable[dict[str, Any]]
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    return iter(enumerate(examples))


def builder_class(
  name: str, options: Options = DEFAULTS
) -> type[tfds.core.GeneratorBasedBuilder]:
  """The class of builders for the present content of a source.

  Args:
    name: "folder:DIR", "npz:FILE" or "text:FILE".
    options: How to read it.

  Raises:
    ValueError: If the content is wrong.
    OSError: If a file cannot be read.
  """
  kind, _, place = name.partition(":")
  path = Path(os.path.abspath(Path(place).expanduser()))
  opened = _OPEN[kind](path, options)
  # A directory's name may hold dots, of a file's the suffix is left out.
  stem = re.sub(
    r"\W+", "_", path.name if path.is_dir() else path.stem, flags=re.ASCII
  )
  config = tfds.core.BuilderConfig(
    name=f"{stem}_{opened.digest[:16]}", version=_Builder.VERSION
  )
  fields = {"name": kind, "opened": opened, "BUILDER_CONFIGS": [config]}
  with tfds.core.registered.skip_registration():
    return type(kind.title(), (_Builder,), {"__module__": __name__, **fields})


def prepare(
  name: str, data_dir: str, options: Options = DEFAULTS
) -> tfds.core.GeneratorBasedBuilder:
  """Prepares data of one's own; see `figs_jax.data.bundled.prepare`.

  Args:
    name: "folder:DIR", "npz:FILE" or "text:FILE".
    data_dir: Local directory of the data sets.
    options: How to read it.

  Raises:
    ValueError: If the content is wrong.
    OSError: If a file cannot be read or written.
  """
  kind = builder_class(name, options)
  own = kind.BUILDER_CONFIGS[0].name
  copies = Path(data_dir) / kind.name
  if not (copies / own).exists():
    kind.opened.check()
    same_stem = re.compile(re.escape(own[:-16]) + "[0-9a-f]{16}")
    others = os.listdir(copies) if copies.is_dir() else ()
    if any(map(same_stem.fullmatch, others)):
      _log.info("%s: other content than prepared before; preparing it", name)
  return bundled.prepare(kind, data_dir)
