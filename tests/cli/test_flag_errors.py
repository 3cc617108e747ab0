"""Names that other programs use, and lines for flags that cannot be read."""

import pytest
from absl import flags

from figs_jax import models
from figs_jax.cli import flag_errors
from figs_jax.core import field_names
from figs_jax.train.schema import legal_values

KNOWN = {
  name: legal
  for family in models.names()
  for name, legal in legal_values(family, "figs").items()
}


@pytest.mark.parametrize(
  ("names", "field"),
  [
    ("lr base_lr max_lr optimizer.lr", "optimizer.learning_rate"),
    ("wd l2 weight-decay", "optimizer.weight_decay"),
    ("bs batch per_device_train_batch_size", "batch_size"),
    (
      "epochs num_train_epochs",
      "total_steps (epochs * examples // batch_size)",
    ),
    ("steps max_steps n_iters", "total_steps"),
    ("sparsity target_sparsity n", "pattern (rules such as 'ff: 2:4')"),
    ("dropout_rate hidden_dropout_prob", "model.dropout"),
    ("arch model_name backbone", "family, variant"),
    ("gpus num_gpus world_size", "mesh.data, mesh.fsdp"),
    ("warmup warmup_ratio num_warmup_steps", "optimizer.warmup_steps"),
    ("betas momentum", "optimizer.b1"),
    ("max_grad_norm clip_grad", "optimizer.clip"),
    ("fp16 amp torch_dtype", "model.dtype"),
    ("resume pretrained ckpt_path", "init_from"),
    ("num_workers", "data.workers"),
    ("num_hidden_layers", "model.depth"),
  ],
)
def test_a_field_is_known_by_what_others_call_it(names, field):
  for name in names.split():
    assert field_names.near(name, KNOWN) == f"; did you mean {field}?"


def test_every_meant_field_exists_and_every_word_means_one():
  words = [w for each in field_names._MEANT.values() for w in each.split()]
  words += [w for each in field_names._ELSEWHERE for w in each.split()]
  assert len(words) == len(set(words))
  ends = {name.rpartition(".")[2] for name in KNOWN}
  assert not {word for word in words if "_" in word} & ends
  for fields in field_names._MEANT:
    later = {"optimizer.name"}  # with other optimizers than AdamW
    assert set(fields.split()) - later <= set(KNOWN)


def test_what_is_no_field_is_said():
  assert "JAX_PLATFORMS" in field_names.near("device", KNOWN)
  assert "--workdir" in field_names.near("output_dir", KNOWN)
  assert field_names.near("qqq", KNOWN) == "; --help lists all fields"


@pytest.fixture
def program(monkeypatch):
  """The flags of a small program, in the place of absl's own."""
  values = flags.FlagValues()
  monkeypatch.setattr(flags, "FLAGS", values)
  for define, *args in (
    (flags.DEFINE_string, "workdir", None, ""),
    (flags.DEFINE_integer, "steps", 1, ""),
    (flags.DEFINE_enum, "format", "text", ["text", "json"], ""),
    (flags.DEFINE_bool, "ema", False, ""),
  ):
    define(*args, flag_values=values, module_name="small.py")
  return values


@pytest.mark.parametrize(
  ("word", "line"),
  [
    ("--epochs=3", "--epochs: unknown flag; did you mean --steps?"),
    ("--output_dir=a", "--output_dir: unknown flag; did you mean --workdir?"),
    ("--formt=a", "--formt: unknown flag; did you mean --format?"),
    (
      "--lr=1",
      "--lr: unknown flag; did you mean --config.optimizer.learning_rate?",
    ),
    ("--steps=x", "--steps: expected an integer, got 'x'"),
    (
      "--format=jsn",
      "--format: expected one of 'text', 'json', got 'jsn'; did you mean"
      " 'json'?",
    ),
    ("--ema=maybe", "--ema: expected True or False, got 'maybe'"),
  ],
)
def test_a_flag_that_cannot_be_read(program, word, line):
  with pytest.raises(flags.Error) as error:
    program(["small.py", word])
  assert flag_errors.unread(error.value, KNOWN) == line


@pytest.mark.parametrize(
  ("text", "line"),
  [
    (
      "flag --config.optimizer=lion: Failed",
      "--config.optimizer: expected one of its fields, as in"
      " --config.optimizer.learning_rate=VALUE, got 'lion'",
    ),
    (
      "flag --config.data=cifar10: Failed",
      "--config.data: expected one of its fields, as in"
      " --config.data.name=cifar10, got 'cifar10'",
    ),
    (
      "flag --config.recipe=ste: Failed",
      "--config.recipe=ste: expected the recipe after the file, as in"
      " --config=FILE:ste",
    ),
    (
      "flag --config.batch_size=1e3: invalid literal",
      "--config.batch_size: expected an integer in [1, 1048576], got '1e3'",
    ),
  ],
)
def test_a_field_that_cannot_be_read(text, line):
  assert flag_errors.unread(flags.Error(text), KNOWN) == line
