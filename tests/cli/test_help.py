"""`--help` of the programs: flags, and recipes with those of the user."""

import pytest

from figs_jax import recipes
from tests.programs import call

OWN = '''
from figs_jax.recipes import register
from figs_jax.train.config import default_config


@register("mine")
def mine(plain, *, spice=3):
  """A recipe from a file of one's own."""
  return plain


def get_config(arg="mine"):
  return default_config(arg)
'''


@pytest.mark.slow
def test_help_lists_flags_recipes_and_those_of_the_configuration(tmp_path):
  path = tmp_path / "my_config.py"
  path.write_text(OWN)
  # Flags may come in any order: the configuration is read first.
  done = call("launch/train.py", "--help", f"--config={path}:mine")
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert lines[0].startswith("Trains a model")
  assert any(line.startswith("  --workdir: ") for line in lines)
  assert "  recipe.spice=3" in lines
  assert any(line.startswith("  optimizer.clip=1.0 (a num") for line in lines)
  for name in (*recipes.names(), "mine"):
    assert f"  {name}" in lines
  at = lines.index("  mine")
  assert lines[at + 1].strip() == "A recipe from a file of one's own."
  assert lines[at + 2].strip() == "spice=3"
