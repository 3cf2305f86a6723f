"""Every format gives the same rows, and whatever is wrong with a file is said with its line and field."""

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patchclamp.errors import FileError
from patchclamp.tasks import (
    BehaviourRow,
    ChoiceRow,
    LabelledRow,
    Message,
    PairRow,
    PromptRow,
    TaskRow,
    WordRow,
    example_file,
    read_behaviours,
    read_corpus,
    read_relation,
    read_rows,
)
from patchclamp.tasks.read import MAX_PARAGRAPH

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
CHOICES = [
    {"prompt": "She looked at these", "answer": " books", "distractor": " book", "source": "hand"},
    {"prompt": '"Those, please",\nhe said\tof those', "answer": " pens", "distractor": " pen", "source": "é"},
    {"prompt": "  two spaces", "answer": "…", "distractor": " \u2028", "source": "x"},
]


def write(path: Path, rows: list[dict]) -> Path:
    """`rows` in the format that the suffix of `path` names, by the usual tool for it."""
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        case ".json":
            path.write_text(json.dumps(rows, ensure_ascii=False, indent=2), "utf-8")
        case ".csv" | ".tsv":
            separator = "," if path.suffix == ".csv" else "\t"
            # quoted throughout: a bare carriage return at a line's end would be the line's end
            pandas.DataFrame(rows).to_csv(path, sep=separator, index=False, lineterminator="\n", quoting=csv.QUOTE_ALL)
        case ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def message(read, *arguments) -> str:
    """What the FileError says that `read(*arguments)` raises."""
    with pytest.raises(FileError) as caught:
        read(*arguments)
    return str(caught.value)


class TestFormats:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_every_format_gives_the_same_rows(self, tmp_path, suffix):
        path = write(tmp_path / f"rows{suffix}", CHOICES)

        assert read_rows(path, ChoiceRow) == [ChoiceRow(**row) for row in CHOICES]

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_leading_spaces_survive(self, tmp_path, suffix):
        path = write(tmp_path / f"rows{suffix}", CHOICES)

        assert read_rows(str(path), ChoiceRow)[0].answer == " books"

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_further_columns_are_kept(self, tmp_path, suffix):
        path = write(tmp_path / f"rows{suffix}", CHOICES)

        assert read_rows(path, ChoiceRow)[1].model_extra == {"source": "é"}

    @pytest.mark.parametrize("suffix", SUFFIXES)
    @pytest.mark.parametrize("label", ["positive", 3, -1, True, False])
    def test_a_label_keeps_its_type(self, tmp_path, suffix, label):
        path = write(tmp_path / f"rows{suffix}", [{"text": "a", "label": label}])

        found = read_rows(path, LabelledRow)[0].label

        assert (found, type(found)) == (label, type(label))

    def test_a_label_with_leading_zeros_is_text(self, tmp_path):
        path = write(tmp_path / "rows.csv", [{"text": "a", "label": "007"}])

        assert read_rows(path, LabelledRow)[0].label == "007"

    @pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
    def test_a_conversation(self, tmp_path, suffix):
        turns = [{"role": "system", "content": ""}, {"role": "user", "content": "Hello"}]
        path = write(tmp_path / f"rows{suffix}", [{"messages": turns}])

        assert read_rows(path, PromptRow)[0].messages == tuple(Message(**turn) for turn in turns)

    def test_a_conversation_in_a_table_cell_is_json(self, tmp_path):
        turns = [{"role": "user", "content": "Hello"}]
        path = write(tmp_path / "rows.csv", [{"prompt": "plain"}, {"messages": json.dumps(turns)}])

        plain, chat = read_rows(path, PromptRow)

        assert (plain.prompt, plain.messages) == ("plain", None)
        assert (chat.prompt, chat.messages) == (None, (Message(role="user", content="Hello"),))

    def test_plain_text_is_one_prompt_a_line(self, tmp_path):
        path = tmp_path / "prompts.txt"
        path.write_bytes(b"The sky is\r\n\n  \n indented\n")

        assert [row.prompt for row in read_rows(path, PromptRow)] == ["The sky is", " indented"]

    @pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv"])
    def test_a_byte_order_mark_is_dropped(self, tmp_path, suffix):
        path = write(tmp_path / f"rows{suffix}", CHOICES)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())

        assert read_rows(path, ChoiceRow)[0].prompt == "She looked at these"

    def test_suffixes_are_read_whatever_their_case(self, tmp_path):
        path = write(tmp_path / "rows.csv", CHOICES).rename(tmp_path / "ROWS.CSV")

        assert len(read_rows(path, ChoiceRow)) == 3

    def test_the_index_column_of_pandas_is_left_out(self, tmp_path):
        pandas.DataFrame([{"input": "hot", "output": "cold"}]).to_csv(tmp_path / "rows.csv")

        assert read_rows(tmp_path / "rows.csv", TaskRow) == [TaskRow(input="hot", output="cold")]

    def test_words_are_the_further_columns(self, tmp_path):
        path = write(tmp_path / "words.csv", [{"concept": "flower", "en": "flower", "fr": "fleur", "zh": ""}])

        assert read_rows(path, WordRow)[0].words == {"en": "flower", "fr": "fleur"}

    def test_rows_are_frozen(self):
        with pytest.raises(ValueError, match="frozen"):
            ChoiceRow(**CHOICES[0]).answer = " pens"  # type: ignore[misc]

    def test_the_name_of_a_shipped_file_is_a_path(self):
        assert read_rows("example:agreement", ChoiceRow) == read_rows(example_file("agreement"), ChoiceRow)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4), suffix=st.sampled_from(SUFFIXES))
def test_any_text_survives_any_format(tmp_path, pairs, suffix):
    rows = [{"input": given_text, "output": text} for given_text, text in pairs]

    path = write(tmp_path / f"rows{suffix}", rows)

    assert [(row.input, row.output) for row in read_rows(path, TaskRow)] == pairs


class TestFileErrors:
    def test_a_missing_file_names_the_near_ones(self, tmp_path):
        write(tmp_path / "prompts.jsonl", [{"prompt": "a"}])

        assert "near it: prompts.jsonl" in message(read_rows, tmp_path / "promts.jsonl", PromptRow)

    def test_a_missing_file_names_those_of_another_format(self, tmp_path):
        write(tmp_path / "my.jsonl", [{"prompt": "a"}])

        assert "my.jsonl" in message(read_rows, tmp_path / "my.parquet", PromptRow)

    def test_a_missing_folder(self, tmp_path):
        assert "nor does its folder" in message(read_rows, tmp_path / "no" / "rows.csv", PromptRow)

    def test_a_missing_example_names_the_near_one(self):
        assert "did you mean example:agreement?" in message(read_rows, "example:agrement", ChoiceRow)

    def test_a_shipped_name_without_its_prefix(self, tmp_path):
        assert "example:ioi" in message(read_rows, tmp_path / "ioi.jsonl", PairRow)

    def test_a_folder_lists_what_it_holds(self, tmp_path):
        write(tmp_path / "rows.csv", CHOICES)

        assert "is a folder; name one file in it: rows.csv" in message(read_rows, tmp_path, ChoiceRow)

    def test_an_unknown_suffix_lists_the_readable_ones(self, tmp_path):
        (tmp_path / "rows.xlsx").touch()

        said = message(read_rows, tmp_path / "rows.xlsx", ChoiceRow)

        assert all(suffix in said for suffix in (".xlsx", *SUFFIXES))

    @pytest.mark.parametrize("suffix", [".pkl", ".pt", ".bin"])
    def test_a_pickle_is_refused_with_the_reason(self, tmp_path, suffix):
        (tmp_path / f"rows{suffix}").touch()

        assert "can run any code" in message(read_rows, tmp_path / f"rows{suffix}", ChoiceRow)

    def test_plain_text_holds_prompts_only(self, tmp_path):
        (tmp_path / "rows.txt").write_text("a")

        assert "needs choice rows (prompt, answer, distractor)" in message(
            read_rows, tmp_path / "rows.txt", ChoiceRow)

    @pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.txt"])
    def test_a_file_that_is_not_utf8_gives_line_and_byte(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"prompt\n" + "naïve".encode("latin-1"))

        said = message(read_rows, tmp_path / name, PromptRow)

        expected = "line 1, column 1: not valid JSON" if name == "rows.jsonl" else (
            "line 2: byte 0xef at offset 9 is not UTF-8")
        assert expected in said

    def test_the_byte_order_mark_counts_in_the_offset(self, tmp_path):
        (tmp_path / "rows.txt").write_bytes(b"\xef\xbb\xbfab\xff")

        assert "byte 0xff at offset 5" in message(read_rows, tmp_path / "rows.txt", PromptRow)

    def test_utf16_is_recognised(self, tmp_path):
        (tmp_path / "rows.txt").write_bytes("hello".encode("utf-16"))

        assert "looks like UTF-16" in message(read_rows, tmp_path / "rows.txt", PromptRow)

    @pytest.mark.parametrize(("name", "content"), [
        ("rows.jsonl", "\n\n"), ("rows.json", ""), ("rows.json", "[]"), ("rows.csv", ""),
        ("rows.csv", "prompt,answer,distractor\n"), ("rows.txt", " \n"),
    ])
    def test_a_file_without_rows(self, tmp_path, name, content):
        (tmp_path / name).write_text(content)

        assert "has no rows" in message(read_rows, tmp_path / name, PromptRow)

    def test_a_parquet_file_that_is_none(self, tmp_path):
        (tmp_path / "rows.parquet").write_text("prompt")

        assert "is not a Parquet file" in message(read_rows, tmp_path / "rows.parquet", PromptRow)


class TestJsonErrors:
    def test_a_malformed_line_gives_line_and_column(self, tmp_path):
        (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": b}\n')

        assert "rows.jsonl, line 3, column 12: not valid JSON" in message(
            read_rows, tmp_path / "rows.jsonl", PromptRow)

    def test_a_malformed_list_gives_line_and_column(self, tmp_path):
        (tmp_path / "rows.json").write_text('[{"prompt": "a"},\n {"prompt": b}]')

        assert "line 2, column 13" in message(read_rows, tmp_path / "rows.json", PromptRow)

    def test_a_line_that_is_no_object(self, tmp_path):
        (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n"b"\n')

        assert "line 2: not an object but the text 'b'" in message(
            read_rows, tmp_path / "rows.jsonl", PromptRow)

    def test_a_list_named_jsonl(self, tmp_path):
        write(tmp_path / "rows.json", CHOICES).rename(tmp_path / "rows.jsonl")

        assert "name such a file .json" in message(read_rows, tmp_path / "rows.jsonl", ChoiceRow)

    def test_lines_named_json(self, tmp_path):
        write(tmp_path / "rows.jsonl", CHOICES).rename(tmp_path / "rows.json")

        assert "is named .jsonl" in message(read_rows, tmp_path / "rows.json", ChoiceRow)

    def test_an_object_instead_of_a_list(self, tmp_path):
        (tmp_path / "rows.json").write_text('{"name": "capitals", "samples": []}')

        assert "looks like a relation file" in message(read_rows, tmp_path / "rows.json", ChoiceRow)

    @pytest.mark.parametrize("text", ['{"prompt": ' + "9" * 5000 + "}", "[" * 100_000, '{"a": ' * 100_000])
    def test_json_that_breaks_parsers_is_an_error_too(self, tmp_path, text):
        (tmp_path / "rows.json").write_text(text)

        assert "rows.json, line 1" in message(read_rows, tmp_path / "rows.json", PromptRow)


class TestTableErrors:
    def test_a_row_with_too_many_cells(self, tmp_path):
        (tmp_path / "rows.csv").write_text("input,output\nhot,cold\nyes, of course,no\n")

        assert "line 3: 3 cells, but the header names 2 columns" in message(
            read_rows, tmp_path / "rows.csv", TaskRow)

    def test_lines_are_counted_through_cells_of_several_lines(self, tmp_path):
        (tmp_path / "rows.csv").write_text('input,output\n"a\nb",c\n\nd,""\n')

        assert "line 5: field 'output' is empty" in message(read_rows, tmp_path / "rows.csv", TaskRow)

    def test_a_quote_that_is_never_closed(self, tmp_path):
        (tmp_path / "rows.csv").write_text('input,output\n"a,b\n')

        assert "line 2: unexpected end of data" in message(read_rows, tmp_path / "rows.csv", TaskRow)

    def test_semicolons(self, tmp_path):
        (tmp_path / "rows.csv").write_text("input;output\nhot;cold\n")

        assert "it seems to be separated by ';'" in message(read_rows, tmp_path / "rows.csv", TaskRow)

    def test_two_columns_of_one_name(self, tmp_path):
        (tmp_path / "rows.csv").write_text("input,output,input\na,b,c\n")

        assert "line 1: two columns are called input" in message(read_rows, tmp_path / "rows.csv", TaskRow)


class TestFieldErrors:
    @pytest.mark.parametrize(("suffix", "place"), [
        (".jsonl", "line 2"), (".json", "line 6 (item 2)"), (".csv", "line 3"), (".tsv", "line 3"),
        (".parquet", "row 2")])
    def test_an_empty_field_gives_its_place_and_name(self, tmp_path, suffix, place):
        rows = [{"input": "a", "output": "b"}, {"input": "c", "output": ""}]
        path = write(tmp_path / f"rows{suffix}", rows)

        assert f"rows{suffix}, {place}: field 'output' is empty" in message(read_rows, path, TaskRow)

    def test_a_missing_field_lists_those_there_are(self, tmp_path):
        path = write(tmp_path / "rows.jsonl", [{"input": "a", "goal": "b"}])

        assert "line 1: field 'output' is missing (it has: input, goal)" in message(read_rows, path, TaskRow)

    @pytest.mark.parametrize(("value", "found"), [
        (3, "the number 3"), (True, "the value true"), (["x"], "a list"), ({}, "an object")])
    def test_a_field_of_the_wrong_type(self, tmp_path, value, found):
        path = write(tmp_path / "rows.jsonl", [{"input": "a", "output": value}])

        assert f"field 'output' must be text, not {found}" in message(read_rows, path, TaskRow)

    def test_null_is_empty(self, tmp_path):
        rows = [{"input": "a", "output": "b"}, {"input": "a", "output": None}]
        path = write(tmp_path / "rows.parquet", rows)

        assert "row 2: field 'output' is empty (null)" in message(read_rows, path, TaskRow)

    def test_a_lone_surrogate(self, tmp_path):
        (tmp_path / "rows.jsonl").write_text('{"input": "a", "output": "\\ud83d"}')

        assert "field 'output' holds half a character" in message(read_rows, tmp_path / "rows.jsonl", TaskRow)

    @pytest.mark.parametrize("label", [1.0, None, "", [1]])
    def test_a_label_that_is_no_class(self, tmp_path, label):
        path = write(tmp_path / "rows.jsonl", [{"text": "a", "label": label}])

        assert "line 1: field 'label'" in message(read_rows, path, LabelledRow)

    @pytest.mark.parametrize(("row", "found"), [
        ({"question": "a"}, "neither (it has: question)"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "both")])
    def test_a_prompt_row_has_exactly_one_of_both(self, tmp_path, row, found):
        path = write(tmp_path / "rows.jsonl", [row])

        assert f"either 'prompt' or 'messages'; this one has {found}" in message(read_rows, path, PromptRow)

    def test_a_turn_names_its_place_in_the_conversation(self, tmp_path):
        turns = [{"role": "user", "content": "a"}, {"role": "user"}]
        path = write(tmp_path / "rows.jsonl", [{"messages": turns}])

        assert "field 'messages[1].content' is missing" in message(read_rows, path, PromptRow)

    def test_a_conversation_without_turns(self, tmp_path):
        path = write(tmp_path / "rows.jsonl", [{"messages": []}])

        assert "field 'messages' is empty" in message(read_rows, path, PromptRow)

    def test_answer_and_distractor_differ(self, tmp_path):
        path = write(tmp_path / "rows.jsonl", [{"prompt": "a", "answer": " b", "distractor": " b"}])

        assert "fields 'answer' and 'distractor' are the same" in message(read_rows, path, ChoiceRow)

    def test_a_concept_without_words(self, tmp_path):
        path = write(tmp_path / "rows.jsonl", [{"concept": "flower"}])

        assert "no word in any language" in message(read_rows, path, WordRow)


SAMPLES = [{"subject": "Poland", "object": "Warsaw"}, {"subject": "Japan", "object": "Tokyo"}]
RELATION = {"name": "capital", "prompt_templates": ["{} has the capital"], "samples": SAMPLES,
            "prompt_templates_zs": ["Capital of {}?"], "properties": {"relation_type": "factual"}}


class TestRelations:
    def read(self, tmp_path, **changes):
        (tmp_path / "relation.json").write_text(json.dumps(RELATION | changes))
        return read_relation(tmp_path / "relation.json")

    def test_name_templates_and_pairs(self, tmp_path):
        relation = self.read(tmp_path)

        assert (relation.name, relation.prompt_templates) == ("capital", ("{} has the capital",))
        assert [pair.model_dump() for pair in relation.samples] == SAMPLES

    def test_a_repeated_pair_is_kept_once(self, tmp_path):
        assert len(self.read(tmp_path, samples=SAMPLES * 2).samples) == 2

    def test_stray_spaces_and_double_escapes_are_undone(self, tmp_path):
        relation = self.read(tmp_path, samples=[{"subject": "Colombia ", "object": "Bogot\\u00e1"}])

        assert (relation.samples[0].subject, relation.samples[0].object) == ("Colombia", "Bogotá")

    @pytest.mark.parametrize("template", ["no place", "{} and {}"])
    def test_a_template_has_exactly_one_place(self, tmp_path, template):
        assert "write exactly one {}" in message(lambda: self.read(tmp_path, prompt_templates=[template]))

    def test_a_bad_pair_gives_its_number_and_field(self, tmp_path):
        samples = [*SAMPLES, {"subject": "France"}]

        assert "field 'samples[2].object' is missing" in message(lambda: self.read(tmp_path, samples=samples))

    def test_a_list_is_no_relation(self, tmp_path):
        (tmp_path / "relation.json").write_text("[]")

        assert "not a list" in message(read_relation, tmp_path / "relation.json")


def test_behaviours_are_a_json_list(tmp_path):
    row = {"question": "Now or later?\n (A) Now\n (B) Later", "answer_matching_behavior": "(A)",
           "answer_not_matching_behavior": "(B)"}

    assert read_behaviours(write(tmp_path / "rows.json", [row])) == [BehaviourRow(**row)]


class TestCorpora:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_the_text_column_of_rows(self, tmp_path, suffix):
        path = write(tmp_path / f"corpus{suffix}", [{"text": "One.", "id": 1}, {"text": "Two.", "id": 2}])

        assert list(read_corpus(path)) == ["One.", "Two."]

    def test_the_paragraphs_of_a_text_file(self, tmp_path):
        (tmp_path / "book.md").write_bytes(b"\n\nA line\r\nand another.\r\n \r\n\r\nSecond.")

        assert list(read_corpus(tmp_path / "book.md")) == ["A line\nand another.", "Second."]

    def test_the_text_files_of_a_folder_in_order(self, tmp_path):
        (tmp_path / "b.txt").write_text("B")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "z.txt").write_text("A1\n\nA2")
        (tmp_path / "notes.csv").write_text("not,text")

        assert list(read_corpus(tmp_path)) == ["A1", "A2", "B"]

    def test_limit(self, tmp_path):
        path = write(tmp_path / "corpus.jsonl", [{"text": "One."}, {"text": "Two."}])

        assert list(read_corpus(path, limit=1)) == ["One."]

    def test_only_what_is_asked_for_is_read(self, tmp_path):
        path = tmp_path / "corpus.jsonl"
        path.write_text('{"text": "One."}\nnot JSON\n')

        assert list(read_corpus(path, limit=1)) == ["One."]

    def test_a_text_without_blank_lines_is_cut_at_line_ends_and_loses_nothing(self, tmp_path):
        lines = [f"line {number} of a file with one sentence a line" for number in range(2000)]
        (tmp_path / "lines.txt").write_text("\n".join(lines))

        texts = list(read_corpus(tmp_path / "lines.txt"))

        assert "\n".join(texts).split("\n") == lines
        assert max(map(len, texts)) <= MAX_PARAGRAPH

    def test_empty_texts_are_passed_over(self, tmp_path):
        path = write(tmp_path / "corpus.jsonl", [{"text": ""}, {"text": "One."}, {"text": " \n"}])

        assert list(read_corpus(path)) == ["One."]

    def test_a_file_without_a_text_column(self, tmp_path):
        path = write(tmp_path / "corpus.jsonl", [{"content": "One."}])

        assert "line 1: field 'text' is missing (it has: content)" in message(lambda: list(read_corpus(path)))

    def test_a_corpus_without_text(self, tmp_path):
        (tmp_path / "corpus.txt").write_text("\n\n")

        assert "holds no text" in message(lambda: list(read_corpus(tmp_path / "corpus.txt")))

    def test_a_missing_source_is_an_error_before_the_first_text(self, tmp_path):
        assert "does not exist" in message(read_corpus, tmp_path / "no.txt")

    def test_a_folder_without_text_files(self, tmp_path):
        assert "without a .txt file" in message(read_corpus, tmp_path)


class TestHub:
    """`datasets` is replaced: tests use no network."""

    @pytest.fixture
    def hub(self, monkeypatch):
        asked = []

        def install(answer):
            def load_dataset(name, **options):
                asked.append((name, options))
                return answer()

            monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
            return asked

        return install

    def test_name_and_split_are_asked_for_as_a_stream(self, hub):
        asked = hub(lambda: iter([{"text": "One."}, {"text": "Two."}]))

        assert list(read_corpus("hf:user/name:validation", limit=1)) == ["One."]
        assert asked == [("user/name", {"split": "validation", "streaming": True})]

    def test_the_split_is_train_unless_named(self, hub):
        asked = hub(lambda: iter([{"text": "One."}]))

        list(read_corpus("hf:user/name"))

        assert asked[0][1]["split"] == "train"

    def test_a_failure_of_the_network_says_what_to_do(self, hub):
        def fail():
            raise ConnectionError("Couldn't reach the Hub")

        hub(fail)

        said = message(lambda: list(read_corpus("hf:user/name")))

        assert "ConnectionError: Couldn't reach the Hub" in said
        assert "download a text, JSONL or Parquet file" in said

    def test_a_dataset_without_a_text_column(self, hub):
        hub(lambda: iter([{"content": "One."}]))

        assert "row 1: field 'text' is missing" in message(lambda: list(read_corpus("hf:user/name")))

    def test_no_name(self):
        assert "write hf:NAME" in message(lambda: list(read_corpus("hf:")))


def test_a_minimal_pair_of_sentences_is_a_choice(tmp_path):
    path = tmp_path / "blimp.jsonl"
    path.write_text('{"sentence_good": "Eva has scared these children.", "UID": "x", '
                    '"sentence_bad": "Eva has scared these child."}\n')
    (row,) = read_rows(path, ChoiceRow)
    assert (row.prompt, row.answer, row.distractor) == ("Eva has scared these", " children.", " child.")
    assert row.UID == "x"
    path.write_text('{"sentence_good": "Cats sleep.", "sentence_bad": "Dogs sleep."}\n')
    with pytest.raises(FileError, match=r"line 1: .*begin alike and then differ by a word"):
        read_rows(path, ChoiceRow)
