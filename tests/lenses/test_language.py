"""The language of thought: sums over first tokens against the vocabulary, the finding on Gemma, and bad input."""

import json

import pytest
import torch

import patchclamp as pc
from patchclamp.errors import FileError, SpecError
from patchclamp.tasks import WordRow, read_rows

pytestmark = pytest.mark.weights
LANGUAGES = {"en", "fr", "de", "es", "zh", "ru", "ja"}


def test_the_shipped_words_are_complete():
    rows = read_rows("example:words", WordRow)
    assert len({r.concept for r in rows}) == len(rows) >= 120
    assert all(set(r.words) == LANGUAGES for r in rows)


@pytest.fixture(scope="module")
def french_to_chinese(gemma):
    return pc.run("lens.language", gemma, **{"from": "fr", "to": "zh", "limit": 24})


def test_gemma_passes_through_english_on_the_way_to_chinese(french_to_chinese):
    result = french_to_chinese.result
    assert french_to_chinese.verdict.outcome == "supported"
    assert result.languages == {"source": "fr", "target": "zh", "pivot": "en", "control": "de"}
    assert result.peak_layer["source"] < result.peak_layer["target"] == 17


def test_the_last_layer_is_the_models_own_probability(gemma, french_to_chinese):
    """For the example prompt the target's probability is the model's, summed over its first tokens."""
    result = french_to_chinese.result
    ids = gemma.encode(result.prompt).ids
    with torch.no_grad():
        probs = gemma.hf(torch.tensor([ids])).logits[0, -1].softmax(-1)
    alone = pc.run("lens.logit", gemma, prompt=result.prompt, controls=0).result.layers[-1]
    assert alone.top[0].prob == pytest.approx(float(probs.max()), rel=1e-3)
    assert 0 < result.layers[-1].target.mean < 1


def test_it_draws_and_comes_back_from_json(french_to_chinese, tmp_path):
    assert french_to_chinese.save(tmp_path / "chart.svg").read_text().startswith("<svg")
    assert pc.Record.from_json(french_to_chinese.to_json()).to_json() == french_to_chinese.to_json()
    assert len(french_to_chinese.table()) == 19


@pytest.mark.parametrize(("fields", "error", "said"), [
    ({"from": "xx"}, SpecError, "no column 'xx'"),
    ({"from": "en"}, SpecError, "have to differ"),
    ({"shots": 20, "limit": 12, "words": "FEW"}, FileError, "are needed"),
])
def test_bad_input(gemma, tmp_path, fields, error, said):
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps({"concept": f"c{i}", "en": "a", "fr": "b", "de": "c", "zh": "d"}) + "\n"
                           for i in range(5)))
    fields = {key: str(few) if value == "FEW" else value for key, value in fields.items()}
    with pytest.raises(error, match=said):
        pc.run("lens.language", gemma, **fields)
