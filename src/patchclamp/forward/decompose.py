"""One token's last residual stream taken apart: blocks, heads and neurons, each read along one direction.

Shape suffixes: L blocks, H heads, F neurons, D model width, N vectors. Numbers are float64 on the CPU.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchclamp.errors import SiteError, SpecError
from patchclamp.forward.frozen import FrozenNorm, TokenDirections, exact, into_stream
from patchclamp.forward.model import Model
from patchclamp.forward.plan import Plan
from patchclamp.forward.readout import Readout
from patchclamp.forward.site import Positions
from patchclamp.model.anatomy import Anatomy, part, weight_in_out

Run = dict[str, Tensor]
"""The values of one run at one token, by site without positions; `logits` are those of the tokens asked for."""


class Neurons(NamedTuple):
    """One block's neurons."""

    contributions: Tensor
    """[F]."""
    bias: float | None
    """What the down projection's bias adds; None if it has none."""
    into_stream: FrozenNorm
    """What the neurons' output weights pass on their way into the residual stream."""


class Heads(NamedTuple):
    """One block's heads."""

    contributions: Tensor
    """[H]."""
    bias: float | None
    """What the output projection's bias adds; None if it has none."""


class Parts(NamedTuple):
    """What every part of one run adds to a logit, or to a difference of two."""

    embed: float
    attn: Tensor
    """[L]."""
    mlp: Tensor
    """[L]."""
    constants: dict[str, float]
    """The final norm's and the unembedding's bias."""
    heads: list[Heads]
    """By block; empty if not asked for."""
    neurons: list[Neurons]
    """By block; empty if not asked for."""
    size: float
    """Sum of the absolute contributions to each token's logit: what rounding errors are in proportion to."""

    @property
    def total(self) -> float:
        """Embedding, blocks and constants: the logit."""
        return self.embed + float(self.attn.sum() + self.mlp.sum()) + sum(self.constants.values())

    @property
    def mismatches(self) -> list[float]:
        """Of heads and bias against their attention block, of neurons and bias against their MLP block."""
        pairs = [*((h.contributions, h.bias, whole) for h, whole in zip(self.heads, self.attn, strict=False)),
                 *((n.contributions, n.bias, whole) for n, whole in zip(self.neurons, self.mlp, strict=False))]
        return [abs(float(some.sum() - whole) + (bias or 0.0)) for some, bias, whole in pairs]


def direct_run(
    model: Model, prompt: Any, position: str, tokens: list[int], heads: bool = False, neurons: bool = False
) -> Run:
    """Run the prompt once and keep what `take_apart` needs, at one token.

    Raises SpecError if `position` is several tokens, or for neurons of a mixture of experts.
    """
    if not Positions.parse(position).single:
        raise SpecError(f"position {position!r} is several tokens; a logit is one token's: last, an index or a quoted "
                        "word")
    layers = range(model.n_layers)
    sites = ["embed", f"resid.{model.n_layers - 1}", *(f"{point}.{i}" for i in layers for point in ("attn", "mlp"))]
    if heads:
        sites += [f"head_out.{i}" for i in layers]
        sites += [f"head.{i}" for i in layers if _bias(_out_proj(model.anatomy, i)) is not None]
    if neurons:
        _refuse_experts(model)
        sites += [f"neuron.{i}" for i in layers]
    reads = [*(Readout.value(f"{site}@{position}") for site in sites), Readout.logit(*tokens, at=position)]
    values = model.execute(Plan.of([(prompt, (), reads)]))[0]
    return dict(zip([*sites, "logits"], values, strict=True))


def _refuse_experts(model: Model) -> None:
    for layer in range(model.n_layers):
        try:
            model.anatomy.tap("neuron", layer)
        except SiteError as error:
            raise SpecError(f"{error}; ask for the parts block and head only") from error


def signed(values_K: Tensor) -> Tensor:
    """The answer's value [...], less the distractor's if there is one: values_K is [1 or 2, ...]."""
    return values_K[0] - values_K[1:].sum(0)


def take_apart(anatomy: Anatomy, run: Run, reading: TokenDirections) -> Parts:
    """What each part of the run adds to the answer's logit, less the distractor's if `reading` has two tokens.

    Heads and neurons are taken apart if the run captured them.
    """
    direction_D, layers = signed(reading.directions), range(anatomy.n_layers)
    whole = [site for site in run if site.startswith(("embed", "attn", "mlp"))]
    adds_NK = torch.stack([exact(run[site]) @ reading.directions.T for site in whole])
    adds = dict(zip(whole, signed(adds_NK.T), strict=True))
    return Parts(
        embed=float(adds["embed"]),
        attn=torch.stack([adds[f"attn.{i}"] for i in layers]),
        mlp=torch.stack([adds[f"mlp.{i}"] for i in layers]),
        constants={"final_norm": float(signed(reading.norm_bias)), "unembedding": float(signed(reading.token_bias))},
        heads=[head_contributions(anatomy, run, i, direction_D) for i in layers if f"head_out.{i}" in run],
        neurons=[neuron_contributions(anatomy, run, i, direction_D) for i in layers if f"neuron.{i}" in run],
        size=float(sum(x.abs().sum() for x in (adds_NK, reading.norm_bias, reading.token_bias))),
    )


@torch.no_grad()
def head_contributions(anatomy: Anatomy, run: Run, layer: int, direction_D: Tensor) -> Heads:
    """What each head of a block adds along the direction; with the bias they sum to the block's `attn`."""
    out_proj = _out_proj(anatomy, layer)
    heads_H = exact(run[f"head_out.{layer}"]) @ direction_D
    bias_D = _bias(out_proj)
    if bias_D is None:
        return Heads(heads_H, None)
    raw_D = out_proj(run[f"head.{layer}"].reshape(1, -1))[0]
    return Heads(heads_H, float(into_stream(anatomy, layer, "attn", raw_D)(exact(bias_D)) @ direction_D))


@torch.no_grad()
def neuron_contributions(anatomy: Anatomy, run: Run, layer: int, direction_D: Tensor) -> Neurons:
    """What each neuron of a block adds along the direction: activation × output weights · direction. With the bias
    they sum to the block's `mlp`."""
    down, path = _down(anatomy, run, layer)
    bias_D = _bias(down)
    bias = None if bias_D is None else float(path(exact(bias_D)) @ direction_D)
    return Neurons(exact(run[f"neuron.{layer}"]) * _read(down, path, direction_D), bias, path)


@torch.no_grad()
def activation_readings(anatomy: Anatomy, run: Run, layer: int, direction_D: Tensor) -> Tensor:
    """What each neuron of a block would add along the direction at activation 1, [F]: output weights · direction,
    through a post-norm frozen at the run."""
    return _read(*_down(anatomy, run, layer), direction_D)


def _down(anatomy: Anatomy, run: Run, layer: int) -> tuple[Any, FrozenNorm]:
    """The down projection, and what lies between it and the residual stream."""
    down = part(anatomy.blocks[layer], anatomy.family.down_proj)
    return down, into_stream(anatomy, layer, "mlp", down(run[f"neuron.{layer}"][None])[0])


def _read(down: Any, path: FrozenNorm, direction_D: Tensor) -> Tensor:
    weight_FD = weight_in_out(down)
    wide = torch.promote_types(weight_FD.dtype, torch.float32)
    return exact(weight_FD.to(wide) @ path.pull_back(direction_D).to(weight_FD.device, wide))


@torch.no_grad()
def neuron_path(anatomy: Anatomy, run: Run, layer: int) -> FrozenNorm:
    """What the neurons' output weights pass on their way into the residual stream, in this run."""
    return _down(anatomy, run, layer)[1]


def neuron_direction(anatomy: Anatomy, layer: int, unit: int, path: FrozenNorm) -> Tensor:
    """What one neuron adds to the residual stream at activation 1, [D]."""
    down = part(anatomy.blocks[layer], anatomy.family.down_proj)
    return path.linear(exact(weight_in_out(down)[unit]))


def components(run: Run, n_layers: int) -> tuple[list[str], Tensor]:
    """Names and values [N, D] of all attention and MLP outputs, and of all heads if they were captured."""
    names = [name for i in range(n_layers) for name in (f"attn.{i}", f"mlp.{i}")]
    values = [exact(torch.stack([run[name].cpu() for name in names]))]
    for layer in range(n_layers):
        if f"head_out.{layer}" in run:
            values.append(exact(run[f"head_out.{layer}"]))
            names += [f"head.{layer}.{head}" for head in range(len(values[-1]))]
    return names, torch.cat(values)


def _out_proj(anatomy: Anatomy, layer: int) -> Any:
    return part(anatomy.blocks[layer], anatomy.family.out_proj)


def _bias(linear: Any) -> Tensor | None:
    return getattr(linear, "bias", None)
