"""A feature's direction is added as it is said, and what comes of it is told by who did not see it."""

import numpy as np
import pytest
import torch
from tiny import unattached

import patchclamp as pc
from patchclamp.errors import FileError, SpecError
from patchclamp.forward.autoencoder import Autoencoder, AutoencoderInfo
from patchclamp.sae.steer import steer_feature

L = 24
PROMPTS = "".join(f"w{i} w{i + 2} w{i * 5 % 60}\n" for i in range(18))
QUICK = {"max_new_tokens": 5, "controls": 3, "strengths": [1.0, 4.0], "tokens": 3000, "length": 16}


@pytest.fixture(scope="module")
def sae(tmp_path_factory):
    """Feature 5 is what raises the logit of w33 most, as far as the last block's stream is concerned."""
    model, folder = unattached(), tmp_path_factory.mktemp("sae") / "codes"
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(L, model.d_model), dim=1)
    weight = model.hf.lm_head.weight.detach() * model.hf.model.norm.weight.detach()
    pull = weight[model.token("w33")] - weight.mean(0)
    directions[5] = pull / pull.norm()
    directions[7] = 1 - 2.0 * (torch.arange(model.d_model) % 2)
    info = AutoencoderInfo(name="codes", architecture="relu", site="resid.2", model=model.name,
                           weights=model.weights_hash)
    bias = torch.zeros(L)
    bias[7] = -1e6
    Autoencoder(info, {"W_enc": directions, "b_enc": bias, "W_dec": directions * 2,
                       "b_dec": torch.zeros(model.d_model)}).save(folder)
    return str(folder)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(PROMPTS)
    return str(path)


def test_the_concept_appears_and_with_random_features_it_does_not(sae, prompts, corpus, tmp_path):
    record = steer_feature(unattached(), feature="5", sae=sae, prompts=prompts, corpus=corpus, words=["w33w33w33w33"],
                   **QUICK | {"max_new_tokens": 4, "strengths": [8.0, 30.0], "controls": 19})
    result = record.result
    assert result.measure == "words" and result.steered.mean > 0.9 and result.base.mean < 0.3
    assert record.verdict.outcome == "supported" and result.strength in (8.0, 30.0)
    assert [one.strength for one in result.tried] == [0, 8, 30] and len(result.texts) == 12
    assert record.save(tmp_path / "s.svg").read_text().startswith("<svg") and len(record.table()) == 12
    assert pc.Record.from_json(record.to_json()).to_json() == record.to_json()


def test_what_is_written_is_what_the_edit_by_hand_writes(sae, prompts, corpus):
    """Against generation with a hook that adds strength · greatest activation · direction to the block's output."""
    model = unattached()
    result = steer_feature(model, feature="feature.2.5", sae=sae, prompts=prompts, corpus=corpus, **QUICK).result
    shift = Autoencoder.load(sae).directions[5] * result.strength * result.greatest
    plain = unattached()

    def add(module, args, output):
        return (output[0] + shift, *output[1:]) if isinstance(output, tuple) else output + shift

    for one in result.texts[:4]:
        assert plain.generate(one.prompt, max_new_tokens=5).text == one.base
        handle = plain.hf.model.layers[2].register_forward_hook(add)
        ids = torch.tensor([plain.encode(one.prompt).ids])
        with torch.no_grad():
            for _ in range(5):
                ids = torch.cat([ids, plain.hf(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
        handle.remove()
        assert plain.decode(ids[0, -5:].tolist()).strip() == one.steered.strip()


def test_a_text_is_read_again_by_the_unsteered_model(sae, prompts, corpus):
    model, autoencoder = unattached(), Autoencoder.load(sae)
    result = steer_feature(model, feature="5", sae=sae, prompts=prompts, corpus=corpus, **QUICK).result
    assert result.measure == "reread"
    plain, found = unattached(), []
    for one in result.texts:
        ids = plain.encode(one.prompt).ids
        said = plain.generate(one.prompt, max_new_tokens=5)
        values = plain.capture([(*ids, *said.tokens)], ["resid.2"])["resid.2"][0, len(ids):]
        found.append(float(autoencoder.encode(values)[:, 5].max()) / result.greatest)
    assert result.base.mean == pytest.approx(np.mean(found), rel=1e-3)


def test_subtracting_chooses_where_it_shows_least(sae, prompts, corpus):
    record = steer_feature(unattached(), feature="5", sae=sae, prompts=prompts, corpus=corpus,
                           **QUICK | {"strengths": [-1.0, -4.0]})
    assert record.result.strength < 0 and "subtracting" in record.verdict.reason
    best = min(record.result.tried[1:], key=lambda one: one.shown + one.degenerate)
    assert record.result.strength == best.strength


@pytest.mark.parametrize(("fields", "error", "says"), [
    ({"feature": "24"}, SpecError, "features 0 to 23"),
    ({"feature": "7"}, SpecError, "never active"),
    ({"strengths": [-1.0, 1.0]}, SpecError, "all positive"),
    ({"prompts": "nowhere.txt"}, FileError, "nowhere.txt"),
    ({"feature": "neuron.1.3"}, SpecError, "no feature of"),
])
def test_wrong_questions_are_refused(sae, prompts, corpus, fields, error, says):
    with pytest.raises(error, match=says):
        steer_feature(unattached(), **{"feature": "5", "sae": sae, "prompts": prompts, "corpus": corpus, **QUICK,
                                       **fields})


def test_few_prompts_are_refused(sae, tmp_path, corpus):
    (tmp_path / "few.txt").write_text("w1 w2\nw3 w4\n")
    with pytest.raises(SpecError, match="12 are needed"):
        steer_feature(unattached(), feature="5", sae=sae, prompts=str(tmp_path / "few.txt"), corpus=corpus, **QUICK)
