"""Random numbers that recipes draw, as input of the reference."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from figs_jax.core.scores import (
  random_order,
  random_scores,
  random_words,
  uniform,
)

from .pieces import TOTAL


class Draws:
  """The random numbers of one kernel, laid [in, out]."""

  def __init__(self, path, shape, axis=-2, chance=0.0):
    self.path, self.axis, self.chance = path, axis, chance
    self.shape = tuple(shape if axis == -2 else shape[::-1])

  def once(self):
    return self._upright(_scores(self.path, self.shape))

  def regrow(self, step, m):
    """(uniform numbers [groups, out], growth [in, out])."""
    uniform, growth = _regrowth(self.path, self.shape, self.axis, m)
    return self._upright(uniform[step]), self._upright(growth[step])

  def due(self, step):
    return bool(_due(self.chance)[step])

  def _upright(self, drawn):
    return drawn.T if self.axis == -1 else drawn


# One program serves every kernel of a shape, so the path's hash is an argument.


@functools.cache
def _scores(path, shape):
  return np.asarray(_scores_program(shape)(_hash(path)))


@functools.cache
def _scores_program(shape):
  return jax.jit(lambda path: random_scores(_keys(path)[0], shape))


@functools.cache
def _regrowth(path, shape, axis, m):
  drawn = _regrowth_program(shape, axis, m)(_hash(path))
  return jax.tree.map(np.asarray, drawn)


@functools.cache
def _regrowth_program(shape, axis, m):
  groups = list(shape)
  groups[axis] //= m
  groups.insert(axis % 2 + 1, 1)

  def draw(key):
    chance = uniform(random_words(key, tuple(groups)))
    chance = jnp.squeeze(chance, axis % 2 + 1)
    return chance, random_order(key, shape, m, axis)

  return jax.jit(lambda path: jax.vmap(draw)(_keys(path)))


@functools.cache
def _due(chance):
  def one(step):
    key = jax.random.fold_in(jax.random.key(0), step)
    return jax.random.bernoulli(key, chance)

  return np.asarray(jax.jit(jax.vmap(one))(jnp.arange(TOTAL + 1)))


@functools.cache
def points(counts, sampled):
  """n of every pass at every step: the densest, the sparsest, drawn ones."""
  between = jnp.asarray(counts[1:-1], jnp.int32)

  def one(step):
    key = jax.random.fold_in(jax.random.key(0), step)
    key = jax.random.fold_in(key, zlib.crc32(b"points"))
    return jax.random.permutation(key, between)[:sampled]

  drawn = np.asarray(jax.vmap(one)(jnp.arange(TOTAL)))
  return [[counts[-1], counts[0], *row] for row in drawn.tolist()]


def _keys(path):
  """The keys of a kernel at every step, seeds of run and recipe being 0."""

  def one(step):
    key = jax.random.fold_in(jax.random.key(0), 0)
    return jax.random.fold_in(jax.random.fold_in(key, step), path)

  return jax.vmap(one)(jnp.arange(TOTAL + 1))


def _hash(path):
  return jnp.uint32(zlib.crc32(path.encode()))
