"""The README's code runs as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
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
