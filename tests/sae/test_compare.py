"""Latents that stand for words are explained better than those that mix everything, and concepts are found."""

import numpy as np
import pytest
import torch
from tiny import unattached

import patchclamp as pc
from patchclamp.errors import FileError, SpecError
from patchclamp.forward.autoencoder import Autoencoder, AutoencoderInfo
from patchclamp.sae.compare import A_FEATURE, compare_autoencoders
from patchclamp.sae.harvest import harvest

WORDS = range(5, 45)


@pytest.fixture(scope="module")
def store(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "s"
    harvest(unattached(), corpus=corpus, store=str(folder), site=["resid_pre.0"], length=16, windows=8, shard=40,
            tokens=6000)
    return str(folder)


def save(folder, encoder, bias, site="resid_pre.0"):
    model = unattached()
    info = AutoencoderInfo(name=folder.name, architecture="relu", site=site, model=model.name,
                           weights=model.weights_hash)
    decoder = torch.nn.functional.normalize(encoder, dim=1)
    Autoencoder(info, {"W_enc": encoder, "b_enc": bias, "W_dec": decoder, "b_dec": torch.zeros(model.d_model)}
                ).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def saes(tmp_path_factory):
    """One whose latents are single words' embeddings, one whose latents mix everything; and a part of the first."""
    model, base = unattached(), tmp_path_factory.mktemp("saes")
    encoder = model.capture([f"w0 w{i}" for i in WORDS], ["resid_pre.0"])["resid_pre.0"][:, 1].clone()
    bias = -0.7 * encoder.square().sum(1)
    torch.manual_seed(0)
    mixed = torch.randn(len(WORDS), model.d_model)
    return (save(base / "words", encoder, bias), save(base / "mixed", mixed, torch.zeros(len(WORDS))),
            save(base / "few", encoder[:6].clone(), bias[:6].clone()))


def test_what_stands_for_words_is_explained_better_than_a_mixture(saes, store, tmp_path):
    record = compare_autoencoders(unattached(), saes=saes[:2], store=store, tokens=3000, sampled=12)
    words, mixed, neurons = record.result.dictionaries
    assert (words.name, mixed.name, neurons.name) == ("words", "mixed", "neurons")
    assert words.quality.l0 < mixed.quality.l0 and neurons.quality is None
    assert words.simulation.mean > mixed.simulation.mean + 0.2 and words.explained >= 6 and words.accuracy.mean > 0.9
    assert record.verdict.outcome == "supported" and "words mean more than those of mixed" in record.verdict.reason
    assert record.save(tmp_path / "c.svg").read_text().startswith("<svg") and len(record.table()) == 3
    assert pc.Record.from_json(record.to_json()).to_json() == record.to_json()


def test_one_alone_is_compared_with_neurons(saes, store):
    record = compare_autoencoders(unattached(), saes=saes[:1], store=store, tokens=3000, sampled=6)
    assert "neurons of the block" in record.verdict.reason


def test_a_larger_dictionary_has_more_of_the_concepts(saes, store, tmp_path):
    """Labels are words: the whole dictionary has a latent for nearly each, a part of it for its own."""
    path = tmp_path / "labelled.csv"
    rows = [f"w0 w{50 + j % 7} w{i},word{i}\n" for i in list(WORDS)[:12] for j in range(8)]
    path.write_text("text,label\n" + "".join(rows))
    record = compare_autoencoders(unattached(), saes=[saes[0], saes[2]], store=store, tokens=2000, sampled=3,
                                  labelled=str(path))
    large, small = (one for one in record.result.dictionaries if one.quality)
    assert large.concepts > small.concepts and large.concepts_shuffled < 0.2
    assert large.concepts == np.mean([one.auroc["words"] >= A_FEATURE for one in record.result.concepts])
    model, autoencoder = unattached(), Autoencoder.load(saes[0])
    one = record.result.concepts[3]
    values = [model.capture([row.split(",")[0]], ["resid_pre.0"])["resid_pre.0"][0, 1:] for row in rows]
    codes = torch.stack([autoencoder.encode(value).amax(0) for value in values])
    own = np.array([row.strip().endswith(f",{one.label}") for row in rows])
    means = codes[own].mean(0) - codes[~own].mean(0)
    assert means[one.best["words"]] > 0
    assert record.save(tmp_path / "c.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(("change", "error", "says"), [
    (lambda s, t: {"saes": [s[0], s[0]]}, SpecError, "named twice"),
    (lambda s, t: {"saes": [s[0]], "labelled": t}, SpecError, "two or more"),
    (lambda s, t: {"labelled": t}, FileError, "8 texts or more"),
    (lambda s, t: {"store": "nowhere"}, FileError, "sae harvest"),
])
def test_wrong_questions_are_refused(saes, store, tmp_path, change, error, says):
    path = tmp_path / "few.csv"
    path.write_text("text,label\nw1 w2,a\nw3 w4,b\n")
    with pytest.raises(error, match=says):
        compare_autoencoders(unattached(), **{"saes": saes[:2], "store": store, **change(saes, str(path))})
