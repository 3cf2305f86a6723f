"""Stages over many facts: against the logit lens prompt by prompt, the two formats, and bad input."""

import json

import pytest

import patchclamp as pc
from patchclamp.errors import FileError, SpecError
from patchclamp.evidence.method import Silent
from patchclamp.lenses.stages import _fact, _follow
from patchclamp.tasks import RelationSample

pytestmark = pytest.mark.weights
PASSAGE = "{subject} is a country. Its capital is the city of {object}."


@pytest.fixture(scope="module")
def capitals(gemma):
    return pc.run("lens.stages", gemma, limit=16)


def test_gemma_names_the_country_on_the_way_to_the_capital(capitals):
    """Merullo et al.'s finding, on facts in plenty, with other countries as the control."""
    layers = capitals.result.layers
    peak = {role: max(range(18), key=lambda i, role=role: getattr(layers[i + 1], role).mean) for role in
            ("subject", "object")}
    assert capitals.verdict.outcome == "supported"
    assert peak["subject"] < peak["object"]
    assert layers[-1].object.mean == 1  # only facts that it knows are counted


def test_a_fact_s_ranks_are_the_logit_lens_s(gemma):
    prompt = "The capital of Poland is the city of"
    fact = _fact(gemma, RelationSample(subject="Poland", object="Warsaw"))
    other = _fact(gemma, RelationSample(subject="Japan", object="Tokyo"))
    values_NRL, first_N = _follow(gemma, [fact, other], [prompt, "The capital of Japan is the city of"], 0, Silent())
    words = [" Poland", " Warsaw", " Japan"]
    layers = pc.run("lens.logit", gemma, prompt=prompt, watch=words, controls=0).result.layers
    for role, token in enumerate(words):
        assert values_NRL[0, role].tolist() == [layer.watch[token].reciprocal_rank for layer in layers]
    assert first_N.tolist() == [True, True]


def test_the_passage_is_another_route(gemma, tmp_path):
    record = pc.run("lens.stages", gemma, limit=16, passage=PASSAGE)
    assert len(record.result.passage_layers) == 19
    assert record.verdict is not None
    assert record.save(tmp_path / "chart.svg").read_text().startswith("<svg")
    assert pc.Record.from_json(record.to_json()).to_json() == record.to_json()


def test_a_passage_without_the_fact_is_refused(gemma):
    with pytest.raises(SpecError, match=r"where \{object\} goes"):
        pc.run("lens.stages", gemma, passage="{subject} is a country.")


def test_words_of_several_tokens_are_counted_not_cut(gemma, tmp_path):
    path = tmp_path / "r.json"
    samples = [{"subject": f"Zyxwvut{i}", "object": "Paris"} for i in range(14)]
    path.write_text(json.dumps({"name": "x", "prompt_templates": ["{} is in"], "samples": samples}))
    with pytest.raises(FileError, match="0 facts whose subject and object are single tokens"):
        pc.run("lens.stages", gemma, relation=str(path))
