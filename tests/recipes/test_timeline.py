"""Phases and stages are exact integers, for any length of run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from figs_jax.recipes import Switch, Timeline
from figs_jax.recipes.stage_schedule import Every

STEP = jnp.int32


@settings(deadline=None, max_examples=60)
@given(
  total=st.integers(1, 2**31 - 1),
  dense=st.floats(0, 0.5),
  finetune=st.floats(0, 0.5),
  stages=st.integers(1, 12),
  data=st.data(),
)
def test_stages_are_equal_shares_of_the_decay_phase(
  total, dense, finetune, stages, data
):
  line = Timeline.of_fractions(total, dense, finetune)
  assert 0 <= line.dense_end <= line.finetune_start <= total
  decay = line.finetune_start - line.dense_end
  edges = [line.dense_end, line.finetune_start, *line.boundaries(stages)]
  near = [edge + d for edge in edges for d in (-1, 0, 1)]
  step = data.draw(st.sampled_from([s for s in near if 0 <= s < 2**31]))
  if step < line.dense_end:
    stage = 0
  elif step >= line.finetune_start:
    stage = stages
  else:
    stage = 1 + (step - line.dense_end) * stages // decay
  assert int(line.stage(stages, STEP(step))) == stage
  starts = step in line.boundaries(stages)
  assert bool(line.refresh(stages, STEP(step))) or not starts


def test_published_defaults():
  line = Timeline.of_fractions(100_000)
  assert (line.dense_end, line.finetune_start) == (1250, 90_000)


def test_refresh_every():
  line = Timeline.of_fractions(100, 0.1, 0.2, refresh_every=7)
  due = jax.jit(jax.vmap(lambda s: line.refresh(3, s)))(jnp.arange(100))
  wanted = {*range(0, 100, 7), *line.boundaries(3)}
  assert set(np.flatnonzero(due).tolist()) == wanted


def test_a_switch_takes_the_place_of_the_decay_phase():
  line = Timeline(100, 10, 80, due=Every(50), switch=Switch(20, 40))
  step = STEP(60)
  assert int(line.stage(1, step, False)) == 0
  assert int(line.stage(1, step, jnp.array(True))) == 1
  assert bool(line.refresh(1, step, True, was_switched=False))
  assert not bool(line.refresh(1, step, True, was_switched=True))
  assert bool(line.refresh(1, STEP(50), True, was_switched=True))
  assert [line.switched_by(s) for s in (40, 41)] == [False, True]


@pytest.mark.parametrize(
  "bad,message",
  [
    ({"total_steps": 0}, "total_steps: expected .*, got 0"),
    ({"total_steps": 2**31}, "total_steps"),
    ({"dense": 1.0}, "add up to at most 1"),
    ({"dense": 1.5}, "dense: expected .*, got 1.5"),
    ({"dense": -0.1}, "dense: expected .*, got -0.1"),
    ({"finetune": float("nan")}, "finetune: expected .*, got nan"),
    ({"dense": 0.6, "finetune": 0.6}, "add up to at most 1"),
    ({"refresh_every": -1}, "refresh_every: expected .*, got -1"),
  ],
)
def test_illegal_timelines(bad, message):
  with pytest.raises(ValueError, match=message):
    Timeline.of_fractions(**({"total_steps": 100} | bad))
