"""Direct and total effects of ablations, the blocks' responses, and the smallest groups."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_model

import patchclamp as pc
from patchclamp.errors import SiteError, SpecError
from patchclamp.evidence.choices import Choice
from patchclamp.evidence.method import Silent
from patchclamp.forward.decompose import signed
from patchclamp.forward.frozen import FrozenUnembedding, exact
from patchclamp.neurons.minimal import necessary, sufficient
from patchclamp.neurons.selfrepair import Anatomist

CHOICES = [Choice((5, 6, 7, 8), 20, 21), Choice((9, 10, 11), 22, 23)]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "choices.jsonl"
    rows = [{"prompt": f"w{i} w{i % 7} w9", "answer": f" w{20 + i % 5}", "distractor": f" w{30 + i % 5}"}
            for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("how", ["zero", "mean"])
def test_direct_and_responses_are_the_change_of_the_last_stream(name, how):
    """Read along the frozen direction; and in the last block nothing is left to respond."""
    model = tiny_model(name, double=True)
    layers = [0, 2]
    values = model.mean_values([f"neuron.{layer}" for layer in layers])
    replaced = {i: v.double() if how == "mean" else v.double() * 0 for i, v in zip(layers, values, strict=True)}
    anatomist = Anatomist(model, CHOICES, layers, replaced, Silent())
    sites = [pc.Site.parse(text) for text in ("neuron.0.3@last", "neuron.2.17@last")]
    edits = [pc.Edit.set(site, float(replaced[site.layer][site.unit])) for site in sites]
    both, last = anatomist.take_apart([(sites, edits), (sites[1:], edits[1:])], Silent())
    for i, choice in enumerate(CHOICES):
        clean, changed = (model.run(choice.prompt, some, "resid.2@last") for some in ((), edits))
        direction = signed(FrozenUnembedding(model.anatomy, clean).read([choice.answer, choice.distractor]).directions)
        want = float((exact(changed) - exact(clean)) @ direction)
        got = both.direct[i] + both.attn[:, i].sum() + both.mlp[:, i].sum()
        assert got == pytest.approx(want, abs=1e-6)
        read = pc.Readout.logit_difference(choice.answer, choice.distractor)
        runs = [float(model.run(choice.prompt, some, read)) for some in (edits, ())]
        assert both.total[i] == pytest.approx(runs[0] - runs[1], abs=1e-6)
        assert both.norm[i] == pytest.approx(both.total[i] - want, abs=1e-6)
    assert np.abs(last.attn).max() < 1e-6 and np.abs(last.direct).min() > 0
    if name != "gemma3":  # its post-norm scales the block's whole output anew
        assert np.abs(last.mlp).max() < 1e-6
    direct = anatomist.direct_effects()
    assert float(direct[2][17]) == pytest.approx(last.direct.mean(), abs=1e-9)


@given(st.lists(st.floats(-1, 3), min_size=1, max_size=12), st.floats(0.1, 6), st.booleans())
def test_no_member_of_a_smallest_group_can_be_left_out(weights, bound, spare):
    """With effects that add up, and one pair that only counts together."""
    sites = [pc.Site("neuron", 0, unit) for unit in range(len(weights))]

    def measure(groups):
        out = []
        for group in groups:
            units = {site.unit for site in group}
            out.append(10 - sum(weights[u] for u in units) - 2 * ({0, 1} <= units))
        return np.array(out)

    def value(group):
        rest = [site for site in sites if site not in group]
        return float(measure([rest if spare else group])[0])

    if spare:
        limit = float(measure([sites])[0]) + bound
        found, holds = sufficient(measure, sites, limit), lambda group: value(group) >= limit
    else:
        limit = 10 - bound
        found, holds = necessary(measure, sites, limit), lambda group: value(group) <= limit
    grown = [sites[:k] for k in range(1, len(sites) + 1)]
    assert (found is None) == (not any(holds(group) for group in grown))
    if found:
        assert holds(found)
        assert len(found) == 1 or not any(holds([s for s in found if s is not left]) for left in found)


def test_named_neurons_and_groups_on_other_rows(file):
    model = tiny_model("llama")
    sites = ["neuron.0.3", "neuron.1.5", "neuron.2.7", "neuron.2.9"]
    record = pc.repair(model, sites=sites, prompts=file, controls=3, lost=0.01, kept=0.5)
    result = record.result
    assert {one.site for one in result.neurons} == {f"{site}@last" for site in sites}
    assert result.found_on + result.tested_on == 20 and len(result.responses) == 3
    assert result.all_ablated == pytest.approx(result.base + result.together.total, abs=1e-5)
    parts = result.together.direct + sum(r.attn + r.mlp for r in result.responses) + result.norm
    assert parts == pytest.approx(result.together.total, abs=1e-5)
    assert type(result).model_validate_json(result.model_dump_json()) == result
    assert record.chart().to_dict()["vconcat"] and len(record.table()) == 5


@pytest.mark.parametrize("by", ["total", "direct"])
def test_neurons_are_looked_for_if_none_are_named(file, by):
    result = pc.repair(tiny_model("llama"), prompts=file, shortlist=5, by=by, controls=2).result
    assert len(result.neurons) == 5
    if by == "direct":
        assert result.together.direct < 0


@pytest.mark.parametrize(("sites", "error", "message"), [
    (["head.1.0"], SpecError, "neurons at the last token"),
    (["neuron.1.0@2"], SpecError, "neurons at the last token"),
    (["neuron.1.99"], SiteError, "48 neurons"),
    (["neuron.1.0", "neuron.1.0@last"], SpecError, "named twice"),
])
def test_what_is_wrong_is_named(file, sites, error, message):
    with pytest.raises(error, match=message):
        pc.repair(tiny_model("llama"), sites=sites, prompts=file, controls=2)


@pytest.mark.weights
def test_early_plural_neurons_work_through_later_blocks(smollm2):
    """neuron.19.1044 itself writes little of the difference; later blocks read it and write the rest."""
    result = pc.repair(smollm2, sites=["neuron.19.1044"], prompts="example:agreement", where=("number=plural",),
                       controls=5).result
    one = result.neurons[0]
    assert one.total < -1 and -0.6 < one.direct < 0 and one.repaired < 0
    assert abs(sum(r.attn + r.mlp for r in result.responses)) > 1
