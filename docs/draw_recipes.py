"""Renews the pictures, tables and signatures that come from the recipes' code.

    python docs/draw_recipes.py

draws docs/recipes/NAME.png for every section "## `NAME`" of docs/recipes_*.md
and all of them in docs/recipes/all.png, rewrites the text between the markers
`<!-- begin ... -->` and `<!-- end -->` (tables of options and fields, and files
shown as code), and writes figs_jax/recipes/__init__.pyi. Every picture contains
its data, so that a test can tell whether it is out of date. Needs matplotlib:
`pip install 'figs_jax[plots]'`.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, PngImagePlugin

from figs_jax import recipes
from figs_jax.data.fields import CAUSAL_TEXT, MASKED_TEXT, TEXT
from figs_jax.recipes import listing, registry
from figs_jax.recipes.docstrings import entries
from figs_jax.recipes.picture import draw, timeline_table
from figs_jax.train.config import default_config
from figs_jax.train.field_help import field_meanings
from figs_jax.train.schema import (
  IMAGES,
  RECIPE,
  SHARED,
  flat,
  legal_values,
)

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
PICTURES = ROOT / "docs" / "recipes"
PATTERN, STEPS, COLUMNS = "1:8", 1000, 4
_BLOCK = re.compile(r"(<!-- begin (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def documented(page: str) -> list[str]:
  """The recipes that have a section, in the order of the page."""
  return re.findall(r"^## `(\w+)`", page, re.MULTILINE)


def stamp(recipe: recipes.Recipe) -> str:
  """The data of a picture as JSON: the table at 41 steps of the run."""
  steps = np.linspace(0, recipe.total_steps - 1, 41).round().astype(int)
  table = timeline_table(recipe, steps)
  shown = {
    name: np.asarray(value).tolist()
    if np.asarray(value).dtype.kind not in "f"
    else np.asarray(value, float).round(4).tolist()
    for name, value in table._asdict().items()
    if name not in ("targets", "refresh")
  }
  return json.dumps(shown | {"gradient": recipe.grad_mode})


def save(figure: Figure, path: Path, text: str) -> None:
  """Writes a PNG of few colours that contains a text."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png")
  picture = Image.open(buffer).convert("RGB")
  info = PngImagePlugin.PngInfo()
  info.add_text("Timeline", text, zip=True)
  small = picture.quantize(256, dither=Image.Dither.NONE)
  small.save(path, optimize=True, pnginfo=info)


def overview(names: list[str]) -> Figure:
  """All recipes in one figure with one legend."""
  rows = -(-len(names) // COLUMNS)
  figure = Figure(
    figsize=(2.5 * COLUMNS, 1.45 * rows + 0.4), dpi=105, layout="constrained"
  )
  grid = figure.subplots(rows, COLUMNS, sharey=True, squeeze=False)
  handles: dict[str, Any] = {}
  for ax, name in zip(grid.flat, names):
    draw(recipes.create(name, PATTERN, STEPS), ax)
    ax.set_title("", loc="right")
    ax.set_xticks([0, STEPS // 2, STEPS])
    lines, labels = ax.get_legend_handles_labels()
    if recipes.create(name, PATTERN, STEPS).points is None:
      handles |= dict(zip(labels, lines))  # else a density of each point
  handles = dict(sorted(handles.items(), key=lambda one: "phase" in one[0]))
  for ax in grid.flat[len(names) :]:
    ax.set_axis_off()
  figure.legend(
    handles.values(), handles, loc="outside upper center", ncols=len(handles),
    frameon=False, fontsize=9,
  )  # fmt: skip
  return figure


def options_table(name: str) -> str:
  """A recipe's options; common ones only if their default differs."""
  common, meanings = registry.COMMON, listing.meanings(name)
  rows = {
    key: (default, meanings[key])
    for key, default in recipes.options(name).items()
    if key not in common or common[key] != default
  }
  return _table(rows) if rows else "No options of its own.\n"


def fields_table(name: str) -> str:
  """Fields of a configuration: of a task, "shared", or "model FAMILY"."""
  tables = {
    "shared": (SHARED, "vit"),
    "images": (IMAGES, "vit"),
    "text": (TEXT, "t5"),
    "masked text": (MASKED_TEXT, "bert"),
    "causal text": (CAUSAL_TEXT, "gpt2"),
  }
  if name in tables:
    fields, family = tables[name]
    shown, config = list(fields), default_config(family=family)
  else:
    config = default_config(family=name.removeprefix("model "))
    shown = [key for key in flat(config.to_dict()) if key.startswith("model.")]
  values, texts = flat(config.to_dict()), field_meanings(config)
  legal = legal_values(config.family, config.recipe.name)
  lines = ["| field | default | legal | meaning |", "|---|---|---|---|"]
  for key in shown:
    text = texts[key].rstrip(".;").replace("|", r"\|")
    lines.append(f"| `{key}` | `{values[key]!r}` | {legal[key]} | {text} |")
  return "\n".join(lines) + "\n"


def recipe_numbers() -> str:
  """The legal numbers of the recipes' options."""
  lines = ["| option | legal |", "|---|---|"]
  lines += [f"| `recipe.{key}` | {legal} |" for key, legal in RECIPE.items()]
  return "\n".join(lines) + "\n"


def common_table() -> str:
  """The options of every recipe."""
  meanings = entries(registry.plain_recipe.__doc__)
  common = registry.COMMON.items()
  return _table({key: (default, meanings[key]) for key, default in common})


def _table(rows: dict[str, tuple[Any, str]]) -> str:
  lines = ["| option | default | meaning |", "|---|---|---|"]
  for key, (default, text) in rows.items():
    if not text:
      raise ValueError(f"docs: no docstring documents {key!r}")
    text = text.rstrip(".;").replace("|", r"\|")
    lines.append(f"| `{key}` | `{default!r}` | {text} |")
  return "\n".join(lines) + "\n"


def generated(what: str) -> str:
  """The text that belongs after `<!-- begin WHAT -->`.

  Raises:
    ValueError: If WHAT is unknown.
  """
  kind, _, name = what.partition(" ")
  if what == "options of every recipe":
    return common_table()
  if kind == "options":
    return options_table(name)
  if what == "recipe numbers":
    return recipe_numbers()
  if kind == "fields":
    return fields_table(name)
  if kind == "file":
    return f"```python\n{(ROOT / name).read_text().strip()}\n```\n"
  raise ValueError(f"docs: cannot generate {what!r}")


def renewed(page: str) -> str:
  """The page with its generated parts renewed."""
  return _BLOCK.sub(lambda m: m[1] + generated(m[2]) + m[3], page)


def main() -> None:
  matplotlib.rcParams["font.family"] = "DejaVu Sans"
  names = []
  for path in PAGES:
    page = path.read_text()
    if path.name.startswith("recipes_"):
      names += documented(page)
    if renewed(page) != page:
      path.write_text(renewed(page))
  stub = Path(recipes.__file__).with_suffix(".pyi")
  stub.write_text(listing.stub())
  PICTURES.mkdir(exist_ok=True)
  stamps = {}
  for name in names:
    recipe = recipes.create(name, PATTERN, STEPS)
    stamps[name] = stamp(recipe)
    save(draw(recipe).figure, PICTURES / f"{name}.png", stamps[name])
  save(overview(names), PICTURES / "all.png", json.dumps(stamps))


if __name__ == "__main__":
  main()
