"""A recipe's timeline as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from figs_jax.recipes.stage_schedule import Once

if TYPE_CHECKING:
  from figs_jax.recipes.recipe import Recipe


def described(recipe: Recipe) -> str:
  """The table that `Recipe.describe` prints."""
  line = recipe.timeline
  rows = [("steps", "phase", "pattern", "leak", "gradient")]
  edges = _edges(recipe)
  spans: list[tuple[int, int, tuple[str, ...]]] = []
  for first, end in zip(edges, edges[1:]):
    cells = _row(recipe, first, end - 1)
    if spans and spans[-1][2] == cells:  # nothing happens at this edge
      spans[-1] = (spans[-1][0], end - 1, cells)
    else:
      spans.append((first, end - 1, cells))
  rows += [(f"{first}..{last}", *cells) for first, last, cells in spans]
  widths = [max(len(row[i]) for row in rows) for i in range(4)]
  text = [f"{recipe.name}: {recipe.pattern}, {recipe.total_steps} steps"]
  for *cells, last in rows:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths))
    text.append("  ".join(("", *padded, last)))
  if recipe.sparse:
    text += [f"  {line}" for line in _remarks(recipe)]
  if line.switch is not None:
    text.append(
      "  the optimizer switches; the first masked step lies in"
      f" {line.switch.t_min + 1}..{line.switch.t_max + 1} (shown: the last)"
    )
  return "\n".join(text)


def _remarks(recipe: Recipe) -> list[str]:
  """Lines below the table: masks, gradient and optimizer."""
  due, flow = recipe.timeline.due, recipe.flow
  lines = [f"masks: {_named(recipe.criterion)}"]
  often = "" if isinstance(due, Once) else f"{_named(due)} and "
  lines.append(f"masks are recomputed {often}at each new stage")
  if flow.soft:
    lines.append("kept weights are soft-thresholded and rescaled (S-STE)")
  if flow.decay is not None:
    lines.append(f"backward pass: {flow.decay:g} * pruned w added")
  if flow.mvue is not None:
    lines.append(f"weight gradient: from an unbiased {flow.mvue} estimate")
  return lines + [f"optimizer: {need}" for need in recipe.needs]


def _edges(recipe: Recipe) -> list[int]:
  """Steps at which a line of the table begins, and the end of the run."""
  line = recipe.timeline
  edges = {0, line.dense_end, line.finetune_start, line.total_steps}
  if line.switch is not None:
    edges = {0, line.switch.t_max + 1, line.finetune_start, line.total_steps}
  else:
    edges |= {at for s in recipe.lengths for at in line.boundaries(s)}
    edges.add(getattr(recipe.leak, "end", 0))
  return sorted(edge for edge in edges if edge <= line.total_steps)


def _row(recipe: Recipe, first: int, last: int) -> tuple[str, str, str, str]:
  leaks = [f"{recipe.leak_at(step):.4g}" for step in (first, last)]
  moment = recipe.at(first, recipe.timeline.switched_by(first))
  dense = int(moment.stage) == 0
  if dense:
    phase = "dense"
  elif first >= recipe.timeline.finetune_start:
    phase = "fine-tune"
  else:
    phase = "sparse"
  return (
    phase,
    str(recipe.pattern_at(first)),
    leaks[0] if leaks[0] == leaks[1] else "..".join(leaks),
    "all kept" if dense else recipe.grad_mode,
  )


def _named(part: Any) -> str:
  """A part of a recipe in words; a plain function by its name."""
  name = getattr(part, "__name__", None)
  return str(part) if name is None else f"as {name}() has it"
