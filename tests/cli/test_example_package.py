"""A stranger's method, installed from `examples/`, is a command like any other."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from patchclamp.cli import run

EXAMPLE = Path(__file__).parents[2] / "examples" / "patchclamp-example"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the example package installed; the build leaves nothing in `examples/`."""
    folder = tmp_path_factory.mktemp("example")
    source = shutil.copytree(EXAMPLE, folder / "source")
    # With setuptools at hand the build needs no network.
    offline = ["--no-build-isolation"] if find_spec("setuptools") else []
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            *offline,
            "--target",
            str(folder / "site"),
            str(source),
        ],
        check=True,
        timeout=120,
    )
    return folder / "site"


def test_its_method_is_listed_explained_and_run(command, site, monkeypatch):
    fake = run.load_model

    def load_model(options, load):
        return SimpleNamespace(**vars(fake(options)), tokens=str.split)

    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(run, "load_model", load_model)
    assert "Show how the model's tokenizer splits a prompt." in command("example", "--help")[1]
    assert "The text to split." in command("example", "tokens", "--help")[1]
    code, out, _ = command("example", "tokens", "Hello world", "--json")
    assert code == 0
    assert json.loads(out)["result"] == {"tokens": ["Hello", "world"]}
    assert json.loads(command("methods", "--json")[1])[0]["name"] == "example.tokens"
