"""Tasks of text from a prepared data set to their scores."""

import json

import pytest

from figs_jax.analysis import compare, comparison_table
from figs_jax.train._evaluate import evaluate
from figs_jax.train.config import default_config

pytestmark = [pytest.mark.standard_promotion, pytest.mark.slow]


@pytest.mark.parametrize(
  ("name", "beams", "score", "column"),
  [
    ("glue/stsb", 1, "glue_score", "GLUE"),
    ("wmt14_translate/de-en", 2, "bleu", "BLEU"),
  ],
)
def test_a_task_is_trained_and_scored(
  mocked, tmp_path, name, beams, score, column
):
  def config_of(recipe):
    config = default_config(recipe, "t5")
    config.variant = "custom"
    config.model.update(
      {"width": 8, "depth": 1, "heads": 2, "head_dim": 4, "mlp_dim": 16}
    )
    config.pattern = "ff: 1:4"
    config.total_steps = config.checkpoint_every = 2
    config.batch_size = 4
    config.seeds = 2
    config.data.update(
      {
        "name": name,
        "data_dir": mocked,
        "input_length": 12,
        "eval_split": "validation",
        "eval_batch_size": 12,
        "beams": beams,
      }
    )
    config.data.target_length = 6
    config.progress = False
    return config

  (row,) = compare(config_of, [("figs", None)], tmp_path, engine_spec="ws:8x8")
  measured = evaluate(tmp_path / "figs")
  json.dumps(measured)
  assert measured[score] == getattr(row, score) is not None
  assert len(measured[f"{score}_seeds"]) == 2
  assert column in comparison_table([row]).splitlines()[0]
