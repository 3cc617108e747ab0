"""A small ResNet of the CIFAR form on Fashion-MNIST; runs anywhere.

Command:   python launch/train.py --config configs/fashion_resnet.py:sr_ste \\
             --workdir runs/fashion_resnet
Data:      Debian's package dataset-fashion-mnist, or
             --config.data.source=DIR with the four idx files.
Hardware:  two CPU cores.
Hours:     .02 a seed.
Expected:  85.3 to 88.0 % on the last tenth of the training split after 500
           dense steps at 14 x 14 pixels, by learning rate (1e-3 to 1e-2).
"""

from figs_jax.train.config import default_config


def get_config(arg: str = "sr_ste"):
  """The experiment under the recipe named by `arg`."""
  config = default_config(arg or "sr_ste", "resnet")
  config.variant = "custom"
  config.model.block = "basic"
  config.model.stem = "cifar"
  config.model.depths = (1, 1, 1)
  config.model.width = 16
  config.pattern = "hidden: 1:8"
  config.total_steps = 1000
  config.batch_size = 64
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 0.05
  config.checkpoint_every = 1000
  config.diagnose_every = 0
  config.data.name = "fashion_mnist"
  config.data.image_size = 28
  config.data.augment = "none"
  config.data.eval_batch_size = 1000
  return config
