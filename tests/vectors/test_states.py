"""States of many prompts are those of one run a prompt."""

import torch
from tiny import tiny_model

from patchclamp.vectors.states import Example, states


def test_states_are_the_mean_over_the_tokens_that_count_whatever_stands_beside():
    model = tiny_model("llama", double=True)
    examples = [Example("w1 w2 w3", "last"), Example("w4 w5", ":2"), Example("w1 w2 w3", "1:"), Example("w6", "last")]
    sites = ["resid.0", "resid.1"]
    found = states(model, examples, sites)
    for i, site in enumerate(sites):
        for j, one in enumerate(examples):
            at = f"{site}@{one.positions}"
            value = model.capture(one.prompt, at)[at].reshape(-1, model.d_model)
            assert torch.allclose(found[i, j], value.double().mean(0))
