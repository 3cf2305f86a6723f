"""Attribution of choices to neurons: estimates, exact effects, groups on other rows."""

import json

import numpy as np
import pytest
import torch
from tiny import tiny_model

import patchclamp as pc
from patchclamp.errors import FileError, SiteError, SpecError
from patchclamp.evidence.choices import Choice, read_choices
from patchclamp.evidence.method import Silent
from patchclamp.forward import Edit
from patchclamp.neurons.attribute import estimate, exact_effects

CHOICES = [Choice((5, 6, 7, 8), 20, 21), Choice((9, 10, 11), 22, 23), Choice((12, 13, 14, 15, 16), 24, 25)]


def effect(model, choice, edits):
    read = pc.Readout.logit_difference(choice.answer, choice.distractor)
    rows = [(choice.prompt, edits, [read]), (choice.prompt, (), [read])]
    edited, plain = (float(row[0]) for row in model.execute(pc.Plan.of(rows), "single"))
    return edited - plain


@pytest.fixture
def file(tmp_path):
    def write(n, same=False):
        rows = [{"prompt": f"w{1 if same else i} w{i % 7} w9", "answer": f" w{20 + i % 5}",
                 "distractor": f" w{30 + i % 5}", "number": ("plural", "singular")[i % 3 == 2]} for i in range(n)]
        path = tmp_path / f"choices{n}{same}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("how", ["zero", "mean"])
def test_the_estimate_is_the_slope_of_the_exact_effect(name, how):
    """A neuron moved a hundredth of the way, and a hundredth back: the difference is a fiftieth of its estimate."""
    model = tiny_model(name, double=True)
    texts = ("w40 w41 w42",) if how == "mean" else ()
    found = estimate(model, CHOICES, [0, 2], "last", how, texts, Silent())
    for row, layer, unit in ((0, 0, 3), (1, 2, 17)):
        site = f"neuron.{layer}.{unit}@last"
        target = float(model.mean_values([f"neuron.{layer}.{unit}"], texts)[0]) if texts else 0.0
        small = []
        for choice in CHOICES:
            value = float(model.run(choice.prompt, read=site))
            ahead, back = (effect(model, choice, [Edit.set(site, value + far * (target - value))])
                           for far in (0.01, -0.01))
            small.append((ahead - back) * 50)
        assert float(found[row, unit]) == pytest.approx(np.mean(small), rel=2e-3, abs=2e-5)


def test_integrated_estimates_of_a_layer_sum_to_what_replacing_it_does():
    """Completeness (Sundararajan et al. 2017, proposition 1)."""
    model = tiny_model("llama", double=True)
    found = estimate(model, CHOICES, [1], "last", "zero", (), Silent(), steps=64)
    whole = np.mean([effect(model, choice, [Edit.zero("neuron.1@last")]) for choice in CHOICES])
    assert float(found.sum()) == pytest.approx(whole, rel=1e-3)
    plain = estimate(model, CHOICES, [1], "last", "zero", (), Silent())
    assert abs(float(plain.sum()) - whole) > abs(float(found.sum()) - whole)


def test_positions_are_summed():
    model = tiny_model("llama", double=True)
    everywhere = estimate(model, CHOICES[:1], [1], "all", "zero", (), Silent())
    each = sum(estimate(model, CHOICES[:1], [1], str(i), "zero", (), Silent()) for i in range(4))
    assert torch.allclose(everywhere, each, atol=1e-9)


def test_exact_effects_are_those_of_one_run_at_a_time():
    model = tiny_model("llama")
    sites = [pc.Site.parse(f"neuron.{layer}.{unit}@last") for layer in (0, 2) for unit in (0, 31, 47)]
    found = exact_effects(model, CHOICES, sites, "zero", (), Silent())
    by_hand = [np.mean([effect(model, choice, [Edit.zero(site)]) for choice in CHOICES]) for site in sites]
    assert found == pytest.approx(by_hand, abs=2e-5)


def test_a_sweep_says_what_the_shortlist_missed(file):
    model = tiny_model("llama")
    record = pc.attribute_neurons(model, prompts=file(24), layers=(1,), sweep=True, shortlist=24, controls=2)
    result = record.result
    assert result.recall.neurons == 48 and result.recall.top == 20
    assert 0.5 < result.recall.found <= 1
    effects = [one.exact_effect for one in result.ranking]
    assert len(effects) == 24 and effects == sorted(effects)
    assert pc.attribute_neurons(model, prompts=file(24), layers=(1,), sweep=True, shortlist=48,
                                controls=2).result.recall.found == 1


def test_groups_are_tested_on_other_rows(file):
    model = tiny_model("llama")
    record = pc.attribute_neurons(model, prompts=file(24), where=("number=plural",), shortlist=12, sizes=(1, 4),
                                  controls=2)
    result = record.result
    assert [g.k for g in result.groups] == [1, 4] == [g.k for g in result.others]
    assert result.groups[1].sites == [one.site for one in result.ranking[:4]]
    assert result.prompts + result.heldout == 16
    kept = read_choices(model, file(24), ("number=plural",)).kept
    assert len(kept) == 16
    back = type(result).model_validate_json(result.model_dump_json())
    assert back == result
    assert record.verdict.outcome in ("supported", "not supported", "inconclusive")
    assert record.chart().to_dict()["vconcat"]
    assert len(record.table()) == 12


@pytest.mark.parametrize(("fields", "error", "message"), [
    ({"layers": (9,)}, SiteError, "names block 9"),
    ({"where": ("plural",)}, SpecError, "write FIELD=VALUE"),
    ({"where": ("nmber=plural",)}, FileError, "no row has a field 'nmber'; the first one has"),
    ({"where": ("number=dual",)}, FileError, "no row has number=dual .number is plural, singular"),
    ({"sizes": (0,)}, SpecError, "greater than or equal to 1"),
    ({"position": "frist"}, SiteError, "names no positions"),
])
def test_what_is_wrong_is_named(file, fields, error, message):
    with pytest.raises(error, match=message):
        pc.attribute_neurons(tiny_model("llama"), prompts=file(24), **fields)


def test_too_few_different_prompts(file):
    with pytest.raises(SpecError, match="2 different prompts are too few"):
        pc.attribute_neurons(tiny_model("llama"), prompts=file(2))


@pytest.mark.weights
def test_ten_neurons_carry_the_plural(smollm2):
    """`these books`: ten of 46,080 neurons, found on half of the sentences, decide on the other half."""
    record = pc.attribute_neurons(smollm2, prompts="example:agreement", where=("number=plural",), shortlist=60,
                                  sizes=(1, 10))
    assert record.verdict.outcome == "supported"
    group = record.result.groups[-1]
    assert group.effect.accuracy <= -0.4 and abs(group.random.accuracy.mean) <= 0.05
    assert abs(record.result.others[-1].effect.accuracy) <= 0.2
