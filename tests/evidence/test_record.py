"""Records: JSON both ways, the id, and every file a record can be saved as."""

import io
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patchclamp.errors import FileError, InputError, SpecError, StoreError
from patchclamp.evidence.record import SUFFIXES, Record, check_suffix, content_id

# A fixture shared by all examples of a test is fine here: it only registers a method.
shared = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


def strict(text: str) -> dict:
    """Parse JSON as the standard has it: no NaN, no Infinity."""

    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_is_one_object_with_five_keys(measure, model):
    record = measure(model, words=["a", "bcd"])
    data = strict(record.to_json())
    assert list(data) == ["method", "spec", "result", "verdict", "provenance"]
    assert data["method"] == "test.sum"
    assert data["spec"] == {"seed": 0, "words": ["a", "bcd"]}
    assert data["result"]["words"] == ["a", "bcd"]
    assert set(data["verdict"]) == {"outcome", "reason", "effect", "control"}
    assert data["provenance"]["seed"] == 0


@shared
@given(
    words=st.lists(st.sampled_from(["", "a", "boundless", "花", "</script>", '"\n'])), seed=st.integers(0, 99)
)
def test_json_reads_back_to_the_same_record(measure, model, words, seed):
    record = measure(model, words=words, seed=seed)
    text = record.to_json()
    again = Record.from_json(text)
    assert type(again.spec) is type(record.spec) and type(again.result) is type(record.result)
    assert again.to_json() == text
    assert again.id == record.id == content_id(strict(text))


@shared
@given(value=st.floats())
def test_any_float_survives_or_becomes_null(bare, model, value):
    model.factor = value
    record = bare(model)
    number = strict(record.to_json())["result"]["number"]
    again = Record.from_json(record.to_json()).result.number
    if math.isfinite(value):
        assert number == again == value
    else:
        assert number is None and math.isnan(again)


def test_null_is_nan_where_a_number_belongs_and_none_where_none_may_be(measure, model):
    record = Record.from_json(measure(model, words=["", "abc", "boundless"]).to_json())
    assert [math.isnan(length) for length in record.result.lengths] == [True, False, True]
    assert record.result.comment is None


def test_verdict_without_interval_reads_back(measure, model):
    record = measure(model, words=["abc"])
    assert math.isnan(Record.from_json(record.to_json()).verdict.effect.low)


def test_id_is_of_the_content_not_of_time_or_machine(measure, model):
    first, second = measure(model, words=["a"]), measure(model, words=["a"])
    assert first.provenance.started != second.provenance.started
    assert first.id == second.id
    assert re.fullmatch("[0-9a-f]{12}", first.id)


@pytest.mark.parametrize(
    "change", [{"factor": 0.2}, {"weights_hash": "e" * 16}, {"name": "other"}, {"revision": "main"}]
)
def test_id_changes_with_result_and_model(measure, model, change):
    before = measure(model, words=["a"])
    for name, value in change.items():
        setattr(model, name, value)
    assert measure(model, words=["a"]).id != before.id


def test_id_changes_with_the_spec(measure, model):
    assert measure(model, words=["a"], seed=1).id != measure(model, words=["a"], seed=2).id


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", FileError, "not JSON"),
        ("[1]", FileError, "an object with method, spec"),
        ('{"method": "test.sum"}', FileError, "this has method"),
        (
            '{"method": "test.none", "spec": {}, "result": {}, "verdict": null, "provenance": {}}',
            SpecError,
            "no method 'test.none'",
        ),
        (
            '{"method": "test.sum", "spec": {"words": 3}, "result": {}, "verdict": null, "provenance": {}}',
            FileError,
            "spec.words: Input should be a valid",
        ),
    ],
)
def test_text_that_is_no_record_is_refused(measure, text, error, message):
    with pytest.raises(error, match=message):
        Record.from_json(text)


def test_mappings_are_not_silently_taken_for_empty_specs(measure, model):
    data = measure(model, words=["a"]).to_dict()
    with pytest.raises(ValueError, match=r"Record\.from_json"):
        Record.model_validate(data)


def test_table_and_chart_are_the_results(measure, model):
    record = measure(model, words=["a", "bc"])
    assert record.table().equals(record.result.table())
    assert record.chart().to_dict() == record.result.chart().to_dict()


def test_every_suffix_can_be_saved_without_leftovers(measure, model, tmp_path):
    record = measure(model, words=["a", "bc", ""])
    folder = tmp_path / "new" / "folder"
    for suffix in SUFFIXES:
        assert record.save(folder / f"record{suffix}") == folder / f"record{suffix}"

    assert {path.name for path in folder.iterdir()} == {f"record{suffix}" for suffix in SUFFIXES}
    assert Record.from_json((folder / "record.json").read_text()).id == record.id
    pandas.testing.assert_frame_equal(
        pandas.read_csv(folder / "record.csv", na_filter=True), read_back(record)
    )
    pandas.testing.assert_frame_equal(pandas.read_parquet(folder / "record.parquet"), record.table())
    assert (folder / "record.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "record.svg").read_text().startswith("<svg")


def read_back(record: Record) -> pandas.DataFrame:
    """The table as CSV can say it: an empty word is a missing one."""
    return pandas.read_csv(io.StringIO(record.table().to_csv(index=False)))


class Attributes(HTMLParser):
    """Collects what tags and attributes a page has; scripts are opaque text to it, as to a browser."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes = set(), set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attributes)


def test_page_needs_no_network_and_shows_verdict_and_numbers(measure, model, tmp_path):
    record = measure(model, words=["sesquipedalian", "bc"])
    page = record.save(tmp_path / "record.html").read_text()
    parser = Attributes()
    parser.feed(page)
    assert parser.tags >= {"script", "table", "style"}
    assert parser.attributes <= {"lang", "charset", "name", "content", "id", "open", "class", "border", "style"}, (
        "no src, no href"
    )
    assert "@import" not in page.split("<script>")[0]
    assert record.verdict.reason in page
    assert "<td>sesquipedalian</td>" in page
    assert 'vegaEmbed("#chart", {' in page


def test_prompts_cannot_break_out_of_the_page(measure, model, tmp_path):
    evil = "</script><script>alert(1)</script>"
    page = measure(model, words=[evil]).save(tmp_path / "record.html").read_text()
    assert evil not in page
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in page, "it is in the table, escaped"


def test_page_and_notebook_do_without_chart_and_table(bare, model, tmp_path):
    record = bare(model)
    assert "vegaEmbed" not in record.save(tmp_path / "record.html").read_text()
    assert "test.bare" in record._repr_html_()


def test_notebook_shows_verdict_picture_and_table(measure, model):
    shown = measure(model, words=["a<b"])._repr_html_()
    assert "Inconclusive.</b> The effect 0.3 rests on 1 observation" in shown
    assert "<svg" in shown and "a&lt;b" in shown and "<script" not in shown


def test_large_charts_are_saved_too(measure, model, tmp_path):
    """Altair by itself refuses charts of more than 5000 rows."""
    words = [str(n) for n in range(5001)]
    page = measure(model, words=words).save(tmp_path / "record.html").read_text()
    assert "The first 500 of 5001 rows" in page


@pytest.mark.parametrize("view", ["table", "chart"])
def test_missing_view_is_an_input_error(bare, model, view):
    with pytest.raises(InputError, match=f"no {view}; save it as"):
        getattr(bare(model), view)()


@pytest.mark.parametrize("name", ["record.pdf", "record", "record.json.gz"])
def test_unknown_suffix_is_refused_and_nothing_written(measure, model, tmp_path, name):
    with pytest.raises(InputError, match=r"should end in \.json, \.html"):
        measure(model).save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError):
        check_suffix(name)


def test_suffix_may_be_upper_case(measure, model, tmp_path):
    assert strict(measure(model).save(tmp_path / "RECORD.JSON").read_text())["method"] == "test.sum"


def test_full_disk_leaves_the_old_file_and_no_part(measure, model, tmp_path, monkeypatch):
    path = measure(model, words=["a"]).save(tmp_path / "record.json")
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match=r"cannot write .*record\.json: No space left on device"):
        measure(model, words=["b"]).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_evidence_imports_nothing_heavy():
    heavy = "{'pandas', 'altair', 'scipy', 'vl_convert', 'transformers'}"
    names = "patchclamp.evidence.method, patchclamp.evidence.store, patchclamp.evidence.controls"
    code = f"import sys, {names}; print({heavy} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
