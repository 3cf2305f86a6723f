"""States are read once, whatever method asks, and never for other weights."""

import pytest
import torch
from tiny import tiny_model

from patchclamp.forward import Model
from patchclamp.vectors import states as room
from patchclamp.vectors.states import Example, states

ASKED = [Example("w1 w2 w3", "last"), Example("w4 w5", ":2")]


def read(model, examples, site):
    """One run an example."""
    values = [model.capture(one.prompt, f"{site}@{one.positions}")[f"{site}@{one.positions}"] for one in examples]
    return torch.stack([value.reshape(-1, model.d_model).double().mean(0) for value in values])


def test_they_are_one_run_an_example_and_read_once(monkeypatch):
    model = tiny_model("llama", double=True)
    first = states(model, ASKED, ["resid.0", "resid.1"])
    assert torch.allclose(first, torch.stack([read(model, ASKED, site) for site in ("resid.0", "resid.1")]))
    with monkeypatch.context() as held:
        held.setattr(Model, "execute", None)
        assert torch.equal(states(model, ASKED, ["resid.1"]), first[1:])
    assert torch.allclose(states(model, ASKED[:1], ["resid.1"]), first[1:, :1])


def test_changed_weights_are_read_anew():
    model = tiny_model("llama", double=True)
    before = states(model, ASKED, ["resid.0"])
    with torch.no_grad():
        model.hf.model.layers[0].mlp.down_proj.weight.mul_(2)
    after = states(model, ASKED, ["resid.0"])
    assert not torch.allclose(before, after) and torch.allclose(after[0], read(model, ASKED, "resid.0"))


def test_few_are_kept(monkeypatch):
    model = tiny_model("llama", double=True)
    one = states(model, ASKED, ["resid.0"])
    monkeypatch.setattr(room, "KEPT_BYTES", one.nbytes * 2)
    for prompt in ("w6", "w7", "w8"):
        states(model, [Example(prompt, "last"), *ASKED[1:]], ["resid.0"])
    assert len(room._kept[model]) == 2
    states(model, ASKED, ["resid.0", "resid.1", "embed"])  # more than there is room for is not kept at all
    assert not room._kept[model]


@pytest.mark.parametrize("positions", ["last", "1:"])
def test_tokens_that_count_make_a_difference(positions):
    model = tiny_model("llama", double=True)
    examples = [Example("w1 w2 w3", positions)]
    assert torch.allclose(states(model, examples, ["resid.1"])[0], read(model, examples, "resid.1"))
