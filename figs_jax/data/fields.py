"""The fields config.data of a configuration."""

from __future__ import annotations

from figs_jax.core.legal import (
  EXAMPLES,
  SEED,
  SHARE,
  Field,
  Integer,
  Number,
  Numbers,
  Word,
)
from figs_jax.data.pixels import NAMED

_LENGTH = Integer("[2, 131072]")

# Fields of every run.
SHARED: dict[str, Field] = {
  "data.seed": Field(
    0,
    "Seed for the order and augmentation of the data; see data.order.",
    SEED,
  ),
  "data.order": Field(
    "own",
    "Order and augmentation: own per seed (data.seed + seed) or shared by all.",
    Word(("own", "shared")),
  ),
  "data.data_dir": Field(
    str,
    "Directory of the data sets. Defaults to $TFDS_DATA_DIR, or"
    " ~/tensorflow_datasets.",
  ),
  "data.download": Field(False, "Whether to download a missing data set."),
  "data.train_split": Field(
    "train", "Split to train on, or a slice of it, such as train[:90%]."
  ),
  "data.eval_split": Field("test", "Split to evaluate on."),
  "data.workers": Field(
    0,
    "Number of processes that read data; 0 reads in threads.",
    Integer("[0, 1024]"),
  ),
  "data.eval_batch_size": Field(
    128, "Examples per step of evaluation.", EXAMPLES
  ),
}
# Fields of families that read images.
IMAGES: dict[str, Field] = {
  "data.name": Field(
    "digits",
    "Data set: digits, fashion_mnist, folder:DIR, npz:FILE, tfrecord:DIR, or"
    " any of tfds with images.",
  ),
  "data.mixed_sizes": Field(
    False,
    "Whether the images of folder:DIR may differ in size; each is cropped and"
    " resized.",
  ),
  "data.source": Field(
    str,
    "Directory of idx files to prepare fashion_mnist, mnist, kmnist or emnist"
    " from.",
  ),
  "data.mean": Field(
    "half",
    "Mean of the pixels, from 0 to 1: half (0.5), imagenet, or a number per"
    " channel.",
    Numbers(SHARE, tuple(NAMED)),
  ),
  "data.std": Field(
    "half",
    "Their standard deviation, likewise; the model sees (pixel / 255 - mean) /"
    " std.",
    Numbers(Number("(0, 10]"), tuple(NAMED)),
  ),
  "data.augment": Field(
    "none",
    "Augmentation: none, standard (crops, flips), or RandAugment such as"
    " rand-m15-n2.",
  ),
  "data.image_size": Field(
    int,
    "Height and width of the images. Defaults to those of init_from, or 8.",
    Integer("[1, 4096]"),
  ),
}
# Fields of families that read text.
_ROWS: dict[str, Field] = {
  "data.pack": Field(
    False,
    "Whether a row of training holds several short examples, each a segment of"
    " its own for attention and positions.",
  ),
  "data.stream": Field(
    False,
    "Whether training reads the files of text:DIR (.jsonl, .json.gz) or"
    " tfrecord:DIR in order, without an index or a copy.",
  ),
  "data.shuffle_buffer": Field(
    10_000,
    "Number of records that a stream holds and shuffles together.",
    Integer("[1, 100000000]"),
  ),
}
_TEXT_COLUMN = Field(
  str, "Column of the text of text:FILE. Defaults to the one of a usual name."
)
_LABEL_COLUMN = Field(
  str, "Column of its labels or scores. Defaults to the one of a usual name."
)
# Fields of families that generate text.
_ANY_TEXT: dict[str, Field] = _ROWS | {
  "data.name": Field(
    "stdlib_text",
    "Data set: stdlib_text, text:FILE, tfrecord:DIR, c4, glue, or a tfds name"
    " such as glue/sst2 or wmt14_translate/de-en.",
  ),
  "data.text_column": _TEXT_COLUMN,
  "data.label_column": _LABEL_COLUMN,
  "data.target_column": Field(
    str, "Column of its target texts. Defaults to the one of a usual name."
  ),
  "data.vocabulary": Field(
    "bytes",
    "Vocabulary: bytes, sentencepiece:1024 to train that many pieces, or the"
    " path of a sentencepiece model.",
  ),
}
# Fields of families from inputs to targets.
TEXT: dict[str, Field] = _ANY_TEXT | {
  "data.input_length": Field(
    128, "Tokens per input, with the end token.", _LENGTH
  ),
  "data.target_length": Field(
    int,
    "Tokens per target; leave it unset for span corruption and for labels of"
    " text:FILE, which imply it.",
    _LENGTH,
  ),
  "data.density": Field(
    0.15, "Share of tokens that span corruption masks.", Number("(0, 1)")
  ),
  "data.mean_span": Field(
    3.0, "Mean length of a span of span corruption.", Number("[1, 131072]")
  ),
  "data.beams": Field(
    1, "Beams of decoding in evaluation; 1 is greedy.", Integer("[1, 1024]")
  ),
}
# Fields of families that learn masked tokens or labels of texts.
MASKED_TEXT: dict[str, Field] = _ROWS | {
  "data.name": Field(
    "stdlib_text",
    "Data set: stdlib_text, text:FILE, tfrecord:DIR, c4, or a tfds name such as"
    " glue/sst2.",
  ),
  "loss": Field(
    "softmax",
    "Training loss: the cross-entropy of a softmax, or mse, the squared error"
    " of the scores of glue/stsb or of a column of text:FILE.",
    Word(("softmax", "mse")),
  ),
  "data.objective": Field(
    "auto",
    "What is learned: masked tokens, labels, or auto, labels where the data"
    " have them.",
    Word(("auto", "masked", "labels")),
  ),
  "data.text_column": _TEXT_COLUMN,
  "data.label_column": _LABEL_COLUMN,
  "data.vocabulary": Field(
    "bytes",
    "Vocabulary: bytes, wordpiece:FILE for the vocab.txt or tokenizer.json of a"
    " BERT, sentencepiece:1024 to train that many pieces, or the path of a"
    " sentencepiece model.",
  ),
  "data.input_length": Field(
    128,
    "Tokens per sequence, with those that begin and end it; longer texts are"
    " cut.",
    Integer("[5, 131072]"),
  ),
  "data.density": Field(
    0.15, "Share of tokens that are masked.", Number("(0, 1)")
  ),
}
# Fields of families that predict the next token.
CAUSAL_TEXT: dict[str, Field] = _ANY_TEXT | {
  "data.input_length": Field(128, "Tokens per row.", _LENGTH),
}
