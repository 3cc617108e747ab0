"""Weights in and out against the library whose names the files have."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from figs_jax import models, nn
from figs_jax.core import tree
from figs_jax.models import pretrained

from . import (
  bert_oracle,
  resnet_oracle,
  swin_v2_oracle,
  t5_oracle,
  vit_oracle,
)

# Family, case -> our model's variant and options.
CASES = {
  ("vit", ""): ("custom/4", vit_oracle.OPTIONS),
  ("swin_v2", "shift"): ("custom/2", swin_v2_oracle.options("shift")),
  ("swin_v2", "clipped"): ("custom/2", swin_v2_oracle.options("clipped")),
  ("resnet", "basic"): ("custom", resnet_oracle.options("basic")),
  ("resnet", "bottleneck"): ("custom", resnet_oracle.options("bottleneck")),
  **{
    ("bert", case): ("custom", bert_oracle.options(case))
    for case in bert_oracle.CASES
  },
  ("t5", "v1_0"): ("custom", t5_oracle.options("v1_0")),
  ("t5", "v1_1"): ("custom", t5_oracle.options("v1_1")),
}


def create(family, case):
  variant, options = CASES[family, case]
  return models.create(family, variant, **options)


def theirs(family, case):
  """A random model of the other library."""
  reason = "needs torch and transformers: the extra `oracles`"
  pytest.importorskip("torch", reason=reason)
  pytest.importorskip("transformers", reason=reason)
  if family == "vit":
    return vit_oracle.random_model(3)
  if family == "resnet":
    return resnet_oracle.random_model(case, 3)
  oracles = {"bert": bert_oracle, "swin_v2": swin_v2_oracle, "t5": t5_oracle}
  oracle = oracles[family]
  return oracle.random_model(3, case)


@pytest.mark.parametrize("case", sorted(t5_oracle.CASES))
def test_t5s_names_land_where_its_parity_was_tested(case, tmp_path):
  with np.load(t5_oracle.TARGET) as data:
    weights = {
      name.removeprefix(f"{case}/weight/"): value
      for name, value in data.items()
      if name.startswith(f"{case}/weight/")
    }
  save_file(weights, tmp_path / "model.safetensors")
  loaded = pretrained.load(create("t5", case), tmp_path)
  want = dict(t5_oracle.ours(*item) for item in weights.items())
  got = tree.flatten(nn.split(loaded)[1])
  assert got.keys() == want.keys()
  for path, value in want.items():
    assert np.array_equal(got[path], value), path


@pytest.mark.parametrize(("family", "case"), sorted(CASES))
def test_every_tensor_that_the_library_holds_is_read(family, case, tmp_path):
  """Buffers and copies too, which older versions saved."""
  model = theirs(family, case)
  state = {k: v.detach().numpy().copy() for k, v in model.state_dict().items()}
  buffers = {k: v.numpy().copy() for k, v in model.named_buffers()}
  assert bool(buffers) == (family in ("bert", "resnet", "swin_v2"))
  save_file(state | buffers, tmp_path / "model.safetensors")
  loaded = pretrained.load(create(family, case), tmp_path)
  model.save_pretrained(tmp_path)
  again = pretrained.load(create(family, case), tmp_path)
  a, b = (pretrained.published(each) for each in (loaded, again))
  for name, value in a.items():
    assert np.array_equal(value, b[name]), name


@pytest.mark.parametrize(("family", "case"), sorted(CASES))
def test_the_library_reads_our_files(family, case, tmp_path):
  model = theirs(family, case)
  model.save_pretrained(tmp_path)
  ours = create(family, case)
  pretrained.save(ours, tmp_path / "model.safetensors")
  read, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
  if case == "embedding":  # a pooler, which no embedding reads
    assert info["missing_keys"] == {"pooler.dense.weight", "pooler.dense.bias"}
    info["missing_keys"] = set()
  assert not any(info.values()), info
  read.save_pretrained(tmp_path)
  again = pretrained.load(create(family, case), tmp_path)
  a, b = (pretrained.published(each) for each in (ours, again))
  for name, value in a.items():
    assert np.array_equal(value, b[name]), name
