"""The fields of a configuration in the schema, the docs and `--help`."""

import re
from pathlib import Path

import pytest

from figs_jax import models, recipes
from figs_jax.train import schema
from figs_jax.train.config import default_config, reads_text

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
OURS = [  # other tests may register theirs
  name
  for name in recipes.names()
  if recipes.function_of(name).__module__.startswith("figs_jax.")
]


@pytest.mark.parametrize("family", models.names())
def test_every_field_has_a_meaning(family):
  for recipe in OURS:
    meanings = schema.field_meanings(default_config(recipe, family))
    assert [name for name, meaning in meanings.items() if not meaning] == []


@pytest.mark.parametrize("family", models.names())
def test_the_page_has_every_field_with_its_default(family):
  config = default_config("figs", family)
  of_kind = "Text" if reads_text(family) else "Images"
  shown = {}
  for section in re.split(r"^## ", PAGE, flags=re.MULTILINE):
    title = section.partition("\n")[0]
    if title in ("Every run", of_kind, f"`{family}`"):
      rows = r"^\| `([\w.]+)` \| `(.+?)` \| .+ \|$"
      shown |= re.findall(rows, section, re.MULTILINE)
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
  lines = schema.field_list(config).splitlines()
  assert max(map(len, lines)) <= 80
  heads = [line for line in lines if re.match(r"  \S", line)]
  assert [line.split("=")[0].strip() for line in heads] == list(
    schema.flat(config.to_dict())
  )
  assert (
    "  batch_size=77: Examples per optimizer step, over all devices." in lines
  )
