"""Using a vector: applied, baked into weights, read as a detector, shown, proved. On a real model and tiny ones."""

import json
import math

import pytest
import torch
import transformers
from tiny import tiny_model

import patchclamp as pc
from patchclamp import Edit
from patchclamp.errors import FileError, InputError, SpecError
from patchclamp.tasks.rows import BehaviourRow
from patchclamp.vectors.apply import setting_for
from patchclamp.vectors.bake import bake_vector
from patchclamp.vectors.choices import swapped
from patchclamp.vectors.evaluate import evaluate_vector
from patchclamp.vectors.match import added, matched, random_directions
from patchclamp.vectors.measure import kl_on, surprise
from patchclamp.vectors.read import log_odds
from patchclamp.vectors.search import natural_strength, projected_out
from patchclamp.vectors.vector import Ablation, Setting, SteeringVector, VectorInfo

weights = pytest.mark.weights
STRONG = 3e7
"""The neutral corpus is the same unknown word over and over to the tiny tokenizer, so its deviation is tiny too."""


def vector_of(model, seed=0, **info):
    generator = torch.Generator().manual_seed(seed)
    directions = {f"resid.{layer}": torch.randn(model.d_model, generator=generator) for layer in range(model.n_layers)}
    return SteeringVector(
        VectorInfo(name="test", model=model.name, weights_hash=model.weights_hash, **info), directions
    )


def test_projecting_out_leaves_no_part_along_the_direction_anywhere():
    model = tiny_model("llama")
    vector = vector_of(model)
    edits = projected_out(model, vector, Ablation(site="resid.1"))
    unit = vector.directions["resid.1"] / vector.directions["resid.1"].norm()
    for site in ("embed", "resid_mid.0", "resid.2"):
        assert float((model.capture("w1 w2 w3", site, edits)[site] @ unit).abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_baked_weights_give_what_the_edits_give_without_this_library(name, tmp_path):
    model = tiny_model(name)
    path = vector_of(model).save(tmp_path / "v.safetensors")
    record = bake_vector(model, vector=str(path), save=str(tmp_path / "baked"), sites=("resid.1",))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(record.result.folder, dtype=torch.float32)
    ids = model.encode("w1 w2 w3").ids
    with torch.no_grad():
        theirs = loaded(torch.tensor([ids])).logits[0, -1]
    ours = model.run(ids, projected_out(model, vector_of(model), Ablation(site="resid.1")))
    assert torch.allclose(theirs, ours, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_vector_is_baked_into_a_bias(name, tmp_path):
    model = tiny_model(name)
    vector = vector_of(model)
    path = vector.save(tmp_path / "v.safetensors")
    record = bake_vector(
        model, vector=str(path), save=str(tmp_path / "baked"), how="add", sites=("resid.1",), strength=2.0
    )
    baked = pc.load(record.result.folder)
    edit = Edit.add("resid.1", vector.directions["resid.1"], 2.0)
    assert torch.allclose(baked.run("w1 w2 w3"), model.run("w1 w2 w3", [edit]), atol=1e-4)


def test_a_family_whose_weights_cannot_hold_the_edit_says_so_and_writes_nothing(tmp_path):
    model = tiny_model("gemma3")
    path = vector_of(model).save(tmp_path / "v.safetensors")
    with pytest.raises(InputError, match="norms what its blocks write"):
        bake_vector(model, vector=str(path), save=str(tmp_path / "baked"), sites=("resid.1",))
    with pytest.raises(InputError, match="no bias"):
        bake_vector(model, vector=str(path), save=str(tmp_path / "baked"), how="add", sites=("resid.1",), strength=1.0)
    assert [p.name for p in tmp_path.iterdir()] == ["v.safetensors"]


def test_an_existing_folder_is_not_written_over(tmp_path):
    model = tiny_model("llama")
    path = vector_of(model).save(tmp_path / "v.safetensors")
    with pytest.raises(SpecError, match="exists already"):
        bake_vector(model, vector=str(path), save=str(tmp_path))


@weights
def test_random_directions_are_stretched_to_the_same_kl(smollm2):
    texts = [f"The number {i} comes before" for i in range(1, 17)]
    states = torch.cat([smollm2.capture(text, "resid.15@last")["resid.15@last"] for text in texts])
    directions = random_directions({"resid.15": states}, 3, 0)
    prompts, target = texts[:4], 0.2
    strengths = matched(smollm2, directions, target, 1.0, prompts, "all")
    for direction, strength in zip(directions, strengths, strict=True):
        reached = kl_on(smollm2, prompts, [added(direction, strength, "all")]).mean()
        assert reached == pytest.approx(target, rel=0.5)


def test_surprise_is_the_mean_cross_entropy_of_the_answers_tokens():
    model = tiny_model("llama")
    said = model.generate("w1 w2 w3", max_new_tokens=4)
    ids = model.encode("w1 w2 w3").ids
    log_p = torch.stack(
        [model.run((*ids, *said.tokens[:i])).log_softmax(-1)[token] for i, token in enumerate(said.tokens)]
    )
    assert surprise(model, ["w1 w2 w3"], [said])[0] == pytest.approx(-float(log_p.mean()), abs=1e-5)


def test_a_batch_under_one_edit_answers_as_each_prompt_alone():
    """A batch whose rows all have the same edit takes one operation for all: tokens must not change."""
    model = tiny_model("llama")
    prompts = ["w1 w2 w3", "w4 w5 w6 w7 w8", "w9"]
    edits = [
        Edit.add("resid.1", torch.ones(model.d_model), 3.0, "raw"),
        Edit.project_out("mlp.0", torch.arange(model.d_model) + 1.0),
    ]
    together = [g.tokens for g in model.generate(prompts, edits, max_new_tokens=6)]
    assert together == [model.generate(p, edits, max_new_tokens=6).tokens for p in prompts]


def test_letters_in_the_question_are_swapped_with_what_they_stand_for():
    pair = BehaviourRow(
        question="Is it?\n\nChoices:\n(A) Yes, it is\n(B) No",
        answer_matching_behavior="(B)",
        answer_not_matching_behavior="(A)",
    )
    first, second = swapped(pair)
    assert first == (pair.question, "B")
    assert second == ("Is it?\n\nChoices:\n(A) No\n (B) Yes, it is", "A")


def test_answers_in_words_get_letters_in_both_orders():
    pair = BehaviourRow(question="Is it?", answer_matching_behavior="Yes.", answer_not_matching_behavior="No.")
    assert swapped(pair) == (
        ("Is it?\n\nChoices:\n (A) Yes.\n (B) No.", "A"),
        ("Is it?\n\nChoices:\n (A) No.\n (B) Yes.", "B"),
    )


def behaviour_file(folder):
    """A behaviour of a tiny model's words, asked for in plain text: its answers hold w7 or not."""
    sets = {}
    for begin, name in ((10, "train"), (30, "validation"), (50, "test")):
        sets[name] = {
            "showing": [f"w{i} w{i + 1} w3" for i in range(begin, begin + 8)],
            "plain": [f"w{i} w{i + 2} w4" for i in range(begin, begin + 8)],
        }
    detector = {"kind": "phrases", "phrases": [f"w{i}" for i in range(50)], "against": ["w99"]}
    path = folder / "behaviour.json"
    path.write_text(
        json.dumps({"name": "toy", "about": "x", "format": "text", "detector": detector, **sets}), encoding="utf-8"
    )
    return str(path)


@pytest.mark.parametrize("point", ["mlp", "head"])
def test_a_saved_vector_of_any_point_is_evaluated_beside_directions_at_its_own_sites(point, tmp_path):
    model, behaviour = tiny_model("llama"), behaviour_file(tmp_path)
    path = str(tmp_path / "v.safetensors")
    found = pc.run("vectors.find", model, source=behaviour, point=point, save=path, controls=2).result
    site = found.sites[-1].site
    record = evaluate_vector(
        model, what=path, behaving=False, sites=[site], strength=STRONG, controls=2, curve=False, max_new_tokens=6
    )
    assert record.result.add.sites == (site,)
    assert record.result.rate_random.exists
    assert len(record.result.texts) == 16
    assert any(text.added != text.base for text in record.result.texts)


def test_choosing_writes_into_the_file_and_reports_what_was_tried(tmp_path):
    model, path = tiny_model("llama"), str(tmp_path / "v.safetensors")
    pc.run("vectors.find", model, source=behaviour_file(tmp_path), save=path, controls=2)
    record = pc.run("vectors.select", model, vector=path, max_new_tokens=6)
    info = pc.load_vector(path, model).info
    assert (info.add, info.remove, info.ablate) == (record.result.add, record.result.subtract, record.result.ablate)
    assert {one.use for one in record.result.tried} == {"add", "subtract", "project_out"}
    assert record.save(tmp_path / "s.svg").read_text().startswith("<svg")
    assert pc.Record.from_json(record.to_json()).to_json() == record.to_json()


def test_the_token_at_which_a_vector_is_found_is_chosen_too(tmp_path):
    model, path, other = tiny_model("llama"), str(tmp_path / "v.safetensors"), str(tmp_path / "other.safetensors")
    behaviour = behaviour_file(tmp_path)
    pc.run("vectors.find", model, source=behaviour, save=path, controls=2)
    result = pc.run("vectors.select", model, vector=path, positions=("last", "-2", "0:"), max_new_tokens=6).result
    assert [one.position for one in result.positions] == ["last", "-2", "0:"]
    best = max(result.positions, key=lambda one: one.rate)
    assert result.position == best.position == pc.load_vector(path).info.position

    pc.run("vectors.find", model, source=behaviour, save=other, position=best.position, controls=2)
    for site, direction in pc.load_vector(path).directions.items():
        assert torch.equal(direction, pc.load_vector(other).directions[site])

    proved = evaluate_vector(model, what=behaviour, behaving=False, positions=("last", "-2"), controls=2, curve=False,
                             max_new_tokens=6).result
    assert proved.position in ("last", "-2") and len(proved.positions) == 2
    pc.load_vector(path).with_info(prompts=()).save(path)
    with pytest.raises(pc.PatchclampError, match="cannot be found again"):
        pc.run("vectors.select", model, vector=path, positions=("last", "-2"))
    with pytest.raises(pc.PatchclampError, match="either these or --positions"):
        evaluate_vector(model, what=path, sites=["resid.1"], strength=1.0, positions=("last",))


def test_heads_are_used_together_the_best_first(tmp_path):
    model, path = tiny_model("llama"), str(tmp_path / "v.safetensors")
    pc.run("vectors.find", model, source=behaviour_file(tmp_path), point="head", how="logistic", save=path, controls=2)
    info = pc.load_vector(path, model).info
    record = pc.run("vectors.select", model, vector=path, max_new_tokens=6)
    best = sorted(info.auroc, key=lambda site: -info.auroc[site])
    tried = {one.use: [] for one in record.result.tried}
    for one in record.result.tried:
        tried[one.use].append(set(one.sites))
    assert all(sites in (set(best[:4]), set(best[:12])) for sites in tried["add"] + tried["subtract"])
    assert all(len(sites) == 1 for sites in tried["project_out"])


def test_the_users_own_prompts_replace_one_side_each(tmp_path):
    model, behaviour = tiny_model("llama"), behaviour_file(tmp_path)
    own = tmp_path / "own.txt"
    own.write_text("w70 w71\n-\nw72 w73\n")
    record = evaluate_vector(
        model,
        what=behaviour,
        plain=str(own),
        behaving=False,
        sites=["resid.1"],
        strength=STRONG,
        controls=2,
        curve=False,
        max_new_tokens=6,
    )
    kinds = [(text.kind, text.prompt) for text in record.result.texts]
    assert [prompt for kind, prompt in kinds if kind == "plain"] == ["w70 w71", "-", "w72 w73"]
    assert len([kind for kind, _ in kinds if kind == "showing"]) == 8


def own_prompts(folder, n):
    """Two files of a user's own prompts, and a detector's."""
    for name, second in (("own-showing.txt", "w3"), ("own-plain.txt", "w4")):
        (folder / name).write_text("\n".join(f"w{60 + i} {second}" for i in range(n)))
    detector = folder / "detector.json"
    detector.write_text('{"kind": "phrases", "phrases": ["w1", "w2", "w3", "w4"], "against": []}')
    return {"showing": str(folder / "own-showing.txt"), "plain": str(folder / "own-plain.txt")}, str(detector)


def test_a_vector_of_no_known_behaviour_is_tested_on_half_of_the_users_own_prompts(tmp_path):
    model = tiny_model("llama")
    own, detector = own_prompts(tmp_path, 20)
    path = str(vector_of(model).save(tmp_path / "v.safetensors"))
    asked = {"what": path, **own, "behaving": False, "controls": 2, "curve": False, "max_new_tokens": 6}
    record = evaluate_vector(model, **asked, detector=detector, sites=["resid.1"], strength=STRONG)
    assert [text.kind for text in record.result.texts] == ["plain"] * 10 + ["showing"] * 10
    with pytest.raises(SpecError, match="does not say how its behaviour is recognised"):
        evaluate_vector(model, **asked, sites=["resid.1"], strength=STRONG)
    few, detector = own_prompts(tmp_path, 8)
    with pytest.raises(FileError, match="too few"):
        evaluate_vector(model, **asked | few, detector=detector, sites=["resid.1"], strength=STRONG)


def test_a_file_of_pairs_is_parted_into_finding_choosing_and_testing(tmp_path):
    model = tiny_model("llama")
    rows = [
        {"question": f"w{i} w2", "answer_matching_behavior": f" w{i + 1}", "answer_not_matching_behavior": " w5 w6"}
        for i in range(10, 50)
    ]
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(rows))
    asked = {"sites": ["resid.1"], "strength": STRONG, "controls": 2, "curve": False, "max_new_tokens": 4}
    record = evaluate_vector(model, what=str(path), **asked)
    questions = {text.prompt for text in record.result.texts}
    assert len(questions) == 10
    again = evaluate_vector(model, what=str(path), **asked, seed=1)
    assert questions != {text.prompt for text in again.result.texts}


def test_a_language_model_rates_every_condition(endpoint, tmp_path):
    model = tiny_model("llama")
    texts = {}

    def reply(asked):
        if "[answer " not in asked:
            return "yes"
        answer = asked.split("[answer ")[1].split("]\n")[1].split("\n[end")[0]
        texts[answer] = len(answer) % 3
        return f'{{"concept": {len(answer) % 3}, "instruction": 2, "fluency": 2}}'

    endpoint.reply = reply
    record = evaluate_vector(
        model, what=behaviour_file(tmp_path), behaving=False, sites=["resid.1"], strength=STRONG, controls=2,
        curve=False, max_new_tokens=6, judge=endpoint.url, judge_model="m",
    )
    ratings = {(one.kind, one.condition): one for one in record.result.ratings}
    assert set(ratings) == {("plain", c) for c in ("base", "added", "random_added")} | {
        ("showing", c) for c in ("base", "subtracted", "ablated", "random_subtracted")}
    for (kind, condition), one in ratings.items():
        said = [getattr(text, condition) for text in record.result.texts if text.kind == kind]
        assert one.answers == 8
        assert one.concept.mean == pytest.approx(sum(texts[answer] if answer else 0 for answer in said) / 8)
    assert pc.Record.from_json(record.to_json()).to_json() == record.to_json()


def test_answers_of_pairs_stand_beside_random_directions_of_their_own_sign(tmp_path):
    model, rows = tiny_model("llama"), []
    for i in range(10, 50):
        answers = {"answer_matching_behavior": " w7 w8", "answer_not_matching_behavior": " w5"}
        rows.append({"question": f"w{i} w2", **answers})
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    (tmp_path / "detector.json").write_text('{"kind": "phrases", "phrases": ["w1"]}')
    record = evaluate_vector(
        model, what=str(tmp_path / "pairs.json"), detector=str(tmp_path / "detector.json"), behaving=False,
        sites=["resid.1"], strength=STRONG, controls=3, curve=False, max_new_tokens=6,
    )
    texts = record.result.texts
    assert all(text.added != text.base for text in texts)
    assert any(text.random_added != text.random_subtracted for text in texts)
    assert {text.random_added for text in texts} != {text.base for text in texts}


def test_a_judge_that_is_not_there_is_known_before_anything_is_asked(tmp_path):
    model = tiny_model("llama")
    asked = {"what": behaviour_file(tmp_path), "sites": ["resid.1"], "strength": STRONG, "judge": "not a url"}
    with pytest.raises(InputError, match="no plain http"):
        evaluate_vector(model, **asked, judge_model="m")
    with pytest.raises(SpecError, match="together"):
        evaluate_vector(model, **asked)


def test_the_strength_is_asked_for_chosen_or_natural():
    model = tiny_model("llama")
    chosen = vector_of(
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
    prompts = [[{"role": "user", "content": text}] for text in read_behaviour("refusal").test.plain[:20]]
    cached, plain = (smollm2.generate(prompts, [edit], 12, use_cache=use) for use in (True, False))
    assert [one.tokens for one in cached] == [one.tokens for one in plain]
    unsteered = smollm2.generate(prompts, max_new_tokens=12)
    assert sum(a.tokens != b.tokens for a, b in zip(cached, unsteered, strict=True)) > 15


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


@pytest.fixture(scope="module")
def proved(smollm2):
    return evaluate_vector(
        smollm2,
        what="refusal",
        behaving=False,
        sites=["resid.18"],
        strength=3.5,
        controls=2,
        curve=False,
        limit=6,
        max_new_tokens=16,
    )


@weights
def test_every_prompt_has_four_answers(proved):
    texts = proved.result.texts
    assert len(texts) == 12
    assert {text.kind for text in texts} == {"plain", "showing"}
    assert all(getattr(text, name) for text in texts for name in ("base", "added", "subtracted", "ablated"))


@weights
def test_an_evaluation_is_drawn_and_comes_back(proved, tmp_path):
    assert proved.save(tmp_path / "e.svg").read_text().startswith("<svg")
    assert pc.Record.from_json(proved.to_json()).to_json() == proved.to_json()


@weights
def test_prompts_the_vector_was_found_with_are_refused_as_a_test(smollm2, tmp_path):
    from patchclamp.tasks.behaviour import read_behaviour

    path = tmp_path / "plain.txt"
    path.write_text("\n".join(read_behaviour("refusal").train.plain[:6]))
    with pytest.raises(SpecError, match="6 of the test prompts were used to find"):
        evaluate_vector(
            smollm2, what="refusal", behaving=False, plain=str(path), sites=["resid.18"], strength=3.5, controls=2
        )


@weights
def test_a_chat_behaviour_needs_a_chat_model(gemma):
    with pytest.raises(SpecError, match="no chat"):
        evaluate_vector(gemma, what="refusal", sites=["resid.9"], strength=1.0)
