"""The store: what goes in comes out, damage is reported, several writers do no harm; and replay."""

import json
import math
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from patchclamp.errors import InputError, SpecError, StoreError
from patchclamp.evidence.record import Record
from patchclamp.evidence.store import Store, default_folder, replay


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "runs")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_saved_record_comes_back(store, measure, model):
    record = measure(model, words=["a", ""])
    place = store.save(record)
    assert place == store.folder / record.id
    assert names(store.folder) == {record.id} and names(place) == {"record.json"}
    assert store.get(record.id).to_json() == record.to_json()
    assert store.get(record.id[:5]).id == record.id


def test_same_content_is_stored_once_with_the_newest_provenance(store, measure, model):
    store.save(measure(model, words=["a"]))
    second = measure(model, words=["a"])
    store.save(second)
    assert [entry.started for entry in store.list()] == [second.provenance.started]


def test_list_is_newest_first_with_the_verdict(store, measure, model):
    records = [measure(model, words=["a"] * count) for count in (1, 2, 7)]
    for record in (records[1], records[2], records[0]):
        store.save(record)
    entries = store.list()
    assert [entry.id for entry in entries] == [record.id for record in reversed(records)]
    assert entries[0].method == "test.sum" and entries[0].model == "model"
    assert entries[0].outcome == "supported" and entries[0].reason == records[2].verdict.reason
    assert all(entry.problem is None for entry in entries)


def test_list_of_a_store_that_does_not_exist_is_empty(store):
    assert list(store.list()) == []


def test_listing_needs_no_installed_method(store, measure, model, monkeypatch):
    record = measure(model)
    store.save(record)
    monkeypatch.setattr("patchclamp.evidence.method._registry", {})
    assert [entry.method for entry in store.list()] == ["test.sum"]
    with pytest.raises(SpecError, match=r"no method 'test\.sum'"):
        store.get(record.id)


def damage_json(file: Path) -> None:
    file.write_text(file.read_text()[:50])


def damage_number(file: Path) -> None:
    data = json.loads(file.read_text())
    data["result"]["lengths"][0] += 1
    file.write_text(json.dumps(data))


def damage_keys(file: Path) -> None:
    file.write_text("{}")


def damage_missing(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("damage", [damage_json, damage_number, damage_keys, damage_missing])
def test_damaged_entry_is_listed_last_refused_and_deletable(store, measure, model, damage):
    broken, good = measure(model, words=["abc"]), measure(model, words=["a"])
    for record in (broken, good):
        store.save(record)
    store.list()
    damage(store.folder / broken.id / "record.json")

    entries = store.list()
    assert [entry.id for entry in entries] == [good.id, broken.id]
    assert entries[1].problem and "record.json" in entries[1].problem
    with pytest.raises(StoreError):
        store.get(broken.id)
    store.delete(broken.id)
    assert names(store.folder) == {good.id}


def test_saving_again_repairs_a_damaged_entry(store, measure, model):
    record = measure(model)
    damage_json(store.save(record) / "record.json")
    store.save(record)
    assert store.get(record.id).id == record.id


def test_unknown_id_names_near_ones(store, measure, model):
    with pytest.raises(InputError, match="holds none"):
        store.get("abc")
    record = measure(model)
    store.save(record)
    typo = ("0" if record.id[0] != "0" else "1") + record.id[1:]
    for wrong in (typo, "zzzz", "", "../runs"):
        with pytest.raises(InputError, match=f"there is {record.id}"):
            store.get(wrong)


def test_ambiguous_prefix_lists_the_matches(store):
    for name in ("aa11", "aa12", "ab11"):
        (store.folder / name).mkdir(parents=True)
    with pytest.raises(InputError, match="'aa' is short for 2 records: aa11, aa12; give more digits"):
        store.find("aa")
    assert store.find("ab").name == "ab11"


def test_whole_id_wins_over_being_a_prefix(store):
    for name in ("aa", "aab"):
        (store.folder / name).mkdir(parents=True)
    assert store.find("aa").name == "aa"


def test_export_writes_a_zip_of_the_folder_or_one_file(store, measure, model, tmp_path):
    record = measure(model)
    (store.save(record) / "extra.txt").write_text("more")
    archive = store.export(record.id[:6], tmp_path / "out.zip")
    with zipfile.ZipFile(archive) as opened:
        assert set(opened.namelist()) == {f"{record.id}/record.json", f"{record.id}/extra.txt"}
    assert Record.from_json(store.export(record.id, tmp_path / "out.json").read_text()).id == record.id
    assert store.export(record.id, tmp_path / "out.html").read_text().startswith("<!DOCTYPE html>")
    with pytest.raises(InputError, match=r"should end in \.zip"):
        store.export(record.id, tmp_path / "out.pdf")


def test_full_disk_is_a_store_error_and_leaves_nothing(store, measure, model, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        store.save(measure(model))
    assert names(store.folder) == set() and list(store.list()) == []


def test_store_in_an_impossible_place_is_a_store_error(tmp_path, measure, model):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Not a directory"):
        Store(tmp_path / "file" / "runs").save(measure(model))


def test_concurrent_writers_and_readers_do_no_harm(store, measure, model):
    records = [measure(model, words=["a"] * (count % 3 + 1)) for count in range(24)]

    def save_and_list(record: Record) -> list[str | None]:
        store.save(record)
        return [entry.problem for entry in store.list()]

    with ThreadPoolExecutor(8) as pool:
        problems = [problem for found in pool.map(save_and_list, records) for problem in found]

    assert set(problems) == {None}
    assert names(store.folder) == {record.id for record in records}


def test_folder_is_the_variable_or_the_users_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("PATCHCLAMP_RUNS", str(tmp_path))
    assert default_folder() == tmp_path == Store().folder
    monkeypatch.delenv("PATCHCLAMP_RUNS")
    assert default_folder().parts[-2:] == ("patchclamp", "runs")


def test_replay_on_the_same_model_is_the_same(store, measure, model):
    record = measure(model, words=["a", "", "boundless"])
    store.save(record)
    again = replay(store.get(record.id), model)
    assert again.same and again.differences == [] and again.environment == []
    assert again.max_abs_difference == 0
    assert again.original == again.replayed == record.id
    assert again.sentence == "All 15 values of the record came out the same."


def test_replay_reports_every_number_that_differs_and_by_how_much(measure, model):
    record = measure(model, words=["a", "bcd", ""])
    model.factor = 0.2
    again = replay(record, model)
    assert not again.same and again.original != again.replayed
    assert "result.lengths[0]: 0.1 then, 0.2 now" in again.differences
    assert any(line.startswith("verdict.effect.mean: ") for line in again.differences)
    assert not any(line.startswith(("result.words", "verdict.control")) for line in again.differences)
    assert again.max_abs_difference == pytest.approx(0.3, abs=1e-15)  # 0.1·3 to 0.2·3, rounded once each
    assert "values differ, numbers by at most 0.3" in again.sentence


def test_replay_allows_no_tolerance(measure, model):
    record = measure(model, words=["a"])
    model.factor = math.nextafter(model.factor, 1)
    again = replay(record, model)
    assert not again.same
    assert again.max_abs_difference == math.ulp(0.1)


def test_replay_says_what_differs_in_the_environment(measure, model):
    record = measure(model, words=["a"])
    model.weights_hash = "e" * 16
    model.ref = "elsewhere"
    again = replay(record, model)
    assert again.same
    assert again.environment == [
        'model: "some/model" then, "elsewhere" now',
        'weights_hash: "ffffffffffffffff" then, "eeeeeeeeeeeeeeee" now',
    ]
    assert again.sentence.endswith("the environment differs in model, weights_hash.")


def test_replay_does_not_mind_a_file_that_a_model_in_memory_has_read_before(measure, model):
    record = measure(model, words=["a"])
    once = record.model_copy(update={"provenance": record.provenance.model_copy(
        update={"inputs": {"example:neutral": "a" * 64}})})
    assert replay(once, model).environment == []


def test_replay_sees_values_that_appear_or_vanish(measure, model):
    record = measure(model, words=["a"])
    shorter = record.model_copy(
        update={"result": record.result.model_copy(update={"lengths": [], "comment": 1.0})}
    )
    again = replay(shorter, model)
    assert 'result.lengths: "0 items" then, "1 items" now' in again.differences
    assert "result.comment: 1.0 then, null now" in again.differences
    assert not again.same and again.max_abs_difference == 0, "no two numbers can be compared"
