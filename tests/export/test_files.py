"""Files from strangers are data, and files of ours are whole or absent."""

import ast
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax import export
from figs_jax.core import NM, MaskedKernel
from figs_jax.export import atomic_write
from tests.programs import call

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
TWO = {"dtype": "I16", "shape": [2, 1], "data_offsets": [8, 12]}
DATA = bytes(range(12))
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve"}


def raw(header, data=DATA):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack("<Q", len(text)) + text + data


def text(*entries):
  return ("{" + ",".join(entries) + "}").encode()


A, B = f'"a":{json.dumps(ONE)}', f'"b":{json.dumps(TWO)}'
WHOLE = raw({"a": ONE, "b": TWO})


def with_a(**changes):
  return raw({"a": {**ONE, **changes}, "b": TWO})


@pytest.mark.parametrize(
  "damaged",
  [
    b"",
    WHOLE[:5],
    WHOLE[:20],
    WHOLE[:-1],
    WHOLE + b"x",
    struct.pack("<Q", 1 << 30) + WHOLE[8:],
    struct.pack("<Q", 2**64 - 1) + WHOLE[8:],
    struct.pack("<Q", 0) + WHOLE[8:],
    raw(b"[]", b""),
    raw(b"3 ", b""),
    raw(b"{" * 10**5),
    raw(b'{"a":' + b"[" * 10**5),
    raw(text(A, A)),
    raw(text(A, B, B)),
    raw(text(A, B, A.replace('"a"', '"\\u0061"'))),
    raw(text(A, B, '"__metadata__":{"x":"1","x":"2"}')),
    raw(text(A, B, '"__metadata__":{"x":3}')),
    raw(text(A, B).replace(b'"a"', b'"\xff"')),
    raw(text(A, B).replace(b'"a"', b'"\\ud800"')),
    raw(text(A, B).replace(b'"a"', b'"\\u001b[31m"')),
    raw(text(A, B).replace(b'"a"', b'"a\\nb"')),
    raw({"a": ONE, "b": {**TWO, "data_offsets": [4, 8]}}),  # overlap
    raw({"a": ONE, "b": {**TWO, "data_offsets": [10, 14]}}),  # a gap
    with_a(data_offsets=[8, 0]),
    with_a(data_offsets=[0, 2**62]),
    with_a(data_offsets=[-8, 0]),
    with_a(data_offsets=[0, 8, 9]),
    with_a(shape=[3]),
    with_a(shape=[-2]),
    with_a(shape=[2.0]),
    with_a(shape=[2**33, 2**33]),
    with_a(shape=[2**64, 2]),
    with_a(shape="2"),
    with_a(shape=[1] * 60 + [2]),
    with_a(dtype="F99"),
    with_a(dtype=None),
    with_a(dtype={"F32": None}),
    with_a(dtype="\x1b[31mF"),
    with_a(more=[{}, {}]),
    raw({"a": ["F32", [2], [0, 8]], "b": TWO}),
    raw({"\x1b[31mred": {**ONE, "data_offsets": [4, 8]}}, DATA[:8]),
    raw({"a": {"dtype": "F32", "shape": [2]}, "b": TWO}),
    raw({"a": {**ONE, "shape": [0, 2**62], "data_offsets": [0, 0]}}, b""),
  ],
)
def test_a_lying_header_is_one_clear_line(damaged, tmp_path):
  path = tmp_path / "a.safetensors"
  path.write_bytes(damaged)
  for reader in (export.opened, export.read, lambda p: list(export.survey(p))):
    with pytest.raises(export.ExportError, match=str(path)) as error:
      reader(path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


def test_a_header_of_a_gigabyte_is_not_read(tmp_path):
  path = tmp_path / "a.safetensors"
  with path.open("wb") as file:  # sparse: takes no room on the disk
    file.write(struct.pack("<Q", 1 << 30))
    file.truncate(9 + (1 << 30))
  with pytest.raises(export.ExportError, match="a header of 1073741824 bytes"):
    export.opened(path)


def test_an_honest_file_is_read_by_parts(tmp_path):
  path = tmp_path / "a.safetensors"
  path.write_bytes(WHOLE)
  entries, metadata = export.opened(path)
  assert metadata == {}
  assert entries["a"].read().tobytes() == DATA[:8]
  assert entries["b"].read().shape == (2, 1)
  assert entries["b"].rows(1, 2).tobytes() == DATA[10:12]
  path.write_bytes(WHOLE[:-3])
  with pytest.raises(export.ExportError, match="became shorter"):
    entries["b"].read()


def test_kinds_that_numpy_lacks_are_surveyed_but_not_read(tmp_path):
  path = tmp_path / "a.safetensors"
  entry = {"dtype": "F4", "shape": [4, 4], "data_offsets": [0, 8]}
  path.write_bytes(raw({"a": entry}, DATA[:8]))
  [tensor] = export.survey(path)
  assert (tensor.kind, tensor.sparsity) == ("F4", None)
  with pytest.raises(
    export.ExportError, match="a has unknown dtype F4. Known:"
  ):
    export.read(path)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
  path = tmp_path_factory.mktemp("packed") / "a.safetensors"
  kernel = np.zeros((8, 4), np.float32)
  kernel[::4] = np.arange(8).reshape(2, 4) + 1
  leaf = MaskedKernel(kernel.shape, NM(1, 4), 0)
  tree = {"kernel": kernel, "bias": np.ones(3, np.float32)}
  export.write_packed(path, tree, {"kernel": leaf})
  return path


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_a_corrupted_file_is_read_alike_or_refused(packed, data):
  """Bytes replaced, cut out or put in, anywhere."""
  whole = packed.read_bytes()
  wrong = bytearray(whole)
  for _ in range(data.draw(st.integers(1, 3))):
    at = data.draw(st.integers(0, len(wrong) - 1))
    kind = data.draw(st.sampled_from(["set", "flip", "cut", "put", "end"]))
    if kind == "set":
      wrong[at] = data.draw(st.integers(0, 255))
    elif kind == "flip":
      wrong[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "put":
      wrong[at:at] = data.draw(st.binary(min_size=1, max_size=9))
    else:
      del wrong[at : None if kind == "end" else at + 1]
    wrong = wrong or bytearray(b"x")
  path = packed.with_name("b.safetensors")
  path.write_bytes(bytes(wrong))
  want = export.read(packed)
  try:
    entries = export.read(path)
    list(export.survey(path))
  except export.ExportError as error:
    assert str(error).isprintable()
    return
  if "figs_jax" not in export.opened(path)[1]:
    # A file without a manifest stands for its own tensors, under other names.
    assert "kernel" not in entries
    return
  assert entries.keys() == want.keys()
  for name, value in entries.items():
    assert value.tobytes() == want[name].tobytes(), name


def test_nothing_of_ours_unpickles():
  root = Path(export.__file__).parents[2]
  for room in ("figs_jax", "launch", "configs", "docs", "benchmarks"):
    for path in sorted((root / room).rglob("*.py")):
      for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
          names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
          names = [node.module or ""]
        for name in names:
          assert name.split(".")[0] not in PICKLES, f"{path} imports {name}"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
          assert getattr(node.value, "value", None) is False, path


def test_nothing_is_overwritten_unasked(tmp_path):
  path = tmp_path / "a.safetensors"
  tensors = {"a": np.ones(2)}
  export.write(path, tensors)
  before = path.read_bytes()
  with pytest.raises(export.ExportError, match="it exists; .*--overwrite"):
    export.write(path, {"b": np.ones(3)})
  assert path.read_bytes() == before
  export.write(path, {"b": np.ones(3)}, overwrite=True)
  assert export.read(path)["b"].shape == (3,)
  assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_file_that_appears_meanwhile_is_kept(tmp_path):
  path = tmp_path / "a.safetensors"
  with pytest.raises(export.ExportError, match="it exists"):
    with atomic_write.replacing(path) as part:
      part.write_text("ours")
      path.write_text("theirs")
  assert path.read_text() == "theirs"
  assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_file_that_comes_out_wrong_gets_no_name(tmp_path, monkeypatch):
  from safetensors import numpy

  def lossy(tensors, path, metadata=None):
    real({name: value + 1 for name, value in tensors.items()}, path, metadata)

  real = numpy.save_file
  monkeypatch.setattr(numpy, "save_file", lossy)
  with pytest.raises(export.ExportError, match="a is not what was written"):
    export.write(tmp_path / "a.safetensors", {"a": np.ones(2)})
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("a.bin", "ends in .safetensors"),
    ("no/a.safetensors", "no such directory"),
    ("folder.safetensors", "expected a file, got a directory"),
    ("loop.safetensors", "not a regular file"),
  ],
)
def test_places_that_cannot_be_written(name, message, tmp_path):
  (tmp_path / "folder.safetensors").mkdir()
  os.symlink("loop.safetensors", tmp_path / "loop.safetensors")
  with pytest.raises(export.ExportError, match=message):
    export.write(tmp_path / name, {"a": np.ones(2)}, overwrite=True)


def test_a_directory_is_written_whole_and_only_ours_is_replaced(tmp_path):
  where, tensors = tmp_path / "model", {"w": np.eye(4, dtype=np.float32)}
  leaves = {"w": MaskedKernel((4, 4), NM(1, 4), 0)}
  export.write_dense(where, tensors, leaves, {"a": 1})
  names = sorted(each.name for each in where.iterdir())
  assert names == ["config.json", "model.safetensors"]
  assert json.loads((where / "config.json").read_text()) == {"a": 1}
  with pytest.raises(export.ExportError, match="it exists"):
    export.write_dense(where, tensors, leaves, {"a": 2})
  export.write_dense(where, tensors, leaves, {"a": 2}, overwrite=True)
  assert json.loads((where / "config.json").read_text()) == {"a": 2}
  (where / "mine.txt").write_text("x")
  with pytest.raises(export.ExportError, match="also holds 'mine.txt'"):
    export.write_dense(where, tensors, leaves, {}, overwrite=True)
  with pytest.raises(export.ExportError, match="w: the group of 4"):
    export.write_dense(tmp_path / "b", {"w": np.ones((4, 4))}, leaves, {})
  assert [each.name for each in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("call", [1, 2])
def test_an_interrupt_leaves_the_old_directory(call, tmp_path, monkeypatch):
  where, real, calls = tmp_path / "model", Path.replace, []
  tensors = {"w": np.eye(4, dtype=np.float32)}
  export.write_dense(where, tensors, {}, {"a": 1})

  def replace(self, target):
    calls.append(self)
    if len(calls) == call:
      raise KeyboardInterrupt
    return real(self, target)

  with monkeypatch.context() as patch:
    patch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
      export.write_dense(where, tensors, {}, {"a": 2}, overwrite=True)
  assert json.loads((where / "config.json").read_text()) == {"a": 1}
  assert [each.name for each in tmp_path.iterdir()] == ["model"]


def test_a_kind_without_a_name_is_refused(tmp_path):
  for kind in (np.complex64, np.dtype(">f4")):
    with pytest.raises(
      export.ExportError, match="w: safetensors .* not support dtype"
    ):
      tensors = {"w": np.zeros((4, 4), kind)}
      export.write_packed(tmp_path / "a.safetensors", tensors, {})
  assert list(tmp_path.iterdir()) == []


def test_what_is_handed_on_can_be_read_by_others(tmp_path):
  """safetensors 0.8 makes files for their owner alone."""
  new, old, mask = tmp_path / "new.safetensors", tmp_path / "old", os.umask(0)
  try:
    os.umask(0o027)
    export.write(new, {"w": np.zeros(2)})
    assert new.stat().st_mode & 0o777 == 0o640
    new.chmod(0o664)
    export.write(new, {"w": np.zeros(3)}, overwrite=True)
    assert new.stat().st_mode & 0o777 == 0o664
    export.write_dense(old, {"w": np.zeros(2)}, {}, {})
  finally:
    os.umask(mask)
  assert old.stat().st_mode & 0o777 == 0o750
  assert {each.stat().st_mode & 0o777 for each in old.iterdir()} == {0o640}


@pytest.mark.parametrize("path", ["n" * 300, "a\0b", "pipe", "dir"])
@pytest.mark.parametrize(
  "reader",
  [
    export.opened,
    export.read_program,
    lambda path: list(export.survey(path)),
    lambda path: export.write(f"{path}.safetensors", {"w": np.zeros(2)}),
  ],
)
def test_odd_names_and_kinds_are_one_clear_line(path, reader, tmp_path):
  os.mkfifo(tmp_path / "pipe")
  os.mkfifo(tmp_path / "pipe.safetensors")
  (tmp_path / "dir").mkdir()
  (tmp_path / "dir.safetensors").mkdir()
  with pytest.raises(export.ExportError) as error:
    reader(tmp_path / path)
  assert "no such file" not in str(error.value)


def test_a_long_name_is_written(tmp_path):
  path = tmp_path / ("n" * 240 + ".safetensors")
  export.write(path, {"w": np.zeros(2)})
  assert os.listdir(tmp_path) == [path.name]


def test_what_others_left_is_not_touched(tmp_path):
  """Neither files of a run that was killed nor links that somebody laid."""
  mine = tmp_path / "mine"
  left = tmp_path / f".part-{os.getpid()}-a.safetensors"
  mine.write_text("mine")
  left.symlink_to(mine)
  export.write(tmp_path / "a.safetensors", {"w": np.zeros(2)})
  assert mine.read_text() == "mine" and left.is_symlink()


def test_sigterm_leaves_nothing_half_written(tmp_path):
  done = call(
    "-c",
    "import os, signal, sys, time\n"
    "from figs_jax.export.atomic_write import replacing\n"
    "with replacing(sys.argv[1]) as part:\n"
    "  part.write_text('half')\n"
    "  os.kill(os.getpid(), signal.SIGTERM)\n"
    "  time.sleep(60)\n",
    tmp_path / "a",
  )
  assert done.returncode == 143, done.stderr
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("pytorch_model.bin", "expected a safetensors file, got a pickle"),
    ("model.safetensors.index.json", "expected a safetensors file, got JSON"),
  ],
)
def test_files_of_other_programs_are_recognized_by_their_names(
  name, words, tmp_path
):
  path = tmp_path / name
  path.write_bytes(WHOLE)
  with pytest.raises(export.ExportError, match=words):
    export.opened(path)


def test_what_cannot_be_written_names_what_the_user_named(tmp_path):
  path = tmp_path / "a.safetensors"
  with pytest.raises(export.ExportError, match=f"{path}: cannot be written"):
    export.write(path, {"\ud800": np.zeros(2)})
  with pytest.raises(export.ExportError, match=f"{tmp_path / 'd'}: config: "):
    export.write_dense(tmp_path / "d", {}, {}, {"a": float("nan")})
  assert list(tmp_path.iterdir()) == []
