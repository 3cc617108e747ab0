"""The recipes that figs_jax comes with, in the files of their doc pages.

A builder gets the plain recipe (hard N:M from the end of the dense phase on,
straight-through gradients) and returns it with its own parts.
"""

from figs_jax.recipes.catalog import decay, pruning, scratch

__all__ = ["decay", "pruning", "scratch"]
