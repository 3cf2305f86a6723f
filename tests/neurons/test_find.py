"""Neurons that go with a label: exactness against scipy, chance, held-out check."""

import json

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, pointbiserialr
from tiny import tiny_model

import patchclamp as pc
from patchclamp.errors import FileError, SiteError, SpecError
from patchclamp.evidence.association import adjusted_p, associate, scores, shuffled
from patchclamp.evidence.search import Search, best_of


@pytest.fixture
def labelled(tmp_path):
    def write(n=32, labels=("a", "b")):
        path = tmp_path / f"labelled{n}{len(labels)}.jsonl"
        rows = [{"text": f"w{i} w{i + 40} w{(2, 7)[i % 2]}", "label": labels[i % len(labels)]} for i in range(n)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def test_associations_are_those_of_scipy():
    generator = np.random.default_rng(3)
    values = np.round(generator.normal(size=(23, 7)), 1)  # with ties
    labels = np.zeros((2, 23), dtype=bool)
    labels[0, :9] = labels[1, 4:20] = True
    for by in ("auroc", "point_biserial", "mean_difference"):
        found = associate(scores(values, by), labels, by)
        for p in range(2):
            for u in range(7):
                showing, plain = values[labels[p], u], values[~labels[p], u]
                want = {
                    "auroc": mannwhitneyu(showing, plain).statistic / (len(showing) * len(plain)),
                    "point_biserial": pointbiserialr(labels[p], values[:, u]).statistic,
                    "mean_difference": (showing.mean() - plain.mean()) / values[:, u].std(),
                }[by]
                assert found[p, u] == pytest.approx(want, abs=1e-5)


def test_a_constant_neuron_is_chance():
    values = np.ones((10, 1))
    labels = np.arange(10)[None] < 4
    assert associate(scores(values, "auroc"), labels, "auroc")[0, 0] == 0.5
    assert associate(scores(values, "point_biserial"), labels, "point_biserial")[0, 0] == 0


def test_p_values_count_the_strongest_of_all_under_shuffled_labels():
    assert adjusted_p(np.array([0.5, 0.3, 0.1]), np.array([0.2, 0.3, 0.4])) == pytest.approx([1 / 4, 3 / 4, 1])
    labels = shuffled(np.arange(12) < 5, 50, 1)
    assert (labels.sum(1) == 5).all() and len(np.unique(labels, axis=0)) > 40


def test_noise_has_no_small_p_and_a_planted_neuron_has():
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 2 == 0
    values = generator.normal(size=(60, 3000)).astype(np.float32)
    first = np.arange(60) < 30
    null = np.abs(associate(scores(values[first], "auroc"), shuffled(labels[first], 200, 0), "auroc") - 0.5).max(1)
    p = adjusted_p(np.abs(Search(values, first, "auroc").found(labels[None])[0] - 0.5), null)
    assert p.min() > 0.05
    assert abs(best_of([Search(values, first, "auroc")], labels).heldout - 0.5) < 0.35
    values[labels, 77] += 4
    search = Search(values, first, "auroc")
    best = best_of([search], labels)
    assert best.unit == 77 and best.heldout > 0.95
    assert adjusted_p(np.abs(search.found(labels[None])[0] - 0.5), null)[77] < 0.01


def test_the_word_that_tells_the_labels_apart_is_found(labelled):
    """The last token of every text differs by label, so neurons there tell them apart without a fault."""
    model = tiny_model("llama")
    record = pc.find_neurons(model, source=labelled(64), controls=20, permutations=100, top=5)
    result = record.result
    assert (result.label, result.finding, result.heldout) == ("b", 32, 32)
    best = result.ranking[0]
    values = [float(model.run(f"w{i} w{i + 40} w{(2, 7)[i % 2]}", read=best.site)) for i in range(64)]
    whole = mannwhitneyu(values[1::2], values[::2]).statistic / 1024
    assert whole == pytest.approx((best.auroc + best.auroc_heldout) / 2, abs=0.1)
    assert record.verdict.outcome == "supported"
    assert record.chart().to_dict()["hconcat"]
    assert len(record.table()) == 5
    assert type(result).model_validate_json(result.model_dump_json()) == result


def test_of_several_positions_the_best_is_kept(labelled):
    result = pc.find_neurons(tiny_model("llama"), source=labelled(), positions=("0", "last"), controls=2,
                             permutations=100).result
    assert result.positions == "last" and [one.positions for one in result.tried] == ["0", "last"]
    first, last = (abs(one.association - 0.5) for one in result.tried)
    assert last >= first


def test_pooled_positions(labelled):
    model = tiny_model("llama")
    for pool in ("mean", "max"):
        best = pc.find_neurons(model, source=labelled(), positions=("1:",), pool=pool, layers=(1,), controls=2,
                               permutations=100).result.ranking[0]
        values = [model.run(f"w{i} w{i + 40} w{(2, 7)[i % 2]}", read=best.site) for i in range(32)]
        pooled = [float(v.mean() if pool == "mean" else v.max()) for v in values]
        whole = mannwhitneyu(pooled[1::2], pooled[::2]).statistic / 256
        assert whole == pytest.approx((best.auroc + best.auroc_heldout) / 2, abs=0.15)


@pytest.mark.parametrize(("fields", "error", "message"), [
    ({"labels": ("a",)}, FileError, "every row has the label 'a'"),
    ({"labels": ("a", "b", "c", "d")}, SpecError, "4 labels; say which one"),
    ({"labels": ("a", "b"), "label": "z"}, SpecError, "no label 'z'; it has a, b"),
    ({"n": 6}, SpecError, "3 prompts with the label are too few"),
    ({"layers": (7,)}, SiteError, "names block 7"),
    ({"positions": ("lst",)}, SiteError, "names no positions"),
])
def test_what_is_wrong_is_named(labelled, fields, error, message):
    file = labelled(fields.pop("n", 32), fields.pop("labels", ("a", "b")))
    with pytest.raises(error, match=message):
        pc.find_neurons(tiny_model("llama"), source=file, controls=2, **fields)


def test_a_prompt_on_both_sides(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("".join(f"w{i}\n" for i in range(10)))
    with pytest.raises(FileError, match="10 prompts are on both sides"):
        pc.find_neurons(tiny_model("llama"), source=str(tmp_path / "a.txt"), plain=str(tmp_path / "b.txt"))


@pytest.mark.weights
def test_french_has_neurons_in_smollm2(smollm2):
    record = pc.find_neurons(smollm2, source="french", limit=24, controls=5, permutations=200)
    best = record.result.ranking[0]
    assert record.verdict.outcome == "supported"
    assert best.p_adjusted < 0.05 and max(best.auroc_heldout, 1 - best.auroc_heldout) > 0.9
    assert record.result.shuffled.high < 0.9
