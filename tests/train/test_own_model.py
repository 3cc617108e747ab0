"""A model class of one's own: trained, read again, and never from the run."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from figs_jax import nn
from figs_jax.analysis.history import histories
from figs_jax.analysis.html_report import command
from figs_jax.cli.export import export_run
from figs_jax.core.masks import is_nm
from figs_jax.models import own_model
from figs_jax.models.own_weights import load_own
from figs_jax.train import default_config, evaluate, examples
from figs_jax.train.config import ConfigError
from figs_jax.train.experiment import build
from figs_jax.train.loop import train
from figs_jax.train.workdir import finished_model, restore
from tests.models.own_net import Net

pytestmark = pytest.mark.standard_promotion  # optax mixes dtypes
RNG = np.random.default_rng(0)
DATA = [
  {"image": RNG.integers(0, 256, (6, 6), np.uint8), "label": i % 3}
  for i in range(30)
]


@pytest.fixture(autouse=True)
def no_trace_is_left():
  own_model.REGISTERED.clear()
  yield
  own_model.REGISTERED.clear()


def config_of(recipe="ste", kind=Net):
  config = default_config(recipe, kind)
  config.total_steps = config.checkpoint_every = 2
  config.batch_size = config.data.eval_batch_size = 6
  config.data.image_size = 6
  config.model.width = 4
  return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("own")
  result = train(config_of(), workdir, data=DATA, model=Net)
  assert result["finished"]
  own_model.REGISTERED.clear()
  return workdir


def test_its_defaults_are_those_of_the_class():
  config = default_config("figs", Net)
  assert config.model.to_dict() == {"width": 16, "dropout": 0.1}
  assert (config.family, config.variant) == ("Net", "custom")
  assert config.pattern == "hidden: 1:4"
  assert config.model_file.endswith("own_net.py:Net")


def test_it_is_evaluated_with_class_and_data_given_again(run):
  with pytest.raises(ValueError, match="add --model_file .*own_net.py:Net"):
    evaluate(run, data=DATA)
  own_model.REGISTERED.clear()
  result = evaluate(run, data=DATA, model=Net, engine_spec="ws:4x4")
  assert result["layers"] == {"conv/kernel": True}
  assert result["dtype"] == "float32"
  assert result["config"]["model.width"] == 4
  # stem 3x3x1x4, depthwise 3x3x4 at 6 x 6, conv 3x3x4x8 at 3 x 3, head 8x3
  dense = 2 * (36 * 9 * (4 + 4) + 9 * 9 * 4 * 8 + 8 * 3)
  assert result["flops_dense"] == dense
  assert result["flops"] == dense - 2 * 9 * 9 * 4 * 8 * 3 // 4
  assert result["speedup"] > 0
  each = examples(run, data=DATA)
  assert each["loss"].mean() == pytest.approx(result["loss"], rel=1e-6)
  int8 = evaluate(run, data=DATA, dtype="int8")
  assert int8["dtype"] == "int8"
  with pytest.raises(ValueError, match="Net.__init__ takes no dtype"):
    evaluate(run, data=DATA, dtype="bfloat16")


def test_batch_statistics_are_trained_saved_and_exported(run, tmp_path):
  net = finished_model(run, data=DATA, model=Net)
  assert not jnp.array_equal(net.norm.mean[...], jnp.zeros(4))
  assert net.norm.use_running_average and net.dropout.deterministic
  assert is_nm(net.conv.kernel[...], "1:4", axis=-2)
  images = jnp.asarray(RNG.normal(size=(4, 6, 6, 1)), jnp.float32)
  for format, name in (("packed", "a.safetensors"), ("dense", "a")):
    lines = export_run(run, tmp_path / name, format, data=DATA)
    assert lines[0] == "12 tensors, 1 of them N:M"
    fresh = Net(3, 1, width=4, rngs=nnx.Rngs(7))
    fresh.eval()
    loaded = load_own(nn.sparsify(fresh, "conv/kernel: 1:4"), tmp_path / name)
    assert jnp.array_equal(loaded(images), net(images))
  about = json.loads((tmp_path / "a" / "config.json").read_text())
  assert about == {"architectures": ["Net"]}
  with pytest.raises(ValueError, match="torch-2:4.*got Net; choose --format"):
    export_run(run, tmp_path / "b.safetensors", "torch-2:4", data=DATA)


def other_net(tmp_path, old, new):
  """The class of another file, in which a text is replaced."""
  text = Path(own_model.source_file(Net)).read_text()
  assert old in text
  path = tmp_path / "own_net.py"
  path.write_text(text.replace(old, new))
  scope = {}
  exec(compile(path.read_text(), str(path), "exec"), scope)
  return scope["Net"]


def test_another_text_with_the_same_arrays_is_noted(run, tmp_path, caplog):
  kind = other_net(tmp_path, "(1, 2)", "(2, 1)")
  caplog.set_level("WARNING", "figs_jax")
  restore(run, data=DATA, model=kind)
  lines = [r.getMessage() for r in caplog.records if "SHA-256" in r.message]
  assert len(lines) == 1 and "its parameters fit, so it is used" in lines[0]


def test_another_class_is_refused(run, tmp_path):
  kind = other_net(tmp_path, "strides=2", "strides=2, use_bias=False")
  with pytest.raises(
    ConfigError, match=r"conv/bias has shape \[8\] in the run"
  ):
    restore(run, data=DATA, model=kind)
  own_model.REGISTERED.clear()
  kind = other_net(tmp_path, "width=16", "wide=16")
  with pytest.raises(ConfigError, match="got one without the option width"):
    restore(run, data=DATA, model=kind)
  own_model.REGISTERED.clear()
  other = type("Other", (Net,), {})
  with pytest.raises(
    ConfigError, match="configuration of Other.*got one of 'N"
  ):
    restore(run, data=DATA, model=other)


def test_a_run_goes_on_with_the_same_text_only(run, tmp_path):
  again = tmp_path / "run"
  shutil.copytree(run, again)
  config = config_of(kind=other_net(tmp_path, "(1, 2)", "(2, 1)"))
  with pytest.raises(
    ConfigError, match="since the file was changed.*model_sha"
  ):
    train(config, again, data=DATA)
  config.allow_change = ("model_sha256",)
  assert train(config, again, data=DATA)["finished"]


def test_a_run_of_a_notebook_goes_on_with_the_class_in_a_file(tmp_path):
  scope = {}
  exec(Path(own_model.source_file(Net)).read_text(), scope)  # no file
  train(config_of(kind=scope["Net"]), tmp_path, data=DATA)
  (run,) = histories([tmp_path])
  assert "--model_file" not in command(run)
  own_model.REGISTERED.clear()
  with pytest.raises(ConfigError, match="models.register, or add --model_file"):
    restore(tmp_path, data=DATA)
  assert train(config_of(), tmp_path, data=DATA)["finished"]


def test_a_sparse_run_starts_from_a_dense_one_with_its_statistics(tmp_path):
  dense, config = tmp_path / "dense", config_of("dense")
  train(config, dense, data=DATA)
  source = finished_model(dense, data=DATA)
  config = config_of()
  config.init_from = str(tmp_path / "a.safetensors")
  export_run(dense, config.init_from, "packed", data=DATA)
  experiment = build(config, DATA)
  from figs_jax.train.workdir import initial_weights

  state = experiment.state(initial_weights(experiment))
  assert jnp.array_equal(state.rest["norm"]["mean"], source.norm.mean[...])
  assert jnp.array_equal(
    state.params["stem"]["kernel"], source.stem.kernel[...]
  )
  config.init_head = "fresh"
  with pytest.raises(ConfigError, match="init_head: expected 'strict' for Net"):
    initial_weights(build(config, DATA))


def test_a_wrong_configuration_of_it():
  config = config_of()
  with pytest.raises(ConfigError, match="configuration of Net.*one of 'vit'"):
    train(default_config(), "nowhere", data=DATA, model=Net)
  config.pattern = "ff: 1:4"
  with pytest.raises(
    ConfigError, match="pattern: Rule 'ff'.*hidden stands for"
  ):
    build(config, DATA)
  config.pattern, config.model.width = "hidden: 1:4", 3
  with pytest.raises(ConfigError, match="conv/kernel: axis -2 has length 3"):
    build(config, DATA)
