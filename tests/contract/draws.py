"""What recipes draw at random, for the reference to be given."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from figs_jax.core.scores import random_scores

from .compiling import compiled
from .pieces import TOTAL


class Draws:
  """What a recipe draws for one kernel, laid [in, out]."""

  def __init__(self, path, shape, axis=-2, chance=0.0):
    self.path, self.axis, self.chance = path.encode(), axis, chance
    self.shape = shape if axis == -2 else shape[::-1]

  def once(self):
    return self._upright(self._once)

  def regrow(self, step, m):
    """(uniform numbers [groups, out], growth [in, out])."""
    uniform, growth = self._regrow(m)
    return self._upright(uniform[step]), self._upright(growth[step])

  def due(self, step):
    return bool(self._due[step])

  def _upright(self, drawn):
    return drawn.T if self.axis == -1 else drawn

  def _by_step(self, draw, path):
    """draw(key) at every step; the key is that of a kernel, or of the run."""

    def one(step):
      key = jax.random.key(0)
      if not path:
        return draw(jax.random.fold_in(key, step))
      key = jax.random.fold_in(jax.random.fold_in(key, 0), step)
      return draw(jax.random.fold_in(key, zlib.crc32(path)))

    drawn = compiled(jax.vmap(one))(jnp.arange(TOTAL + 1))
    return jax.tree.map(np.asarray, drawn)

  @functools.cached_property
  def _once(self):
    draw = functools.partial(random_scores, shape=self.shape)
    return self._by_step(draw, self.path)[0]

  @functools.cache  # noqa: B019
  def _regrow(self, m):
    one = list(self.shape)
    one[self.axis] //= m
    one.insert(self.axis % 2 + 1, 1)

    def draw(key):
      rounding, growing = jax.random.split(key)
      uniform = jax.random.uniform(rounding, one)
      uniform = jnp.squeeze(uniform, self.axis % 2 + 1)
      return uniform, random_scores(growing, self.shape)

    return self._by_step(draw, self.path)

  @functools.cached_property
  def _due(self):
    return self._by_step(lambda k: jax.random.bernoulli(k, self.chance), b"")
