"""Features a choice depends on: what the estimate says in a linear case, and what taking them out by hand does."""

import numpy as np
import pytest
import torch
from tiny import unattached

import patchclamp as pc
from patchclamp.errors import SpecError
from patchclamp.evidence.choices import read_choices
from patchclamp.evidence.method import Silent
from patchclamp.forward.autoencoder import Autoencoder, AutoencoderInfo
from patchclamp.sae.attribute import attribute_features, estimate

L = 48


@pytest.fixture(scope="module")
def sae(tmp_path_factory):
    model, folder = unattached(), tmp_path_factory.mktemp("sae") / "codes"
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(L, model.d_model), dim=1)
    info = AutoencoderInfo(name="codes", architecture="relu", site="resid.1", model=model.name,
                           weights=model.weights_hash)
    Autoencoder(info, {"W_enc": directions, "b_enc": torch.zeros(L), "W_dec": directions * 0.2,
                       "b_dec": torch.zeros(model.d_model)}).save(folder)
    return str(folder)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "choices.csv"
    rows = [f"w{i} w{i + 5} w2, w{i + 3}, w{i + 4}\n" for i in range(24)]
    path.write_text("prompt,answer,distractor\n" + "".join(rows))
    return str(path)


def test_the_estimate_is_the_slope_of_taking_a_feature_out(sae, prompts):
    """Against a finite difference: a thousandth of the feature taken out by hand."""
    model, autoencoder = unattached(), Autoencoder.load(sae)
    model.attach(sae)
    choices = read_choices(model, prompts).kept
    found_L, active_L, explained = estimate(model, choices, pc.Site.parse("feature:codes.1@last"), Silent())
    assert 0 < explained < 1
    for unit in (3, 17, 40):
        slopes, active = [], []
        for choice in choices:
            read = pc.Readout.logit_difference(choice.answer, choice.distractor)
            code = float(autoencoder.encode(model.capture([choice.prompt], ["resid.1"])["resid.1"][0, -1:])[0, unit])
            step = autoencoder.directions[unit] * code
            after, before = (float(model.run(choice.prompt, [pc.Edit.add("resid.1@last", step, s, "raw")], read))
                             if code else 0.0 for s in (-0.01, 0.01))
            slopes.append((after - before) / 0.02)
            active.append(code > 0)
        assert found_L[unit] == pytest.approx(np.mean(slopes), rel=2e-2, abs=1e-5)
        assert active_L[unit] == pytest.approx(np.mean(active))


def test_exact_effects_are_those_of_edits_by_hand(sae, prompts, tmp_path):
    record = attribute_features(unattached(), prompts=prompts, sae=sae, controls=4, shortlist=6, sizes=[1, 3])
    result, model, autoencoder = record.result, unattached(), Autoencoder.load(sae)
    choices = read_choices(model, prompts)
    from patchclamp.evidence.choices import halves

    finding, testing = halves(choices.kept, 0, 100, prompts)
    one = result.ranking[0]
    unit = pc.Site.parse(one.site).unit
    changes = []
    for choice in finding:
        read = pc.Readout.logit_difference(choice.answer, choice.distractor)
        code = float(autoencoder.encode(model.capture([choice.prompt], ["resid.1"])["resid.1"][0, -1:])[0, unit])
        edit = pc.Edit.add("resid.1@last", autoencoder.directions[unit], -code, "raw")
        changes.append(float(model.run(choice.prompt, [edit], read)) - float(model.run(choice.prompt, [], read)))
    assert one.exact_effect == pytest.approx(np.mean(changes), rel=1e-3, abs=1e-5)
    assert [group.k for group in result.groups] == [1, 3] and (result.prompts, result.heldout) == (
        len(finding), len(testing))
    effects = [one.exact_effect for one in result.ranking]
    assert effects == sorted(effects) and result.spearman > 0.8 and record.verdict is not None
    assert record.save(tmp_path / "a.svg").read_text().startswith("<svg") and len(record.table()) == 6
    assert pc.Record.from_json(record.to_json()).to_json() == record.to_json()


def test_an_autoencoder_that_says_nothing_has_no_feature_to_take_out(sae, prompts, tmp_path):
    dead = Autoencoder.load(sae)
    folder = Autoencoder(dead.info, dead.tensors | {"b_enc": torch.full((L,), -1e6)}).save(tmp_path / "dead").parent
    with pytest.raises(SpecError, match="no feature"):
        attribute_features(unattached(), prompts=prompts, sae=str(folder))
