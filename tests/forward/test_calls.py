"""Calls of a model: threads take turns, captures are mappings, what is given in the wrong form is said so."""

import threading

import pytest
import torch
from tiny import tiny_model

from patchclamp.errors import EditError, InputError, SiteError
from patchclamp.forward import Edit, Readout

PROMPT = tuple(range(10, 18))


def test_threads_on_one_model_get_the_numbers_they_would_get_alone():
    model = tiny_model("llama")
    edits = [Edit.scale("mlp.1", float(i)) for i in range(8)]
    alone = [float(model.run(PROMPT, [e], Readout.logit(10))) for e in edits]
    seen: dict[int, list[float]] = {}

    def work(i: int) -> None:
        seen[i] = [float(model.run(PROMPT, [edits[i]], Readout.logit(10))) for _ in range(6)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(edits))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(seen[i] == [alone[i]] * 6 for i in range(len(edits)))


def test_a_run_beside_an_open_stream_is_unedited():
    model = tiny_model("llama")
    plain = float(model.run(PROMPT, [], Readout.logit(10)))
    stream = model.stream(PROMPT, [Edit.zero("mlp.1")], max_new_tokens=12)
    next(stream)
    assert float(model.run(PROMPT, [], Readout.logit(10))) == plain
    stream.close()


def test_greedy_and_sampled_generation_leave_the_callers_random_numbers_alone():
    model = tiny_model("llama")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model.generate(PROMPT, max_new_tokens=3)
    model.generate(PROMPT, max_new_tokens=3, sample=True, seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_a_model_in_training_mode_is_refused():
    model = tiny_model("gpt2")
    model.hf.train()
    try:
        with pytest.raises(InputError, match="training mode"):
            model.run(PROMPT)
    finally:
        model.hf.eval()


def test_a_capture_is_a_mapping():
    acts = tiny_model("llama").capture(PROMPT, "mlp.1")
    assert "mlp.1" in acts and "mlp.2" not in acts and "nonsense" not in acts
    assert acts.get("mlp.2") is None
    assert acts.get("mlp.1").shape == (1, 8, 64) or acts.get("mlp.1").dim() == 3


@pytest.mark.parametrize(("call", "error", "said"), [
    (lambda m: m.gradients(PROMPT, Readout.logit(10), []), SiteError, "no sites given"),
    (lambda m: m.gradients(PROMPT, "logits@last", ["mlp.1"]), InputError, "has no gradient"),
    (lambda m: m.run(PROMPT, mode="turbo"), InputError, "no mode 'turbo'"),
    (lambda m: Edit.mean("mlp.1", "Hello"), EditError, "not over one text"),
])
def test_what_is_given_in_the_wrong_form(call, error, said):
    with pytest.raises(error, match=said):
        call(tiny_model("llama"))


def test_gradients_take_one_site_as_capture_does():
    slopes = tiny_model("llama").gradients(PROMPT, Readout.logit(10), "mlp.1")
    assert list(slopes) == ["mlp.1"]


def test_weights_changed_in_memory_have_another_hash():
    model = tiny_model("mistral")
    before = model.weights_hash
    with torch.no_grad():
        next(model.hf.parameters()).mul_(1.5)
    try:
        assert model.weights_hash != before
    finally:
        with torch.no_grad():
            next(model.hf.parameters()).div_(1.5)


class TestPattern:
    def test_setting_a_weight_gives_no_token_sight_of_the_future(self):
        model = tiny_model("llama")
        edit = [Edit.set("pattern.0.0@2", 0.25)]
        first, second = ([*PROMPT[:5], *tail] for tail in ((15, 16, 17), (30, 31, 32)))
        a, b = (model.run(p, edit, Readout.logits(at="2")) for p in (first, second))
        assert torch.allclose(a, b, atol=1e-5)
        row = model.capture(PROMPT, ["pattern.0.0@2"], edit)["pattern.0.0@2"][0]
        assert row[:3].tolist() == pytest.approx([0.25] * 3) and not row[3:].any()

    def test_blocking_everything_is_refused(self):
        with pytest.raises(EditError, match="nothing left to attend to"):
            tiny_model("llama").run(PROMPT, [Edit.block("pattern.1@last")])
