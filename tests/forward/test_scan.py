"""A scan hands over what a capture keeps, in every family, and no further than it must."""

import pytest
import torch
from tiny import CONFIGS, ids, supports, tiny_model

from patchclamp.errors import InputError, PromptError, SiteError

SEQUENCES = [ids(9), ids(9, 1), ids(9, 2)]
POINTS = ("embed", "resid_pre.1", "resid_mid.1", "head.0", "attn.2", "neuron.1", "mlp.1", "resid.0")


def scanned(model, sites):
    found = {}
    model.scan(SEQUENCES, sites, lambda site, value: found.update({str(site): value.clone()}))
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_it_hands_over_what_hugging_face_computes_for_the_same_batch(name):
    """`batch` mode is Hugging Face's own batch, bit for bit."""
    model = tiny_model(name)
    sites = [s for s in POINTS if supports(name, s.split(".")[0])]
    found = scanned(model, sites)
    kept = [model.run(SEQUENCES, read=site, mode="batch") for site in sites]
    assert all(torch.equal(found[s], torch.stack(values)) for s, values in zip(sites, kept, strict=True))


def test_the_pass_ends_with_the_last_site():
    model = tiny_model("llama")
    ran = []
    handles = [block.mlp.register_forward_hook(lambda *_, i=i: ran.append(i))
               for i, block in enumerate(model.anatomy.blocks)]
    try:
        scanned(model, ["neuron.1"])
    finally:
        for handle in handles:
            handle.remove()
    assert ran == [0]


def test_no_hook_stays_behind_when_the_consumer_fails():
    model = tiny_model("llama")

    def hooks():
        return [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.hf.modules()]

    def fail(site, value):
        raise KeyError(str(site))

    model.scan(SEQUENCES, ["neuron.1"], lambda site, value: None)  # transformers puts hooks of its own at the first run
    before = hooks()
    with pytest.raises(KeyError):
        model.scan(SEQUENCES, ["neuron.1"], fail)
    assert hooks() == before


@pytest.mark.parametrize(("sites", "sequences", "error", "said"), [
    (["neuron.1.3"], SEQUENCES, SiteError, "whole values"),
    (["neuron.1@last"], SEQUENCES, SiteError, "whole values"),
    (["neuron.3"], SEQUENCES, SiteError, "3 blocks"),
    (["logits"], SEQUENCES, SiteError, "computed"),
    (["neuron.1"], [ids(9), ids(8)], InputError, r"one length.*\[8, 9\]"),
    (["neuron.1"], [], InputError, "none"),
    (["neuron.1"], [(5, 500)], PromptError, "outside the vocabulary"),
])
def test_what_cannot_be_scanned_is_said(sites, sequences, error, said):
    with pytest.raises(error, match=said):
        tiny_model("llama").scan(sequences, sites, lambda site, value: None)
