"""The house is whole: what the tests see is what a clone gets."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="not a checkout")
def test_no_file_of_the_project_is_hidden_from_version_control():
    """An ignore pattern once swallowed a whole package of the same name as an output folder."""
    listed = subprocess.run(["git", "status", "--ignored", "--porcelain", "--", "src", "tests", "docs", "examples"],
                            cwd=ROOT, capture_output=True, text=True, check=True).stdout
    hidden = [line[3:] for line in listed.splitlines() if line.startswith("!!")]

    assert [h for h in hidden if "__pycache__" not in h and ".egg-info" not in h] == []
