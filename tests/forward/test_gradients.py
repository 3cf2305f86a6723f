"""Gradients at sites against finite differences of the same readout under `add`, in float64.

Many architectures compute norms and softmaxes in float32 even in a float64 model, so a readout near 1 carries an
error of 1e-7 and a difference quotient one of 1e-7 / h. The five-point stencil's own error is h⁴·f⁽⁵⁾/30, which allows
the wide step h = 1/64: both errors are then near 1e-5, and a slope agrees within (1e-3 of its size). A wrong
token, head, scale or a missing path is off by its whole size. h and the ±1 directions are exact in float32, in which
edits hold their vectors.
"""

import pytest
import torch
from tiny import SPREAD, ids, supports, tiny_model

from patchclamp.errors import InputError, SiteError
from patchclamp.forward import Edit, Readout

H = 2.0**-9
PROMPT = ids(6)
READ = Readout.logit_difference(7, 50)


def close(value):
    return pytest.approx(value, rel=1e-2, abs=2e-3)


def difference(model, site, vector, readout=READ, edits=()):
    """The slope of a readout along a vector at a site."""

    def at(steps):
        return float(model.run(PROMPT, [*edits, Edit.add(site, vector, steps * H, "raw")], readout, "single"))

    return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * H)


def signs(*shape):
    """A vector of ±1: exact in float32."""
    generator = torch.Generator().manual_seed(1)
    return (torch.randint(0, 2, shape, generator=generator) * 2 - 1).double()


@pytest.mark.parametrize("point", ["embed", "resid_pre.1", "resid_mid.1", "resid.1", "attn.1", "mlp.1"])
@pytest.mark.parametrize("name", SPREAD)
def test_gradient_at_the_stream_is_the_slope(name, point):
    """At one token, and summed over all."""
    if not supports(name, point.split(".")[0]):
        pytest.skip("this anatomy has no such point")
    model, v = tiny_model(name, None, True), signs(32)
    gradient = model.gradients(PROMPT, READ, [point, f"{point}@2"])
    assert gradient[point].shape == (1, 6, 32)
    assert torch.equal(gradient[f"{point}@2"], gradient[point][:, 2])
    for site, value in ((f"{point}@2", gradient[f"{point}@2"][0] @ v), (point, gradient[point][0].sum(0) @ v)):
        assert float(value) == close(difference(model, site, v))
    assert float(gradient[point].abs().max()) > 1e-3


@pytest.mark.parametrize("point", ["head", "q", "k", "v"])
@pytest.mark.parametrize("name", SPREAD)
def test_gradient_at_a_head_is_the_slope(name, point):
    """Also in fused and interleaved projections: an index that is off gives another head's slope."""
    model = tiny_model(name, None, True)
    site, v = f"{point}.1.{model.anatomy.n_units(point, 1) - 1}@2", signs(model.d_head)
    gradient = model.gradients(PROMPT, READ, [site])[site][0]
    assert gradient.shape == v.shape
    assert float(gradient @ v) == close(difference(model, site, v))


@pytest.mark.parametrize("name", [n for n in SPREAD if supports(n, "neuron")])
def test_gradient_at_a_layer_of_neurons_is_the_slope(name):
    """All neurons of a layer along one vector, and one neuron as one entry of it."""
    model = tiny_model(name, None, True)
    v = signs(model.n_neurons(1))
    gradient = model.gradients(PROMPT, READ, ["neuron.1@2", "neuron.1.5@2"])
    assert float(gradient["neuron.1@2"][0] @ v) == close(difference(model, "neuron.1@2", v))
    assert torch.equal(gradient["neuron.1.5@2"], gradient["neuron.1@2"][:, 5])


@pytest.mark.parametrize(
    "readout",
    [Readout.logit(7), Readout.probability(7), Readout.log_probability(7, at="3"), Readout.loss()],
    ids=lambda r: r.kind,
)
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "granite", "cohere"])
def test_every_differentiable_readout(name, readout):
    """Softcap, logit scale and divisor are part of the slope."""
    model, v = tiny_model(name, None, True), signs(32)
    gradient = model.gradients(PROMPT, readout, ["resid.1@2"])["resid.1@2"][0]
    assert float(gradient @ v) == close(difference(model, "resid.1@2", v, readout))


def test_gradient_under_an_edit_is_taken_in_the_edited_run():
    """At the edited site it is the slope at the value after the edit."""
    model, v = tiny_model("llama", None, True), signs(32)
    edits = [Edit.scale("resid.1@2", -1.5)]
    gradient = model.gradients(PROMPT, READ, ["resid.1@2"], edits)["resid.1@2"][0]
    assert float(gradient @ v) == close(difference(model, "resid.1@2", v, edits=edits))
    clean = model.gradients(PROMPT, READ, ["resid.1@2"])["resid.1@2"][0]
    assert (gradient - clean).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon-new"])
def test_frozen_parameters_do_not_matter(name):
    """Models are often frozen; the gradient is with respect to activations."""
    model = tiny_model(name, None, True)
    sites = ["embed", "resid.1", "mlp.0", "q.1"]
    want = model.gradients(PROMPT, READ, sites)
    model.hf.requires_grad_(False)
    try:
        got = model.gradients(PROMPT, READ, sites)
    finally:
        model.hf.requires_grad_(True)
    for site in sites:
        assert torch.equal(got[site], want[site])


def test_gradients_leave_none_on_the_parameters():
    """Nothing accumulates in `.grad`, and grad mode is as it was."""
    model = tiny_model("llama")
    model.gradients(PROMPT, READ, ["resid.1"])
    assert all(p.grad is None for p in model.hf.parameters())
    with torch.no_grad():
        model.gradients(PROMPT, READ, ["resid.1"])
        assert not torch.is_grad_enabled()


def test_what_comes_later_has_no_gradient():
    """The readout at token 2 depends on no later token, and no earlier token's last stream."""
    model = tiny_model("llama")
    readout = Readout.logit_difference(7, 50, at="2")
    gradient = model.gradients(PROMPT, readout, ["resid.0", "resid.2"])
    assert not gradient["resid.0"][0, 3:].any()
    assert gradient["resid.0"][0, :3].abs().amax(1).min() > 0
    assert not gradient["resid.2"][0, [0, 1, 3, 4, 5]].any()


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "bloom", "llama"])
def test_prompts_of_several_lengths_each_with_its_own_readout(name):
    """Batched and padded they have the gradients they have alone."""
    model = tiny_model(name)
    prompts = [ids(4), ids(7, 1), ids(7, 2), ids(30, 3)]
    reads = [Readout.logit_difference(5 + i, 9, at="last") for i in range(4)]
    both = model.gradients(prompts, reads, ["resid.1", "neuron.2.3@last"])
    for i, (prompt, read) in enumerate(zip(prompts, reads, strict=True)):
        alone = model.gradients(prompt, read, ["resid.1", "neuron.2.3@last"])
        for site in alone:
            assert both.rows(site)[i].abs().max() > 0
            assert torch.allclose(both.rows(site)[i], alone.rows(site)[0], atol=1e-6, rtol=1e-4), site
    with pytest.raises(InputError, match="3 readouts for 4 prompts"):
        model.gradients(prompts, reads[:3], ["resid.1"])


@pytest.mark.parametrize(
    "readout",
    [Readout.rank(5), Readout.top(), Readout.logits(), Readout.kl(), Readout.logit(5, 6)],
    ids=lambda r: r.kind,
)
def test_a_readout_that_is_not_one_number_is_refused(readout):
    """A sum over several tokens would be a gradient of something nobody asked for."""
    with pytest.raises(InputError, match=r"one number|2 numbers"):
        tiny_model("llama").gradients(PROMPT, readout, ["resid.1"])


@pytest.mark.parametrize("site", ["logits", "head_out.1", "pattern.1"])
def test_sites_without_gradient_are_refused(site):
    """With the site to use instead."""
    with pytest.raises(SiteError, match="no gradient is kept"):
        tiny_model("llama").gradients(PROMPT, READ, [site])
