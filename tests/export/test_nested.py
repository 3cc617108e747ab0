"""Files in the order of ranks: prefixes, bytes that are read, damage."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from figs_jax import export
from figs_jax.core import NM, MaskedKernel, nm_mask, unpack_ranks
from figs_jax.core.rank_packing import RankPacked
from figs_jax.export import files

POINTS = ("1:8", "2:8", "4:8", "8:8")
LEAVES = {"a/kernel": MaskedKernel((64, 24), NM(1, 8))}


def tree(dtype=np.float32):
  rng = np.random.default_rng(0)
  return {
    "a": {"kernel": rng.normal(size=(64, 24)).astype(dtype)},
    "b": rng.normal(size=5).astype(dtype),
  }


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "a.safetensors"
  export.write_nested(path, tree(), LEAVES, POINTS)
  return path


def cut(kernel, n, m=8):
  return np.where(np.asarray(nm_mask(jnp.abs(kernel), NM(n, m))), kernel, 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_n_is_read_bit_for_bit(dtype, tmp_path):
  path, arrays = tmp_path / "a.safetensors", tree(jnp.dtype(dtype))
  kernel = arrays["a"]["kernel"]
  points = [NM(n, 8) for n in range(1, 9)]
  export.write_nested(path, arrays, LEAVES, points)
  for nm in points:
    got = export.read(path, point=nm)
    assert got["a/kernel"].dtype == kernel.dtype
    assert got["a/kernel"].tobytes() == cut(kernel, nm.n).tobytes()
    assert got["b"].tobytes() == arrays["b"].tobytes()
  assert export.read(path)["a/kernel"].tobytes() == kernel.tobytes()
  export.write_nested(
    path, {"a": {"kernel": cut(kernel, 3)}}, LEAVES, ["1:8", "3:8"],
    overwrite=True,
  )  # fmt: skip
  assert export.read(path)["a/kernel"].tobytes() == cut(kernel, 3).tobytes()


def test_a_prefix_reads_n_of_m_of_the_bytes(file, monkeypatch):
  """Counted where the file is read, one contiguous piece per part."""
  spans = []
  fromfile = np.fromfile

  def counting(path, dtype, count, offset):
    spans.append((offset, count))
    return fromfile(path, dtype, count, offset=offset)

  monkeypatch.setattr(files.np, "fromfile", counting)
  read = {}
  for point in POINTS:
    spans.clear()
    [kernel] = [w for w in export.weights(file, point=point) if w.leaf]
    kernel.read()
    assert kernel.leaf.pattern == NM.parse(point)
    assert len(spans) == 2
    read[point] = [count for _, count in spans]
    assert sum(read[point]) == kernel.stored
    starts = [offset for offset, _ in spans]
    assert starts == [
      file_entry.offset for file_entry in parts_of(file, "a/kernel")
    ]
  for part, whole in enumerate(read["8:8"]):
    assert [read[p][part] * 8 for p in POINTS] == [
      whole * n for n in (1, 2, 4, 8)
    ]
  assert read["8:8"][0] == 64 * 24 * 4


def parts_of(path, name):
  entries, _ = export.opened(path)
  return [entries[f"{name}.values"], entries[f"{name}.metadata"]]


def test_the_manifest_holds_the_ends_of_the_prefixes(file):
  """Another reader: the offsets, NumPy and the layout of the documentation."""
  raw = file.read_bytes()
  length = int.from_bytes(raw[:8], "little")
  header = json.loads(raw[8 : 8 + length])
  record = json.loads(header["__metadata__"]["figs_jax"])["tensors"]["a/kernel"]
  assert list(record["points"]) == list(POINTS)
  assert record["pattern"] == "8:8" and record["layout"] == "ranks"
  kernel = tree()["a"]["kernel"]
  for n, point in zip((1, 2, 4, 8), record["points"].values()):
    parts = []
    for end, kind in (("values", "<f4"), ("metadata", "u1")):
      begin = header[f"a/kernel.{end}"]["data_offsets"][0] + 8 + length
      parts.append(np.frombuffer(raw[begin : begin + point[end]], kind))
    values, bits = parts[0].reshape(n, 24, 8), parts[1].reshape(n, -1)
    want = np.zeros((24, 8, 8), np.float32)
    for rank in range(n):
      stream = np.unpackbits(bits[rank], bitorder="little")
      places = stream[: 24 * 8 * 3].reshape(24, 8, 3) @ [1, 2, 4]
      np.put_along_axis(want, places[..., None], values[rank][..., None], -1)
    np.testing.assert_array_equal(want.reshape(24, 64).T, cut(kernel, n))


def test_the_survey_verifies_all_points(file):
  [kernel, bias] = export.survey(file)
  assert kernel.declared == NM(8, 8) and bias.declared is None
  arrays = load_file(file)
  arrays["a/kernel.values"][1, 0, 0] += 1  # of 2:8, not of 1:8
  with file.open("rb") as opened:
    length = int.from_bytes(opened.read(8), "little")
    metadata = json.loads(opened.read(length))["__metadata__"]
  save_file(arrays, file, metadata=metadata)
  assert export.read(file, point="1:8")
  for point in ("2:8", "4:8", None):
    with pytest.raises(export.ExportError, match="a/kernel.* differs from"):
      export.read(file, point=point)
  with pytest.raises(export.ExportError, match="a/kernel at 2:8 differs"):
    list(export.survey(file))


def rewritten(file, change):
  """The file with another record of its kernel."""
  arrays = load_file(file)
  with file.open("rb") as opened:
    length = int.from_bytes(opened.read(8), "little")
    text = json.loads(opened.read(length))["__metadata__"]["figs_jax"]
  manifest = json.loads(text)
  change(manifest["tensors"]["a/kernel"])
  save_file(arrays, file, metadata={"figs_jax": json.dumps(manifest)})


def _drop(record):
  del record["points"]


def _reverse(record):
  record["points"] = dict(reversed(record["points"].items()))


@pytest.mark.parametrize(
  "change",
  [
    _drop,
    _reverse,
    lambda r: r.update(points={}),
    lambda r: r.update(points=[]),
    lambda r: r["points"]["1:8"].update(values=1),
    lambda r: r["points"]["1:8"].update(values=768.0),
    lambda r: r["points"]["1:8"].update(other=1),
    lambda r: r["points"]["1:8"].update(sha256="0"),
    lambda r: r["points"].update({"1:4": r["points"]["1:8"]}),
    lambda r: r["points"].pop("8:8"),
    lambda r: r.update(pattern="4:8"),
    lambda r: r.update(axis=[1]),
    lambda r: r.update(layout="indices"),
    lambda r: r["points"]["8:8"].update(sha256="0" * 64),
  ],
)
def test_other_manifests_are_refused(file, change):
  rewritten(file, change)
  with pytest.raises(export.ExportError, match="manifest cannot be true"):
    export.read(file)


@pytest.mark.parametrize(
  ("points", "message"),
  [
    (["2:8", "1:8"], "expected n to ascend, got 2:8, 1:8"),
    ([], "expected n to ascend, got none"),
    (["1:4", "2:4"], "expected the m of a/kernel, which is 1:8"),
    (["1:8", "2:8"], r"a/kernel: .* keeps 8, expected at most 2"),
    (["one"], "points: Invalid N:M pattern 'one'"),
  ],
)
def test_points_that_do_not_fit_are_named(points, message, tmp_path):
  path = tmp_path / "a.safetensors"
  with pytest.raises(export.ExportError, match=message):
    export.write_nested(path, tree(), LEAVES, points)
  assert not path.exists()


def test_a_tree_without_kernels_and_files_without_points(tmp_path):
  path = tmp_path / "a.safetensors"
  with pytest.raises(export.ExportError, match="expected masked kernels"):
    export.write_nested(path, tree(), {}, POINTS)
  export.write(path, {"b": np.zeros(3)})
  with pytest.raises(export.ExportError, match="no tensor that is packed by"):
    export.read(path, point="1:8")
  export.write_packed(path, tree(), {}, overwrite=True)
  with pytest.raises(export.ExportError, match="no tensor that is packed by"):
    export.read(path, point="1:8")


def test_a_missing_point_is_named(file):
  with pytest.raises(export.ExportError, match="point 3:8, got 1:8, 2:8, 4:8"):
    export.read(file, point="3:8")
  with pytest.raises(export.ExportError, match="point: Invalid N:M"):
    export.read(file, point="x")


def test_arrays_of_the_file_are_those_of_core(file):
  arrays = load_file(file)
  packed = RankPacked(
    arrays["a/kernel.values"], arrays["a/kernel.metadata"], (64, 24), NM(8, 8),
    (0,),
  )  # fmt: skip
  np.testing.assert_array_equal(unpack_ranks(packed), tree()["a"]["kernel"])


def test_damage_is_found_wherever_it_is(file):
  """Flipped bytes are refused, or leave a file that reads as before."""
  whole, rng = file.read_bytes(), np.random.default_rng(0)
  before = export.read(file, point="2:8")
  for _ in range(60):
    damaged = bytearray(whole)
    place = int(rng.integers(len(damaged)))
    damaged[place] ^= 1 << int(rng.integers(8))
    file.write_bytes(damaged)
    try:
      got = export.read(file, point="2:8")
    except export.ExportError as error:
      assert "\n" not in str(error)
      continue
    for name, array in got.items():
      if name in before:
        assert array.tobytes() == before[name].tobytes()


def test_tensors_that_differ_between_points(tmp_path):
  """Batch statistics, without the bytes of those of other points."""
  path, own = tmp_path / "a.safetensors", np.ones(5, np.float32)
  at = {NM(1, 8): {"b": own}, NM(2, 8): {"b": 2 * own}}
  export.write_nested(path, tree(), LEAVES, POINTS, at=at)
  assert {"b", "b@1:8", "b@2:8"} <= load_file(path).keys()
  wanted = [own, 2 * own, tree()["b"], tree()["b"], tree()["b"]]
  for point, value in zip([*POINTS, None], wanted, strict=True):
    read = export.read(path, point=point)
    assert read.keys() == {"a/kernel", "b"}
    np.testing.assert_array_equal(read["b"], value)
  (_, b) = export.weights(path, point="1:8")
  assert (b.name, b.stored) == ("b", 20)
  for wrong in ({NM(3, 8): {"b": own}}, {NM(1, 8): {"a/kernel": own}}):
    with pytest.raises(export.ExportError, match="at: expected tensors wi"):
      export.write_nested(tmp_path / "b.safetensors", tree(), LEAVES, POINTS,
                          at=wrong)  # fmt: skip
