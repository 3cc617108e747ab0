"""Distillation: Hinton's loss in NumPy, and runs that have a teacher."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import figs_jax as figs
from figs_jax.core.tree import flatten
from figs_jax.data.labels import IGNORED
from figs_jax.models.pretrained.config import for_transformers
from figs_jax.models.pretrained.files import write_weights
from figs_jax.train import losses
from figs_jax.train.checkpoint import named_leaves
from figs_jax.train.config import ConfigError, default_config
from figs_jax.train.experiment import build
from figs_jax.train.log_writer import read_log
from figs_jax.train.loop import train
from figs_jax.train.state import TrainState, train_step, update
from figs_jax.train.teacher import Source, taught
from figs_jax.train.workdir import restore
from tests.models.families import TINY, create

pytestmark = pytest.mark.standard_promotion
KEY = jax.random.key(0)


class Linear(nnx.Module):
  """Logits of images, or of every target token; dropout while training."""

  def __init__(self, seed, classes=5, rate=0.0):
    rngs = nnx.Rngs(seed)
    self.out = nnx.Linear(4, classes, rngs=rngs)
    self.drop = nnx.Dropout(rate, rngs=rngs)

  def __call__(self, inputs, targets=None):
    if targets is not None:
      inputs = jax.nn.one_hot(targets, 4) + inputs.mean()
    return self.out(self.drop(inputs))


def images(size=6):
  rng = np.random.default_rng(0)
  labels = np.array([0, 3, IGNORED, 1, 2, 4])[:size]
  image = rng.normal(size=(size, 4)).astype(np.float32)
  return {"image": jnp.asarray(image), "label": jnp.asarray(labels)}


def torch_kl(teacher, student, temperature):
  """T² kl_div(log_softmax(s / T), softmax(t / T)) of torch, for each row."""
  p, q = (np.float64(logits) / temperature for logits in (teacher, student))
  p, q = (z - np.log(np.exp(z).sum(-1, keepdims=True)) for z in (p, q))
  return temperature**2 * (np.exp(p) * (p - q)).sum(-1)


def test_the_loss_is_that_of_torch_over_counted_images():
  student, teacher, batch = Linear(0), Linear(1, rate=0.9), images()
  loss, metrics = losses.distill(teacher, 3.0, 0.7)(student, batch, KEY)
  teacher.eval()
  kept = np.asarray(batch["label"]) != IGNORED
  x = batch["image"]
  soft = torch_kl(teacher(x), student(x), 3.0)[kept].mean()
  hard = float(losses.cross_entropy(student, batch, KEY)[0].value)
  assert float(loss.value) == pytest.approx(0.3 * hard + 0.7 * soft, rel=1e-5)
  assert float(metrics["teacher_loss"].value) == pytest.approx(soft, rel=1e-5)
  assert float(metrics["label_loss"].value) == pytest.approx(hard, rel=1e-6)


def test_padding_and_ignored_tokens_have_no_teacher():
  student, teacher = Linear(0), Linear(1)
  targets = jnp.array([[1, 3, 0, 0], [2, 1, IGNORED, 3]])
  batch = {"inputs": jnp.ones((2, 3), jnp.int32), "targets": targets}
  loss, _ = losses.distill(teacher, 2.0, 1.0)(student, batch, KEY)
  shown = jnp.where(targets == IGNORED, 0, targets)
  logits = [net(batch["inputs"], shown) for net in (teacher, student)]
  counted = (targets > 0) & (targets != IGNORED)
  wanted = torch_kl(*logits, 2.0)[np.asarray(counted)].mean()
  assert float(loss.value) == pytest.approx(wanted, rel=1e-5)


def gradient(loss, model, batch):
  graphdef, params, rest = nnx.split(model, nnx.Param, ...)

  def value(params):
    return loss(nnx.merge(graphdef, params, rest), batch, KEY)[0].value

  return flatten(nnx.to_pure_dict(jax.grad(value)(params)))


def test_a_student_that_is_its_teacher_has_no_gradient():
  model, batch = Linear(0), images()
  for leaf in gradient(losses.distill(model, 4.0, 1.0), model, batch).values():
    np.testing.assert_allclose(leaf, 0, atol=1e-6)
  other = gradient(losses.distill(Linear(1), 4.0, 1.0), model, batch)
  assert all(np.abs(leaf).max() > 1e-3 for leaf in other.values())


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_weight_0_is_the_plain_loss_bit_for_bit(weight):
  """Also of mixed images, whose draws and shares are the same."""
  mixed = losses.MixedCrossEntropy(5, mixup=0.5, smoothing=0.1)
  loss = losses.distill(Linear(1), 2.0, weight, loss=mixed)
  ours, plain = (gradient(each, Linear(0), images()) for each in (loss, mixed))
  same = [np.array_equal(ours[path], plain[path]) for path in plain]
  assert all(same) if weight == 0 else not any(same)


def make(loss, **options):
  recipe = figs.recipes.create("ste", "2:4", total_steps=10, dense=0.0)
  # The head's 5 outputs need no groups: they lie on the 4 inputs.
  model = figs.sparsify(Linear(0), recipe)
  return TrainState.create(
    model, recipe, recipe.transform(optax.sgd(0.1)), loss=loss, **options
  )


def test_the_teacher_is_an_argument_of_one_compiled_step():
  loss = losses.distill(Linear(1), 2.0, 0.5)
  before = jax.tree.map(np.asarray, loss.constants["out"])
  state = make(loss)
  text = jax.jit(update).lower(state, images(), loss.constants).as_text()
  inside = jax.jit(update).lower(make(losses.cross_entropy), images()).as_text()
  arrays = len(jax.tree.leaves(loss.constants["out"]))
  count = lambda text: text.split("@main(")[1].split(") ->")[0].count("%arg")  # noqa: E731
  assert count(text) == count(inside) + arrays
  names = named_leaves(state)
  assert names.keys() == named_leaves(make(losses.cross_entropy)).keys()
  for _ in range(2):
    state, metrics = train_step(state, images())
  assert {"label_loss", "teacher_loss"} < metrics.keys()
  jax.tree.map(np.testing.assert_array_equal, loss.constants["out"], before)
  assert state.loss == loss


def test_micro_batches_give_the_whole_batch():
  """The counts of labels differ: 2 of 3 in one micro-batch, 3 in the other."""
  loss = losses.distill(Linear(1), 2.0, 0.5)
  (one, a), (two, b) = (
    train_step(make(loss, grad_accum_steps=count), images()) for count in (1, 2)
  )
  assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-6)
  wanted, got = (flatten(state.params) for state in (one, two))
  for path in wanted:
    np.testing.assert_allclose(got[path], wanted[path], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
  "options, message",
  [
    ({"teacher": 3}, "teacher: expected an nnx.Module, .* got a int"),
    ({"temperature": 0}, "temperature: expected T > 0, got 0"),
    ({"temperature": float("nan")}, "temperature: expected T > 0, got nan"),
    ({"weight": 1.5}, r"weight: expected a share in \[0, 1\], got 1.5"),
    ({"loss": lambda *_: 0}, "loss: expected a .*LogitLoss.*kl_divergence"),
  ],
)
@pytest.mark.usefixtures("unchecked")
def test_arguments_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    losses.distill(**{"teacher": Linear(1)} | options)


def test_other_classes_are_refused():
  loss = losses.distill(Linear(1, classes=7))
  with pytest.raises(ValueError, match=r"shape \[6, 5\], .*got \[6, 7\]"):
    loss(Linear(0), images(), KEY)


RUN = {
  "total_steps": 4,
  "checkpoint_every": 2,
  "log_every": 1,
  "diagnose_every": 0,
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tiny_config):
  """Workdir of a dense run with two seeds."""
  workdir = tmp_path_factory.mktemp("teacher")
  train(tiny_config("dense", **RUN | {"total_steps": 2}, seeds=2), workdir)
  return workdir


@pytest.fixture(scope="module")
def distilled(tmp_path_factory, tiny_config, teacher):
  """Workdir of a run of two seeds, and its configuration."""
  workdir = tmp_path_factory.mktemp("student")
  config = tiny_config(
    "sr_ste", **RUN, seeds=2, teacher=str(teacher), **{"mixup": 0.2}
  )
  train(config, workdir)
  return workdir, config


def with_fields(config, **changes):
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(changes)
  return config


def test_a_run_saves_no_teacher_but_its_hash(distilled):
  workdir, config = distilled
  saved = json.loads((workdir / "config.json").read_text())
  assert len(saved["teacher_sha256"]) == 64
  rows = [row for row in read_log(workdir) if "teacher_loss" in row]
  for row in rows:
    both = 0.5 * row["label_loss"] + 0.5 * row["teacher_loss"]
    assert row["loss"] == pytest.approx(both, rel=1e-5)
  assert len(rows) == RUN["total_steps"]
  plain = build(with_fields(config, teacher=""))
  saved = restore(workdir)[1]
  assert named_leaves(saved).keys() == named_leaves(plain.abstract_state).keys()


def test_a_stopped_run_goes_on_bit_for_bit(distilled, teacher, tmp_path):
  """Its teacher may have moved, but not changed."""
  workdir, config = distilled
  moved = tmp_path / "moved"
  shutil.copytree(teacher, moved)
  part = tmp_path / "part"
  shutil.copytree(workdir, part)
  for path in (part / "checkpoints").iterdir():
    if path.name.isdigit() and int(path.name) > 2:
      shutil.rmtree(path)
  config = with_fields(config, teacher=str(moved))
  assert int(restore(part)[1].step) == 2
  train(config, part)
  whole, resumed = (named_leaves(restore(run)[1]) for run in (workdir, part))
  assert int(resumed["step"]) == 4
  for name, leaf in whole.items():
    np.testing.assert_array_equal(resumed[name], leaf, err_msg=name)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"teacher": ""}, "expected a teacher of SHA-256 .*, got no teacher"),
    ({"distill.seed": 1}, "expected a teacher of SHA-256 .*, got a teacher of"),
    ({"distill.weight": 0.2}, "started with another distill.weight"),
  ],
)
def test_another_teacher_is_refused(distilled, change, message):
  workdir, config = distilled
  with pytest.raises(ConfigError, match=message):
    train(with_fields(config, **change), workdir)


def changed(tiny_config, teacher, **overrides):
  return tiny_config("dense", **RUN, teacher=str(teacher), **overrides)


@pytest.mark.parametrize(
  "overrides, message",
  [
    ({"data.image_size": 12}, r"inputs of shape \[2, 12, 12, 1\]"),
    ({"data.mean": "0.3", "data.std": "0.2"}, "a run with data.mean=0.3"),
    ({"loss": "bce"}, "--config.loss: expected softmax with a teacher"),
    ({"distill.seed": 5}, "--config.teacher: .*expected 0 to 1, got seed=5"),
  ],
)
def test_a_teacher_that_does_not_fit_is_refused(
  tiny_config, teacher, tmp_path, overrides, message
):
  config = changed(tiny_config, teacher, **overrides)
  with pytest.raises(ConfigError, match=message) as error:
    train(config, tmp_path / "run")
  assert "\n" not in str(error.value)
  assert not (tmp_path / "run").exists()


def published(folder, **options):
  """A directory for `from_pretrained` with a small ViT."""
  sizes = {"width": 8, "depth": 1, "heads": 2, "mlp_dim": 8, "in_channels": 1}
  return written(
    folder, figs.models.create("vit", "custom/4", **sizes | options)
  )


def written(folder, model):
  """The directory of a model for `from_pretrained`."""
  made = for_transformers(model)
  folder.mkdir()
  write_weights(f"{folder}/model.safetensors", made.tensors)
  (folder / "config.json").write_text(json.dumps(made.config))
  return folder


def test_published_weights_teach(tiny_config, tmp_path):
  path = published(tmp_path / "vit", image_size=8, num_classes=10)
  train(changed(tiny_config, path), tmp_path / "run")
  assert any("teacher_loss" in row for row in read_log(tmp_path / "run"))


def test_other_classes_or_nothing_at_the_path_are_refused(
  tiny_config, tmp_path
):
  path = published(tmp_path / "vit", image_size=8, num_classes=7)
  with pytest.raises(ConfigError, match=r"\[2, 10\].*got \[2, 7\]"):
    train(changed(tiny_config, path), tmp_path / "run")
  with pytest.raises(ConfigError, match="--config.teacher: .*nowhere"):
    train(changed(tiny_config, tmp_path / "nowhere"), tmp_path / "run")


@pytest.mark.parametrize(
  "vocab, saved, message",
  [
    (50, {}, r"logits of shape \[2, 5, 384\].*got \[2, 5, 50\]"),
    (384, {"data.vocabulary": "other.model"}, "data.vocabulary=bytes, as this"),
    (384, {"data.vocabulary": "bytes"}, None),
  ],
)
def test_text_needs_the_vocabulary_of_the_teacher(vocab, saved, message):
  sizes = {"width": 16, "depth": 1, "heads": 2, "head_dim": 8, "mlp_dim": 32}
  config = default_config("dense", "t5")
  config.variant = "custom"
  config.model.update(sizes)
  config.data.input_length = 16
  model = figs.models.create(
    "t5", "custom", vocab=vocab, input_length=16, target_length=5, **sizes
  )
  shared = {"data.name": config.data.name} | saved if saved else {}
  source = Source("t5", losses.Teacher(model), "ab" * 32, shared)
  if message is None:
    experiment = taught(build(config), source)
    assert experiment.distill.loss == experiment.task.loss
    assert experiment.config.teacher_sha256 == "ab" * 32
    return
  with pytest.raises(ConfigError, match=message):
    taught(build(config), source)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "vit"])
def test_the_loss_of_labels_is_that_of_the_family(family):
  tiny, model = TINY[family], create(family, depth=1)
  model.eval()
  batch = tiny.batch(2)
  got, metrics = losses.distill(model)(model, batch, KEY)
  wanted, _ = tiny.loss(model, batch, KEY)
  np.testing.assert_allclose(metrics["label_loss"].value, wanted.value)
  np.testing.assert_allclose(got.value, wanted.value / 2, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_language_models_teach(family, tmp_path):
  """A student that starts as its teacher has nothing to learn from it."""
  rows = ({"text": f"text {i}", "label": i % 2} for i in range(20))
  file = tmp_path / "a.jsonl"
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  sizes = {"width": 16, "depth": 1, "heads": 2, "vocab": 384, "length": 12}
  path = written(
    tmp_path / "teacher", figs.models.create(family, "custom", **sizes)
  )
  config = default_config("dense", family)
  config.teacher = config.init_from = str(path)
  config.total_steps = config.checkpoint_every = 2
  config.batch_size, config.log_every, config.diagnose_every = 4, 1, 0
  config.progress, config.model.dropout = False, 0.0
  config.data.update({"name": f"text:{file}", "input_length": 12})
  if family == "bert":
    config.data.objective, config.model.attention_dropout = "masked", 0.0
  train(config, tmp_path / "run")
  first, second = (r for r in read_log(tmp_path / "run") if "label_loss" in r)
  assert first["teacher_loss"] == pytest.approx(0, abs=1e-5)
  assert second["teacher_loss"] > 1e-5
  assert first["label_loss"] > 1
  for row in (first, second):
    both = 0.5 * row["label_loss"] + 0.5 * row["teacher_loss"]
    assert row["loss"] == pytest.approx(both, rel=1e-5)
  # Labels are another task than its head was made for.
  if family == "bert":
    config.data.objective, config.init_head = "labels", "fresh"
    with pytest.raises(ConfigError, match=r"\[2, 2\].*got \[2, 12, 384\]"):
      train(config, tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize(
  "ways",
  [
    ({}, {"mesh.data": 2, "mesh.fsdp": 2}),
    ({"seeds": 2, "seeds_mode": "map"}, {"seeds": 2, "seeds_mode": "vmap"}),
  ],
)
def test_a_mesh_or_vmap_gives_the_same_losses(
  tiny_config, teacher, tmp_path, ways
):
  """The teacher is split over fsdp like parameters, and shared by seeds."""
  rows = []
  for number, fields in enumerate(ways):
    run = tmp_path / f"run{number}"
    train(changed(tiny_config, teacher, **fields), run)
    rows.append([r["loss"] for r in read_log(run) if "teacher_loss" in r])
  np.testing.assert_allclose(*rows, rtol=1e-4)
