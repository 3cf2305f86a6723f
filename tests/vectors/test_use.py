"""Using a vector: applied, baked into weights, read as a detector, shown. On a real model and tiny ones."""

import math

import pytest
import torch
import transformers
from tiny import tiny_model, tiny_vector

import patchclamp as pc
from patchclamp import Edit
from patchclamp.errors import InputError, SpecError
from patchclamp.vectors.apply import setting_for
from patchclamp.vectors.bake import bake_vector
from patchclamp.vectors.read import log_odds
from patchclamp.vectors.search import natural_strength, projected_out
from patchclamp.vectors.vector import Ablation, Setting

weights = pytest.mark.weights


def test_projecting_out_leaves_no_part_along_the_direction_anywhere():
    model = tiny_model("llama")
    vector = tiny_vector(model)
    edits = projected_out(model, vector, Ablation(site="resid.1"))
    unit = vector.directions["resid.1"] / vector.directions["resid.1"].norm()
    for site in ("embed", "resid_mid.0", "resid.2"):
        assert float((model.capture("w1 w2 w3", site, edits)[site] @ unit).abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_baked_weights_give_what_the_edits_give_without_this_library(name, tmp_path):
    model = tiny_model(name)
    path = tiny_vector(model).save(tmp_path / "v.safetensors")
    record = bake_vector(model, vector=str(path), save=str(tmp_path / "baked"), sites=("resid.1",))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(record.result.folder, dtype=torch.float32)
    ids = model.encode("w1 w2 w3").ids
    with torch.no_grad():
        theirs = loaded(torch.tensor([ids])).logits[0, -1]
    ours = model.run(ids, projected_out(model, tiny_vector(model), Ablation(site="resid.1")))
    assert torch.allclose(theirs, ours, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_vector_is_baked_into_a_bias(name, tmp_path):
    model = tiny_model(name)
    vector = tiny_vector(model)
    path = vector.save(tmp_path / "v.safetensors")
    record = bake_vector(
        model, vector=str(path), save=str(tmp_path / "baked"), how="add", sites=("resid.1",), strength=2.0
    )
    baked = pc.load(record.result.folder)
    edit = Edit.add("resid.1", vector.directions["resid.1"], 2.0)
    assert torch.allclose(baked.run("w1 w2 w3"), model.run("w1 w2 w3", [edit]), atol=1e-4)


def test_a_family_whose_weights_cannot_hold_the_edit_says_so_and_writes_nothing(tmp_path):
    model = tiny_model("gemma3")
    path = tiny_vector(model).save(tmp_path / "v.safetensors")
    with pytest.raises(InputError, match="norms what its blocks write"):
        bake_vector(model, vector=str(path), save=str(tmp_path / "baked"), sites=("resid.1",))
    with pytest.raises(InputError, match="no bias"):
        bake_vector(model, vector=str(path), save=str(tmp_path / "baked"), how="add", sites=("resid.1",), strength=1.0)
    assert [p.name for p in tmp_path.iterdir()] == ["v.safetensors"]


def test_an_existing_folder_is_not_written_over(tmp_path):
    model = tiny_model("llama")
    path = tiny_vector(model).save(tmp_path / "v.safetensors")
    with pytest.raises(SpecError, match="exists already"):
        bake_vector(model, vector=str(path), save=str(tmp_path))


def test_the_strength_is_asked_for_chosen_or_natural():
    model = tiny_model("llama")
    chosen = tiny_vector(
        model, add=Setting(sites=("resid.0",), strength=3.0), remove=Setting(sites=("resid.2",), strength=-2)
    )
    assert setting_for(model, chosen, "add") == chosen.info.add
    assert setting_for(model, chosen, "subtract") == chosen.info.remove
    assert setting_for(model, chosen, "subtract", strength=5).strength == -5
    assert setting_for(model, chosen, "add", unit="raw").strength == 1.0
    assert setting_for(model, chosen, "add", ["resid.1"]).strength == pytest.approx(
        natural_strength(model, chosen, ["resid.1"])
    )


@pytest.fixture(scope="module")
def refusal(smollm2, tmp_path_factory):
    path = tmp_path_factory.mktemp("vectors") / "refusal.safetensors"
    record = pc.run("vectors.find", smollm2, source="refusal", save=str(path), controls=4)
    return record, str(path)


@weights
def test_refusal_is_a_direction(refusal):
    record, _ = refusal
    assert record.verdict.outcome == "supported"
    assert max(site.auroc for site in record.result.sites) > 0.95


@weights
def test_applying_gives_three_answers(smollm2, refusal):
    result = pc.run(
        "vectors.apply",
        smollm2,
        prompt="What are three benefits of yoga?",
        vector=[refusal[1]],
        sites=["resid.18"],
        max_new_tokens=16,
    ).result
    assert result.base != result.steered
    assert result.random not in (None, result.steered)
    assert result.kl > 0.1


@weights
@pytest.mark.parametrize("positions", ["response", '"yoga"'])
def test_a_random_answer_stands_beside_steering_of_any_tokens(smollm2, refusal, positions):
    result = pc.run(
        "vectors.apply",
        smollm2,
        prompt="What are three benefits of yoga?",
        vector=[refusal[1]],
        sites=["resid.18"],
        positions=positions,
        max_new_tokens=8,
    ).result
    assert result.random
    assert (result.kl == 0) == (positions == "response")


@weights
def test_response_only_steering_is_the_same_with_and_without_the_cache(smollm2, refusal):
    from patchclamp.tasks.behaviour import read_behaviour

    direction = pc.load_vector(refusal[1], smollm2).directions["resid.18"]
    edit = Edit.add("resid.18@response", direction, 1.5, "raw")
    prompts = [[{"role": "user", "content": text}] for text in read_behaviour("refusal").test.plain[:8]]
    cached, plain = (smollm2.generate(prompts, [edit], 12, use_cache=use) for use in (True, False))
    assert [one.tokens for one in cached] == [one.tokens for one in plain]
    unsteered = smollm2.generate(prompts, max_new_tokens=12)
    assert sum(a.tokens != b.tokens for a, b in zip(cached, unsteered, strict=True)) > 5


def test_log_odds_of_an_auroc_are_even_and_end_nowhere():
    assert log_odds(0.5, 100) == 0
    assert log_odds(0.9, 100) == pytest.approx(-log_odds(0.1, 100))
    assert log_odds(0.9, 100) == pytest.approx(math.log(181 / 21))
    assert log_odds(1.0, 1024) == pytest.approx(math.log(2049))


@weights
def test_the_projection_detects_refusals(smollm2, refusal):
    record = pc.run(
        "vectors.read",
        smollm2,
        vector=refusal[1],
        prompt="Can you order a pizza to my house?",
        max_new_tokens=8,
        controls=20,
    )
    best = max(record.result.sites, key=lambda site: site.vector)
    assert best.vector > 0.9
    assert len([t for t in record.result.tokens if t.answer]) == 8
    assert all(-1 <= t.cosine <= 1 for t in record.result.tokens)


@weights
def test_a_refusal_is_seen_while_it_is_written(smollm2, refusal):
    vector = pc.load_vector(refusal[1], smollm2)
    asked = [[{"role": "user", "content": text}] for text in ("Can you order a pizza to my house?", "Name a river.")]
    refused, answered = (list(vector.watch(smollm2, one, "resid.18", max_new_tokens=8)) for one in asked)
    assert "".join(piece for piece, _ in refused) == smollm2.generate(asked[0], max_new_tokens=8).text
    assert refused[0][1] > 0.5 > answered[0][1]
    with pytest.raises(SpecError, match="no direction at"):
        vector.watch(smollm2, asked[0], "resid.99")


@weights
def test_a_vector_file_is_shown(smollm2, refusal, tmp_path):
    record = pc.run("vectors.show", smollm2, vector=refusal[1])
    assert record.result.info.behaviour == "refusal"
    assert len(record.result.sites) == 30
    assert record.save(tmp_path / "s.svg").read_text().startswith("<svg")
