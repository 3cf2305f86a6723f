import json

import pytest

from patchclamp.evidence.store import Store


@pytest.fixture
def stored(command):
    """The id of a stored record."""
    assert command("text", "count", "hello")[0] == 0
    return Store().list()[0].id


def test_an_empty_store_says_where_it_is(command, tmp_path):
    assert command("runs", "list") == (0, f"No records in {tmp_path / 'runs'} yet.\n", "")
    assert command("runs", "list", "--json")[1] == "[]\n"


def test_records_are_listed(command, stored):
    header, line = command("runs", "list")[1].splitlines()
    assert header.split() == ["id", "method", "model", "started", "outcome"]
    assert line.split()[:3] == [stored, "text.count", "smollm2-135m-instruct"] and line.endswith("not supported")
    (listed,) = json.loads(command("runs", "list", "--json")[1])
    assert (listed["id"], listed["outcome"]) == (stored, "not supported")


def test_a_record_is_shown(command, stored):
    out = command("runs", "show", stored[:6])[1]
    assert "Not supported: The letters are as frequent as any." in out
    assert f"record {stored}" in out and '"prompt":"hello"' in out
    assert json.loads(command("runs", "show", stored, "--json")[1])["method"] == "text.count"


def test_a_record_is_found_by_its_place(command, tmp_path):
    command("text", "count", "hello", "--out", str(tmp_path / "mine"))
    by_folder = command("runs", "show", f"{tmp_path}/mine", "--json")
    assert by_folder[0] == 0
    assert command("runs", "show", f"{tmp_path}/mine/record.json", "--json") == by_folder
    code, _, err = command("runs", "show", f"{tmp_path}/other")
    assert code == 2 and "No such file or directory" in err


def test_a_replay_gives_the_same_numbers(command, stored):
    code, out, _ = command("runs", "replay", stored)
    assert code == 0 and "came out the same" in out
    assert json.loads(command("runs", "replay", stored, "--json")[1])["same"] is True


def test_a_replay_on_another_model_says_so(command, stored):
    assert (
        'model: "smollm2-135m-instruct" then, "other" now' in command("runs", "replay", stored, "--model", "other")[1]
    )


@pytest.mark.parametrize("suffix", ["json", "html", "csv", "zip"])
def test_a_record_is_exported(command, stored, tmp_path, suffix):
    file = tmp_path / f"a.{suffix}"
    assert command("runs", "export", stored, str(file)) == (0, "", f"Written: {file}\n")
    assert file.stat().st_size > 0


def test_a_record_is_deleted(command, stored):
    assert command("runs", "delete", stored) == (0, "", f"Deleted record {stored}.\n")
    assert command("runs", "show", stored)[0] == 2
