"""The fields of a configuration in the schema, the docs and `--help`."""

import math
import re
from pathlib import Path

import pytest
from flax import traverse_util
from ml_collections import config_dict

from figs_jax import models, recipes
from figs_jax.core import field_names
from figs_jax.core.legal import Either, Integer, Number, Several, Typed
from figs_jax.train import field_help, schema
from figs_jax.train.config import (
  ConfigError,
  completed,
  default_config,
  plain,
  recipe_of,
)
from figs_jax.train.loop import train

from .test_config import NAMES, load

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
OURS = [  # other tests may register theirs
  name
  for name in recipes.names()
  if recipes.function_of(name).__module__.startswith("figs_jax.")
]


@pytest.mark.parametrize("family", models.names())
def test_every_field_has_a_meaning(family):
  for recipe in OURS:
    meanings = field_help.field_meanings(default_config(recipe, family))
    assert [name for name, meaning in meanings.items() if not meaning] == []


OF_KIND = {
  "causal_text": "Causal text",
  "images": "Images",
  "masked_text": "Masked text",
  "text_to_text": "Text",
}


@pytest.mark.parametrize("family", models.names())
def test_the_page_has_every_field_with_its_default_and_meaning(family):
  config = default_config("figs", family)
  meanings = field_help.field_meanings(config)
  of_kind = OF_KIND[models.task_of(family)]
  legal = schema.legal_values(family, "figs")
  shown = {}
  for section in re.split(r"^## ", PAGE, flags=re.MULTILINE):
    title = section.partition("\n")[0]
    if title in ("Every run", of_kind, f"`{family}`"):
      rows = r"^\| `([\w.]+)` \| `(.+?)` \| (.+?) \| (.+) \|$"
      for name, default, *rest in re.findall(rows, section, re.MULTILINE):
        shown[name] = default
        assert rest == [str(legal[name]), meanings[name].removesuffix(".")]
  shown["family"] = repr(family)  # the page has that of the default family
  wanted = {
    name: repr(value)
    for name, value in schema.flat(config.to_dict()).items()
    if not name.startswith("recipe.")
  }
  assert shown == wanted


def test_configurations_share_no_field():
  first, second = default_config("figs"), default_config("figs")
  first.data.data_dir = "here"
  assert second.data.data_dir is None


def test_help_has_every_field_with_its_value():
  config = default_config("figs")
  config.batch_size = 77
  lines = field_help.field_list(config).splitlines()
  assert max(map(len, lines)) <= 80
  heads = [line for line in lines if re.match(r"  \S", line)]
  assert [line.split("=")[0].strip() for line in heads] == list(
    schema.flat(config.to_dict())
  )
  wanted = (
    "  batch_size=77 (an integer in [1, 1048576]): Examples per optimizer"
  )
  assert any(line.startswith(wanted) for line in lines)


def with_value(config, name, value):
  """The fields of a configuration with one replaced, whatever its type."""
  return traverse_util.unflatten_dict(
    schema.flat(config.to_dict()) | {name: value}, sep="."
  )


def kinds(legal):
  """The alternatives of a field's legal values, and their entries'."""
  if isinstance(legal, Either):
    return kinds(legal.first) + kinds(legal.second)
  return [legal.each if isinstance(legal, Several) else legal]


def tree_of_every_config():
  for family in models.names():
    for recipe in OURS:
      yield default_config(recipe, family)
  for name in NAMES:
    yield load(name).get_config()


def test_every_default_is_legal_and_every_number_has_an_interval():
  for config in tree_of_every_config():
    schema.check(config)
    schema.check(plain(config))  # as config.json holds it
    legal = schema.legal_values(config.family, config.recipe.name)
    for name, value in schema.flat(config.to_dict()).items():
      if isinstance(value, (int, float)) and not isinstance(value, bool):
        assert any(isinstance(k, Number) for k in kinds(legal[name])), name


def outside(interval, many):
  """Values beside an interval, of its own and of other types."""
  low, high = interval.ends
  if isinstance(interval, Integer):
    beside = [low - 1, high + 1, float(low), math.nan]
    beside = [v for v in beside if v != interval.special]
    beside += [] if interval.interval[-1] == "]" else [high]
    beside += [3] if interval.powers else []
  else:
    beside = [low - 0.1, high * 1.1 + 0.1, math.nan, math.inf, 10**400]
    beside += [low] if interval.interval[0] == "(" else []
    beside += [high] if interval.interval[-1] == ")" else []
  beside += [True, "1"]
  return [(value,) for value in beside] if many else beside


@pytest.mark.parametrize("family", models.names())
def test_every_number_is_refused_beside_its_interval(family):
  seen = set()
  for recipe in OURS:
    config = default_config(recipe, family)
    for name, legal in schema.legal_values(family, recipe).items():
      if (name, str(legal)) in seen:
        continue
      seen.add((name, str(legal)))
      many = isinstance(legal, Either) and isinstance(legal.second, Several)
      for interval in kinds(legal):
        if isinstance(interval, Typed):
          beside = [1.5]
        elif isinstance(interval, Number):
          beside = outside(interval, many)
        else:
          continue
        for value in beside:
          with pytest.raises(ConfigError) as error:
            schema.check(with_value(config, name, value))
          message = str(error.value)
          assert message.startswith(f"--config.{name}: expected "), message
          assert ", got " in message and "\n" not in message
          assert len(message) < 300


# Options whose numbers the schema alone, or the optimizer, refuses.
LENIENT = ("seed", "threshold", "window")


def test_recipes_refuse_what_the_schema_refuses():
  for recipe in OURS:
    for name, legal in schema.legal_values("vit", recipe).items():
      option = name.removeprefix("recipe.")
      for interval in kinds(legal):
        if name == option or option in LENIENT:
          continue
        if isinstance(interval, Number):
          config = default_config(recipe)
          config.recipe.update({option: interval.ends[0] - 1})
          with pytest.raises(ConfigError, match="expected"):
            recipe_of(config)


# Field, value, words of the line.
ILLEGAL = [
  ("batch_size", None, "an integer in [1, 1048576], got None"),
  ("batch_size", True, "got True"),
  ("batch_size", 0, "got 0"),
  ("seed", None, "got None"),
  ("seed", -1, "got -1"),
  ("seeds", -1, "got -1"),
  ("keep", -1, "got -1"),
  ("total_steps", -1, "got -1"),
  ("log_every", 0, "got 0"),
  ("checkpoint_every", 0, "got 0"),
  ("diagnose_every", -1, "got -1"),
  ("grad_accum_steps", 3, "batch_size: expected a multiple of"),
  ("optimizer.warmup_steps", 1000, "less than total_steps"),
  ("optimizer.learning_rate", -1.0, "[0, 1000], got -1.0"),
  ("optimizer.learning_rate", math.inf, "got inf"),
  ("optimizer.learning_rate", math.nan, "got nan"),
  ("optimizer.b2", 2.0, "[0, 1), got 2.0"),
  ("optimizer.b2", 1 - 1e-9, "[0, 1), got 0.999999999"),  # 1 in float32
  ("optimizer.eps", -1.0, "(0, 1], got -1.0"),
  ("optimizer.eps", 1e-50, "got 1e-50"),  # 0 in float32
  ("optimizer.weight_decay", math.nan, "got nan"),
  ("optimizer.clip", -1.0, "got -1.0"),
  ("label_smoothing", 1.5, "got 1.5"),
  ("mixup", -1.0, "got -1.0"),
  ("ema_decay", 1.0, "got 1.0"),
  ("mesh.data", 0, "-1 or an integer in [1, 65536], got 0"),
  ("mesh.fsdp", -2, "got -2"),
  ("model.dropout", 1.5, "got 1.5"),
  ("model.mlp_dim", 0, "None or an integer in"),
  ("model.depth", 10**6, "[1, 512], got 1000000"),
  ("model.width", 10**9, "got 1000000000"),
  ("model.dtype", "bf16", "got 'bf16'; did you mean 'bfloat16'?"),
  ("model.dtype", "int8", "'float32', 'bfloat16', 'float16', got 'int8'"),
  ("recipe.k", 3, "a power of two in"),
  ("allow_change", "seed", "a tuple of"),
  ("data.image_size", 4096, "use a larger patch"),
]


@pytest.mark.parametrize(("name", "value", "words"), ILLEGAL)
def test_illegal_fields_from_python_leave_no_trace(
  tiny_config, tmp_path, name, value, words
):
  config = tiny_config("figs", **{"variant": "custom/1"})
  tree = with_value(config, name, value)
  workdir = tmp_path / "run"
  with pytest.raises(ConfigError) as error:
    train(config_dict.ConfigDict(tree), workdir)
  message = str(error.value)
  assert words in message and "\n" not in message
  assert message.startswith("--config.")
  assert not workdir.exists()


@pytest.mark.parametrize(
  ("family", "word", "meant"),
  [
    ("vit", "bf16", "bfloat16"),
    ("vit", "fp16", "float16"),
    ("vit", "half", "float16"),
    ("vit", "float15", "float16"),
    ("vit", "float64", "float32"),
    ("vit", "float8_e4m3fn", "bfloat16"),
    ("vit", "Bfloat16", "bfloat16"),
    ("t5", "float16", "bfloat16"),
    ("t5", "half", "bfloat16"),
    ("t5", "fp32", "float32"),
  ],
)
def test_words_for_a_dtype(family, word, meant):
  tree = with_value(default_config("ste", family), "model.dtype", word)
  with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
    schema.check(tree)


@pytest.mark.parametrize(
  ("name", "meant"),
  [
    ("lr", "optimizer.learning_rate"),
    ("optimizer.lr", "optimizer.learning_rate"),
    ("batch", "batch_size"),
    ("batchsize", "batch_size"),
    ("learning_rate", "optimizer.learning_rate"),
    ("epochs", r"total_steps \(epochs \* examples // batch_size\)"),
    ("num_epochs", "total_steps"),
    ("dropout", "model.dropout"),
    ("bete", "--help"),
  ],
)
def test_an_unknown_field_names_at_most_five_others(name, meant):
  hint = field_names.near(name, schema.legal_values("vit", "figs"))
  assert re.search(meant, hint)
  assert hint.count(",") < 5


@pytest.mark.parametrize(
  "saved",
  [
    None,
    [],
    {},
    {"family": "vit"},
    {"family": "vit", "recipe": "figs"},
    {"family": 3, "recipe": {"name": "figs"}},
    {"family": [], "recipe": {"name": "figs"}},
    {"family": "vit", "recipe": {"name": {}}},
    {"family": "vit", "recipe": {"name": "figs"}, "optimizer": 3},
    {"family": "vit", "recipe": {"name": "figs"}, "seed": {"a": 1}},
    {"family": "vit", "recipe": {"name": "figs"}, "of_later": 3},
    {"family": "vit", "recipe": {"name": "figs"}, "seed": "3"},
    {"family": "vit", "recipe": {"name": "figs"}, "model": {"depth": 10**6}},
  ],
)
def test_a_saved_configuration_that_is_none(saved, unchecked):
  with pytest.raises(ConfigError) as error:
    schema.check(completed(saved))
  assert "\n" not in str(error.value)


def test_check_names_a_missing_field():
  tree = default_config("ste").to_dict()
  del tree["optimizer"]["b1"]
  with pytest.raises(ConfigError, match="optimizer.b1: missing"):
    schema.check(tree)


@pytest.mark.parametrize(
  ("field", "value"), [("label_smoothing", 0.1), ("data.pack", True)]
)
def test_scores_refuse_what_is_of_tokens_and_classes(field, value):
  config = default_config("figs", "bert")
  config.update_from_flattened_dict({"loss": "mse", field: value})
  with pytest.raises(ConfigError, match=rf"--config\.{field}: expected .*mse"):
    schema.check(config)
