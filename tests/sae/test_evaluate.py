"""An evaluation says what plain definitions say, on what the autoencoder has not seen, beside what nobody learned."""

import json

import numpy as np
import pytest
import torch
from tiny import tiny_model

import patchclamp as pc
from patchclamp.errors import FileError, SiteError, SpecError
from patchclamp.evidence.method import Silent
from patchclamp.forward.autoencoder import Autoencoder, AutoencoderInfo
from patchclamp.sae.baselines import own_axes, principal_axes, random_dictionary
from patchclamp.sae.effect import losses
from patchclamp.sae.evaluate import evaluate_autoencoder
from patchclamp.sae.harvest import harvest
from patchclamp.sae.neighbours import neighbours
from patchclamp.sae.store import ActivationStore
from patchclamp.sae.train import train_autoencoder

HARVEST = {"length": 16, "windows": 8, "shard": 40, "tokens": 4000}
QUICK = {"latents": 96, "k": [6], "batch": 128, "buffer": 2, "steps": 60}


@pytest.fixture(scope="module")
def store(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "s"
    harvest(tiny_model("llama"), corpus=corpus, store=str(folder), site=["resid.1", "resid_mid.1", "mlp.1"], **HARVEST)
    return str(folder)


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sae") / "a"
    train_autoencoder(tiny_model("llama"), store=store, site="resid.1", out=str(folder), **QUICK)
    return str(folder)


def made(folder, tensors, **info):
    """An autoencoder written by hand."""
    model = tiny_model("llama")
    about = AutoencoderInfo(**{"name": "byhand", "architecture": "relu", "site": "resid.1", "model": model.name,
                               "weights": model.weights_hash, **info})
    Autoencoder(about, tensors).save(folder)
    return str(folder)


def identity(width):
    """Both ways of every axis: says everything."""
    both = torch.cat([torch.eye(width), -torch.eye(width)])
    return {"W_enc": both, "b_enc": torch.zeros(2 * width), "W_dec": both, "b_dec": torch.zeros(width)}


def always(value_D):
    """Latents that are never active: says one value."""
    width = len(value_D)
    return {"W_enc": torch.zeros(8, width), "b_enc": -torch.ones(8), "W_dec": torch.randn(8, width), "b_dec": value_D}


def evaluated(sae, store, **fields):
    return evaluate_autoencoder(tiny_model("llama"), sae=sae, store=store, **{"windows": 6, **fields})


def test_only_what_it_has_not_seen_is_looked_at(trained, store):
    record = evaluated(trained, store)
    result, held = record.result, Autoencoder.load(trained).info.held_out
    assert held and result.unseen and result.rows == sum(ActivationStore(store).counts[n] for n in held)
    assert result.fvu == result.own.fvu and set(result.baselines) == {"random", "pca", "neurons"}
    assert result.own.intervals["fvu"].low < result.fvu < result.own.intervals["fvu"].high
    assert sum(result.density) == result.latents == 96
    assert result.density[0] == round(result.dead_fraction * 96)
    best = min(one.fvu_by_row for one in result.baselines.values())
    assert record.verdict.effect.mean == pytest.approx(best - result.own.fvu_by_row, rel=1e-6)


def test_saying_everything_recovers_everything(store, tmp_path):
    width = tiny_model("llama").d_model
    result = evaluated(made(tmp_path / "i", identity(width)), store).result
    assert result.fvu == pytest.approx(0, abs=1e-10) and result.l0 == pytest.approx(width)
    for name in ("ce_recovered", "kl_recovered"):
        assert getattr(result.own, name) == pytest.approx(1, abs=1e-3)
        assert getattr(result.own, f"{name}_from_mean") == pytest.approx(1, abs=1e-3)


def test_saying_the_mean_recovers_nothing_from_the_mean(store, tmp_path):
    """What is taken for the mean in the model's run are the training rows' mean, so this says exactly that."""
    rows = torch.cat([ActivationStore(store).rows(n, "resid.1") for n in range(6)])
    result = evaluated(made(tmp_path / "m", always(rows.double().mean(0).float())), store, rows=2).result
    # the few held-out rows' own mean does a little better
    assert 1 <= result.fvu < 1.05 and result.l0 == 0 and result.dead_fraction == 1
    assert result.own.ce_recovered_from_mean == pytest.approx(0, abs=1e-4)
    assert result.own.kl_recovered_from_mean == pytest.approx(0, abs=1e-4)


def test_being_off_by_one_does_not_recover_everything(store, tmp_path):
    width = tiny_model("llama").d_model
    tensors = identity(width) | {"b_dec": torch.ones(width)}
    result = evaluated(made(tmp_path / "o", tensors), store).result
    assert result.fvu > 0.05 and result.kl_recovered < 1 - 1e-4


def test_losses_are_those_of_a_model_whose_block_answers_otherwise(store):
    """Against Hugging Face's own model with a hook written by hand."""
    model, skip = tiny_model("llama"), 1
    windows = [tuple(np.random.default_rng(n).integers(3, 50, 16).tolist()) for n in range(5)]
    generator = torch.Generator().manual_seed(0)
    instead = [torch.randn(15, model.d_model, generator=generator) for _ in windows]
    found = losses(model, windows, "resid.1", {"odd": instead}, skip, Silent())
    for number, ids in enumerate(windows):
        asked, next_T = torch.tensor([ids]), torch.tensor(ids[2:])

        def replace(module, args, output, number=number):
            changed = (output[0] if isinstance(output, tuple) else output).clone()
            changed[0, skip:] = instead[number]
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        with torch.no_grad():
            clean = model.hf(asked).logits[0, skip:-1].log_softmax(-1)
            handle = model.hf.model.layers[1].register_forward_hook(replace)
            edited = model.hf(asked).logits[0, skip:-1].log_softmax(-1)
            handle.remove()
        assert float(found["clean"].ce[number]) == pytest.approx(-float(clean.gather(1, next_T[:, None]).mean()), 1e-4)
        assert float(found["odd"].ce[number]) == pytest.approx(-float(edited.gather(1, next_T[:, None]).mean()), 1e-4)
        kl = float((clean.exp() * (clean - edited)).sum(1).mean())
        assert float(found["odd"].kl[number]) == pytest.approx(kl, rel=1e-3)


def info():
    return AutoencoderInfo(name="a", architecture="topk", k=4, site="resid.1", model="m", weights="w")


def test_principal_axes_are_the_best_basis_and_beat_fixed_components():
    torch.manual_seed(0)
    rows = torch.randn(600, 24) @ torch.randn(24, 24) + 7
    out = principal_axes(rows, 4, info()).reconstruct(rows)
    mean, axes = rows.mean(0), torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh
    along = (rows - mean) @ axes.T
    kept = along * (along.abs() >= along.abs().topk(4, 1).values[:, -1:])
    assert torch.allclose(out, mean + kept @ axes, atol=2e-3)
    fixed = mean + along[:, :4] @ axes[:4]
    assert (rows - out).square().sum() < (rows - fixed).square().sum()


def test_own_axes_keep_the_numbers_furthest_from_their_mean():
    torch.manual_seed(1)
    rows = torch.randn(50, 12) + torch.arange(12)
    out, centred = own_axes(rows, 3, info()).reconstruct(rows), rows - rows.mean(0)
    far = centred.abs() >= centred.abs().topk(3, 1).values[:, -1:]
    assert torch.allclose(out, torch.where(far, rows, rows.mean(0)), atol=1e-5)


def test_random_directions_have_the_best_single_factor():
    torch.manual_seed(2)
    rows = torch.randn(300, 16) * torch.arange(1, 17)
    best = random_dictionary(rows, 64, 4, info(), 0)
    errors = []
    for factor in (0.9, 1.0, 1.1):
        other = Autoencoder(best.info, best.tensors | {"W_dec": best.W_dec * factor})
        errors.append(float((rows - other.reconstruct(rows)).square().sum()))
    assert errors[1] == min(errors) and errors[1] < float((rows - rows.mean(0)).square().sum())


def test_neighbours_are_those_of_all_cosines_at_once():
    torch.manual_seed(3)
    directions = torch.randn(40, 8)
    cosines, latents = neighbours(directions, 3)
    every = torch.nn.functional.normalize(directions, dim=1)
    every = (every @ every.T).fill_diagonal_(-2)
    assert torch.equal(latents, every.topk(3, 1).indices) and torch.allclose(cosines, every.topk(3, 1).values)


def test_a_transcoder_is_measured_on_what_it_writes(store, tmp_path):
    train_autoencoder(tiny_model("llama"), store=store, site="resid_mid.1", output_site="mlp.1",
                      out=str(tmp_path / "t"), **QUICK)
    result = evaluated(str(tmp_path / "t"), store).result
    assert result.output_site == "mlp.1" and 0 < result.fvu < 1.2 and result.own.ce is not None


def test_a_latent_that_is_the_label_is_found(store, tmp_path):
    """One latent is what tells the labels apart: probing finds it, and finds no splitting."""
    rows = [(f"w{i % 40} w{40 + i % 3 if i % 2 else 50} w{41 if i % 2 else 50}", "yes" if i % 2 else "no")
            for i in range(80)]
    path = tmp_path / "labelled.csv"
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    model = tiny_model("llama")
    values = [model.capture([text], ["resid.1"])["resid.1"][0, 1:].mean(0) for text, _ in rows]
    sides = [torch.stack([v for v, (_, label) in zip(values, rows, strict=True) if label == side]).mean(0)
             for side in ("yes", "no")]
    apart = sides[0] - sides[1]
    torch.manual_seed(0)
    weights = torch.randn(32, model.d_model) * 0.1
    weights[17] = apart / apart.norm()
    middle = float((sides[0] + sides[1]) @ weights[17] / 2)
    bias = torch.zeros(32)
    bias[17] = -middle
    sae = made(tmp_path / "p", {"W_enc": weights, "b_enc": bias, "W_dec": weights.clone(),
                                "b_dec": torch.zeros(model.d_model)})
    record = evaluated(sae, store, labelled=[str(path)], windows=0)
    (found,) = record.result.probes[0].labels
    assert found.label == "yes" and found.best == 17 and found.splits == 1
    assert found.by_k[0].latents > max(0.9, found.by_k[0].neurons, found.by_k[0].random)
    assert found.shuffled.high < 1 and found.missed < 0.5
    assert record.result.ce_recovered is None and record.result.loss is None
    assert record.save(tmp_path / "c.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(("fields", "error", "says"), [
    ({"sae": "nowhere"}, FileError, "sae train"),
    ({"store": "nowhere"}, FileError, "sae harvest"),
    ({"labelled": ["one.csv"]}, FileError, "two labels"),
])
def test_wrong_questions_are_refused(trained, store, tmp_path, monkeypatch, fields, error, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.csv").write_text("text,label\nw1 w2,a\nw3 w4,a\n")
    with pytest.raises(error, match=says):
        evaluated(**{"sae": trained, "store": store, **fields})


def test_what_belongs_to_another_model_or_site_is_refused(trained, store, tmp_path):
    with pytest.raises(SpecError, match="belongs to"):
        evaluate_autoencoder(tiny_model("gpt2"), sae=trained, store=store)
    other = made(tmp_path / "x", identity(tiny_model("llama").d_model), site="resid.0")
    with pytest.raises(SiteError, match=r"resid\.0"):
        evaluated(other, store)


def test_the_record_has_the_promised_keys(trained, store, tmp_path):
    record = evaluated(trained, store)
    said = json.loads(record.to_json())["result"]
    assert {"fvu", "l0", "dead_fraction", "ce_recovered", "kl_recovered", "baselines"} <= set(said)
    assert pc.Record.from_json(record.to_json()).to_json() == record.to_json()
    assert record.save(tmp_path / "c.svg").read_text().startswith("<svg") and len(record.table()) == 4
