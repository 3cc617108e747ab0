"""Model classes of one's own: what they must take, and what is refused."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from figs_jax import models, nn
from figs_jax.core.rules import Rules
from figs_jax.models import own_model
from tests.models.own_net import Net


@pytest.fixture(autouse=True)
def no_trace_is_left():
  own_model.REGISTERED.clear()
  yield
  own_model.REGISTERED.clear()


def module(**methods):
  """A class with these methods."""
  return type("Mine", (nnx.Module,), methods)


def made(num_classes=5, size=8, channels=3, **options):
  own_model.register(Net)
  data = {"image_size": size, "in_channels": channels}
  return models.create(
    "Net", "custom", num_classes=num_classes, **data, **options
  )


def test_a_class_is_a_family_under_its_name():
  net = made(width=4)
  assert net.head.kernel.shape == (8, 5)
  assert "Net" in models.names()
  assert models.class_of("Net") is Net
  options = models.options_of("Net")
  assert options["width"] == 16 and options["dropout"] == 0.1
  with open(own_model.source_file(Net), "rb") as file:
    sha256 = hashlib.sha256(file.read()).hexdigest()
  own = own_model.REGISTERED["Net"]
  assert own.sha256 == sha256 and own.source.endswith("own_net.py:Net")
  assert own_model.newest() == "Net"


def test_options_have_the_types_of_their_defaults_or_annotations():
  def init(
    self,
    num_classes,
    depth: int,
    name: "str | None" = None,
    sizes=(1, 2),
    scale=1.0,
    flag=True,
    act=nnx.relu,
    means: tuple = np.zeros(3),  # not an option, as no field can hold it
    dtype=jnp.bfloat16,
    *,
    rngs,
  ):
    pass

  own_model.register(module(__init__=init))
  own = own_model.REGISTERED["Mine"]
  assert own.options == {
    "depth": int,
    "name": str,
    "sizes": (1, 2),
    "scale": 1.0,
    "flag": True,
    "dtype": "bfloat16",
  }
  good = {"depth": [1, None], "sizes": [(3,), [3]], "scale": [2, 0.5]}
  good |= {"flag": [False], "dtype": ["float16"], "name": [None, "a"]}
  bad = {"depth": ["a", 1.5], "sizes": [3], "scale": ["1"], "flag": [1]}
  bad |= {"dtype": ["float15"], "name": [1]}
  for values, legal in ((good, True), (bad, False)):
    for name, several in values.items():
      assert all((x in own.legal[name]) == legal for x in several), name


def takes_nothing(self):
  pass


def without_a_type(self, num_classes, width, *, rngs):
  pass


def by_position(self, num_classes, /, *, rngs):
  pass


@pytest.mark.parametrize(
  ("kind", "words"),
  [
    (int, "a subclass of flax.nnx.Module, got the class int"),
    (made, "a subclass of flax.nnx.Module, got <function made"),
    (module(__init__=takes_nothing), r"argument rngs, got \(none\)"),
    (module(__init__=without_a_type), "width: int or width=32, got neither"),
    (module(__init__=by_position), "num_classes before /"),
  ],
)
def test_wrong_classes(kind, words):
  with pytest.raises(ValueError, match=words) as error:
    own_model.register(kind)
  assert "\n" not in str(error.value)
  assert not own_model.REGISTERED


def test_two_files_cannot_share_a_name(tmp_path):
  own_model.register(Net)
  own_model.register(Net)  # imported twice
  with pytest.raises(ValueError, match="the name Net is taken by .*own_net.py"):
    own_model.register(Net, f"{tmp_path}/other.py:Net")
  with pytest.raises(ValueError, match="add --model_file FILE:CLASS"):
    own_model.REGISTERED.clear()
    own_model.newest()


def test_the_newest_class_is_the_one_registered_last():
  for name in ("A", "B", "A"):
    own_model.register(type(name, (Net,), {}))
  assert own_model.newest() == "A"


def test_a_class_cannot_have_the_name_of_a_family():
  with pytest.raises(ValueError, match="vit is a family of figs_jax"):
    own_model.register(type("vit", (Net,), {}))


def dtype_of(**methods):
  """Checks a class with these methods on images with 5 classes."""

  def init(self, *, rngs):
    self.head = nnx.Linear(3, 5, rngs=rngs)

  own_model.register(module(__init__=init, **methods))
  own = own_model.REGISTERED["Mine"]
  data = {"num_classes": 5, "image_size": 8, "in_channels": 3}
  net = nnx.eval_shape(lambda: own.create(nnx.Rngs(0), **data))
  return own.dtype(net, 5)


def test_logits_have_the_dtype_of_the_class():
  def call(self, images):
    return self.head(images.mean((1, 2))).astype(jnp.bfloat16)

  assert dtype_of(__call__=call) == "bfloat16"


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (
      lambda self, images: self.head(images),
      r"logits of shape \[1, 5\].*got float32 \[1, 8, 8, 5\] from images of"
      r" float32 \[1, 8, 8, 3\]",
    ),
    (lambda self, images: (self.head(images), 1), "got tuple from images"),
    (
      lambda self, images: self.head(images[..., :2]),
      r"Mine.__call__ \(test_own_model.py, line \d+\): \w+Error: ",
    ),
    (
      lambda self, images, train: images,
      r"one argument.*got \(images, train\)",
    ),
    (lambda self, *, images: images, "expected one argument"),
  ],
)
def test_wrong_calls(call, words):
  with pytest.raises(ValueError, match=words) as error:
    dtype_of(__call__=call)
  assert "\n" not in str(error.value)


def test_errors_of_the_constructor_name_their_line():
  with pytest.raises(
    ValueError, match=r"Net.__init__ \(own_net.py, line \d+\)"
  ):
    made(width=-1)
  with pytest.raises(ValueError, match="width must be positive"):
    made(width=-1)

  def init(self, depth: int, *, rngs):
    pass

  own_model.register(module(__init__=init))
  with pytest.raises(ValueError, match="expected a value of depth, which has"):
    models.create("Mine", "custom")


def test_hidden_kernels_are_all_but_the_first_and_the_last():
  net = nnx.eval_shape(made)
  example = own_model.example_of(net, 2)
  assert example.shape == (2, 8, 8, 3)
  words = own_model.hidden_kernels(net, example)
  sparse = nn.sparsify(net, Rules.parse("hidden: 2:4"), words=words)
  # The depthwise convolution has one input per output.
  assert list(nn.masked_leaves(sparse)) == ["conv/kernel"]


def test_the_shape_of_images_survives_split_and_merge():
  net = made(size=(8, 6), channels=1)
  graph, state = nnx.split(nn.sparsify(net, "conv/kernel: 2:4"))
  again = nnx.merge(graph, state)
  assert own_model.example_of(again).shape == (1, 8, 6, 1)
  assert own_model.example_of(nnx.Linear(1, 1, rngs=nnx.Rngs(0))) is None
  assert jax.tree.leaves(state)
