"""Proving a vector: chosen on some prompts, judged on others, beside random directions. On a real model and tiny
ones."""

import json

import pytest
import torch
from tiny import tiny_model, tiny_vector

import patchclamp as pc
from patchclamp import Edit
from patchclamp.errors import FileError, InputError, SpecError
from patchclamp.evidence.written import kl_on, surprise
from patchclamp.tasks.rows import BehaviourRow
from patchclamp.vectors.choices import swapped
from patchclamp.vectors.evaluate import evaluate_vector
from patchclamp.vectors.match import added, matched, random_directions, within_sides

weights = pytest.mark.weights
STRONG = 3e7
"""The neutral corpus is the same unknown word over and over to the tiny tokenizer, so its deviation is tiny too."""


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


def test_random_directions_have_no_part_in_what_the_sides_differ_in():
    generator = torch.Generator().manual_seed(0)
    varies = torch.randn(40, 8, generator=generator, dtype=torch.float64)
    varies[:, 0] = 0
    showing, plain = varies[:15] + torch.eye(8)[0] * 50, varies[15:] - torch.eye(8)[0] * 50
    mixed, within = torch.cat([showing, plain]), within_sides(showing, plain)
    for states, least, most in ((mixed, 1.0, 100.0), (within, 0.0, 1e-12)):
        directions = torch.stack([one["s"] for one in random_directions({"s": states}, 20, 0)])
        assert least <= float(directions[:, 0].abs().max()) <= most


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
    with pytest.raises(pc.InputError, match="@lst names no positions"):
        evaluate_vector(model, what="no such file.json", positions=("last", "lst"))
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
    path = str(tiny_vector(model).save(tmp_path / "v.safetensors"))
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
        max_new_tokens=6,
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
