"""Relations measured: on a toy whose relation is exactly linear, kept and taken up again, put into tables, drawn."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from linear_toy import OTHER, TEMPLATE

import patchclamp as pc
from patchclamp.errors import FileError, SpecError
from patchclamp.evidence.method import NoModel, Silent
from patchclamp.relations import measured
from patchclamp.relations.evaluate import evaluate_relations
from patchclamp.relations.fitting import fitted
from patchclamp.relations.inverse import Turn, changes, choose_turn, draw_pairs, random_changes, succeed
from patchclamp.relations.samples import SamplesSpec
from patchclamp.relations.table import table_of_relations
from patchclamp.tasks.read import read_relation


@pytest.fixture(scope="module")
def parted_and_map(linear, linear_file):
    return fitted(linear, read_relation(linear_file), SamplesSpec(), linear_file, Silent())


@pytest.fixture(scope="module")
def record(linear, linear_file):
    return evaluate_relations(linear, files=[linear_file])


def test_an_exactly_linear_relation_has_faithfulness_one(record):
    (row,) = record.result.relations
    assert (row.faithfulness.mean, row.beta, row.known, row.asked) == (1, 1, 60, 60)
    assert row.layer in (-1, 0) and [one.faithfulness for one in row.layers[:2]] == [1, 1]
    assert set(row.baselines) == {"identity", "translation", "logit_lens", "regression"}
    assert len(row.hits) == row.tested and np.mean(row.hits) == 1


def test_the_shares_are_those_of_one_run_after_another(linear, parted_and_map):
    """Edits by plain hooks on the Hugging Face model."""
    parted, made = parted_and_map
    pairs = draw_pairs(parted.test, 0)
    turn = Turn(0, 16)
    change_PD = changes(made, pairs, turn)
    swap_PD = parted.test.h[pairs.target, 1]
    fast_SP = succeed(linear, pairs, [("add", 0, change_PD), ("set", 0, swap_PD)], Silent())

    def first_choice(index, new_D):
        one = pairs.known.facts[pairs.source[index]]

        def put(module, args, output):
            hidden = output[0] if isinstance(output, tuple) else output
            hidden[0, one.position] = new_D
            return output

        handle = linear.hf.model.layers[0].register_forward_hook(put)
        try:
            with torch.no_grad():
                return int(linear.hf(torch.tensor([one.ids])).logits[0, -1].argmax())
        finally:
            handle.remove()

    for index, (source, target) in enumerate(zip(pairs.source, pairs.target, strict=True)):
        answer = pairs.known.facts[target].answer
        assert answer != pairs.known.facts[source].answer
        edited = first_choice(index, parted.test.h[source, 1] + change_PD[index])
        assert fast_SP[0, index] == (edited == answer)
        assert fast_SP[1, index] == (first_choice(index, swap_PD[index]) == answer)
    assert fast_SP[0].mean() == 1, "in a linear relation the inverse edits every fact"


def test_edits_are_chosen_on_validation_pairs_among_blocks(linear, parted_and_map):
    parted, made = parted_and_map
    pairs = draw_pairs(parted.validation, 0)
    turn = choose_turn(linear, made, pairs, Silent())
    tried = [Turn(layer, rank) for layer in (0, 1) for rank in (4, 8, 16, 32)]
    shares = succeed(linear, pairs, [("add", one.layer, changes(made, pairs, one)) for one in tried], Silent()).mean(1)
    best = [one for one, share in zip(tried, shares, strict=True) if share == shares.max()]
    assert turn == max(best, key=lambda one: (one.layer, -one.rank))
    assert choose_turn(linear, made, pairs, Silent(), layer=1).layer == 1
    assert choose_turn(linear, made, pairs, Silent(), rank=4).rank == 4
    assert choose_turn(linear, made, pairs, Silent(), 1, 8) == (1, 8)


def test_random_changes_are_as_long_and_vary_as_the_streams_do(parted_and_map):
    parted, _ = parted_and_map
    h_ND = parted.test.h[:, 1]
    like_PD = torch.randn(500, h_ND.shape[1])
    drawn_PD = random_changes(h_ND, like_PD, 3)
    torch.testing.assert_close(drawn_PD.norm(dim=1), like_PD.norm(dim=1))
    axis_D = torch.linalg.svd(h_ND - h_ND.mean(0))[2][0]
    unit_PD = drawn_PD / drawn_PD.norm(dim=1, keepdim=True)
    assert (unit_PD @ axis_D).var() > 3 / h_ND.shape[1], "the streams' first axis is the changes', too"
    assert torch.equal(drawn_PD, random_changes(h_ND, like_PD, 3))


def test_another_template_is_reported_beside(record):
    (other,) = record.result.relations[0].templates
    assert other.template == OTHER
    assert (other.known, other.faithfulness.mean) == (record.result.relations[0].tested, 1)


def test_the_verdict_is_about_the_best_baseline(record):
    (row,) = record.result.relations
    assert record.verdict.effect == row.faithfulness
    assert record.verdict.control.mean == max(one.mean for one in row.baselines.values())


def test_facts_that_all_have_one_object_are_read_but_not_edited(linear, linear_file, tmp_path):
    data = json.loads(Path(linear_file).read_text())
    most = max((one["object"] for one in data["samples"]), key=[one["object"] for one in data["samples"]].count)
    data["samples"] = [one for one in data["samples"] if one["object"] == most]
    path = tmp_path / "one.json"
    path.write_text(json.dumps(data))
    record = evaluate_relations(linear, files=[str(path)])
    (row,) = record.result.relations
    assert row.faithfulness.mean == 1 and np.isnan(row.causality.mean) and row.mark == "not linear here"
    assert record.save(tmp_path / "one.svg").read_text().startswith("<svg")
    assert pc.Record.from_json(record.to_json()).to_json() == record.to_json()


def test_a_folder_may_hold_other_files_and_templates_that_cannot_be_used(linear, linear_file, tmp_path):
    (tmp_path / "package.json").write_text('{"name": "x"}')
    data = json.loads(Path(linear_file).read_text())
    (tmp_path / "good.json").write_text(json.dumps(data | {"prompt_templates": [TEMPLATE, "w5 {}"]}))
    (tmp_path / "bad.json").write_text(json.dumps(data | {"name": "bad", "prompt_templates": ["w5 {}"]}))
    result = evaluate_relations(linear, files=[str(tmp_path)]).result
    (row,), (missed,) = result.relations, result.missed
    assert row.templates[0].known == 0 and missed.why.startswith("bad.json: the template 'w5 {}' ends with the subject")
    with pytest.raises(SpecError, match="is a file; name a folder"):
        evaluate_relations(linear, files=[linear_file], store=linear_file)


def unknown_file(folder, name="unknown"):
    samples = [{"subject": f"w{i}", "object": "w0"} for i in range(40)]
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"name": name, "prompt_templates": [TEMPLATE], "samples": samples}))
    return str(path)


def test_of_several_relations_what_the_model_does_not_know_is_listed(linear, linear_file, tmp_path):
    record = evaluate_relations(linear, files=[linear_file, unknown_file(tmp_path)])
    (missed,) = record.result.missed
    assert missed.name == "unknown" and "knows 0 of" in missed.why
    (category,) = record.result.categories
    assert (category.relations, category.faithfulness.mean) == (1, 1)
    assert len(record.result.table()) == 2
    with pytest.raises(FileError, match="knows none of the 2 relations"):
        evaluate_relations(linear, files=[unknown_file(tmp_path, "a"), unknown_file(tmp_path, "b")])
    with pytest.raises(FileError, match="holds no relation file"):
        (tmp_path / "empty").mkdir()
        evaluate_relations(linear, files=[str(tmp_path / "empty")])


def test_what_was_measured_is_not_measured_again_and_goes_into_a_table(linear, linear_file, tmp_path, monkeypatch):
    store = str(tmp_path / "store")
    files = [linear_file, unknown_file(tmp_path)]
    first = evaluate_relations(linear, files=files, store=store).result
    monkeypatch.setattr(measured, "part", lambda *_: pytest.fail("measured again"))
    assert evaluate_relations(linear, files=files, store=store).result == first
    with pytest.raises(pytest.fail.Exception):
        evaluate_relations(linear, files=files, store=store, seed=5)
    table = table_of_relations(NoModel(), stores=[store])
    assert [one.row for one in table.result.rows] == first.relations and table.verdict is None
    assert list(table.result.table()["linear: faithfulness"]) == ["1.00", ""]
    assert table.save(tmp_path / "table.svg").read_text().startswith("<svg")


def test_several_relations_are_points_coloured_by_kind(linear, linear_file, tmp_path):
    """Each chart has colours of its own: a kind that the bars do not know would not be drawn."""
    shutil.copy(linear_file, tmp_path / "again.json")
    record = evaluate_relations(linear, files=[linear_file, str(tmp_path / "again.json")])
    kind = record.result.relations[0].category
    assert f">{kind}</text>" in record.save(tmp_path / "chart.svg").read_text()


def test_two_models_of_one_name_are_told_apart_by_their_weights(linear, linear_file, tmp_path):
    evaluate_relations(linear, files=[linear_file], store=str(tmp_path))
    (path,) = tmp_path.rglob("*.json")
    (tmp_path / "0123456789ab").mkdir()
    shutil.copy(path, tmp_path / "0123456789ab")
    names = {one.model for one in table_of_relations(NoModel(), stores=[str(tmp_path)]).result.rows}
    assert names == {"linear (012345)", f"linear ({path.parent.name[:6]})"}


def test_a_damaged_or_empty_store_is_refused(linear, linear_file, tmp_path):
    with pytest.raises(FileError, match="holds no measured relation"):
        table_of_relations(NoModel(), stores=[str(tmp_path)])
    evaluate_relations(linear, files=[linear_file], store=str(tmp_path))
    (path,) = tmp_path.rglob("*.json")
    path.write_text('{"model": "x"}')
    with pytest.raises(FileError, match="is no measured relation"):
        evaluate_relations(linear, files=[linear_file], store=str(tmp_path))


@pytest.mark.parametrize("several", [False, True])
def test_the_results_draw(linear, linear_file, tmp_path, several):
    record = evaluate_relations(linear, files=[linear_file])
    if several:
        row = record.result.relations[0]
        record.result.relations.append(row.model_copy(update={"name": "again", "category": "other"}))
    assert record.save(tmp_path / "relations.svg").read_text().startswith("<svg")
    assert pc.Record.from_json(record.to_json()).result == record.result


@pytest.mark.weights
def test_comparatives_are_linear_in_gemma(gemma):
    """And their inverse edits them, while random changes as long do nothing."""
    record = evaluate_relations(gemma, files=["example:relations/adjective-comparative"], samples=5, tests=10)
    (row,) = record.result.relations
    assert row.faithfulness.mean >= 0.6 and row.mark == "beats every baseline"
    assert row.causality.mean >= 0.6 and row.random.mean <= 0.05
    assert record.verdict.outcome == "supported"
