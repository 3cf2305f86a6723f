"""Features are indexed, shown and searched as what they are."""

import numpy as np
import pytest
import torch
from tiny import unattached

import patchclamp as pc
from patchclamp.corpus.pack import pack
from patchclamp.corpus.sketch import EDGES
from patchclamp.corpus.table import Index
from patchclamp.errors import FileError, SiteError, SpecError
from patchclamp.forward.autoencoder import Autoencoder, AutoencoderInfo
from patchclamp.neurons.examples import examples
from patchclamp.neurons.index import index as index_neurons
from patchclamp.sae.browse import browse_features
from patchclamp.sae.find import find_features
from patchclamp.sae.index import index_features
from patchclamp.sae.neighbours import neighbours
from patchclamp.sae.search import prefixed, search_features
from patchclamp.sae.show import show_features
from patchclamp.sae.written import FILE, Features

L, LENGTH = 40, 16


QUICK = {"length": LENGTH, "top": 5, "places": 300, "batch": 8, "shard": 40}


@pytest.fixture(scope="module")
def sae(tmp_path_factory):
    """Random directions with biases that leave few active; the last one never is."""
    model, folder = unattached(), tmp_path_factory.mktemp("sae") / "codes"
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(L, model.d_model), dim=1)
    values = model.capture([f"w{i} w{i + 3} w{i * 2 % 50}" for i in range(20)], ["resid.1"])["resid.1"].flatten(0, 1)
    bias = -(values @ directions.T).quantile(0.8, dim=0)
    bias[-1] = -1e6
    info = AutoencoderInfo(name="codes", architecture="relu", site="resid.1", model=model.name,
                           weights=model.weights_hash)
    Autoencoder(info, {"W_enc": directions, "b_enc": bias, "W_dec": directions.clone(),
                       "b_dec": torch.zeros(model.d_model)}).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def made(sae, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "i"
    return index_features(unattached(), corpus=corpus, save=str(folder), sae=sae, **QUICK), str(folder)


@pytest.fixture(scope="module")
def brute(sae, corpus):
    """Every code, [windows, tokens, features], from plain captures."""
    model, autoencoder = unattached(), Autoencoder.load(sae)
    windows = pack(model, corpus, LENGTH, 10_000)
    return np.stack([autoencoder.encode(model.capture([ids], ["resid.1"])["resid.1"][0]).numpy() for ids in windows])


def test_the_index_is_what_brute_force_finds(made, brute):
    record, folder = made
    found = Index(folder)
    assert found.manifest.sites == ("feature:codes.1",)
    own, site = brute[:, 1:].reshape(-1, L), pc.Site.parse("feature:codes.1")
    shares = (own > 0).mean(0)
    assert found.columns(site, ["active"])["active"] == pytest.approx(shares)
    assert record.result.median == pytest.approx(np.median(shares[shares > 0])) and sum(record.result.density) == L
    assert record.result.dead == record.result.density[0] == 1
    assert record.result.l0 == pytest.approx((own > 0).sum(1).mean())
    for unit, got in enumerate(found.units(site, range(L))):
        assert got.unit == unit and got.high == pytest.approx(own[:, unit].max(), rel=1e-4, abs=1e-6)
        best = brute[:, 1:, unit].max(1)
        assert [peak.value for peak in got.top] == pytest.approx(sorted(best, reverse=True)[:5], rel=1e-4, abs=1e-6)
        counts = np.histogram(own[:, unit], [-np.inf, *EDGES, np.inf])[0]
        assert np.abs(np.array(got.histogram) - counts).sum() <= 2  # a value at an edge may fall on either side


def test_what_a_feature_writes_is_its_direction_unembedded(made, sae):
    """Against the difference of two logits, one with a little of the direction in the last stream."""
    model, autoencoder, table = unattached(), Autoencoder.load(sae), Features(Index(made[1]))
    windows = Index(made[1]).windows(range(4))
    rows = torch.cat([model.capture([ids], ["resid.2"])["resid.2"][0, 1:] for ids in windows])
    usual = rows[rows.norm(dim=1).argsort()[len(rows) // 2]]
    scale = usual.double().square().mean().sqrt()
    for unit in (0, 7):
        gained = model.hf.model.norm.weight.double() * autoencoder.directions[unit].double() / scale
        logits = (model.hf.lm_head.weight.double() @ gained)[: len(model.tokenizer)]
        logits -= logits.mean()
        written = table.written(unit)
        assert [token for token, _ in written.promoted] == logits.topk(10).indices.tolist()
        assert [value for _, value in written.promoted] == pytest.approx(logits.topk(10).values.tolist(), rel=1e-3)
        assert [token for token, _ in written.suppressed] == (-logits).topk(10).indices.tolist()


def test_the_dead_are_nobodys_neighbours(made, sae):
    table, directions = Features(Index(made[1])), Autoencoder.load(sae).directions
    assert all(other != L - 1 for unit in range(L) for other, _ in table.written(unit).neighbours)
    cosines, latents = neighbours(directions, 6)
    alive = [(int(n), float(c)) for n, c in zip(latents[3], cosines[3], strict=True) if n != L - 1][:5]
    assert [n for n, _ in table.written(3).neighbours] == [n for n, _ in alive]


def test_features_are_shown_with_their_text_and_directions(made, sae, tmp_path):
    record = show_features(unattached(), features=["7", "feature:codes.1.3"], index=made[1], sae=sae, top=3)
    first, second = record.result.features
    assert first.examples.site == "feature:codes.1.7" and second.examples.site == "feature:codes.1.3"
    assert len(first.examples.top) == 3 and first.read_write_cosine == pytest.approx(1)
    for window in first.examples.top:
        assert window.activations[window.at] == pytest.approx(window.value, rel=1e-3, abs=1e-5)
    assert len(first.promotes) == 10 and len(first.neighbours) == 5 and record.verdict is not None
    assert len(record.result.passages()) >= 6
    assert record.save(tmp_path / "s.svg").read_text().startswith("<svg") and len(record.table()) == 2
    assert pc.Record.from_json(record.to_json()).to_json() == record.to_json()


def test_examples_of_features_are_those_of_neurons_methods(made, sae):
    """`neurons examples` takes a feature as it takes a neuron."""
    model = unattached()
    model.attach(sae)
    found = examples(model, sites=["feature.1.7"], index=made[1]).result.neurons[0]
    assert found.high == pytest.approx(Index(made[1]).units(pc.Site.parse("feature:codes.1"), [7])[0].high)
    assert pc.explain(model, site="feature.1.7", index=made[1], others=3, context=12).result.explanations


def test_a_text_finds_the_feature_that_is_rarely_as_active(made, sae, brute):
    """Brute force: the share of tokens at which a feature is as active as at the text's best one."""
    model, autoencoder = unattached(), Autoencoder.load(sae)
    record = search_features(model, text="w11 w44", index=made[1], sae=sae, top=5, windows=1)
    hits = [hit for hit in record.result.hits if hit.by == "active"]
    ids, skip = prefixed(model, "w11 w44")
    assert ids[skip:] == model.encode("w11 w44").ids[-2:]
    best = autoencoder.encode(model.capture([ids], ["resid.1"])["resid.1"][0, skip:]).amax(0).numpy()
    own = brute[:, 1:].reshape(-1, L)
    edges = np.array([-np.inf, *EDGES, np.inf])
    lower = edges[np.searchsorted(edges, best, side="right") - 1]
    expected = -np.log10(((own >= lower).sum(0) + 1) / (len(own) + 1))
    for hit in hits:
        unit = pc.Site.parse(hit.feature).unit
        assert hit.score == pytest.approx(expected[unit], abs=0.02)
        assert hit.activation == pytest.approx(best[unit], rel=1e-3)
        assert len(hit.windows) == 1 and hit.promotes
    ranked = sorted(expected[best > 0], reverse=True)[: len(hits)]
    assert [hit.score for hit in hits] == pytest.approx(ranked, abs=0.02)


def test_a_word_finds_the_features_that_promote_it(made, sae, tmp_path):
    model, table = unattached(), Features(Index(made[1]))
    token = table.written(5).promoted[0][0]
    record = search_features(model, text=model.say(token).strip(), index=made[1], sae=sae, top=L)
    hits = {hit.feature: hit for hit in record.result.hits if hit.by == "promotes"}
    assert "feature:codes.1.5" in hits
    assert hits["feature:codes.1.5"].score == pytest.approx(table.written(5).promoted[0][1])
    assert record.save(tmp_path / "s.svg").read_text().startswith("<svg")


def test_features_are_listed_in_the_order_asked_for(made, sae, brute, tmp_path):
    """Brute force: shares, maxima and the tokens at the maxima, from every code."""
    own = brute[:, 1:].reshape(-1, L)
    active, high = (own > 0).mean(0), own.max(0)
    alive = np.flatnonzero(active)

    def listed(**fields):
        record = browse_features(unattached(), index=made[1], sae=sae, **fields)
        return record, [pc.Site.parse(one.feature).unit for one in record.result.features]

    record, by_share = listed(order="active")
    assert record.verdict is None and record.result.alive == len(alive) == record.result.matching < L
    assert active[by_share].tolist() == sorted(active[alive], reverse=True)
    assert [one.active for one in record.result.features] == pytest.approx(active[by_share])
    assert active[listed(order="rare")[1]].tolist() == sorted(active[alive])
    strong, units = listed(order="strong")
    assert [one.high for one in strong.result.features] == pytest.approx(sorted(high[alive], reverse=True), rel=1e-3)
    assert listed(order="number")[1] == alive.tolist()
    assert listed(order="number", limit=4, skip=3)[1] == alive[3:7].tolist()
    index = Index(made[1])
    for one, unit in zip(strong.result.features, units, strict=True):
        peak = index.units(pc.Site.parse("feature:codes.1"), [unit])[0].top[0]
        assert one.peaks[0] == unattached().say(index.windows([peak.window])[0][peak.position])
    assert len(strong.table()) == len(alive)
    assert strong.save(tmp_path / "b.svg").read_text().startswith("<svg")


def test_only_features_that_go_with_a_text_are_listed(made, sae):
    everything = browse_features(unattached(), index=made[1], sae=sae).result.features
    expected = {one.feature for one in everything if any("w1" in word for word in (*one.peaks, *one.promotes))}
    found = browse_features(unattached(), index=made[1], sae=sae, contains="W1").result
    assert {one.feature for one in found.features} == expected and 0 < found.matching == len(expected) < found.alive
    nothing = browse_features(unattached(), index=made[1], sae=sae, contains="no such word")
    assert nothing.result.features == [] and nothing.table().empty and nothing.chart() is not None


def test_the_feature_that_is_a_label_is_found(sae, tmp_path):
    """Texts are labelled by whether one feature is active in them, so that one is found."""
    model, autoencoder = unattached(), Autoencoder.load(sae)
    texts = [f"w{i} w{i * 7 % 60} w{i * 3 % 60}" for i in range(60)]
    values = [model.capture([text], ["resid.1"])["resid.1"][0, 1:] for text in texts]
    codes = np.array([autoencoder.encode(value)[:, 9].amax() for value in values])
    path = tmp_path / "labelled.csv"
    path.write_text("text,label\n" + "".join(f"{t},{int(c > np.median(codes))}\n" for t, c in zip(texts, codes,
                                                                                                 strict=True)))
    record = find_features(model, source=str(path), sae=sae, permutations=100, controls=5)
    assert record.result.ranking[0].site == "feature:codes.1.9@1:" and record.result.ranking[0].auroc_heldout == 1
    assert record.save(tmp_path / "s.svg").read_text().startswith("<svg")


def test_several_processes_make_the_same_index(corpus, model_folder, tmp_path, sae):
    model = pc.load(model_folder)
    info = Autoencoder.load(sae).info.model_copy(update={"weights": model.weights_hash, "model": model.name})
    folder = Autoencoder(info, Autoencoder.load(sae).tensors).save(tmp_path / "own").parent
    one, two = (index_features(pc.load(model_folder), corpus=corpus, save=str(tmp_path / f"i{n}"), sae=str(folder),
                               workers=n, **QUICK).result for n in (1, 2))
    assert (one.density, one.l0) == (two.density, two.l0)
    site = pc.Site.parse("feature:codes.1")
    first, second = (Index(tmp_path / f"i{n}").units(site, range(L)) for n in (1, 2))
    assert [u.top for u in first] == [u.top for u in second]
    assert [u.histogram for u in first] == [u.histogram for u in second]


def test_a_question_leaves_the_model_as_it_found_it(made, sae):
    model = unattached()
    ref = model.ref
    record = search_features(model, text="w11", index=made[1], sae=sae)
    assert (model.ref, record.provenance.model) == (ref, ref) and not model.anatomy.codecs
    with pytest.raises(SiteError, match="no autoencoder"):
        model.capture(["w1"], ["feature.1.3"])
    model.attach(sae)
    search_features(model, text="w11", index=made[1])
    assert model.capture(["w1"], ["feature.1.3"]) and model.ref == f"{ref}+sae={sae}"


@pytest.mark.parametrize(("ask", "error", "says"), [
    (lambda m, i, s: show_features(m, features=["40"], index=i, sae=s), SpecError, "features 0 to 39"),
    (lambda m, i, s: show_features(m, features=["3", "3"], index=i, sae=s), SpecError, "named twice"),
    (lambda m, i, s: show_features(m, features=["neuron.1.3"], index=i, sae=s), SpecError, "no feature of"),
    (lambda m, i, s: show_features(m, features=["3"], index=i), SpecError, "which autoencoder"),
    (lambda m, i, s: browse_features(m, index=i, sae=s, skip=40), SpecError, "leaves out all 39"),
    (lambda m, i, s: search_features(m, text="w1", index="nowhere", sae=s), FileError, "no folder"),
    (lambda m, i, s: find_features(m, source="nowhere.csv", sae=s), FileError, "nowhere.csv"),
])
def test_wrong_questions_are_refused(made, sae, ask, error, says):
    with pytest.raises(error, match=says):
        ask(unattached(), made[1], sae)


def test_an_index_of_something_else_is_refused(made, sae, corpus, tmp_path):
    model = unattached()
    index_neurons(model, corpus=corpus, save=str(tmp_path / "n"), layers=[1], **QUICK)
    with pytest.raises(SpecError, match="index of neurons"):
        show_features(model, features=["3"], index=str(tmp_path / "n"), sae=sae)
    other = Autoencoder.load(sae)
    changed = Autoencoder(other.info, other.tensors | {"b_enc": other.b_enc + 1}).save(tmp_path / "other").parent
    with pytest.raises(SpecError, match="another autoencoder"):
        show_features(unattached(), features=["3"], index=made[1], sae=str(changed))
    with pytest.raises(SpecError, match="other settings"):
        index_features(unattached(), corpus=corpus, save=made[1], sae=str(changed), **QUICK)


def test_a_table_that_is_missing_or_damaged_is_named(sae, corpus, tmp_path):
    folder = tmp_path / "i"
    index_features(unattached(), corpus=corpus, save=str(folder), sae=sae, **QUICK)
    (folder / FILE).write_bytes(b"half a file")
    with pytest.raises(FileError, match="damaged"):
        show_features(unattached(), features=["3"], index=str(folder), sae=sae)
    (folder / FILE).unlink()
    with pytest.raises(FileError, match="sae index"):
        show_features(unattached(), features=["3"], index=str(folder), sae=sae)
    index_features(unattached(), corpus=corpus, save=str(folder), sae=sae, **QUICK)
    assert show_features(unattached(), features=["3"], index=str(folder), sae=sae).result.features
