"""The Jacobian lens: against autograd by brute force, on models whose Jacobian is known, and as a method."""

import copy
import random

import pytest
import torch
from tiny import ids, tiny, tiny_model, wrap

from patchclamp.errors import FileError, SpecError
from patchclamp.evidence.method import Silent
from patchclamp.forward.jacobian import jacobians
from patchclamp.forward.streams import streams
from patchclamp.lenses.corpus import read_places
from patchclamp.lenses.jacobian import jacobian, measure
from patchclamp.lenses.transport import Transport, TransportConfig, load_transport

PROMPT = tuple(range(10, 18))
QUICK = {"length": 16, "samples": 3, "held_out": 6}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    words = random.Random(0)
    path.write_text("\n\n".join(" ".join(f"w{words.randrange(97)}" for _ in range(40)) for _ in range(12)))
    return str(path)


def silent_after_the_first(name):
    """A tiny model whose later blocks add nothing to the residual stream."""
    hf = copy.deepcopy(tiny(name))
    with torch.no_grad():
        for layer in hf.model.layers[1:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return wrap(hf, "silent")


def test_before_blocks_that_add_nothing_the_jacobian_is_the_identity_and_the_lens_the_logit_lens():
    model = silent_after_the_first("llama")
    eye_DD = torch.eye(model.d_model)
    assert all(torch.equal(one_DD, eye_DD) for one_DD in jacobians(model, PROMPT)[1:])
    lens = measure(model, TransportConfig.of(model, "jacobian_lens", {}), [PROMPT], 2, 0, Silent())
    assert not lens.weight[1:].any() and not lens.bias[1:].any()
    assert lens.weight[0].any()


def test_the_mean_of_each_layer_arrives_at_the_mean_of_the_last():
    """J E[h_l] + c = E[h_final]."""
    model = tiny_model("gemma3")
    sequences = [ids(10, seed) for seed in range(3)]
    lens = measure(model, TransportConfig.of(model, "jacobian_lens", {}), sequences, 3, 0, Silent())
    mean_SD = read_places(model, sequences, [range(1, 10)] * 3).mean(0)
    for moved_D in lens(mean_SD):
        torch.testing.assert_close(moved_D, mean_SD[-1], rtol=1e-4, atol=1e-4)


def test_all_lenses_are_measured_on_the_same_text_and_end_at_the_output(corpus, tmp_path):
    model = tiny_model("llama")
    tuned = str(Transport.identity(model).save(tmp_path / "tuned"))
    result = jacobian(model, prompt=PROMPT, corpus=corpus, watch=["w5"], tuned=tuned, **QUICK).result
    assert set(result.held_out) == {"logit", "jacobian", "tuned"}
    assert result.held_out["tuned"] == result.held_out["logit"], "an untrained tuned lens is the logit lens"
    assert all(intervals[-1].mean == 0 for intervals in result.held_out.values())
    assert {layers[-1].top[0].token for layers in result.readings.values()} == {result.prediction}


def test_the_verdict_rests_on_the_difference_of_the_two_means(corpus):
    record = jacobian(tiny_model("llama"), prompt=PROMPT, corpus=corpus, **QUICK)
    mean = {name: sum(i.mean for i in some[:-1]) / (len(some) - 1) for name, some in record.result.held_out.items()}
    assert record.verdict.effect.mean == pytest.approx(mean["jacobian"] - mean["logit"])
    assert (record.verdict.control.low, record.verdict.control.high) == (0, 0)


def test_a_saved_lens_is_used_again_and_can_be_named(corpus, tmp_path):
    model = tiny_model("llama")
    fields = {"prompt": PROMPT, "corpus": corpus, **QUICK}
    first = jacobian(model, save=str(tmp_path), **fields).result
    stamp = (tmp_path / "params.safetensors").stat().st_mtime_ns
    again = jacobian(model, save=str(tmp_path), **fields).result
    named = jacobian(model, lens=str(tmp_path), **fields).result
    assert (tmp_path / "params.safetensors").stat().st_mtime_ns == stamp
    assert again == first
    assert named.layers == first.layers and named.samples is None
    assert load_transport(tmp_path, model).config.lens_type == "jacobian_lens"


def test_another_lens_is_not_written_over(corpus, tmp_path):
    model = tiny_model("llama")
    fields = {"prompt": PROMPT, "corpus": corpus, "save": str(tmp_path)}
    jacobian(model, **fields, **QUICK)
    with pytest.raises(SpecError, match="samples 3, not 2"):
        jacobian(model, **fields, **QUICK | {"samples": 2})


def test_a_tuned_lens_is_not_taken_for_a_jacobian_one(corpus, tmp_path):
    model = tiny_model("llama")
    folder = str(Transport.identity(model).save(tmp_path))
    with pytest.raises(SpecError, match="holds a tuned lens"):
        jacobian(model, prompt=PROMPT, corpus=corpus, lens=folder, **QUICK)


def test_a_corpus_too_short_is_refused(tmp_path):
    (tmp_path / "text.txt").write_text("w1 w2 w3 " * 20)
    with pytest.raises(FileError, match="3 sequences of 16 tokens and at least 7"):
        jacobian(tiny_model("llama"), prompt=PROMPT, corpus=str(tmp_path / "text.txt"), **QUICK)


def test_the_result_is_drawn(corpus, tmp_path):
    record = jacobian(tiny_model("llama"), prompt=PROMPT, corpus=corpus, watch=["w5", "w6"], **QUICK)
    assert record.save(tmp_path / "chart.svg").read_text().startswith("<svg")
    assert len(record.table()) == 4


@pytest.mark.weights
def test_a_small_step_on_real_weights_moves_the_last_stream_as_the_jacobian_says(smollm2):
    """One direction at block 12, forward and back: the rest of the model is curved, hence 2 %."""
    from patchclamp.forward import Edit, Plan

    prompt = smollm2.encode("The capital of Poland").ids
    h_D = streams(smollm2, [prompt])[0][13]
    step_D = torch.nn.functional.normalize(torch.cos(torch.arange(smollm2.d_model) * 1.3), dim=0) * h_D.norm() * 1e-2
    ends = [row[0] for row in smollm2.execute(Plan.of([
        (prompt, [Edit.set("resid.12@last", h_D + sign * step_D)], ["resid.29@last"]) for sign in (1, -1)]))]
    expected_D = jacobians(smollm2, prompt)[13] @ step_D
    assert ((ends[0] - ends[1]) / 2 - expected_D).norm() < 0.02 * expected_D.norm()
