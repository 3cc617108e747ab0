"""A user's own loop: one compilation, donation, resume, None."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from .containers import Plain
from .harness import Functional, batches, history
from .pieces import TOTAL
from .table import FIRST

pytestmark = pytest.mark.standard_promotion
each = pytest.mark.parametrize("row", FIRST, ids=lambda row: row.name)


def same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def saved(state):
  """What a checkpoint holds: arrays of numpy, none shared with the run's."""
  return jax.tree.map(lambda x: np.array(x, copy=True), state)


def first_state(row):
  pick = jax.tree.map(lambda x: x[0, 0], history(row, "plain").states)
  return jax.tree.map(jnp.asarray, pick)


@each
def test_one_compilation_donation_and_resume_at_every_step(row):
  """Also: arguments that nobody knows do no harm to the optimizer.

  Every step starts from what a checkpoint would hold. As each gives, bit for
  bit, the next state of the uninterrupted run, so do all that follow.
  """
  unknown = {"value": 1.0, "other": None}
  run, data = Functional(row, Plain(), **unknown), list(zip(*batches()))
  traces = []

  def step(state, batch):
    traces.append(1)
    return run.step(state, batch)

  # Points are ranked anew, so their masks are not read.
  one = jax.jit(step, donate_argnums=0, keep_unused=True)
  state = first_state(row)
  kept = [saved(state)]
  for batch in data:
    old = jax.tree.leaves(state)
    state, _ = one(state, batch)  # a donation that fails warns, so it raises
    assert all(leaf.is_deleted() for leaf in old)
    kept.append(saved(state))
  for k, batch in enumerate(data):
    again, _ = one(jax.tree.map(jnp.asarray, kept[k]), batch)
    same(saved(again), kept[k + 1])
  assert len(traces) == 1

  got = history(row, "plain")  # vmap, scan, and no unknown arguments
  for k in range(TOTAL):
    want = jax.tree.map(lambda x, k=k: x[0, k], got.states)
    same(kept[k]["masks"], want["masks"])
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      kept[k],
      want,
    )


@each
def test_none_stays_none(row):
  run, state = Functional(row, Plain()), first_state(row)
  masks = state["masks"]
  assert masks["none"] is None and state["params"]["none"] is None
  assert [masks[k]["bias"] for k in ("fc1", "fc2")] == [None, None]
  leak = jnp.float32(0)
  seen = run.bound.effective(state["params"], masks, leak, state["scales"])
  done = run.bound.finish(state["params"], masks, state["scales"])
  for tree in (seen, done):
    assert tree["none"] is None
    for name in ("fc1", "fc2"):
      same(tree[name]["bias"], state["params"][name]["bias"])
