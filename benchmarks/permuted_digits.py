"""One-shot pruning of a trained ViT, with and without permuted channels.

Prunes the dense weights of a run of configs/digits_vit.py by magnitude, once
and without training, in the given order of channels and after
`figs_jax.permute_channels`. Prints the kept magnitude of the consumers (fc2 and
o), the loss and the accuracy on the test split.

  python launch/train.py --config configs/digits_vit.py:dense \\
    --workdir runs/digits_dense --config.total_steps=300
  python benchmarks/permuted_digits.py runs/digits_dense
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import figs_jax as figs
from figs_jax.data import digits
from figs_jax.train.workdir import finished_model


def test_split():
  """Images [number, 8, 8, 1] as a run of the digits sees them, and labels."""
  arrays = np.load(digits.__file__.replace(".py", ".npz"))
  chosen = digits.is_test(arrays["labels"])
  pixels = arrays["counts"][chosen] * digits.PIXEL_SCALE
  images = jnp.asarray(pixels[..., None], jnp.float32) / 127.5 - 1
  return images, jnp.asarray(arrays["labels"][chosen], jnp.int32)


def score(model, images, labels):
  """(mean cross-entropy, accuracy)."""
  logits = jax.jit(lambda x: model(x))(images)
  losses = -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]
  return float(losses.mean()), float((logits.argmax(-1) == labels).mean())


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("workdir", help="a dense run")
  parser.add_argument("--words", default="ff,o", help="kernels to prune")
  args = parser.parse_args()
  model = finished_model(args.workdir)
  images, labels = test_split()
  model.eval()
  loss, accuracy = score(model, images, labels)
  print("pattern  order      kept   loss   accuracy")
  print(f"dense    given      1      {loss:.3f}  {accuracy:.1%}")
  for pattern in ("2:4", "1:4", "1:8"):
    rules = ", ".join(f"{word}: {pattern}" for word in args.words.split(","))
    permuted, report = figs.permute_channels(model, rules)
    for name, net, kept in (
      ("given", model, [entry.before for entry in report]),
      ("permuted", permuted, [entry.after for entry in report]),
    ):
      pruned = figs.sparsify(net, rules)
      pruned.eval()
      loss, accuracy = score(pruned, images, labels)
      print(
        f"{pattern:8} {name:10} {np.mean(kept):.4f} {loss:.3f}  {accuracy:.1%}"
      )


if __name__ == "__main__":
  main()
