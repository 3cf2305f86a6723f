"""Finding: against values captured by hand; which tokens count; what is refused."""

import json

import pytest
import torch
from tiny import tiny_model

from patchclamp.errors import FileError, InputError, SpecError
from patchclamp.tasks.behaviour import Examples
from patchclamp.vectors.find import find_vector
from patchclamp.vectors.states import answered, examples_of, states
from patchclamp.vectors.vector import load_vector

SHOWING = [f"w{i} w{i + 1} w3" for i in range(10, 22)]
PLAIN = [f"w{i} w{i + 1} w4 w5" for i in range(40, 52)]
weights = pytest.mark.weights


def prompts(path, texts):
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return str(path)


def out(folder):
    return str(folder / "v.safetensors")


@pytest.fixture
def files(tmp_path):
    return prompts(tmp_path / "showing.jsonl", SHOWING), prompts(tmp_path / "plain.jsonl", PLAIN)


def test_the_mean_direction_is_the_difference_of_captured_means(tmp_path, files):
    model = tiny_model("llama")
    record = find_vector(model, source=files[0], plain=files[1], save=out(tmp_path), controls=2)
    vector = load_vector(record.result.saved, model)
    for layer in range(model.n_layers):
        site = f"resid.{layer}@last"
        sides = [torch.stack([model.capture(text, site)[site][0] for text in side]) for side in (SHOWING, PLAIN)]
        assert torch.allclose(vector.directions[f"resid.{layer}"], sides[0].mean(0) - sides[1].mean(0), atol=1e-5)
    assert vector.info.prompts and vector.info.weights_hash == model.weights_hash


def test_several_positions_are_averaged(files):
    model = tiny_model("gpt2")
    examples = Examples(showing=tuple(SHOWING), plain=tuple(PLAIN))
    showing, _ = examples_of(model, examples, "text", "1:")
    got = states(model, showing, ["mlp.1"])[0, 0]
    by_hand = model.capture(SHOWING[0], "mlp.1@1:")["mlp.1@1:"][0].double().mean(0)
    assert torch.allclose(got, by_hand)


def test_of_a_pair_the_answers_tokens_count():
    model = tiny_model("llama")
    prompt, positions = answered(model, "w1 w2", " w3 w4", "text")
    assert (prompt, positions) == ("w1 w2 w3 w4", f"{len(model.encode('w1 w2'))}:")


@weights
def test_of_a_chat_pair_the_answers_words_count_and_not_the_turns_end(smollm2):
    prompt, positions = answered(smollm2, "Who are you?", "I am a person.", "chat")
    pieces = smollm2.encode(prompt).pieces
    begin, end = map(int, positions.split(":"))
    assert "".join(pieces[begin:end]) == "I am a person."


def test_directions_of_heads_have_the_heads_width(tmp_path, files):
    model = tiny_model("llama")
    record = find_vector(model, source=files[0], plain=files[1], point="head", save=out(tmp_path), controls=2)
    assert len(record.result.sites) == model.n_layers * model.n_heads
    assert load_vector(record.result.saved, model).directions["head.1.2"].shape == (model.d_head,)


@pytest.mark.parametrize("how", ["pca", "logistic", "mass-mean"])
def test_other_ways_of_finding(tmp_path, files, how):
    record = find_vector(tiny_model("llama"), source=files[0], plain=files[1], how=how, save=out(tmp_path), controls=2)
    assert all(site.norm > 0 for site in record.result.sites)


def test_pairs_of_contrastive_steering_are_read(tmp_path):
    rows = [
        {"question": f"w{i} w7", "answer_matching_behavior": " w8", "answer_not_matching_behavior": " w9"}
        for i in range(20, 28)
    ]
    path = tmp_path / "generate_dataset.json"
    path.write_text(json.dumps(rows))
    record = find_vector(tiny_model("llama"), source=str(path), save=out(tmp_path), controls=2)
    assert record.result.showing == record.result.plain == 8


def test_a_direction_of_noise_is_not_supported(tmp_path):
    """Both sides are the same kind of text."""
    texts = [f"w{(7 * i) % 90 + 3} w{(11 * i) % 90 + 3} w{(13 * i) % 90 + 3}" for i in range(32)]
    files = prompts(tmp_path / "a.jsonl", texts[::2]), prompts(tmp_path / "b.jsonl", texts[1::2])
    record = find_vector(tiny_model("llama"), source=files[0], plain=files[1], save=out(tmp_path))
    assert record.verdict.outcome != "supported"


def test_the_same_prompt_on_both_sides_is_refused(tmp_path):
    files = prompts(tmp_path / "a.jsonl", SHOWING), prompts(tmp_path / "b.jsonl", [*PLAIN, SHOWING[0]])
    with pytest.raises(FileError, match=r"1 prompt\(s\) are on both sides"):
        find_vector(tiny_model("llama"), source=files[0], plain=files[1], save=out(tmp_path))


def test_an_empty_side_is_refused(tmp_path, files):
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(FileError, match="no rows"):
        find_vector(tiny_model("llama"), source=files[0], plain=str(tmp_path / "none.jsonl"), save=out(tmp_path))


def test_equal_states_point_nowhere(tmp_path):
    """All prompts begin with the same token, whose state is the same whatever comes after."""
    rows = [f"w3 w{i}" for i in range(10, 20)]
    model = tiny_model("llama")
    files = prompts(tmp_path / "a.jsonl", rows[:5]), prompts(tmp_path / "b.jsonl", rows[5:])
    with pytest.raises(InputError, match="points nowhere"):
        find_vector(model, source=files[0], plain=files[1], position="0", save=out(tmp_path))


def test_chat_on_a_model_without_a_template_says_what_to_do(tmp_path, files):
    with pytest.raises(SpecError, match="no chat template"):
        find_vector(tiny_model("llama"), source=files[0], plain=files[1], format="chat", save=out(tmp_path))


def test_another_suffix_is_refused_before_any_run(files):
    with pytest.raises(SpecError, match=r"\.safetensors"):
        find_vector(tiny_model("llama"), source=files[0], plain=files[1], save="v.pt")


def test_behaving_needs_a_detector(tmp_path, files):
    with pytest.raises(SpecError, match="needs a detector"):
        find_vector(tiny_model("llama"), source=files[0], plain=files[1], behaving=True, save=out(tmp_path))


def test_every_shipped_behaviour_can_be_read_and_its_sets_are_large_enough():
    from patchclamp.tasks.behaviour import behaviour_names, read_behaviour

    assert {"refusal", "flattery", "truth", "sentiment", "formality", "french", "ai"} == set(behaviour_names())
    for name in behaviour_names():
        behaviour = read_behaviour(name)
        for part, least in (("train", 60), ("validation", 30), ("test", 30)):
            some = getattr(behaviour, part)
            sizes = [len(some.pairs)] if some.pairs else [len(some.showing), len(some.plain)]
            assert min(sizes) >= least, (name, part)


def test_a_behaviours_sets_may_not_share_a_prompt(tmp_path):
    from patchclamp.tasks.behaviour import read_behaviour

    side = {"showing": ["a"], "plain": ["b"]}
    value = {
        "name": "n",
        "about": "x",
        "detector": {"kind": "refusal"},
        "train": side,
        "validation": {"showing": ["c"], "plain": ["a"]},
        "test": {"showing": ["e"], "plain": ["f"]},
    }
    path = tmp_path / "b.json"
    path.write_text(json.dumps(value))
    with pytest.raises(FileError, match=r"1 prompt\(s\) are in train and in validation"):
        read_behaviour(str(path))
