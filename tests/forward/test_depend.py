"""What edits depend on is measured together where several need it."""

import pytest
import torch
from tiny import unattached

from patchclamp import Edit


def test_deviations_at_several_sites_are_measured_in_one_pass_and_as_one_by_one():
    sites = [f"resid.{layer}" for layer in range(3)] + ["mlp.1"]
    one, several = unattached(), unattached()
    direction = torch.arange(one.d_model, dtype=torch.float32) + 1
    passes = []
    handle = several.hf.register_forward_pre_hook(lambda *_: passes.append(1))
    several.measure_spread(sites[:1])
    alone = len(passes)
    several.measure_spread([f"{site}@last" for site in sites])
    together = [several.projection_sd(site, direction) for site in sites]
    handle.remove()
    assert len(passes) == 2 * alone
    assert together == pytest.approx([one.projection_sd(site, direction) for site in sites])


def test_edits_in_deviations_are_measured_together():
    model = unattached()
    passes = []
    handle = model.hf.register_forward_pre_hook(lambda *_: passes.append(1))
    direction = torch.arange(model.d_model, dtype=torch.float32) + 1
    model.measure_spread(["resid.0"])
    alone = len(passes)
    model.run("w1 w2", [Edit.add(f"resid.{layer}", direction, 0.1) for layer in (1, 2)])
    handle.remove()
    assert len(passes) - alone <= alone + 1  # the corpus once, and the run itself
