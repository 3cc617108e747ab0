"""Layers of a file and of a model by name, as programs ask for them."""

import pytest

from figs_jax.cli.workloads import from_file, from_model, require_sparse

pytestmark = pytest.mark.standard_promotion


@pytest.fixture
def path(tmp_path):
  path = tmp_path / "net.csv"
  path.write_text(
    "name,M,N,K,pattern,count\nqk,9,9,8,,6\nfc1,9,16,8,1:2,\nfc2,9,8,16,,\n"
  )
  return path


def patterns(tables):
  (table,) = tables.values()
  return [table.pattern(i) for i in range(len(table))]


def test_patterns_of_a_table(path):
  assert list(from_file(path)) == ["net.csv"]
  assert patterns(from_file(path)) == ["dense", "1:2", "dense"]
  assert patterns(from_file(path, "1:8")) == ["dense", "1:8", "dense"]
  rules = "fc2: 1:4, qk|fc1: 2:4"
  assert patterns(from_file(path, rules)) == ["2:4", "2:4", "1:4"]
  (before,), (after,) = (from_file(path, x).values() for x in (None, rules))
  for name in ("names", "M", "N", "K", "count"):
    assert list(getattr(before, name)) == list(getattr(after, name))
  for text, words in (
    ("fc3: 1:4", "did you mean 'fc"),
    ("x.*: 1:4", "matches no kernel"),
    ("9:8", "1 <= n <= m"),
    ("fc1: 1:3", "has length 8, not a multiple of m=3"),
  ):
    with pytest.raises(ValueError, match=words):
      from_file(path, text)


def test_models_by_name():
  spec = "vit:Ti/16:depth=1:image_size=32:pool=gap"
  tables = from_model(spec, [1, 4], "ff: 1:8")
  assert list(tables) == [f"{spec}, batch 1", f"{spec}, batch 4"]
  one, four = tables.values()
  assert one.M[0] == 4 and four.M[0] == 16
  assert len(one) == 10 and one.masks is None
  assert [
    one.pattern(one.names.index(f"blocks/0/mlp/fc{i}")) for i in (1, 2)
  ] == ["1:8"] * 2
  require_sparse(one, "it")
  (dense,) = from_model(spec, [1]).values()
  with pytest.raises(ValueError, match="it: the model is dense"):
    require_sparse(dense, "it")


def test_a_model_brings_the_rest_of_its_pass():
  spec = "vit:Ti/16:depth=1"
  tables = from_model(spec, [2], seqs=[50, 100])
  assert list(tables) == [f"{spec}, batch 2, seq {n}" for n in (50, 100)]
  for length, table in zip((50, 100), tables.values()):
    assert table.forward.seq == length
    (softmax,) = [x for x in table.forward.non_gemms if x.kind == "softmax"]
    assert softmax.reads == 2 * 3 * length**2
  (plain,) = from_model(spec, [1]).values()
  assert plain.forward.seq == 0


def test_decoders_by_name():
  (label,) = tables = from_model(
    "llama:8b:depth=2", [8], "ff: 2:4", phase="decode", contexts=[4096]
  )
  assert label == "llama:8b:depth=2, batch 8, decode, context 4096"
  table = tables[label]
  assert (table.forward.phase, table.forward.seq) == ("decode", 4096)
  kinds = {n: table.pattern(i) for i, n in enumerate(table.names)}
  assert kinds["blocks/mlp/gate"] == "2:4" and kinds["head"] == "dense"
  (whole,) = from_model("gpt2:small", [1]).values()
  assert whole.forward.seq == 1024
  for options, words in (
    ({"phase": "decode"}, "ViT: expected no phase"),
    ({"contexts": [8]}, "ViT: expected no context"),
  ):
    with pytest.raises(ValueError, match=words):
      from_model("vit:Ti/16:depth=1", [1], **options)


@pytest.mark.parametrize(
  ("spec", "words"),
  [
    ("vit", "write family:variant"),
    ("vot:B/16", "did you mean 'vit'"),
    ("lama:8b", "did you mean 'llama'"),
    ("llama:9b", "Unknown Llama variant '9b'"),
    ("llama:8b:depth=two", "expected int"),
    ("vit:Q/16", "ViT variant 'Q/16'"),
    ("vit:B/16:depth", "write option=value"),
    ("vit:B/16:dept=1", "did you mean 'depth'"),
    ("vit:B/16:depth=one", "wrong type"),
    ("vit:B/16:depth=1:heads=3:depth=2", "depth is given twice; keep one"),
  ],
)
def test_bad_models(spec, words):
  with pytest.raises(ValueError, match=words) as caught:
    from_model(spec, [1])
  assert "\n" not in str(caught.value)
