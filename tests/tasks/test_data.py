"""The shipped data is what it says it is: a wrong row here would be a wrong finding everywhere."""

import re
from collections import Counter

import pytest

from patchclamp.errors import FileError, SpecError
from patchclamp.tasks import (
    ChoiceRow,
    PairRow,
    example_file,
    example_names,
    neutral_texts,
    read_corpus,
    read_relation,
    read_rows,
    read_task,
)

AGREEMENT = read_rows("example:agreement", ChoiceRow)
VALIDATION = read_rows("example:agreement-validation", ChoiceRow)
CAPITALS = read_rows("example:capitals", ChoiceRow)
IOI = read_rows("example:ioi", PairRow)


RELATIONS = (
    "adjective-adverb", "adjective-antonym", "adjective-comparative", "adjective-noun", "adjective-superlative",
    "animal-class", "animal-young", "city-country", "company-country", "country-capital", "country-continent",
    "country-currency", "country-demonym", "country-language", "element-symbol", "english-french", "english-spanish",
    "food-colour", "landmark-country", "masculine-feminine", "object-material", "profession-place", "singular-plural",
    "verb-agent", "verb-past", "word-first-letter")


@pytest.mark.parametrize("name", RELATIONS)
def test_a_relation_has_one_object_for_each_subject_and_templates_that_go_on_after_it(name):
    relation = read_relation(f"example:relations/{name}")
    assert relation.name == name.replace("-", " ") and len(relation.prompt_templates) >= 2
    assert len({one.subject for one in relation.samples}) == len(relation.samples) >= 36
    assert all(one.subject != one.object for one in relation.samples)
    objects = Counter(one.object for one in relation.samples)
    assert max(objects.values()) <= len(relation.samples) / 3 and len(objects) > 3
    for template in relation.prompt_templates:
        before, after = template.split("{}")
        assert len(after.split()) >= 2 and after == after.rstrip() and (not before or before.endswith(" "))


def test_the_folder_of_relations_is_an_example():
    assert len(list(example_file("relations").rglob("*.json"))) == len(RELATIONS) == 26
    with pytest.raises(FileError, match="did you mean example:relations/verb-past"):
        example_file("relations/verb-pas")


def test_the_names_of_the_shipped_files():
    behaviours = ("ai", "flattery", "formality", "french", "refusal", "sentiment", "truth")
    assert example_names() == (
        "agreement", "agreement-validation", "antonym", *(f"behaviour-{name}" for name in behaviours), "capitalize",
        "capitals", "code-errors", "code-results", "country-capital", "first-of-three", "ioi", "neutral", "openings",
        "present-past", "relations", *(f"relations/{name}" for name in RELATIONS), "singular-plural", "speaker",
        "topics", "two-hop", "words")


@pytest.mark.parametrize("name", ["antonym", "capitalize", "first-of-three", "present-past", "singular-plural"])
def test_a_task_has_one_answer_to_each_input(name):
    rows = read_task(f"example:{name}")
    assert len({row.input for row in rows}) == len(rows) > 100
    assert all(row.output and row.output != row.input for row in rows)


def test_a_relation_is_a_task_too():
    rows = read_task("example:country-capital")
    assert ("Poland", "Warsaw") in {(row.input, row.output) for row in rows}


def test_every_name_is_a_file_but_the_folder_of_relations():
    assert {name for name in example_names() if not example_file(name).is_file()} == {"relations"}


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(FileError, match="agreement, agreement-validation, antonym"):
        example_file("xyz")


@pytest.mark.parametrize(("rows", "at_least"), [(AGREEMENT, 40), (VALIDATION, 40), (CAPITALS, 60), (IOI, 40)])
def test_there_are_enough_rows_and_none_twice(rows, at_least):
    assert len(set(rows)) == len(rows) >= at_least


@pytest.mark.parametrize("rows", [AGREEMENT, VALIDATION, CAPITALS, IOI])
def test_answers_are_single_words_with_their_leading_space(rows):
    assert all(re.fullmatch(r" [A-Za-z]+", text) for row in rows for text in (row.answer, row.distractor))


@pytest.mark.parametrize("rows", [AGREEMENT, VALIDATION])
class TestAgreement:
    def test_the_determiner_tells_the_number(self, rows):
        numbers = {"these": "plural", "those": "plural", "this": "singular", "that": "singular"}

        assert all(numbers[row.prompt.split()[-1]] == row.model_extra["number"] for row in rows)

    def test_the_four_determiners_are_equally_frequent(self, rows):
        assert set(Counter(row.prompt.split()[-1] for row in rows).values()) == {len(rows) // 4}

    def test_each_plural_row_has_a_singular_twin_with_the_nouns_exchanged(self, rows):
        for plural, singular in zip(rows[::2], rows[1::2], strict=True):
            assert plural.prompt.split()[:-1] == singular.prompt.split()[:-1]
            assert (plural.answer, plural.distractor) == (singular.distractor, singular.answer)


class TestCapitals:
    def test_the_prompt_names_the_country(self):
        for row in CAPITALS:
            country = row.model_extra["country"]
            assert re.fullmatch(f"The capital of (the )?{country} is the city of", row.prompt)

    def test_every_country_and_every_capital_stands_once(self):
        assert len({row.model_extra["country"] for row in CAPITALS}) == len(CAPITALS)
        assert len({row.answer for row in CAPITALS}) == len(CAPITALS)

    def test_every_capital_is_a_distractor_once_so_that_none_is_favoured(self):
        assert sorted(row.distractor for row in CAPITALS) == sorted(row.answer for row in CAPITALS)


class TestIndirectObjects:
    def test_clean_and_corrupted_differ_in_the_repeated_name_alone(self):
        for row in IOI:
            clean, corrupted = row.clean.split(), row.corrupted.split()
            changed = [pair for pair in zip(clean, corrupted, strict=True) if pair[0] != pair[1]]
            assert changed == [(row.distractor.strip(), row.answer.strip())]

    def test_the_answer_is_the_name_that_clean_says_once(self):
        for row in IOI:
            counts = Counter(re.findall(r"\w+", row.clean))
            assert (counts[row.answer.strip()], counts[row.distractor.strip()]) == (1, 2)

    def test_all_prompts_have_the_same_words_in_the_same_places(self):
        template = r"When (\w+) and (\w+) went to the \w+, (\1|\2) gave a \w+ to"

        assert all(re.fullmatch(template, text) for row in IOI for text in (row.clean, row.corrupted))

    def test_every_name_is_the_answer_as_often_as_the_distractor(self):
        assert Counter(row.answer for row in IOI) == Counter(row.distractor for row in IOI)

    def test_the_answer_comes_first_as_often_as_second(self):
        first = sum(row.clean.split()[1] == row.answer.strip() for row in IOI)

        assert first == len(IOI) / 2


class TestNeutral:
    def test_about_sixty_different_short_paragraphs(self):
        texts = neutral_texts()

        assert len(set(texts)) == len(texts) >= 60
        assert all(40 <= len(text.split()) <= 70 for text in texts if text.isascii())

    def test_the_first_n(self):
        assert neutral_texts(3) == neutral_texts()[:3]

    def test_it_is_a_corpus_like_any_other(self):
        assert tuple(read_corpus("example:neutral")) == neutral_texts()

    @pytest.mark.parametrize("n", [0, -1, 10_000])
    def test_more_than_there_are(self, n):
        with pytest.raises(SpecError, match="ask for 1 to"):
            neutral_texts(n)
