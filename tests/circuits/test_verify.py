"""A certificate that says something else than what is measured does not hold."""

import json

import pytest
from tiny import tiny_model

import patchclamp as pc
from patchclamp.circuits.certificate import Certificate
from patchclamp.errors import FileError, SpecError


def forged(found, tmp_path, change):
    """The certificate's file after a change of its JSON."""
    data = json.loads((found[1] / "circuit.json").read_text())
    change(data)
    (tmp_path / "circuit.json").write_text(json.dumps(data))
    return str(tmp_path / "circuit.json")


def set_at(*path, to):
    def change(data):
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = to
    return change


@pytest.mark.parametrize("change", [
    lambda data: data["edges"].pop(),
    lambda data: data["roles"]["edges"].pop(),
    lambda data: data["units"].update(units=[]),
    set_at("bound", to=0.99999),
    set_at("edges_total", to=1_000_000),
    set_at("minimal", to=False),
    set_at("roles", "minimal", to=False),
    set_at("units", "minimal", to=False),
    set_at("units", "total", to=7),
    set_at("completeness", to=0.123),
    set_at("search", "faithfulness", "low", to=0.999),
    set_at("search", "each", 0, to=0.5),
    set_at("heldout", "each", to=[]),
    set_at("heldout", "faithfulness", "mean", to=1.5),
    set_at("roles", "faithfulness", "mean", to=1.0001),
    set_at("roles", "heldout", "high", to=9.0),
    set_at("units", "faithfulness", "mean", to=1.003),
    set_at("edges", 0, "without", to=0.0),
    set_at("edges", 0, "heldout", "low", to=-7.0),
    set_at("roles", "edges", 0, "effect", "mean", to=7.0),
    set_at("units", "units", 0, "effect", "mean", to=7.0),
])
def test_a_forged_certificate_does_not_hold(found, tmp_path, change):
    record = pc.verify_circuit(tiny_model("llama"), certificate=forged(found, tmp_path, change))
    assert not record.result.holds
    assert record.verdict.outcome == "not supported"


def test_the_order_of_edges_says_nothing(found, tmp_path):
    path = forged(found, tmp_path, lambda data: data["edges"].reverse())
    assert pc.verify_circuit(tiny_model("llama"), certificate=path).result.holds


@pytest.mark.parametrize(("change", "message"), [
    (lambda data: data["edges"].append(data["edges"][0]), "comes twice"),
    (lambda data: data["roles"]["edges"].append(data["roles"]["edges"][0]), "comes twice"),
    (lambda data: data["units"]["units"].append(data["units"]["units"][0]), "comes twice"),
    (set_at("units", "units", 0, "unit", to="neuron"), "is no unit"),
    (set_at("search", "pairs", to=[]), "at least 1 item"),
    (set_at("roles", "names", to=["what differs"]), "not among the names|end in"),
    (set_at("bound", to=5), "less than 1"),
    (lambda data: data["roles"]["names"].__setitem__(0, "a\u2028b"), "names"),
])
def test_a_certificate_that_is_none_is_refused(found, tmp_path, change, message):
    with pytest.raises(FileError, match=message):
        Certificate.load(forged(found, tmp_path, change))


@pytest.mark.parametrize(("change", "message"), [
    (set_at("units", "units", 0, "unit", to="neuron.0.99999"), "the last one there is"),
    (set_at("dtype", to="bfloat16"), "--dtype bfloat16"),
    (set_at("search", "pairs", 0, "roles", to={"x": [-3, 2]}), "characters -3 to 2"),
    (set_at("search", "pairs", 0, "roles", to={"x": [3, 1000]}), "characters 3 to 1000"),
])
def test_a_certificate_of_something_else_is_refused(found, tmp_path, change, message):
    with pytest.raises((SpecError, pc.InputError), match=message):
        pc.verify_circuit(tiny_model("llama"), certificate=forged(found, tmp_path, change))


def test_a_tolerance_is_finite(found):
    with pytest.raises(SpecError, match="finite"):
        pc.verify_circuit(tiny_model("llama"), certificate=str(found[1]), tolerance=float("inf"))
