"""A circuit's MLPs taken apart, unit by unit."""

import json

import pytest
import torch
from cut import same, some_of, tiny_runs
from tiny import CONFIGS, tiny_model

import patchclamp as pc
from patchclamp.circuits.certificate import Certificate
from patchclamp.circuits.search import holds, prune, shortlist
from patchclamp.circuits.units import mlps_of, prune_units, sizes_of
from patchclamp.errors import SpecError
from patchclamp.forward.autoencoder import Autoencoder, AutoencoderInfo

WITH_NEURONS = [name for name in CONFIGS if "moe" not in name and "mixtral" not in name]


@pytest.mark.parametrize("name", WITH_NEURONS)
def test_all_units_are_the_mlp_and_none_is_the_reference(name):
    runs = tiny_runs(name)
    kept = some_of(runs.graph, 0.6, 3)
    layers = mlps_of(runs, kept, "neuron")
    runs.take_apart("neuron", layers)
    widths = {layer: there.shape[-1] for layer, there in runs.groups[0].units.items()}
    every = {layer: torch.stack([torch.ones(n), torch.zeros(n)]) for layer, n in widths.items()}
    whole, none = runs.with_units(kept, every)
    assert same(whole, runs.subgraphs(kept[None])[0], 1e-6)
    if runs.groups[0].wiring.heads_together:  # a head that nothing reads any more would read the reference
        return
    without = kept.clone()
    for layer in layers:
        without[:, runs.graph.mlp(layer)] = False
    assert same(none, runs.subgraphs(without[None])[0], 1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_unit_slopes_are_derivatives(name):
    runs = tiny_runs(name)
    kept = some_of(runs.graph, 0.7, 5)
    runs.take_apart("neuron", mlps_of(runs, kept, "neuron"))
    layer, there = next(iter(runs.groups[0].units.items()))
    units = {layer: torch.rand(there.shape[-1], dtype=torch.float64, generator=torch.Generator().manual_seed(1))}
    slope = runs.unit_slopes(kept, units)[1][layer]
    for unit in (0, 7, 19):
        f = []
        for step in (0.05, -0.05):
            moved = units[layer].clone()
            moved[unit] += step
            f.append(runs.faithfulness_of(runs.with_units(kept, {layer: moved[None]}))[0])
        assert float(slope[unit]) == pytest.approx((f[0] - f[1]) / 0.1, rel=2e-2, abs=2e-5)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_no_unit_that_is_left_can_go(name):
    runs = tiny_runs(name)
    kept = prune(runs, shortlist(runs, runs.attribution(3).mean(-1), 0.9), 0.9)
    runs.take_apart("neuron", mlps_of(runs, kept, "neuron"))
    units, widths = prune_units(runs, kept, 0.9), sizes_of(runs)
    assert 0 < sum(map(len, units.values())) < sum(widths.values())
    assert holds(_f(runs, kept, units, widths), 0.9)
    for layer, numbers in units.items():
        for unit in numbers:
            fewer = {**units, layer: [other for other in numbers if other != unit]}
            assert not holds(_f(runs, kept, fewer, widths), 0.9)


def _f(runs, kept, units, widths):
    masks = {layer: torch.zeros(1, n) for layer, n in widths.items()}
    for layer, numbers in units.items():
        masks[layer][0, numbers] = 1
    return runs.faithfulness_of(runs.with_units(kept, masks))[0]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Pairs that the tiny model answers rightly."""
    model, path, rows = tiny_model("llama"), tmp_path_factory.mktemp("pairs") / "pairs.jsonl", []
    for i in range(60):
        clean, corrupted = f"w{i} w{i + 9} w3 w4", f"w{i} w{(i * 7) % 40 + 40} w3 w4"
        a, b = (float(v) for v in model.run([clean, corrupted], read=pc.Readout.logit_difference("w50", "w51")))
        if a > b + 0.3 and a > 0:
            rows.append({"clean": clean, "corrupted": corrupted, "answer": "w50", "distractor": "w51"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


ASK = {"prompts": 6, "heldout": 4, "controls": 0, "max_edges": 1.0, "bound": 0.97}


def test_neurons_are_certified_and_measured_again(pairs, tmp_path):
    model = tiny_model("llama")
    result = pc.find_circuit(model, pairs=pairs, units="neuron", out=str(tmp_path), **ASK).result
    units = result.certificate.units
    assert units.minimal and 0.97 <= units.faithfulness.mean <= 1.03
    assert 0 < len(units.units) < units.total
    assert Certificate.load(tmp_path).units == units
    again = pc.verify_circuit(model, certificate=str(tmp_path)).result
    assert again.holds and any("units, neuron." in one.name for one in again.numbers)


def test_features_need_an_autoencoder_of_the_mlp(pairs):
    model = tiny_model("llama")
    with pytest.raises(SpecError, match=r"into units feature: features need autoencoders of the sites mlp\.L"):
        pc.find_circuit(model, pairs=pairs, units="feature", **ASK)
    runs = tiny_runs("llama")
    own = runs.groups[0].model
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(*shape, generator=generator, dtype=torch.float64) for name, shape in (
        ("W_enc", (50, 32)), ("b_enc", (50,)), ("W_dec", (50, 32)), ("b_dec", (32,)))}
    info = AutoencoderInfo(name="a", architecture="relu", site="mlp.1", model=own.name, weights=own.weights_hash)
    own.attach(Autoencoder(info, tensors))
    try:
        kept = runs.graph.edges
        assert mlps_of(runs, kept, "feature") == [1]
        runs.take_apart("feature", [1])
        whole = runs.with_units(kept, {1: torch.ones(1, 50)})
        assert same(whole[0], runs.clean_B, 1e-6)
        slope = runs.unit_slopes(kept, {1: torch.ones(50)})[1][1]
        busiest = int(slope.abs().argmax())
        f = []
        for amount in (1.0, 0.9):
            moved = torch.ones(1, 50)
            moved[0, busiest] = amount
            f.append(runs.faithfulness_of(runs.with_units(kept, {1: moved}))[0])
        assert float(slope[busiest]) == pytest.approx((f[0] - f[1]) / 0.1, rel=0.2)
    finally:
        own.anatomy._codecs.clear()
        own.anatomy._taps.clear()
