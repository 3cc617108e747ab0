"""The README's code runs as it stands."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.slow
@pytest.mark.standard_promotion
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python_blocks_run(number, capsys):
  scope = {}
  exec(compile(BLOCKS[number], f"README block {number}", "exec"), scope)
  if "loss" in scope:
    error, exact = capsys.readouterr().out.split()
    assert float(error) < 0.3
    assert exact == "True"
  elif "pretrained" in scope:
    assert capsys.readouterr().out == "True\n"
  elif "packed" in scope:
    # 256 values of 4 bytes and as many indices of 3 bits
    assert capsys.readouterr().out == "1120 of 8192 bytes; True\n"
  else:
    printed = capsys.readouterr().out
    assert "1:8" in printed
    assert "ws:32x16" in printed


def test_the_loop_example_is_short():
  (block,) = [b for b in BLOCKS if "def loss" in b]
  lines = [line for line in block.splitlines() if line.strip()]
  assert len(lines) - 8 <= 25  # beside the user's own model class


def test_the_run_of_the_commands_has_masks_to_be_drawn():
  """launch/plot.py shows six checkpoints, the first to the last of the run."""
  (command,) = re.findall(
    r"^python launch/train.py --config (\S+):figs (.*?)\npython",
    README.read_text(), re.DOTALL | re.MULTILINE,
  )  # fmt: skip
  path, options = command
  config = runpy.run_path(str(ROOT / path))["get_config"]("figs")
  keep, every = (
    int(re.search(rf"--config\.{name}=(\d+)", options)[1])
    for name in ("keep", "checkpoint_every")
  )
  assert keep * every >= config.total_steps >= 6 * every
