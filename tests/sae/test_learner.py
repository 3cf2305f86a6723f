"""A step is the step that plain matrices and automatic differentiation would take."""

import pytest
import torch
from torch import nn

from patchclamp.forward.autoencoder import Autoencoder, AutoencoderInfo
from patchclamp.sae.learner import Learner
from patchclamp.sae.parameters import Recipe, Scaling

D, OUT, L, B = 20, 12, 96, 64
KINDS = ["topk", "batchtopk", "relu", "jumprelu", "gated", "matryoshka"]


def recipe(kind, **changed):
    return Recipe(**{
        "architecture": kind, "latents": L, "k": 6, "l1": 0.7, "learning_rate": 3e-3, "dead_after": 10**9, "aux_k": 0,
        "clip": 1e9, "bandwidth": 0.3, "prefixes": (16, 40, L), "skip": False, "unit_norm": True, "seed": 0, **changed})


def rows(n, seed=0, width=D):
    torch.manual_seed(11)
    basis_LD = torch.randn(L, width)
    torch.manual_seed(seed)
    return (torch.rand(n, L) < 0.05).float() * torch.rand(n, L) * 9 @ basis_LD + 40


def learner(kind, tied=True, **changed):
    x_ND = rows(500)
    scaled_on = (x_ND,) if tied else (x_ND, rows(500, 5, OUT))
    made = Learner(recipe(kind, **changed), Scaling.of(scaled_on), tied)
    torch.manual_seed(3)  # away from the start, where biases are equal and gradients vanish
    with torch.no_grad():
        for name, tensor in made.parameters.items():
            if name != "W_dec":
                tensor.add_(torch.randn_like(tensor) * 0.1)
    return made


class Jump(torch.autograd.Function):
    """x·1[x > θ] and 1[x > θ], written out as in arXiv 2407.14435, over whole matrices."""

    @staticmethod
    def forward(ctx, x, bar, width):
        ctx.save_for_backward(x, bar)
        ctx.width = width
        return x * (x > bar), (x > bar).float()

    @staticmethod
    def backward(ctx, to_value, to_open):
        x, bar = ctx.saved_tensors
        window = ((x - bar).abs() < ctx.width / 2).float()
        to_bar = -(bar / ctx.width) * window * to_value - window / ctx.width * to_open
        return to_value * (x > bar), to_bar.sum(0), None


def plain_loss(made, x_BD, y_BO):
    """The loss by dense products. x, y: centred and scaled."""
    p, own = made.parameters, made.recipe
    shift = p["b_dec"] if made.tied else torch.zeros(D)
    pre = (x_BD - shift) @ p["W_enc"].T + p["b_enc"]
    base = p["b_dec"] + (x_BD @ p["W_skip"] if own.skip else 0)
    penalty = 0.0
    if own.architecture == "topk":
        codes = torch.relu(pre) * (pre >= pre.topk(own.k).values[:, -1:])
    elif own.architecture in ("batchtopk", "matryoshka"):
        codes = torch.relu(pre) * (pre >= pre.flatten().topk(own.k * len(x_BD)).values[-1])
    elif own.architecture == "relu":
        codes = torch.relu(pre)
        penalty = own.l1 * (codes * (1 if own.unit_norm else p["W_dec"].norm(dim=1))).sum()
    elif own.architecture == "jumprelu":
        codes, is_open = Jump.apply(pre, p["log_threshold"].exp(), own.bandwidth)
        penalty = own.l1 * is_open.sum()
    else:
        gate = torch.relu(pre)
        codes = (pre > 0) * torch.relu(p["r_mag"].exp() * (pre - p["b_enc"]) + p["b_mag"])
        aside = y_BO - base.detach() - gate @ p["W_dec"].detach()
        penalty = own.l1 * gate.sum() + aside.square().sum()
    if own.architecture == "matryoshka":
        parts = [(y_BO - base - codes[:, :m] @ p["W_dec"][:m]).square().mean() for m in own.prefixes]
        return torch.stack(parts).mean()
    return ((y_BO - base - codes @ p["W_dec"]).square().sum() + penalty) / y_BO.numel()


@pytest.mark.parametrize("case", [
    *KINDS, "relu folded", "relu dense", "transcoder", "skip", "topk screened", "batchtopk screened",
    "matryoshka screened"])
def test_loss_and_gradients_are_the_plain_ones(case, monkeypatch):
    kind = case.split()[0] if case.split()[0] in KINDS else "topk"
    tied = kind == case.split()[0]
    made = learner(kind, tied, unit_norm="folded" not in case, skip=case == "skip")
    monkeypatch.setattr("patchclamp.sae.losses.DENSE", 0.0 if "dense" in case else 1.0)
    monkeypatch.setattr("patchclamp.sae.losses.is_worthwhile", lambda *_: "screened" in case)
    x_BD = (rows(B, 7) - made.scaling.mean) * made.scaling.scale
    y_BO = x_BD if tied else (rows(B, 8, OUT) - made.scaling.mean_out) * made.scaling.scale_out

    parts = made.losses.of(x_BD, y_BO, made.recipe.l1)
    loss = parts.common + parts.own
    loss.backward()
    got = {name: tensor.grad.clone() for name, tensor in made.parameters.items()}
    for tensor in made.parameters.values():
        tensor.grad = None
    want = plain_loss(made, x_BD, y_BO)
    want.backward()

    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    for name, tensor in made.parameters.items():
        size = float(tensor.grad.abs().max())
        assert size > 0, name
        torch.testing.assert_close(got[name], tensor.grad, rtol=0, atol=2e-5 * size, msg=lambda m, n=name: f"{n}: {m}")


def test_dead_latents_explain_what_is_left_over():
    made = learner("topk", aux_k=4)
    x_BD = (rows(B, 7) - made.scaling.mean) * made.scaling.scale
    dead_L = torch.zeros(L, dtype=torch.bool)
    dead_L[10:30] = True
    error_BD = torch.randn(B, D)

    got = made.losses.aux(x_BD, error_BD, dead_L, 20)
    got.backward()
    gradient = made.parameters["W_enc"].grad.clone()
    for tensor in made.parameters.values():
        tensor.grad = None
    p = made.parameters
    pre = ((x_BD - p["b_dec"]) @ p["W_enc"].T + p["b_enc"])[:, 10:30]
    codes = torch.relu(pre) * (pre >= pre.topk(4).values[:, -1:])
    want = (error_BD - codes @ p["W_dec"][10:30]).square().sum() / error_BD.square().sum()
    want.backward()

    assert got.item() == pytest.approx(want.item(), rel=1e-5)
    torch.testing.assert_close(gradient, p["W_enc"].grad, rtol=1e-4, atol=1e-7)
    assert (gradient[:10] == 0).all()


def dead_at_the_end(aux_k):
    """Of 256 latents, as many as there are true features, half begin dead."""
    torch.manual_seed(1)
    basis_LD = torch.randn(256, 64)

    def drawn(n, seed):
        torch.manual_seed(seed)
        return ((torch.rand(n, 256) < 0.03).float() * (1 + torch.rand(n, 256)) @ basis_LD,)

    made = Learner(recipe("topk", latents=256, k=8, dead_after=2560, aux_k=aux_k, clip=1.0),
                   Scaling.of(drawn(2000, 999)), True)
    with torch.no_grad():
        made.parameters["b_enc"][:128] = -3.0
    return [made.step(drawn(256, seed)).dead for seed in range(150)][-1]


def test_latents_that_died_come_back():
    assert dead_at_the_end(aux_k=32) < 20 < 80 < dead_at_the_end(aux_k=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_folded_autoencoder_does_on_raw_values_what_was_trained(kind):
    made = learner(kind)
    for seed in range(30):
        made.step((rows(B, seed),))
    with torch.no_grad():
        made.buffers["threshold"].fill_(0.8)
    x_ND = rows(B, 100)
    z_ND = (x_ND - made.scaling.mean) * made.scaling.scale
    p = {name: tensor.detach() for name, tensor in made.parameters.items()}
    pre = (z_ND - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
    codes = {
        "topk": lambda: torch.relu(pre) * (pre >= pre.topk(6).values[:, -1:]), "relu": lambda: torch.relu(pre),
        "batchtopk": lambda: pre * (pre > 0.8), "matryoshka": lambda: pre * (pre > 0.8),
        "jumprelu": lambda: pre * (pre > p["log_threshold"].exp()),
        "gated": lambda: (pre > 0) * torch.relu(p["r_mag"].exp() * (pre - p["b_enc"]) + p["b_mag"]),
    }[kind]()
    want = (codes @ p["W_dec"] + p["b_dec"]) / made.scaling.scale + made.scaling.mean

    info = AutoencoderInfo(name="a", architecture=kind, k=6, site="resid.1", model="m", weights="w")
    got = Autoencoder(info, made.folded())

    torch.testing.assert_close(got.reconstruct(x_ND), want, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(got.decode(got.encode(x_ND)), want, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(got.W_dec.norm(dim=1), torch.ones(L))


def test_a_folded_decoder_has_directions_of_length_one_and_the_same_output():
    made = learner("relu", unit_norm=False)
    for seed in range(30):
        made.step((rows(B, seed),))
    assert made.parameters["W_dec"].norm(dim=1).std() > 0.01
    x_ND = rows(B, 100)
    z_ND = (x_ND - made.scaling.mean) * made.scaling.scale
    p = made.parameters
    codes = torch.relu((z_ND - p["b_dec"]) @ p["W_enc"].T + p["b_enc"])
    want = ((codes @ p["W_dec"] + p["b_dec"]) / made.scaling.scale + made.scaling.mean).detach()

    info = AutoencoderInfo(name="a", architecture="relu", site="resid.1", model="m", weights="w")
    got = Autoencoder(info, made.folded())

    torch.testing.assert_close(got.reconstruct(x_ND), want, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(got.W_dec.norm(dim=1), torch.ones(L))


def test_a_skip_transcoder_does_on_raw_values_what_was_trained():
    made = learner("topk", tied=False, skip=True)
    x_ND, y_NO = rows(400, 7), rows(400, 8, OUT)
    for first in range(0, 400, 50):
        made.step((x_ND[first : first + 50], y_NO[first : first + 50]))
    z_ND = (x_ND - made.scaling.mean) * made.scaling.scale
    p = {name: tensor.detach() for name, tensor in made.parameters.items()}
    pre = z_ND @ p["W_enc"].T + p["b_enc"]
    codes = torch.relu(pre) * (pre >= pre.topk(6).values[:, -1:])
    want = (codes @ p["W_dec"] + p["b_dec"] + z_ND @ p["W_skip"]) / made.scaling.scale_out + made.scaling.mean_out

    info = AutoencoderInfo(name="a", architecture="topk", k=6, site="resid_mid.1", output_site="mlp.1", model="m",
                           weights="w")
    torch.testing.assert_close(Autoencoder(info, made.folded()).reconstruct(x_ND), want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_learner_goes_on_with_the_same_bits(kind):
    one, other = learner(kind, dead_after=3 * B, aux_k=8), learner(kind, dead_after=3 * B, aux_k=8)
    for seed in range(8):
        one.step((rows(B, seed),), 0.5, 0.5)
        if seed == 3:
            for name, tensor in other.state().items():
                tensor.copy_(one.state()[name])
        if seed > 3:
            other.step((rows(B, seed),), 0.5, 0.5)

    ours, theirs = one.state(), other.state()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_a_dictionary(kind):
    torch.manual_seed(0)
    basis_LD = nn.functional.normalize(torch.randn(L, D), dim=1)

    def drawn(n):
        return (torch.rand(n, L) < 0.03).float() * (1 + torch.rand(n, L)) @ basis_LD

    made = Learner(recipe(kind, clip=1.0, l1=0.1, learning_rate=0.01), Scaling.of((drawn(4000),)), True)
    steps = [made.step((drawn(256),)) for _ in range(300)]

    assert steps[-1].fvu < 0.25 < steps[0].fvu
    assert steps[-1].l0 < L / 3
