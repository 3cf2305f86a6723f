"""Prompts, samples and the fitted map: against what is known of a toy whose relation is exactly linear."""

import json

import pytest
import torch
from linear_toy import TEMPLATE

from patchclamp.errors import FileError, InputError, PromptError, SpecError
from patchclamp.evidence.method import Silent
from patchclamp.forward.jacobian import jacobians
from patchclamp.relations.fit import fit_relation
from patchclamp.relations.fitting import fitted
from patchclamp.relations.linear import FILE, load_relation
from patchclamp.relations.prompts import fact, question, unclear
from patchclamp.relations.readers import _regression, choose, readers
from patchclamp.relations.samples import SamplesSpec, part
from patchclamp.tasks.read import read_relation
from patchclamp.tasks.rows import RelationSample


def sample(subject, object):
    return RelationSample(subject=subject, object=object)


@pytest.fixture(scope="module")
def parted_and_map(linear, linear_file):
    return fitted(linear, read_relation(linear_file), SamplesSpec(), linear_file, Silent())


# Prompts


def test_a_sample_is_asked_after_the_examples_of_other_subjects(linear):
    one = fact(linear, TEMPLATE, sample("w5", "w60"), [sample("w5", "w61"), sample("w6", "w62")])
    said = [linear.say(token) for token in one.ids]
    assert said == ["w90", "w6", "w91", "w92", "w62", "w90", "w5", "w91", "w92"]
    assert (linear.say(one.ids[one.position]), one.position, linear.say(one.answer)) == ("w5", 6, "w60")


@pytest.mark.weights
@pytest.mark.parametrize(("subject", "template", "last"), [
    ("Poland", "The capital of {} is", " Poland"), ("L'Oréal", "{}'s country is", "éal"),
    ("the Netherlands", "In {}, people speak", " Netherlands"), ("東京", "The city {} lies in", "東京"),
    ("is", "What is {} is", " is"),
])
def test_the_subjects_last_token_is_found_by_where_it_stands(smollm2, gemma, subject, template, last):
    for model in (smollm2, gemma):
        asked = question(model, template, subject, [sample("is", "What")])
        encoded = model.encode(asked.text)
        before = "".join(encoded.pieces[: asked.position + 1])
        assert before.endswith(last) or last.endswith(encoded.pieces[asked.position])
        rest = "".join(encoded.pieces[asked.position + 1 :])
        assert rest == template.split("{}")[1]


@pytest.mark.parametrize("template", ["w90 {}", "w90 {} "])
def test_nothing_after_the_subject_is_refused(linear, template):
    with pytest.raises(SpecError, match="ends with the subject"):
        question(linear, template, "w5")


def test_an_empty_subject_is_refused(linear):
    with pytest.raises(SpecError, match="the subject is empty"):
        question(linear, TEMPLATE, " ")


@pytest.mark.weights
def test_an_object_that_the_tokenizer_joins_to_the_prompt_is_refused(smollm2):
    from patchclamp.forward.answer import ask

    with pytest.raises(PromptError, match="joins its end"):
        ask(smollm2, "The capital of Poland is Wars", "aw")


@pytest.mark.weights
def test_objects_that_their_first_token_does_not_tell(smollm2):
    objects = {"India": "New Delhi", "Utopia": "New York", "Canada": "Xqaw", "Ohio": "X", "Italy": "Rome"}
    facts = [fact(smollm2, "The city of {} is", sample(*pair)) for pair in objects.items()]
    assert set(unclear(smollm2, facts)) == {"New Delhi", "New York", "Xqaw", "X"}
    assert "same token" in unclear(smollm2, facts)["New York"]
    only = [fact(smollm2, "The city of {} is", sample("Canada", "Xqaw"))]
    assert unclear(smollm2, only) == {"Xqaw": "its first token is 'X' alone"}


# Samples


def test_no_sample_is_in_two_sets_and_the_model_knows_all(linear, parted_and_map):
    parted, _ = parted_and_map
    sets = [{one.sample.subject for one in known.facts} for known in (parted.fit, parted.validation, parted.test)]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    assert len(sets[0]) == 8 and parted.known == parted.asked == 60 and len(sets[1]) >= 25 <= len(sets[2])
    for known in (parted.fit, parted.validation, parted.test):
        for one in known.facts:
            assert int(linear.hf(torch.tensor([one.ids])).logits[0, -1].argmax()) == one.answer


def test_a_sample_unknown_in_the_prompt_it_would_be_fitted_on_is_left_out(linear, linear_file, monkeypatch):
    """It was known after other examples only."""
    calls = []

    def all_but_the_first_fitted(model, facts, progress):
        calls.append(len(facts))
        return [len(calls) != 2 or i > 0 for i in range(len(facts))]

    monkeypatch.setattr("patchclamp.relations.samples.knows", all_but_the_first_fitted)
    parted = part(linear, read_relation(linear_file), SamplesSpec(), "x.json", Silent())
    assert calls[1] == 8 and len(parted.fit) == 7 and (parted.known, parted.asked) == (59, 60)


def test_clashing_objects_leave_enough_examples(linear, linear_file):
    """Examples are a third of the samples that can be used, not of all."""
    relation = read_relation(linear_file)
    parted = part(linear, relation.model_copy(update={"samples": relation.samples[:12]}), SamplesSpec(), "x", Silent())
    assert parted.known == 12 and len(parted.fit) == 4


def test_the_streams_are_those_of_hugging_face(linear, parted_and_map):
    parted, _ = parted_and_map
    one = parted.test.facts[3]
    hidden = linear.hf.model(torch.tensor([one.ids]), output_hidden_states=True).hidden_states
    torch.testing.assert_close(parted.test.h[3, 1], hidden[1][0, one.position], rtol=1e-4, atol=1e-4)


def test_too_few_known_samples_say_how_many(llama, tmp_path):
    samples = [{"subject": f"w{i}", "object": "w0"} for i in range(40)]
    data = {"name": "none", "prompt_templates": [TEMPLATE], "samples": samples}
    (tmp_path / "none.json").write_text(json.dumps(data))
    with pytest.raises(FileError, match=r"none.json: the model knows 0 of \d+; needs 10"):
        fit_relation(llama, relation=str(tmp_path / "none.json"))


def test_a_template_that_is_not_there(linear, linear_file):
    with pytest.raises(SpecError, match="has 2 templates, numbered from 0; there is no number 2"):
        fit_relation(linear, relation=linear_file, template=2)


# The map


def by_hand(model):
    """∂z/∂h_subject at the embeddings: a fourth of what the second block's heads write of the subject."""
    attention = model.hf.model.layers[1].self_attn
    groups = model.n_heads // model.n_kv_heads
    v_HED = attention.v_proj.weight.view(model.n_kv_heads, model.d_head, -1).repeat_interleave(groups, 0)
    o_DHE = attention.o_proj.weight.view(model.d_model, model.n_heads, model.d_head)
    return torch.einsum("dhe,hei->di", o_DHE, v_HED) / 4


def test_the_map_of_an_exactly_linear_relation_is_recovered(linear, parted_and_map):
    parted, made = parted_and_map
    expected_DD = by_hand(linear).detach()
    for layer in (-1, 0):
        torch.testing.assert_close(made.weight[layer + 1], expected_DD, rtol=0, atol=2e-4 * float(expected_DD.max()))
        z_ND = made.objects(parted.test.h[:, layer + 1], layer)
        assert (z_ND - parted.test.z).abs().max() < 1e-3 * parted.test.z.abs().max()


def test_the_map_is_the_mean_of_the_jacobians(linear, parted_and_map):
    parted, made = parted_and_map
    each = torch.stack([jacobians(linear, one.ids, one.position) for one in parted.fit.facts])
    torch.testing.assert_close(made.weight, each.mean(0), rtol=1e-5, atol=1e-5)
    mean_z = made.objects(parted.fit.h.mean(0)[0], -1)
    torch.testing.assert_close(mean_z, parted.fit.z.mean(0), rtol=1e-4, atol=1e-4)


def test_the_inverse_at_full_rank_undoes_the_map(linear, parted_and_map):
    parted, made = parted_and_map
    dz_ND = parted.test.z[1:4] - parted.test.z[:3]
    change_ND = made.change(dz_ND, 0, linear.d_model)
    torch.testing.assert_close(change_ND @ made.weight[1].T, dz_ND, rtol=0, atol=2e-3 * float(dz_ND.abs().max()))
    u, s, v = torch.linalg.svd(made.weight[1])
    low_ND = made.change(dz_ND, 0, 3)
    torch.testing.assert_close(low_ND, (dz_ND @ u[:, :3] / s[:3]) @ v[:3], rtol=1e-3, atol=1e-3)


def test_the_readers_are_what_they_say(linear, parted_and_map):
    parted, made = parted_and_map
    fit, h_ND = parted.fit, parted.test.h[:, 1]
    named = {reader.name: reader for reader in readers(made, fit)}
    offset_D = (fit.z - fit.h[:, 1]).mean(0)
    torch.testing.assert_close(named["translation"].objects(h_ND, 0, 1.0), h_ND + offset_D)
    torch.testing.assert_close(named["identity"].objects(h_ND, 0, 2.0), 2 * h_ND + offset_D)
    assert named["logit_lens"].objects(h_ND, 0, 1.0) is h_ND
    on_fitted = named["regression"].objects(fit.h[:, 1], 0, 1.0)
    assert (on_fitted - fit.z).norm() < 0.05 * (fit.z - fit.z.mean(0)).norm(), "least squares fits its own samples"


def test_the_regression_is_ridge_regression():
    from sklearn.linear_model import Ridge

    generator = torch.Generator().manual_seed(0)
    x_ND, y_ND = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    centred_ND = x_ND - x_ND.mean(0)
    penalty = 1e-3 * float((centred_ND**2).sum(1).mean())
    theirs = Ridge(alpha=penalty).fit(x_ND.numpy(), y_ND.numpy()).predict(x_ND.numpy())
    torch.testing.assert_close(_regression(x_ND, y_ND)(x_ND).double(), torch.tensor(theirs), rtol=1e-4, atol=1e-5)


def test_settings_are_chosen_on_validation_samples(linear, parted_and_map):
    parted, made = parted_and_map
    lre, *_ = readers(made, parted.fit)
    chosen, by_layer, scores = choose(linear, lre, parted.validation)
    assert chosen.layer in (-1, 0) and chosen in by_layer and [one.layer for one in by_layer] == [-1, 0, 1]
    assert scores.right.reshape(3, len(lre.betas), -1)[chosen.layer + 1, lre.betas.index(chosen.beta)].mean() == 1


# Its file


def test_a_kept_map_comes_back_and_is_used_again(linear, linear_file, tmp_path, monkeypatch):
    first = fit_relation(linear, relation=linear_file, fits=str(tmp_path)).result
    kept = load_relation(first.path, linear)
    assert kept.info.template == TEMPLATE and len(kept.info.fitted) == 8
    monkeypatch.setattr("patchclamp.relations.fitting.jacobians", lambda *_: pytest.fail("fitted again"))
    again = fit_relation(linear, relation=linear_file, fits=str(tmp_path)).result
    assert again == first
    with pytest.raises(pytest.fail.Exception):
        fit_relation(linear, relation=linear_file, fits=str(tmp_path), seed=1)


def test_a_map_of_another_model_or_a_damaged_one_is_refused(linear, llama, linear_file, tmp_path):
    path = fit_relation(linear, relation=linear_file, fits=str(tmp_path)).result.path
    with pytest.raises(InputError, match="was fitted in linear"):
        load_relation(path, llama)
    with pytest.raises(FileError, match="holds no fitted relation"):
        load_relation(tmp_path, linear)
    file = tmp_path / path.split("/")[-1] / FILE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FileError, match="is no fitted relation"):
        load_relation(path, linear)


def test_the_result_draws_and_tells_the_layers(linear, linear_file, tmp_path):
    record = fit_relation(linear, relation=linear_file)
    assert record.save(tmp_path / "fit.svg").read_text().startswith("<svg")
    assert list(record.result.table()["layer"]) == [-1, 0, 1] and record.verdict is None
    assert record.result.layers[0].validation == 1 and record.result.layers[0].effective_rank > 3
