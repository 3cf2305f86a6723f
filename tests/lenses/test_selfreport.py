"""Self-report: which number counts as an answer, the measured layer against the logit lens, and bad input."""

import json

import pytest

import patchclamp as pc
from patchclamp.errors import RunError, SpecError
from patchclamp.lenses.selfreport import since, stated_layer


@pytest.mark.parametrize(("text", "layer"), [
    ("Layer 12.", 12), ("I knew at layer 0", 0), ("In 1950 already", None), ("no idea", None), ("3.5 of them", None),
    ("of 30 layers it was 7", 7), ("29", 29), ("-", None),
])
def test_the_number_a_text_names(text, layer):
    assert stated_layer(text, 30) == layer


@pytest.mark.parametrize(("is_first", "layer"), [
    ([False, True, False, True, True], 2), ([True, True, True], -1), ([False, False, True], 1),
])
def test_since_when_it_has_been_the_first_choice(is_first, layer):
    assert since(is_first) == layer


@pytest.fixture(scope="module")
def capitals(smollm2):
    return pc.run("lens.selfreport", smollm2, limit=24, max_new_tokens=16)


@pytest.mark.weights
def test_the_measured_layer_is_the_logit_lens_s(smollm2, capitals):
    account = capitals.result.accounts[0]
    prompt = f"The capital of {account.subject} is the city of"
    layers = pc.run("lens.logit", smollm2, prompt=prompt, controls=0).result.layers
    from_there = [layer.top[0].token for layer in layers if layer.layer >= account.measured]
    assert len(set(from_there)) == 1 and account.answer.startswith(from_there[0].strip())
    assert layers[account.measured].top[0].token != from_there[0]  # the layer before: index 0 is the embeddings


@pytest.mark.weights
def test_smollm2_does_not_know_its_own_layers(capitals, tmp_path):
    result = capitals.result
    assert capitals.verdict.outcome != "supported"
    assert result.facts + result.unknown == 24
    assert result.stated == sum(a.stated is not None for a in result.accounts) / result.facts
    assert capitals.save(tmp_path / "chart.svg").read_text().startswith("<svg")
    assert pc.Record.from_json(capitals.to_json()).to_json() == capitals.to_json()


@pytest.mark.weights
def test_only_a_chat_model_is_asked(gemma):
    with pytest.raises(SpecError, match="no chat template"):
        pc.run("lens.selfreport", gemma)


@pytest.mark.weights
def test_facts_nobody_knows(smollm2, tmp_path):
    path = tmp_path / "r.json"
    samples = [{"subject": f"Zyxwvut{i}", "object": "Qqqq"} for i in range(8)]
    path.write_text(json.dumps({"name": "x", "prompt_templates": ["{} is in"], "samples": samples}))
    with pytest.raises(RunError, match="gets 0 of 8 facts right"):
        pc.run("lens.selfreport", smollm2, relation=str(path))
