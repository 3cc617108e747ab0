"""A recipe of one's own: cosine leak, masks renewed at random steps.

Import this file, from a notebook or from a configuration, and the recipe is
registered: `cosine_leak("1:8", 1000)`, or `recipes.create` with its name.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from figs_jax.recipes import register


@register("cosine_leak")
def cosine_leak(plain, *, chance: float = 0.1, seed: int = 0):
  """D falls along a cosine; masks are renewed at random steps.

  Args:
    chance: Probability of a refresh at a step.
    seed: Seed of the refreshes.
  """
  start, end = plain.timeline.dense_end, plain.timeline.finetune_start

  def leak(step):
    t = (step - start) / (end - start)
    return (1 + jnp.cos(math.pi * t)) / 2

  def due(step):
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.random.bernoulli(key, chance)

  line = dataclasses.replace(plain.timeline, due=due)
  return dataclasses.replace(plain, leak=leak, timeline=line)
