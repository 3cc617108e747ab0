"""The Swin-V2 experiments: the paper's numbers, and digits that are learned."""

import pytest

from figs_jax import models, nn
from figs_jax.core.pattern import NM
from figs_jax.train import schema
from figs_jax.train.loop import train

from .test_config import load


def test_the_paper_hyper_parameters():
  config = load("imagenet_swin_v2_b").get_config("figs")
  epoch = 1281167 / config.batch_size
  assert config.total_steps == int(350 * epoch)
  warmup = schema.warmup_steps(
    config.optimizer.warmup_steps, config.total_steps
  )
  assert warmup == int(20 * epoch)
  assert config.optimizer.learning_rate == 1e-3
  options = {"image_size": config.data.image_size, "scan": True}
  model = models.abstract(config.family, config.variant, **options)
  leaves = nn.masked_leaves(nn.sparsify(model, config.pattern))
  assert {leaf.pattern for leaf in leaves.values()} == {NM(1, 8)}
  assert {path.split("/")[1] for path in leaves} == set("0123")


@pytest.mark.slow
@pytest.mark.standard_promotion  # optax mixes dtypes
def test_digits_are_learned(tmp_path, data_dir):
  config = load("digits_swin_v2").get_config("figs")
  config.total_steps, config.optimizer.warmup_steps = 150, 15
  config.data.data_dir, config.progress = data_dir, False
  config.diagnose_every = 0
  result = train(config, tmp_path)
  assert result["finished"] and result["eval/accuracy"] > 0.8  # chance is .1
