"""The tuned lens: its loss, what training gains, interruption and resumption, and a lens applied."""

import random
from pathlib import Path

import pytest
import torch
from tiny import tiny_model

import patchclamp as pc
from patchclamp.corpus.pack import pack
from patchclamp.errors import FileError, InputError, RunError, SpecError
from patchclamp.evidence.method import Silent
from patchclamp.lenses.corpus import kl_to_output, read_places
from patchclamp.lenses.fit import CHECKPOINT, CrossEntropy, Fit, Recipe
from patchclamp.lenses.regress import Regression
from patchclamp.lenses.transport import Transport, TransportConfig, load_transport
from patchclamp.lenses.tuned import train_tuned_lens as train
from patchclamp.lenses.tuned import tuned_lens as apply

PROMPT = tuple(range(10, 18))
QUICK = {"length": 16, "tokens": 1000, "held_out": 6, "share": 0.5, "checkpoint_seconds": 0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    words = random.Random(0)
    path.write_text("\n\n".join(" ".join(f"w{words.randrange(97)}" for _ in range(40)) for _ in range(300)))
    return str(path)


class Interrupting(Silent):
    """Ctrl-C in the middle of the training's `after`-th step."""

    def __init__(self, after):
        self.after = after

    def track(self, items, description, total=None):
        for done, item in enumerate(items):
            if description == "training the lens" and done == self.after:
                raise KeyboardInterrupt
            yield item


def test_the_losses_gradient_is_softmax_minus_p():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    p = torch.randn(4, 9, generator=generator, dtype=torch.float64).softmax(-1)
    assert torch.autograd.gradcheck(lambda z: CrossEntropy.apply(z, p), logits)
    torch.testing.assert_close(CrossEntropy.apply(logits, p), -(p * logits.log_softmax(-1)).sum(-1))


def test_the_regression_is_least_squares_towards_the_logit_lens():
    """Against numpy's least squares with λ N extra rows of √, on tokens given in two parts of unlike means."""
    generator = torch.Generator().manual_seed(0)
    places_NSD = torch.randn(60, 2, 4, generator=generator) * torch.tensor([1.0, 30.0, 0.1, 5.0]) + 7
    places_NSD[:, 1] += places_NSD[:, 0] @ torch.randn(4, 4, generator=generator)
    regression = Regression()
    regression.add(places_NSD[:40])
    regression.add(places_NSD[40:])
    start = regression.solve()
    h_ND, final_ND = places_NSD.double().unbind(1)
    scale_D, final_scale_D = places_NSD[:40, 0].double().std(0), places_NSD[:40, 1].double().std(0)
    x_ND = (h_ND - h_ND.mean(0)) / scale_D
    change_ND = final_ND - h_ND
    y_ND = (change_ND - change_ND.mean(0)) / final_scale_D
    ridge = torch.cat([x_ND, 2 * torch.eye(4, dtype=torch.float64)])  # λ N = D = 4
    b_DD = torch.linalg.lstsq(ridge, torch.cat([y_ND, torch.zeros(4, 4, dtype=torch.float64)])).solution
    weight_DD = final_scale_D[:, None] * b_DD.T / scale_D
    torch.testing.assert_close(start.weight[0].double(), weight_DD, rtol=1e-3, atol=1e-4)
    bias_D = change_ND.mean(0) - weight_DD @ h_ND.mean(0)
    torch.testing.assert_close(start.bias[0].double(), bias_D, rtol=1e-3, atol=1e-2)
    unexplained_ND = change_ND - change_ND.mean(0) - (h_ND - h_ND.mean(0)) @ weight_DD.T
    torch.testing.assert_close(start.left[0].double(), unexplained_ND.std(0, correction=0), rtol=1e-2, atol=1e-2)


def trained_for(model, corpus, sequences, steps):
    fit = Fit(model, Recipe(share=0.5, batch=2, learning_rate=1e-2, seed=3), pack(model, corpus, 16, sequences))
    for _ in range(steps):
        fit.take_step()
    return fit


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt-projected"])
def test_the_loss_is_the_kl_to_the_output(name, corpus):
    """At the first step after the regression: the KL of the regression's maps at that step's positions."""
    model = tiny_model(name)
    fit = trained_for(model, corpus, 16, 2)
    lens = Transport(TransportConfig.of(model, "linear_tuned_lens", {}), *fit.maps())
    places_NSD = read_places(model, fit.sequences[4:6], fit.positions(fit.sequences[4:6]))
    fit.take_step()
    kl_SN = kl_to_output(model, {"tuned": lens}, places_NSD, Silent())["tuned"]
    assert fit.losses[0] == pytest.approx(kl_SN[:-1].mean(1).tolist(), abs=1e-5)


def test_the_maps_trained_in_units_are_the_maps_saved(corpus):
    """A h + b = A0 h + b0 + ρ (M (h - μ) / σ + m)."""
    model = tiny_model("gemma3")
    fit = trained_for(model, corpus, 16, 8)
    h_D = torch.linspace(-2, 2, model.d_model)
    weight_LDD, bias_LD = fit.maps()
    start = fit.start
    with torch.no_grad():
        unit_D = (h_D - start.mean[1]) / start.scale[1]
        change_D = start.left[1] * (fit.weight_LDD[1] @ unit_D + fit.bias_LD[1])
    expected_D = start.weight[1] @ h_D + start.bias[1] + change_D
    assert change_D.abs().max() > 0.01
    torch.testing.assert_close(weight_LDD[1] @ h_D + bias_LD[1], expected_D, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_a_trained_lens_beats_the_logit_lens_on_text_it_has_not_seen(name, corpus, tmp_path):
    record = train(tiny_model(name), corpus=corpus, save=str(tmp_path / "lens"), length=32, tokens=9000, held_out=8,
                   share=1.0, learning_rate=3e-3)
    assert record.verdict.outcome == "supported"
    assert all(layer.difference.high < 0 for layer in record.result.layers[:-1])
    assert record.result.layers[-1].tuned.mean == record.result.layers[-1].logit.mean == 0
    assert record.result.tokens == 9000 // 32 * 32
    assert record.result.positions == (record.result.tokens - record.result.regression_tokens) // 32 * 31


def test_held_out_kl_is_that_of_the_lens_on_disk(corpus, tmp_path):
    model = tiny_model("llama")
    train(model, corpus=corpus, save=str(tmp_path), **QUICK)
    lens = load_transport(tmp_path, model)
    assert len(lens.config.held_out["tuned"]) == model.n_layers + 1
    assert lens.config.held_out["tuned"][0] < lens.config.held_out["logit"][0]
    assert not (tmp_path / CHECKPOINT).exists()


def test_an_interrupted_training_taken_up_again_gives_the_same_lens_bit_for_bit(corpus, tmp_path):
    model = tiny_model("llama")
    whole = train(model, corpus=corpus, save=str(tmp_path / "whole"), **QUICK)
    for steps in (2, 3, 5):
        with pytest.raises(KeyboardInterrupt):
            train(model, corpus=corpus, save=str(tmp_path / "cut"), progress=Interrupting(steps), **QUICK)
        assert (tmp_path / "cut" / CHECKPOINT).is_file() and not (tmp_path / "cut" / "config.json").exists()
    resumed = train(model, corpus=corpus, save=str(tmp_path / "cut"), **QUICK)
    one, other = load_transport(tmp_path / "whole", model), load_transport(tmp_path / "cut", model)
    assert torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)
    assert resumed.result.training == whole.result.training
    assert resumed.result.layers == whole.result.layers


def test_a_finished_lens_is_measured_again_and_not_trained_again(corpus, tmp_path):
    model = tiny_model("llama")
    first = train(model, corpus=corpus, save=str(tmp_path), **QUICK)
    again = train(model, corpus=corpus, save=str(tmp_path), progress=Interrupting(0), **QUICK)
    assert again.to_dict()["result"] == first.to_dict()["result"]


@pytest.mark.parametrize("finished", [True, False])
def test_another_lens_is_never_trained_over(corpus, tmp_path, finished):
    model = tiny_model("llama")
    if finished:
        train(model, corpus=corpus, save=str(tmp_path), **QUICK)
    else:
        with pytest.raises(KeyboardInterrupt):
            train(model, corpus=corpus, save=str(tmp_path), progress=Interrupting(2), **QUICK)
    with pytest.raises(SpecError, match=r"learning_rate 0\.0003, not 0\.01"):
        train(model, corpus=corpus, save=str(tmp_path), **QUICK, learning_rate=0.01)
    with pytest.raises(SpecError, match="weights"):
        train(tiny_model("mistral"), corpus=corpus, save=str(tmp_path), **QUICK)


def test_a_corpus_that_changed_under_a_checkpoint_is_noticed(tmp_path):
    model = tiny_model("llama")
    text = tmp_path / "text.txt"
    text.write_text("w1 w2 w3 w4 " * 400)
    with pytest.raises(KeyboardInterrupt):
        train(model, corpus=str(text), save=str(tmp_path), progress=Interrupting(2), **QUICK)
    text.write_text("w1 w2 w3 w5 " * 400)
    with pytest.raises(SpecError, match="corpus"):
        train(model, corpus=str(text), save=str(tmp_path), **QUICK)


def test_a_damaged_checkpoint_says_so(corpus, tmp_path):
    (tmp_path / CHECKPOINT).write_bytes(b"half a file")
    with pytest.raises(FileError, match="damaged"):
        train(tiny_model("llama"), corpus=corpus, save=str(tmp_path), **QUICK)


@pytest.mark.parametrize(("text", "why"), [(" \n\n", "holds no text"), ("w1 w2 w3", "0 sequences of 16 tokens")])
def test_a_corpus_without_enough_text_is_refused(tmp_path, text, why):
    (tmp_path / "text.txt").write_text(text)
    with pytest.raises(FileError, match=why):
        train(tiny_model("llama"), corpus=str(tmp_path / "text.txt"), save=str(tmp_path / "lens"), **QUICK)


def test_sequences_longer_than_the_context_are_refused(corpus, tmp_path):
    with pytest.raises(SpecError, match="context is 128"):
        train(tiny_model("llama"), corpus=corpus, save=str(tmp_path), length=129)


def test_fewer_tokens_than_two_steps_take_are_refused(corpus, tmp_path):
    with pytest.raises(SpecError, match="fewer than two steps of 4 sequences of 128"):
        train(tiny_model("llama"), corpus=corpus, save=str(tmp_path), length=128, tokens=1023)


def test_a_loss_that_is_no_number_is_an_error_that_names_layer_and_step(corpus, tmp_path):
    with pytest.raises(RunError, match=r"loss of layer -1 is not a number at step \d+ of"):
        train(tiny_model("gpt2"), corpus=corpus, save=str(tmp_path), **QUICK, learning_rate=1e30)


def test_packed_sequences_are_the_corpus_in_order(corpus):
    model = tiny_model("llama")
    sequences = pack(model, corpus, 16, 5)
    words = Path(corpus).read_text().split()
    assert [model.say(token) for ids in sequences for token in ids] == words[: 5 * 16]


def test_untrained_the_lens_reads_what_the_logit_lens_reads(tmp_path):
    model = tiny_model("gemma2")
    folder = str(Transport.identity(model).save(tmp_path))
    ours = apply(model, lens=folder, prompt=PROMPT, watch=["w5"])
    theirs = pc.logit_lens(model, prompt=PROMPT, watch=["w5"])
    assert ours.result == theirs.result
    assert ours.verdict.effect == theirs.verdict.effect and ours.verdict.control == theirs.verdict.control


def test_an_applied_lens_ends_at_the_models_own_prediction(corpus, tmp_path):
    model = tiny_model("llama")
    train(model, corpus=corpus, save=str(tmp_path), **QUICK)
    result = apply(model, lens=str(tmp_path), prompt=PROMPT, controls=0).result
    with torch.no_grad():
        best = int(model.hf(torch.tensor([PROMPT])).logits[0, -1].argmax())
    assert result.prediction == result.layers[-1].top[0].token == model.say(best)
    assert result.layers[0].top != pc.logit_lens(model, prompt=PROMPT, controls=0).result.layers[0].top


def test_applying_a_lens_of_another_model_is_refused(tmp_path):
    folder = str(Transport.identity(tiny_model("gpt2")).save(tmp_path))
    with pytest.raises(InputError, match="weights"):
        apply(tiny_model("llama"), lens=folder, prompt=PROMPT)


def test_the_result_is_drawn(corpus, tmp_path):
    record = train(tiny_model("llama"), corpus=corpus, save=str(tmp_path / "lens"), **QUICK)
    assert record.save(tmp_path / "chart.svg").read_text().startswith("<svg")
    assert list(record.table()["layer"]) == [-1, 0, 1, 2]


@pytest.mark.weights
def test_a_thousand_tokens_are_enough_to_beat_the_logit_lens_at_every_layer_of_smollm2(smollm2, tmp_path):
    record = train(smollm2, corpus="example:neutral", save=str(tmp_path), length=32, tokens=1000, held_out=6,
                   share=0.05, batch=8)
    assert record.verdict.outcome == "supported"
    assert all(layer.tuned.mean < layer.logit.mean for layer in record.result.layers[:-1])
