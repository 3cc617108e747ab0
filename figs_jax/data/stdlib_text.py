"""Text from the Python installation, as a tensorflow-datasets builder.

The topics of `help()` (English and reStructuredText) and the top-level modules
of the standard library (Python): some 250 documents, 5 MB. Nothing is
downloaded; preparing takes about a second.

The text depends on the running Python, so the name of the configuration holds
its version and a digest of the documents, as in "py3.11.7_1a2b3c4d". Caches of
two installations never mix, and results name the text they belong to. A
document name is in the same split for every installation.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from figs_jax.data import bundled

_DESCRIPTION = """\
Documents of the standard library of Python {version}: the topics of help() and
the modules at the top of the library. Of ten documents about one each is in
the validation and test split, by a hash of its name.
"""
# Written when Python is built: it holds paths and flags of that machine.
_OF_THE_MACHINE = "_sysconfigdata"


class StdlibText(tfds.core.GeneratorBasedBuilder):
  """The builder of the data set; call `prepare` to run it safely.

  Its one configuration is that of the running Python, made on first use.
  """

  name = "stdlib_text"
  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}

  @tfds.core.utils.classproperty
  @classmethod
  def BUILDER_CONFIGS(cls) -> list[tfds.core.BuilderConfig]:
    return [_config()]

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=_DESCRIPTION.format(version=platform.python_version()),
      homepage="https://docs.python.org/3/library",
      features=tfds.features.FeaturesDict(
        {"name": tfds.features.Text(), "text": tfds.features.Text()}
      ),
      license="PSF-2.0",
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager
    splits = ("train", "validation", "test")
    return {split: self._generate_examples(split) for split in splits}

  def _generate_examples(
    self, split: str
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    names = [name for name in documents() if split_of(name) == split]
    for i, name in enumerate(names):
      yield i, {"name": name, "text": documents()[name]}


@functools.cache
def documents() -> dict[str, str]:
  """All non-empty documents by name, in the order of their names."""
  from pydoc_data.topics import topics

  texts = {f"topics/{name}": text for name, text in topics.items()}
  for path in Path(sysconfig.get_path("stdlib")).glob("*.py"):
    if not path.name.startswith(_OF_THE_MACHINE):
      with tokenize.open(path) as file:  # in the encoding that it declares
        texts[path.name] = file.read()
  return {name: texts[name] for name in sorted(texts) if texts[name].strip()}


@functools.cache
def _config() -> tfds.core.BuilderConfig:
  return tfds.core.BuilderConfig(
    name=config_name(),
    version=StdlibText.VERSION,
    description=f"Of Python {platform.python_version()}.",
  )


@functools.cache
def config_name() -> str:
  """Version of the running Python and a digest of its documents."""
  digest = hashlib.sha256()
  for name, text in documents().items():
    for part in (name, text):
      digest.update(part.encode() + b"\0")
  return f"py{platform.python_version()}_{digest.hexdigest()[:8]}"


def split_of(name: str) -> str:
  """The split of a document, of its name alone.

  >>> split_of("topics/lambda"), split_of("argparse.py")
  ('train', 'train')
  """
  place = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10
  return {0: "test", 1: "validation"}.get(place, "train")


def prepare(data_dir: str) -> tfds.core.GeneratorBasedBuilder:
  """Prepares the text below `data_dir`; see `figs_jax.data.bundled.prepare`."""
  return bundled.prepare(StdlibText, data_dir)
