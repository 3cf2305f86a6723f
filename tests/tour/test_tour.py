"""The guided tour: every stop can be asked, and the whole of it makes a report that works offline."""

import json

import pytest

from patchclamp.cli.app import execute
from patchclamp.errors import InputError
from patchclamp.evidence.method import Silent, get_method
from patchclamp.tasks import ChoiceRow, read_rows
from patchclamp.tour import STOPS, take
from patchclamp.tour.dictionary import DICTIONARY
from patchclamp.tour.documentation import write_docstrings, write_documentation
from patchclamp.tour.stops import plural_neurons

MINUTES = ("vectors.evaluate", "vectors.task", "vectors.compose", "neurons.explain", "neurons.ablate",
           "neurons.attribute", "neurons.repair", "relations.evaluate", "relations.edit", "relations.lens",
           "circuits.find", "circuits.heads", "circuits.flow", "lens.multihop", "lens.selfreport", "neurons.find",
           "vectors.find", "vectors.read", "lens.stages", "lens.patchscope",
           "lens.language")
QUICK = [stop for i, stop in enumerate(STOPS) if stop.method not in MINUTES and stop not in DICTIONARY
         and not stop.prepare and stop.method not in {before.method for before in STOPS[:i]}]
"""The others ask the same methods as these and other tests do, of as many prompts as there are."""


CHOSEN = ("neurons.ablate", "neurons.dose", "neurons.examples", "neurons.explain")
"""Methods whose stops find out by themselves which neurons to ask about."""


@pytest.mark.weights
@pytest.mark.parametrize("stop", [s for s in STOPS if s.method in CHOSEN], ids=lambda s: s.heading)
def test_every_stop_that_finds_its_neurons_is_a_valid_question(stop, smollm2, tmp_path):
    fields = stop.fields(smollm2, Silent(), tmp_path)
    get_method(stop.method).make_spec(**fields)


def test_the_documentation_is_prose_enough_to_look_for_neurons_in(tmp_path):
    text = write_documentation(tmp_path).read_text()
    assert len(text) > 200_000 and "::=" not in text.partition("Assert statements")[2]


@pytest.mark.parametrize("stop", [s for s in STOPS if s.method not in CHOSEN and s not in DICTIONARY],
                         ids=lambda s: s.heading)
def test_every_stop_is_a_valid_question(stop, tmp_path):
    (tmp_path / "refusal.safetensors").touch()
    fields = stop.fields(None, Silent(), tmp_path) if callable(stop.fields) else stop.fields
    get_method(stop.method).make_spec(**fields)


def test_docstrings_are_texts_in_an_order_that_depends_on_nothing(tmp_path):
    first, second = (write_docstrings(tmp_path / name, 100_000).read_text() for name in "ab")
    texts = [json.loads(line)["text"] for line in first.splitlines()]
    assert first == second and len(texts) == len(set(texts)) and sum(map(len, texts)) >= 100_000


@pytest.mark.weights
@pytest.mark.slow
def test_the_dictionarys_stops_run_with_a_small_one(tmp_path, monkeypatch):
    """Stops that make what others use, on a small part of the work."""
    from patchclamp.tour import dictionary

    small = {"CHARACTERS": 60_000, "TOKENS": 5_000, "A_SHARD": 10, "STEPS": 4, "LATENTS": 256, "TRIED": 8,
             "INDEXED": 4_000}
    for name, value in small.items():
        monkeypatch.setattr(dictionary, name, value)
    wanted = ("Learning a dictionary", "A feature that means something, and one that does not",
              "A feature for what Python says then?", "Correct code that fails")
    stops = [stop for stop in DICTIONARY if stop.heading in wanted]
    assert len(stops) == len(wanted)
    take(tmp_path, Silent(), lambda _: None, stops)
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "records").iterdir())]
    assert [record["method"] for record in records] == [stop.method for stop in stops]
    found, steered = (next(r["result"] for r in records if r["method"] == name) for name in ("sae.find", "sae.steer"))
    assert found["ranking"][0]["site"].startswith(steered["feature"])


def test_neurons_are_chosen_on_sentences_the_report_does_not_use():
    chosen_on = read_rows("example:agreement-validation", ChoiceRow)
    reported_on = read_rows("example:agreement", ChoiceRow)

    assert not {r.prompt for r in chosen_on} & {r.prompt for r in reported_on}
    assert not {frozenset((r.answer, r.distractor)) for r in chosen_on} & {
        frozenset((r.answer, r.distractor)) for r in reported_on}


@pytest.mark.weights
def test_the_chosen_neurons_are_the_ones_whose_removal_hurts_most(smollm2, tmp_path):
    """Attribution is a first-order estimate; removal itself is the oracle."""
    from patchclamp.forward import Edit, Readout, Site

    best = [f"{name}@last" for name in plural_neurons(smollm2, Silent(), 8)]
    assert len(set(best)) == 8
    site = Site.parse(best[0])
    rows = read_rows("example:agreement-validation", ChoiceRow)

    def without(edits):
        return sum(float(smollm2.run(r.prompt, edits, Readout.logit_difference(r.answer, r.distractor))) for r in rows)

    whole = without([])
    neighbours = [without([Edit.zero(f"neuron.{site.layer}.{(site.unit + i) % 1536}@last")]) for i in (1, 2, 3)]
    assert whole - without([Edit.zero(best[0])]) > 5 * max(abs(whole - n) for n in neighbours)


@pytest.mark.weights
@pytest.mark.slow
def test_the_command_writes_the_report_and_every_record(tmp_path, capsys):
    numbers = [str(i) for i, stop in enumerate(STOPS, 1) if stop in QUICK]
    assert execute(["tour", "--out", str(tmp_path), "--only", ",".join(numbers)]) == 0

    said = capsys.readouterr().out
    report = tmp_path / "report.html"
    assert said.strip() == f"Report: {report}"
    page = report.read_text()
    assert page.count('<h2 id="section-') == len(QUICK)
    assert "src=" not in page.split("<body>")[1]  # nothing is fetched
    records = sorted((tmp_path / "records").iterdir())
    assert [json.loads(r.read_text())["method"] for r in records] == [s.method for s in QUICK]
    assert all(json.loads(r.read_text())["verdict"] for r in records)


def test_a_stop_that_is_not_there(tmp_path, capsys):
    assert execute(["tour", "--out", str(tmp_path), "--only", "99"]) == 2
    assert f"stops 1 to {len(STOPS)}" in capsys.readouterr().err
    assert execute(["tour", "--out", str(tmp_path), "--only", "x"]) == 2
    assert "numbers of stops" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_stop_may_bring_its_own_model(tmp_path, capsys):
    """One stop makes a vision model and its pictures beside the report; no embedded model is needed."""
    number = 1 + next(i for i, stop in enumerate(STOPS) if stop.prepare)
    assert execute(["tour", "--out", str(tmp_path), "--only", str(number)]) == 0

    record = json.loads((tmp_path / "records" / f"{number:02}-neurons.images.json").read_text())
    assert record["provenance"]["model"] == str(tmp_path / "digits-vision")
    assert list(record["provenance"]["inputs"]) == [str(tmp_path / "digits")]
    assert record["verdict"]["outcome"] == "supported"
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(record["result"]["top"]) == 12


def test_a_stops_own_model_is_made_and_then_loaded_by_its_method(tmp_path, monkeypatch):
    import sys
    from dataclasses import replace

    from patchclamp.tour.stops import Stop

    loaded = []

    def load(ref):
        loaded.append(ref)
        raise InputError("as far as this test goes")

    fake = replace(get_method("neurons.images"), load=load)
    monkeypatch.setattr(sys.modules["patchclamp.tour.take"], "get_method", lambda name: fake)
    stop = Stop("", "", "mine", "neurons.images", {}, lambda folder, progress: (folder / "mine").mkdir())
    with pytest.raises(InputError, match="as far as"):
        take(tmp_path, Silent(), lambda _: None, [stop])
    assert loaded == [str(tmp_path / "mine")]
    assert (tmp_path / "mine").is_dir()


@pytest.mark.weights
def test_a_stop_that_fails_leaves_the_records_before_it_and_no_report(tmp_path):
    from dataclasses import replace

    from patchclamp.errors import TokenError

    good = next(s for s in STOPS if s.method == "circuits.knockout")
    bad = replace(good, fields={**good.fields, "answer": " notoneword"})
    with pytest.raises(TokenError, match="not one token"):
        take(tmp_path, Silent(), lambda _: None, [good, bad])

    assert [p.name for p in (tmp_path / "records").iterdir()] == ["01-circuits.knockout.json"]
    assert not (tmp_path / "report.html").exists()
