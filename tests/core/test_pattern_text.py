"""One reader of patterns: the same wrong text, the same message everywhere."""

import pytest
from flax import nnx

from figs_jax import nn, recipes
from figs_jax.cli.workloads import from_file, from_model
from figs_jax.core import Rules
from figs_jax.train.config import default_config, recipe_of
from tests.programs import assert_one_clear_line, in_one_process

# Text -> how its message begins; it is the message of `Rules.parse`.
BAD = {
  "1:": "Invalid N:M pattern '1:': expected 'n:m', for example '2:4'.",
  "8": "Invalid N:M pattern '8': expected 'n:m', for example '2:4'.",
  "": "Invalid N:M pattern '': expected 'n:m', for example '2:4'.",
  "1:8:2": "Invalid V:N:M pattern '1:8:2': expected 1 <= v, 1 <= n and 2n <= m",
  "4:2": "Invalid N:M pattern '4:2': expected 1 <= n <= m, for example '2:4'.",
  "0:4": "Invalid N:M pattern '0:4': expected 1 <= n <= m, for example '2:4'.",
  "ff: 1:": "Invalid rules 'ff: 1:': expected 'key: n:m' or 'key: dense'",
  "ff 1:8": "Invalid rules 'ff 1:8': expected 'key: n:m' or 'key: dense'",
  "ff: 1;8": "Invalid rules 'ff: 1;8': expected 'key: n:m' or 'key: dense'",
  "ff: 4:2": "Rule 'ff': Invalid N:M pattern '4:2': expected 1 <= n <= m",
}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
  path = tmp_path_factory.mktemp("table") / "net.csv"
  path.write_text("name,M,N,K\nff,8,8,8\n")
  return path


def of_config(text):
  config = default_config("ste")
  config.pattern = text
  return recipe_of(config)


@pytest.mark.parametrize("text", BAD)
def test_every_function_gives_the_message_of_the_reader(text, table):
  with pytest.raises(ValueError) as error:
    Rules.parse(text)
  message = str(error.value)
  assert message.startswith(BAD[text]) and "\n" not in message
  dense = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
  for door in (
    lambda: nn.sparsify(dense, text),
    lambda: recipes.create("ste", text, 100),
    lambda: of_config(text),
    lambda: from_file(table, text),
    lambda: from_model("vit:Ti/16:depth=1:image_size=32", [1], text),
  ):
    with pytest.raises(ValueError) as error:
      door()
    prefix, core, rest = str(error.value).partition(message)
    assert core and not rest
    assert prefix in ("", "config.recipe or config.pattern: ")


def test_the_command_line_prints_the_message_of_the_reader(table):
  calls = [["--layers", table, f"--pattern={text}"] for text in BAD]
  ends = in_one_process("launch/engine.py", *calls)
  for end, message in zip(ends, BAD.values(), strict=True):
    assert_one_clear_line(end, f"engine.py: {message}")
