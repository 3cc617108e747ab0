"""Tasks of text from a prepared data set to their scores."""

import json

import pytest

from figs_jax.train._evaluate import evaluate
from figs_jax.train.config import default_config
from figs_jax.train.loop import train

pytestmark = [pytest.mark.standard_promotion, pytest.mark.slow]


@pytest.mark.parametrize(
  ("name", "beams", "score"),
  [("glue/stsb", 1, "glue_score"), ("wmt14_translate/de-en", 2, "bleu")],
)
def test_a_task_is_trained_and_scored(mocked, tmp_path, name, beams, score):
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

  train(config_of("figs"), tmp_path)
  measured = evaluate(tmp_path)
  json.dumps(measured)
  assert measured[score] is not None
  assert len(measured[f"{score}_seeds"]) == 2
