"""Patchscopes: a patch into its own place changes nothing, the batch agrees with one layer at a time, bad input."""

import pytest
import torch

import patchclamp as pc
from patchclamp.errors import SpecError
from patchclamp.evidence.method import Silent
from patchclamp.forward import Edit
from patchclamp.forward.streams import streams
from patchclamp.lenses.affine import fit_maps, mapped
from patchclamp.lenses.patchscope import DESCRIBE, PatchscopeSpec, continuations, make_target

pytestmark = pytest.mark.weights
DIANA = "Diana, princess of Wales"


def test_a_state_put_back_into_its_own_place_reproduces_the_run(smollm2):
    """The source is the target prompt itself, read at its placeholder."""
    spec = PatchscopeSpec(text=DESCRIBE, position='"x"')
    place_LD = streams(smollm2, [DESCRIBE], spec.position)[0]
    target = make_target(smollm2, spec, DESCRIBE, place_LD)
    plain = smollm2.generate(DESCRIBE, max_new_tokens=6).text

    assert not target.matched
    assert set(continuations(smollm2, target, [place_LD], 6, Silent())[0]) == {plain}


def test_all_layers_at_once_say_what_each_says_alone(smollm2):
    place_LD = streams(smollm2, [DIANA])[0]
    target = make_target(smollm2, PatchscopeSpec(text=DIANA, target_layer=0, norm="raw"), DESCRIBE, place_LD)
    together = continuations(smollm2, target, [place_LD], 5, Silent())[0]
    for layer in (2, 12, 29):
        edit = Edit.set(f"resid.0@{target.position}", place_LD[layer + 1])
        assert smollm2.generate(DESCRIBE, [edit], max_new_tokens=5).text == together[layer]


def test_the_middle_layers_of_smollm2_know_a_monarch(smollm2, tmp_path):
    """Section 7 of docs/design.md: country-like first, then a British monarch."""
    record = pc.run("lens.patchscope", smollm2, text=DIANA, target_layer=0, norm="raw", expect=["monarch"],
                    max_new_tokens=8, controls=19)
    found = [row.source_layer for row in record.result.rows if row.found]
    assert "country" in record.result.rows[0].text
    assert found and min(found) > 3 and max(found) < 20
    assert record.verdict.outcome == "supported"
    assert record.save(tmp_path / "chart.svg").read_text().startswith("<svg")
    assert pc.Record.from_json(record.to_json()).to_json() == record.to_json()


def test_states_of_other_layers_are_rescaled_in_gemma(gemma):
    """Its residual norms grow by orders of magnitude."""
    place_LD = streams(gemma, [DIANA])[0]
    spec = PatchscopeSpec(text=DIANA, target_layer=0)
    target = make_target(gemma, spec, DESCRIBE, place_LD)
    values = [edits[0].value.tensor.norm().item() for edits in target.edits(place_LD)]

    assert target.matched
    assert values == pytest.approx([float(target.norms[0])] * gemma.n_layers, rel=1e-4)


def test_the_object_of_a_relation_is_read_off_the_subject(gemma, tmp_path):
    record = pc.run("lens.patchscope", gemma, relation="example:country-capital", limit=16, max_new_tokens=4)
    accuracy = record.result.accuracy_by_layer
    assert len(accuracy) == gemma.n_layers
    assert max(accuracy[:7]) > 0.4 > max(accuracy[12:])
    assert record.result.baselines.linear_probe is None  # every capital stands once
    assert record.save(tmp_path / "chart.svg").read_text().startswith("<svg")


def test_an_affine_map_brings_a_layer_s_states_nearer_to_the_target_layer_s(smollm2):
    """On a text it was not fitted on; and the map to the target layer itself is the identity."""
    maps = fit_maps(smollm2, "example:neutral", 3, Silent())
    text = smollm2.encode("Diana, princess of Wales, opened a hospital in the north of London on Tuesday.")
    places_NLD = torch.stack(streams(smollm2, [text.ids] * (len(text) - 1), range(1, len(text))))
    target_ND = places_NLD[:, 4]
    for layer, share in ((5, 0.9), (12, 0.5), (29, 0.3)):
        states_ND = places_NLD[:, layer + 1]
        after_ND = torch.stack([mapped(maps, layer, state_D) for state_D in states_ND])
        assert (target_ND - after_ND).norm() < share * (target_ND - states_ND).norm()
    assert torch.allclose(mapped(maps, 3, target_ND[0]), target_ND[0], atol=1e-3)


def test_states_are_put_in_mapped(smollm2):
    record = pc.run("lens.patchscope", smollm2, text=DIANA, target_layer=2, affine="example:neutral", max_new_tokens=3,
                    controls=0)
    assert len(record.result.rows) == smollm2.n_layers
    assert not record.result.norm_matched


@pytest.mark.parametrize(("fields", "said"), [
    ({"text": DIANA, "affine": "example:neutral"}, "name the target layer"),
    ({"text": DIANA, "affine": "example:neutral", "target_layer": 30}, "0 to 29"),
    ({"text": DIANA, "target": "no place here", "placeholder": "@"}, "placeholder '@'"),
    ({"text": DIANA, "target_layer": 30}, "0 to 29"),
    ({}, "either a text to read or a relation"),
])
def test_bad_input(smollm2, fields, said):
    with pytest.raises(SpecError, match=said):
        pc.run("lens.patchscope", smollm2, **fields)
