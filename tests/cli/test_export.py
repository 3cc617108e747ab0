"""Exported runs and models have the same numbers in every format."""

import dataclasses
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from figs_jax import engine, export, nn
from figs_jax.cli.export import export_model
from figs_jax.core.tree import flatten
from figs_jax.models import pretrained
from figs_jax.train import Checkpointer
from figs_jax.train.experiment import build
from figs_jax.train.workdir import restore
from tests.models import families
from tests.programs import assert_one_clear_line, in_one_process

pytestmark = pytest.mark.standard_promotion


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_config):
  """Step 10 of two seeds of 40, without training."""
  config = tiny_config(
    "figs",
    total_steps=40,
    seeds=2,
    pattern="ff: 2:4",
    **{"model.pool": "cls"},
  )
  workdir = tmp_path_factory.mktemp("run")
  state = jax.jit(build(config).state)()
  state = dataclasses.replace(state, step=jnp.asarray(10, jnp.int32))
  with Checkpointer(workdir) as checkpoints:
    checkpoints.save(10, state, {}, config.to_dict(), {"accuracy": 0.0})
  return workdir


MISTAKES = {
  "--workdir is missing": "",
  "--out is missing": "RUN packed",
  "no checkpoint here": "--workdir no --format packed --out A",
  "expected one of 'dense', 'packed'": "RUN zip --out A",
  "it exists": "RUN packed --out TAKEN",
  "ends in .safetensors": "RUN packed --out a.bin",
  "expected a directory": "RUN dense --out A",
  "got float32": "RUN torch-2:4 --out A",
  "no step 3": "RUN packed --out A --step 3",
  "seed=7": "RUN packed --out A --seed 7",
  "platform 'gpu'": "RUN stablehlo --out A --platforms gpu",
  "not a whole safetensors file": "--verify TAKEN",
  "--verify is empty": "--verify=",
  "--out does not go with --verify": "--verify TAKEN --out A",
  "--dtype does not go with --verify": "--verify TAKEN --dtype float16",
  "--platforms goes with --format stablehlo only": (
    "RUN packed --out A --platforms cpu"
  ),
  "--layout goes with --format packed only": (
    "RUN stablehlo --out A --layout bitmask"
  ),
  "--batch goes with --format stablehlo-module only": (
    "RUN stablehlo --out A --batch 8"
  ),
  "--platform goes with --format stablehlo-module only": (
    "RUN packed --out A --platform cuda"
  ),
  "--platforms goes with": (
    "RUN stablehlo-module --out A --batch 8 --platform cpu --platforms cpu"
  ),
  "expected a batch size from 1 (--batch), got None": (
    "RUN stablehlo-module --out A --platform cuda"
  ),
  "expected a platform (--platform), got none": (
    "RUN stablehlo-module --out A --batch 8"
  ),
  "--batch: expected a positive integer": (
    "RUN stablehlo-module --out A --batch 0 --platform cuda"
  ),
  "--data_dir does not go with --verify": "--verify TAKEN --data_dir A",
  "--batch does not go with --verify": "--verify TAKEN --batch 8",
}


@pytest.fixture(scope="module")
def program(run, data_dir, tmp_path_factory):
  """(directory, results of formats, of mistakes), all from one process."""
  out, wrong = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("wrong")
  taken = wrong / "taken.safetensors"
  taken.write_text("mine")
  paths = {"A": wrong / "a.safetensors", "TAKEN": taken, "no": wrong / "no"}
  paths |= {"a.bin": wrong / "a.bin"}

  def words(text):
    text = text.replace("RUN", f"--workdir {run} --format")
    return [paths.get(word, word) for word in text.split()]

  before = {p: p.stat().st_mtime_ns for p in sorted(run.rglob("*"))}
  data = f"--data_dir {data_dir}"
  formats = (
    f"RUN dense --out {out}/dense --seed 1",
    f"RUN packed --out {out}/p.safetensors --layout bitmask {data}",
    f"RUN torch-2:4 --out {out}/t.safetensors --dtype float16",
    f"RUN stablehlo --out {out}/m.stablehlo --platforms cpu",
    f"RUN stablehlo-module --out {out}/m.mlir --batch 8 --platform cuda",
    f"--verify {out}/dense",
    f"--verify {out}/t.safetensors",
  )
  results = in_one_process(
    "launch/export.py", *map(words, (*formats, *MISTAKES.values()))
  )
  assert {p: p.stat().st_mtime_ns for p in sorted(run.rglob("*"))} == before
  assert [path.name for path in wrong.iterdir()] == [taken.name]
  assert taken.read_text() == "mine"
  return out, results[: len(formats)], results[len(formats) :]


@pytest.mark.slow
def test_a_run_is_exported_in_every_format(run, program):
  out, results, _ = program
  dense, packed, hlo = out / "dense", out / "p.safetensors", out / "m.stablehlo"
  for code, _, err in results:
    assert (code, err) == (0, "")
  names = ["dense", "m.mlir", "m.stablehlo", "p.safetensors", "t.safetensors"]
  assert sorted(p.name for p in out.iterdir()) == names
  # Each is the finished model of its seed.
  one, two = (restore(run, seed=i)[1].finished() for i in range(2))
  exported = export.read(dense / "model.safetensors")
  for name, value in pretrained.published(two).items():
    assert exported[name].tobytes() == value.tobytes(), name
  again = pretrained.fill(one, export.read(packed))
  for a, b in zip(
    jax.tree.leaves(nn.split(one)[1:3]), jax.tree.leaves(nn.split(again)[1:3])
  ):
    assert a.tobytes() == b.tobytes()
  config = json.loads((dense / "config.json").read_text())
  assert config["architectures"] == ["ViTForImageClassification"]
  assert "24 tensors, 2 of them N:M" in results[0][1]
  digest = hashlib.sha256(packed.read_bytes()).hexdigest()
  size = packed.stat().st_size
  assert f"{packed}: {size} bytes, SHA-256 {digest}\n" in results[1][1]
  ff = "vit.encoder.layer.0.intermediate.dense.weight"
  (line,) = [x for x in results[5][1].splitlines() if x.startswith(ff)]
  assert line.startswith(f"{ff} F32[64,32]  zeros 0.5000")
  assert line.endswith("  axis 1: 2:4")
  # [64, 32] has no room for the layout; [32, 64] has.
  assert f"kept dense: {ff}: [64, 32] is not a multiple" in results[2][1]
  assert "stored as 2:4 in 2304 bytes" in results[6][1]
  assert "float32 [8, 8, 8, 1] -> float32 logits; cuda" in results[4][1]
  with ir.Context() as context:
    data = (out / "m.mlir").read_bytes()
    module = stablehlo.deserialize_portable_artifact(context, data)
    main = str(module.body.operations[0].type)
    assert main == "(tensor<8x8x8x1xf32>) -> tensor<8x10xf32>"
    assert "custom_call" not in str(module)
  images = np.random.default_rng(1).random((5, 8, 8, 1), np.float32)
  got = export.read_program(hlo)(images)
  graph, state = nnx.split(one)
  want = jax.jit(lambda x: nnx.merge(graph, state)(x))(images)
  assert np.abs(np.asarray(got) - np.asarray(want)).max() < 1e-6


@pytest.mark.slow
def test_mistakes_are_one_line_and_write_nothing(program):
  for result, message in zip(program[2], MISTAKES, strict=True):
    assert_one_clear_line(result, message)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5", "vit"])
def test_a_program_is_run_again_from_its_file(family, tmp_path):
  """A scanned model, in half precision, on a batch that it never saw."""
  model = families.create(family, scan=True, depth=1)
  model = nn.sparsify(model, "ff: 1:8")
  model = pretrained.fill(model, _finished(model))
  path = tmp_path / "m.stablehlo"
  platforms = ("cpu", "cuda", "tpu") if family == "vit" else ("cpu",)
  export_model(model, path, "stablehlo", dtype="bfloat16", platforms=platforms)
  inputs = [np.asarray(x) for x in families.TINY[family].args(3)]
  if family == "t5":  # lengths of the model's own
    inputs = [x[:, :n] for x, n in zip(inputs, (9, 7))]
  leaves = nn.split(model)[1]
  rounded = pretrained.fill(model, export.cast(leaves, "bfloat16"))
  rounded.eval()
  graph, state = nnx.split(rounded)
  want = jax.jit(lambda *a: nnx.merge(graph, state)(*a))(*inputs)
  got = export.read_program(path)(*inputs)
  assert np.array_equal(np.asarray(got), np.asarray(want))
  # The weights are inside once, in two bytes each, and no masks.
  count = sum(leaf.size for leaf in jax.tree.leaves(leaves))
  assert path.stat().st_size > 2 * count


def test_packed_kernels_are_as_small_as_the_engine_says(tmp_path):
  model = nn.sparsify(
    families.create("vit"), "ff: 1:8, patch_embed/kernel: 2:4"
  )
  model = pretrained.fill(model, _finished(model))
  path = tmp_path / "a.safetensors"
  export_model(model, path, "packed", dtype="bfloat16")
  leaves, sizes = nn.masked_leaves(model), {}
  for weight in export.weights(path):
    if weight.leaf is not None:
      sizes[weight.name] = weight.stored
  assert sizes == {
    name: engine.packed_bytes(int(np.prod(leaf.shape)), leaf.pattern, 2)
    for name, leaf in leaves.items()
  }
  assert len(sizes) == 5


def test_a_kernel_that_is_not_finished_is_refused(tmp_path):
  model = nn.sparsify(families.create("vit"), "ff: 1:8")
  for kind, name in (
    ("packed", "a.safetensors"),
    ("dense", "d"),
    ("stablehlo", "a.stablehlo"),
  ):
    with pytest.raises(
      export.ExportError,
      match=r"the group of 8 along .* starts at entry \(0, 0\)",
    ):
      export_model(model, tmp_path / name, kind)
  with pytest.raises(export.ExportError, match="did you mean 'packed'"):
    export_model(model, tmp_path / "a", "pack")
  assert list(tmp_path.iterdir()) == []


def _finished(model):
  """The parameters by path, with zeros where the masks prune."""
  _, params, masks, _ = nn.split(model)
  masks = flatten(masks)
  return {
    path: np.asarray(w)
    * (1 if masks[path] is None else np.asarray(masks[path]))
    + np.float32(0)  # no -0.0
    for path, w in flatten(params).items()
  }
