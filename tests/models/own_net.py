"""A model class as a user writes it, with batch norm and dropout."""

from flax import nnx


class Net(nnx.Module):
  """A small convolutional network.

  Args:
    width: Channels after the first layer.
  """

  def __init__(self, num_classes, in_channels, width=16, dropout=0.1, *, rngs):
    if width < 1:
      raise ValueError("width must be positive")
    self.stem = nnx.Conv(in_channels, width, (3, 3), rngs=rngs)
    self.norm = nnx.BatchNorm(width, rngs=rngs)
    self.depthwise = nnx.Conv(
      width, width, (3, 3), feature_group_count=width, rngs=rngs
    )
    self.conv = nnx.Conv(width, 2 * width, (3, 3), strides=2, rngs=rngs)
    self.dropout = nnx.Dropout(dropout, rngs=rngs)
    self.head = nnx.Linear(2 * width, num_classes, rngs=rngs)

  def __call__(self, images):
    x = nnx.relu(self.norm(self.stem(images)))
    x = nnx.relu(self.conv(self.depthwise(x))).mean((1, 2))
    return self.head(self.dropout(x))
