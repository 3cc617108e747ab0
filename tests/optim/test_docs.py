"""docs/optimizers.md: its bytes are those of the states."""

from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

from figs_jax.optim import (
  decay_pruned,
  gradient_flow,
  mask_moments,
  mask_updates,
  scale_by_step_adam,
)

PAGE = (Path(__file__).parents[2] / "docs" / "optimizers.md").read_text()


def nbytes(tx):
  state = tx.init({"w": jnp.ones((50, 10)), "b": jnp.ones(7)})
  return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(
  "tx,beyond,extra,words",
  [
    (decay_pruned(), None, 4, "λ(t) w: SR-STE (2102.04010) | 4 bytes"),
    (gradient_flow(0.5), None, 4, "(2402.04744) | 4 bytes"),
    (mask_updates(), None, 0, "(2104.08378) | none"),
    (mask_updates(clear=True), None, 0, "exactly 0 | none"),
    (mask_moments(optax.adam(1)), optax.adam(1), 0, "afterwards | none"),
    (mask_moments(optax.adam(1), "keep"), optax.adam(1), 0, "untouched | none"),
    (
      mask_moments(optax.adam(1), "reset"),
      optax.adam(1),
      507,
      "1 byte per parameter",
    ),
    (
      scale_by_step_adam(t_min=20, t_max=90),
      optax.scale_by_adam(),
      4 * 20 + 5,
      "4 Tw + 5 bytes",
    ),
  ],
)
def test_bytes_of_state(tx, beyond, extra, words):
  assert nbytes(tx) == extra + (nbytes(beyond) if beyond else 0)
  assert words in PAGE
