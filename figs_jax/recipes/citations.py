"""BibTeX for the methods of a run: recipes and engines."""

from __future__ import annotations

from figs_jax.core.rules import nearest
from figs_jax.recipes.bibliography import bibtex
from figs_jax.recipes.recipe import Recipe
from figs_jax.recipes.registry import create

# First word of an engine's spec -> its sources.
ENGINES = {
  "csr": ("10.1145/1498765.1498785",),
  "figs": ("figsdeck",),
  "gpu": ("10.1145/1498765.1498785",),
  "is": ("2504.15377",),
  "nm-spmm": ("2503.01253",),
  "os": ("2504.15377",),
  "tensorcore": ("2104.08378",),
  "tpu": ("10.1145/1498765.1498785",),
  "trainium2": ("neuron2026architecture",),
  "trainium3": ("neuron2026architecture",),
  "vegeta": ("2302.08687",),
  "ws": ("2504.15377",),
}


def cite(method: str | Recipe, *more: str | Recipe) -> str:
  """The BibTeX entries of methods, in the order given, each once.

  Args:
    method: Name of a recipe, a `Recipe` (which also cites the sources of its
      options, such as transposable masks), or an engine as "engine:SPEC".
    *more: Further methods.

  Returns:
    Entries with an empty line between them; "" for `dense`, which has no
    source.

  Raises:
    ValueError: If a recipe or an engine is unknown; the message names the
      nearest one.

  >>> print(cite("ste"))
  @misc{bengio2013estimating,
    author = {Bengio, Yoshua and L{\\'e}onard, Nicholas and Courville, Aaron},
    title = {Estimating or Propagating Gradients Through Stochastic Neurons for\
 Conditional Computation},
    year = {2013},
    eprint = {1308.3432},
    archivePrefix = {arXiv},
  }
  >>> both = cite("sr_ste", "engine:vegeta-s-16-2")
  >>> [line for line in both.splitlines() if line.startswith("@")]
  ['@inproceedings{zhou2021learning,', '@inproceedings{jeong2023vegeta,']
  """
  ids = [source for one in (method, *more) for source in _sources(one)]
  return bibtex(*ids)


def _sources(method: str | Recipe) -> tuple[str, ...]:
  if isinstance(method, Recipe):
    return method.cited
  kind, colon, spec = method.partition(":")
  if not colon or kind != "engine":
    return create(method, "1:4", total_steps=1000).cited
  head = spec.partition(":")[0]
  if head not in ENGINES:  # vegeta-s-16-2
    head = head.partition("-")[0]
  if head not in ENGINES:
    raise ValueError(f"Unknown engine {head!r}, {nearest(head, ENGINES)}")
  return ENGINES[head]
