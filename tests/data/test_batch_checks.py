"""What a step says to a batch, or to a loss, that it does not expect."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import figs_jax as figs
from figs_jax import recipes
from figs_jax.models.sizes import check_images
from figs_jax.train.losses import Mean, MixedCrossEntropy, teacher_forcing
from figs_jax.train.state import TrainState, train_step

pytestmark = pytest.mark.standard_promotion
IMAGES, LABELS = np.zeros((8, 4), np.float32), np.arange(8) % 4
RECIPE = recipes.create("ste", "1:4", total_steps=10)


class Text(nnx.Module):
  """Logits of 4 tokens, with a kernel that can be masked."""

  def __init__(self):
    self.out = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

  def __call__(self, inputs, targets):
    return self.out(jax.nn.one_hot(targets, 4))


def step(loss, batch, model=None, **options):
  model = figs.sparsify(model or nnx.Linear(4, 4, rngs=nnx.Rngs(0)), RECIPE)
  tx = RECIPE.transform(optax.sgd(0.1))
  state = TrainState.create(model, RECIPE, tx, loss=loss, **options)
  return train_step(state, batch)


def images(**changed):
  return {"image": IMAGES, "label": LABELS} | changed


NAN = IMAGES * np.nan
TOKENS = {"inputs": LABELS.reshape(2, 4), "targets": LABELS.reshape(2, 4)}


@pytest.mark.parametrize(
  ("batch", "words"),
  [
    (images(label=np.array(list("abcdabcd"))), r"<U1\[8\]; turn text into"),
    (images(label=list("abcdabcd")), "got a str; turn text into integers"),
    (
      images(label=LABELS.tolist()),
      "expected an array, got a list; pass it as",
    ),
    (images(label=slice(8)), r"got a slice; pass it as numpy.asarray"),
    (images(label=LABELS * 1.0), "labels as integers.*got float"),
    (images(label=np.eye(4)[LABELS]), "integers|argmax"),
    (images(label=LABELS + 1), r"from 0 to 3, or -100 .*, got 4; correct"),
    (images(label=LABELS[:4]), "one length, got image of 8, label of 4"),
    (images(image=IMAGES.astype(np.uint8)), "floats, got uint8"),
    (images(image=NAN), "finite values, got NaN"),
    ({"x": IMAGES, "y": LABELS}, "image and label, got a dict with x, y"),
    ((IMAGES, LABELS), "image and label, got a tuple"),
  ],
)
@pytest.mark.parametrize("loss", [None, MixedCrossEntropy(4, mixup=0.5)])
def test_batches_of_images(unchecked, loss, batch, words):
  from figs_jax.train.losses import cross_entropy

  with pytest.raises(ValueError, match=words) as error:
    step(loss or cross_entropy, batch)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("name", "value", "words"),
  [
    ("inputs", 4, r"batch\['inputs'\]: expected integers from 0 to 3, got 4"),
    ("targets", 4, r"batch\['targets'\]: .* from 0 to 3, or -100 .*, got 4"),
  ],
)
def test_tokens_beyond_the_vocabulary(name, value, words):
  batch = TOKENS | {name: np.full((2, 4), value)}
  with pytest.raises(ValueError, match=words):
    step(teacher_forcing, batch, Text())


def mean(model, batch, key):
  return model(batch["image"]).mean(), {}


@pytest.mark.parametrize(
  ("loss", "words"),
  [
    (lambda m, b, k: mean(m, b, k)[0], r"got float32\[\]; return \(loss, {}\)"),
    (lambda m, b, k: mean(m, b, k)[::-1], r"\(a dict, float32\[\]\)"),
    (lambda m, b, k: Mean(*map(jnp.float32, (1, 2))), "got a Mean; return"),
    (
      lambda m, b, k: (m(b["image"]), {}),
      r"got float32\[8, 4\]; take the mean",
    ),
    (lambda m, b, k: (jnp.int32(3), {}), r"got int32\[\]; take"),
    (lambda m, b, k: ("low", {}), "got a str"),
    (
      lambda m, b: mean(m, b, None),
      r"\(model, batch, key\), got one of \(m, b",
    ),
    (0.5, "got a float"),
  ],
)
def test_losses_of_ones_own(unchecked, loss, words):
  with pytest.raises(ValueError, match=words) as error:
    step(loss, images())
  assert "\n" not in str(error.value)


def test_only_the_batch_of_the_compilation_is_looked_at():
  """Later batches cost nothing, and a loss may use names in its own way."""

  def shifted(model, batch, key):
    from figs_jax.train.losses import cross_entropy

    return cross_entropy(model, batch | {"label": batch["label"] - 1}, key)

  _, metrics = step(shifted, images(label=LABELS + 1))
  assert np.isfinite(metrics["loss"])
  state, metrics = step(MixedCrossEntropy(4), images())
  assert np.isfinite(metrics["loss"])
  _, metrics = train_step(state, images(label=LABELS + 1))
  assert np.isnan(metrics["loss"])  # the rule of figs_jax.data.labels


def test_accumulation_needs_examples():
  with pytest.raises(ValueError, match="grad_accum_steps=2 divides, got 1, 8"):
    step(mean, images(scale=np.float32(2)), grad_accum_steps=2)


@pytest.mark.parametrize(
  ("shape", "dtype", "words"),
  [
    ((2, 3, 8, 8), "float32", r"transpose\(0, 2, 3, 1\)"),
    ((2, 4, 4, 3), "float32", "set image_size="),
    ((2, 8, 8, 3), "uint8", r"got uint8; scale them .*astype\('float32'\)"),
  ],
)
def test_images_of_a_model(shape, dtype, words):
  with pytest.raises(ValueError, match=words):
    check_images(np.zeros(shape, dtype), (8, 8), 3)
