"""Explanations: what a language model is asked, how replies are read, and how explanations are scored."""

import copy
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CONFIGS, tiny, tiny_model, wrap

import patchclamp as pc
from patchclamp.corpus.found import Window
from patchclamp.corpus.scoring import answers, trial
from patchclamp.errors import ModelError, SiteError, SpecError
from patchclamp.evidence.method import Silent
from patchclamp.neurons.inwords import marked_text, read_line, read_numbers
from patchclamp.neurons.memory import memory

WORDS = [f"w{i}" for i in range(60)]


def window(values, tokens=None, number=0):
    at = int(np.argmax(values))
    return Window(tokens=tokens or [f" t{i}" for i in range(len(values))], activations=values, at=at, value=values[at],
                  window=number, position=at)


class Oracle:
    """Knows the truth, or its opposite, or says nothing."""

    by, text = "oracle", "everything"

    def __init__(self, knows=True):
        self.knows = knows

    def _say(self, true):
        return None if self.knows is None else true == self.knows

    def activations(self, windows):
        return [None if self.knows is None else [v if self.knows else -v for v in w.activations] for w in windows]

    def fires(self, windows):
        return [self._say(max(w.activations) >= 1) for w in windows]

    def fits(self, windows, marks):
        return [self._say(all(w.activations[i] >= 1 for i in m)) for w, m in zip(windows, marks, strict=True)]


@pytest.fixture
def asked():
    active = [window([0.0, 2.0 + i, 0.1, 0.0], number=i) for i in range(4)]
    quiet = [window([0.0, 0.1, 0.2, 0.3 + i / 100], number=10 + i) for i in range(6)]
    again = window([0.0, 2.5, 0.1, 0.0], number=2)  # overlaps with what is there already
    return trial(active, [window([0.5, 0.2, 0.0, 0.1], number=9), again], quiet, 1.0, 0)


def test_questions_are_balanced(asked):
    assert len(asked.active) == len(asked.inactive) == 4
    assert asked.right == [[1]] * 4
    assert all(len(wrong) == 1 and wrong != [1] for wrong in asked.wrong)
    assert len(asked.any) == 11


def test_who_knows_the_truth_scores_one_and_who_says_the_opposite_nothing(asked):
    best, worst = (answers(Oracle(knows), asked).score(0) for knows in (True, False))
    assert (best.detection.mean, best.fuzzing.mean) == (1, 1) and best.simulation.mean == pytest.approx(1)
    assert (worst.detection.mean, worst.fuzzing.mean) == (0, 0) and worst.simulation.mean == pytest.approx(-1)
    silent = answers(Oracle(None), asked)
    assert silent.unanswered == 1 and silent.correct.mean() == 0.5 and not silent.simulated


def test_too_few_windows_are_an_error():
    with pytest.raises(SpecError, match="only 0 held-out windows are active"):
        trial([], [], [window([0.0, 0.1], number=i) for i in range(5)], 1.0, 0)


def test_marks_stand_around_words_not_blanks():
    assert marked_text([" The", " cat", "\n", "s"], [1, 3]) == " The «cat»\n«s»"


@pytest.mark.parametrize(("reply", "line"), [
    ("plural nouns", "plural nouns"),
    ("<think>hm</think>\nThe unit is active on: plural nouns", "plural nouns"),
    ("Sure, here is a line:\n\"words for numbers\"", "words for numbers"),
    ("…", ""),
])
def test_an_explanation_is_one_line(reply, line):
    assert read_line(reply) == line


@pytest.mark.parametrize(("reply", "numbers"), [
    ("1: 0\n2: 10\n3: 2.5", [0, 10, 2.5]),
    ("Here:\n1: the 0\n2. cat 7\n3) 1", [0, 7, 1]),
    ("1: 3\n2: 11\n3: 4", None),
    ("I cannot do that", None),
])
def test_numbers_are_read_from_lines(reply, numbers):
    assert read_numbers(reply, 3) == numbers


@pytest.fixture
def corpus(tmp_path):
    """w7 now and then among random words: a neuron that fires at w7 can be explained."""
    generator = np.random.default_rng(0)
    words = generator.choice(WORDS, size=3000)
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(" ".join(words[i : i + 100]) for i in range(0, 3000, 100)))
    return str(path)


@pytest.fixture(scope="module")
def planted():
    """A tiny model with a neuron that is made to fire at w7."""
    hf = copy.deepcopy(tiny("llama"))
    model = wrap(hf, "planted")
    block = model.anatomy.blocks[0]
    with torch.no_grad():
        block.self_attn.o_proj.weight.zero_()
        x_D = block.post_attention_layernorm(hf.get_input_embeddings().weight[model.token("w7")])
        for projection in (block.mlp.gate_proj, block.mlp.up_proj):
            projection.weight[5] = 4 * x_D / (x_D @ x_D)
    return wrap(hf, "planted")


SMALL = {"tokens": 2500, "length": 32, "others": 3, "context": 12}


def test_a_rule_is_scored_on_the_other_half(corpus, planted):
    record = pc.explain(planted, site="neuron.0.5", corpus=corpus, **SMALL)
    result = record.result
    (rule,) = result.explanations
    assert rule.by == "rule" and len(rule.others) == 3
    assert rule.text == "at the end of “w7”" and rule.clean
    assert rule.score.detection.mean == rule.score.fuzzing.mean == 1 and rule.score.simulation.low > 0.8
    assert rule.others_accuracy.high < 0.8
    assert record.verdict.outcome == "supported"
    assert result.memory.matches[0].token.strip() == "w7"
    assert {w.window % 2 for w in result.shown} == {0}
    assert record.chart().to_dict() and len(record.table()) == 1 and result.passages()
    assert type(result).model_validate_json(result.model_dump_json()) == result


def test_a_neuron_without_a_pattern_has_no_clean_explanation(corpus):
    """In a random model's last block a neuron depends on everything before it."""
    record = pc.explain(tiny_model("llama"), site="neuron.2.5", corpus=corpus, **SMALL)
    assert record.verdict.outcome == "not supported" and not record.result.explanations[0].clean
    assert record.verdict.reason.startswith("No clean explanation (polysemantic): the effect")


def test_a_model_that_reads_the_marks_explains_and_scores(endpoint, corpus, tmp_path, planted):
    """It answers as its own explanation says: yes where a listed word is in the passage."""

    def reply(question):
        if "Write only that line" in question:
            return "the words " + ", ".join(sorted(set(re.findall(r"«(\w+)»", question))))
        said = set(re.findall(r"w\d+", question.partition("active on: ")[2].partition("\n")[0]))
        if "Write the same numbers" in question:
            lines = re.findall(r"(?m)^(\d+): (\S+)$", question)
            return "\n".join(f"{i}: {10 if word in said else 0}" for i, word in lines)
        passage = question.rpartition("yes or no.\n\n")[2]
        marked = re.findall(r"«(\w+)»", passage)
        return "yes" if set(marked or re.findall(r"w\d+", passage)) & said else "no"

    endpoint.reply = reply
    fields = {"site": "neuron.0.5", "corpus": corpus, "endpoint": endpoint.url, "endpoint_model": "m",
              "replies": str(tmp_path / "replies.jsonl")} | SMALL
    result = pc.explain(planted, **fields).result
    assert [one.by for one in result.explanations] == ["rule", "m"]
    mine = result.explanations[1]
    assert mine.text == "the words w7" and mine.score.unanswered == 0
    assert mine.accuracy.mean == 1 and mine.score.simulation.mean > 0.8 and mine.clean
    n = len(endpoint.requests)
    again = pc.explain(planted, **fields)
    assert again.result == result and len(endpoint.requests) == n + 1  # the check alone


def test_garbage_is_not_counted_and_a_cut_off_run_goes_on(endpoint, corpus, tmp_path):
    fields = {"site": "neuron.0.5", "corpus": corpus, "endpoint": endpoint.url, "endpoint_model": "m", "retries": 0,
              "replies": str(tmp_path / "replies.jsonl")} | SMALL
    endpoint.reply = lambda question: "numbers" if "Write only" in question else "lorem ipsum"
    record = pc.explain(tiny_model("llama"), **fields)
    assert "m left 100% of the questions without a usable answer and was not counted" in record.verdict.reason
    assert record.result.explanations[1].score.unanswered == 1 and not record.result.explanations[1].clean
    endpoint.reply = lambda question: "?!"
    with pytest.raises(ModelError, match="gave no explanation"):
        pc.explain(tiny_model("llama"), **(fields | {"endpoint_model": "other"}))

    def fails_later(question):
        endpoint.status = 500 if "anywhere" in question else 200
        return "numbers"

    endpoint.reply = fails_later
    with pytest.raises(ModelError, match="replies are kept; the same command goes on"):
        pc.explain(tiny_model("llama"), **(fields | {"endpoint_model": "third"}))
    endpoint.status, endpoint.reply = 200, lambda question: "yes"
    before = len(endpoint.requests)
    score = pc.explain(tiny_model("llama"), **(fields | {"endpoint_model": "third"})).result.explanations[1].score
    assert 0.2 < score.unanswered <= 0.5  # yes is no table of numbers
    assert not any("Write only" in question for question in endpoint.asked[before:])


@pytest.mark.parametrize(("fields", "error", "message"), [
    ({"site": "neuron.9.5"}, SiteError, "names block 9"),
    ({"site": "neuron.1"}, SiteError, "single neurons"),
    ({"endpoint": "http://127.0.0.1:1/v1"}, SpecError, "belong together"),
    ({"endpoint": "http://127.0.0.1:1/v1", "endpoint_model": "m", "retries": 0}, ModelError, "cannot be reached"),
    ({"local": "nowhere"}, ModelError, "nowhere"),
])
def test_what_is_wrong_is_named(corpus, fields, error, message):
    with pytest.raises(error, match=message):
        pc.explain(tiny_model("llama"), **({"site": "neuron.1.5", "corpus": corpus} | SMALL | fields))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_the_weights_write_is_what_the_last_block_does(name):
    """In the last block ablation takes away just what the weights write, but for the final norm's scale."""
    model = tiny_model(name)
    site = pc.Site.parse("neuron.2.7")
    places = [((5, 6, 7, 8), 3), ((9, 10, 11), 2), ((3, 4, 5, 6), 3), ((8, 1, 2), 2)]
    found = memory(model, site, places, [pc.Site("neuron", 2, unit) for unit in (1, 2, 3)], Silent())
    assert found.agreement.mean > 0.95 and abs(found.random_agreement.mean) < 0.5
    assert len(found.promotes) == 10 and found.promotes[0].value >= found.promotes[1].value


def test_matches_are_the_tokens_that_fire_the_neuron_alone():
    model = tiny_model("llama")
    found = memory(model, pc.Site.parse("neuron.1.7"), [((5, 6, 7), 2)],
                   [pc.Site("neuron", 1, unit) for unit in (1, 2)], Silent())
    block = model.anatomy.blocks[1]
    mlp = block.mlp
    x = block.post_attention_layernorm(model.hf.get_input_embeddings().weight)
    neurons = (mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x))[:, 7]
    assert found.matches[0].value == pytest.approx(float(neurons[: len(model.tokenizer)].detach().max()), rel=1e-4)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def served(smollm2):
    """transformers' own server of an embedded model."""
    pytest.importorskip("uvicorn")
    port = free_port()
    folder = str(Path(smollm2.hf.config._name_or_path))
    command = Path(sys.executable).parent / "transformers"
    process = subprocess.Popen(
        [str(command), "serve", folder, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2)
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.5)
        yield f"{url}/v1", folder
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


@pytest.mark.weights
def test_a_real_server_explains(served, corpus, tmp_path):
    """SmolLM2 is no good explainer; what counts is that real replies are asked for, read and scored."""
    url, name = served
    result = pc.explain(
        tiny_model("llama"), site="neuron.0.5", corpus=corpus, endpoint=url, endpoint_model=name, shown=3, scored=3,
        replies=str(tmp_path / "replies.jsonl"), **(SMALL | {"others": 2, "context": 8}),
    ).result
    assert result.explanations[1].text and result.explanations[1].by == name
    kept = [json.loads(line)["reply"] for line in (tmp_path / "replies.jsonl").read_text().splitlines()]
    assert len(kept) >= 6 and all(isinstance(reply, str) for reply in kept) and any(reply.strip() for reply in kept)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_weights_are_read_in_every_family_with_neurons(name):
    """Where an embedding cannot be sent through the MLP there are no matches, and no error."""
    model = tiny_model(name)
    if not model.n_neurons(1):
        pytest.skip("no neurons")
    found = memory(model, pc.Site("neuron", 1, 3), [((5, 6, 7), 2), ((8, 9), 1)],
                   [pc.Site("neuron", 1, unit) for unit in (1, 2)], Silent())
    assert len(found.promotes) == len(found.raised) == 10 and len(found.matches) in (0, 10)
    assert np.isfinite(found.agreement.mean)
