"""Direct logit attribution: which parts of the model write the answer into the residual stream.

The last residual stream is a sum, and with the final norm frozen at the actual run (`frozen.py`) so is the logit:

    logit(t) = d_t · embed + Σ_L d_t · attn_L + Σ_L d_t · mlp_L + constants_t
    attn_L = Σ_h head_out_L.h + output bias        mlp_L = Σ_i activation_i · w_i + output bias

d_t is the token's unembedding row pulled back through the frozen norm, w_i a neuron's output weights (times the
scale of a post-norm, frozen too, or the family's multiplier). Elhage et al. 2021, "A Mathematical Framework for
Transformer Circuits"; Wang et al. 2022, arXiv 2211.00593, section 3. The sum is the logit before any softcap.

Only what is written directly is seen: what another component reads may matter more (`circuits.patch`).
"""

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from patchclamp.errors import RunError, SpecError
from patchclamp.evidence.cli_hints import CommaList, Positional
from patchclamp.evidence.method import Outcome, Progress, Result, Spec, method
from patchclamp.evidence.verdict import Verdict, judge
from patchclamp.forward import Model
from patchclamp.forward.decompose import (
    Neurons,
    Parts,
    Run,
    components,
    direct_run,
    neuron_direction,
    signed,
    take_apart,
)
from patchclamp.forward.frozen import TOLERANCE, FrozenUnembedding, exact
from patchclamp.forward.streams import token_at
from patchclamp.lenses.matched import matched_tokens
from patchclamp.model.tokens import Prompt

if TYPE_CHECKING:
    import altair
    import pandas

Part = Literal["block", "head", "neuron"]
TOKENS_WRITTEN = 5


class AttributeSpec(Spec):
    """Whose logit to attribute, and to what."""

    prompt: Annotated[Prompt, Positional()]
    """The text the model reads."""
    answer: str
    """The token whose logit is attributed: one token of the model, with its leading space if it has one."""
    distractor: str | None = None
    """Attribute logit(answer) - logit(distractor) instead; what raises all logits alike then drops out."""
    parts: Annotated[tuple[Part, ...], CommaList()] = Field(("block", "head", "neuron"), min_length=1)
    """What the terms are: attention and MLP blocks, heads, neurons. Each is a decomposition of its own."""
    position: str = "last"
    """The token after which the answer is predicted: `last`, an index, or a quoted substring."""
    top_neurons: int = Field(20, ge=1, le=1000)
    """How many neurons are listed one by one, those that add or take most; the others as one term a block."""
    controls: int = Field(20, ge=0, le=200)
    """With how many tokens of the answer's kind the verdict compares; 0 for no verdict."""


class Term(BaseModel):
    """One summand."""

    site: str
    """The site whose value this is; `final_norm` and `unembedding` for their biases."""
    part: Literal["embed", "attn", "mlp", "head", "neuron", "bias"]
    """A bias with a layer belongs to the heads (attn.L) or neurons (mlp.L) of that block."""
    layer: int | None
    unit: int | None
    """The head or neuron; None with part `neuron` stands for all neurons of the block that are not listed."""
    contribution: float
    """To the logit, or logit difference, before any softcap."""


class LayerSum(BaseModel):
    """The sum so far."""

    layer: int
    """-1 for the embeddings, then the block after which the sum is taken."""
    logit: float
    """Constants, embeddings and all blocks up to here: the logit lens with the last layer's norm statistic."""


class Written(BaseModel):
    """What a neuron says: tokens by what its output weights, through post-norm, final norm weight and unembedding,
    add to their logits. A neuron of negative activation raises those it would lower."""

    site: str
    activation: float
    contribution: float
    raises: list[str]
    """The tokens whose logits a positive activation raises most."""
    lowers: list[str]
    """The tokens whose logits it lowers most."""


class Attribution(Result):
    """The logit as a sum."""

    terms: list[Term]
    total: float
    """Sum of the embedding's, all blocks' and the constant terms."""
    before_softcap: float
    """The model's own logit, or logit difference, before any softcap: what `total` has to be."""
    logit: float
    """The model's own logit or logit difference."""
    softcap: float | None
    """The cap of cap · tanh(logit / cap), which no sum passes; None if the model has none."""
    error: float
    """The largest mismatch of any of the sums, in logits."""
    by_layer: list[LayerSum]
    written: list[Written]
    """What the listed neurons write; empty without the part `neuron`."""
    answer: str
    distractor: str | None
    token: str
    """The token after which the answer is predicted."""

    def table(self) -> "pandas.DataFrame":
        """One row a term, those that add or take most first."""
        import pandas

        words = {w.site: " ".join(w.raises if w.activation > 0 else w.lowers) for w in self.written}
        frame = pandas.DataFrame([{**t.model_dump(), "raises": words.get(t.site, "")} for t in self.terms])
        return frame.sort_values("contribution", key=abs, ascending=False, ignore_index=True)

    def chart(self) -> "altair.TopLevelMixin":
        """Blocks as bars, heads as a heatmap, the listed neurons as bars."""
        from patchclamp.charts.attribute import attribution_chart

        return attribution_chart(self)


@method("lens.attribute", spec=AttributeSpec, result=Attribution)
def attribute(model: Model, spec: AttributeSpec, progress: Progress) -> Outcome:
    """Split the answer's logit into what each block, head and neuron writes directly; the parts sum to it.

    The verdict takes the component (attention, MLP or head) that writes most of the answer, measured against the
    distractor or else against the mean of tokens of the answer's kind, and asks whether it stands out from what the
    strongest component, chosen anew for each, writes of those tokens.
    """
    names = [spec.answer] if spec.distractor is None else [spec.answer, spec.distractor]
    tokens = [model.token(name) for name in names]
    if len(set(tokens)) < len(tokens):
        raise SpecError(f"answer and distractor are both {spec.answer!r}: their logit difference is 0")
    run = direct_run(model, spec.prompt, spec.position, tokens, "head" in spec.parts, "neuron" in spec.parts)
    unembedding = FrozenUnembedding(model.anatomy, run[f"resid.{model.n_layers - 1}"])
    reading = unembedding.read(tokens)
    parts = take_apart(model.anatomy, run, reading)
    logits = exact(run["logits"])
    before = float(signed(reading.logits))
    error = max(abs(parts.total - before), float((unembedding.capped(reading.logits) - logits).abs().max()),
                *parts.mismatches)
    _refuse(error, TOLERANCE.get(model.dtype, 2e-5) * parts.size)
    top = _top_neurons(parts.neurons, spec.top_neurons)
    start = torch.tensor([parts.embed + sum(parts.constants.values())], dtype=torch.float64)
    sums = torch.cat([start, parts.attn + parts.mlp]).cumsum(0)
    result = Attribution(
        terms=_terms(parts, spec.parts, top), total=parts.total, before_softcap=before,
        logit=float(signed(logits)), softcap=unembedding.softcap, error=error,
        by_layer=[LayerSum(layer=i - 1, logit=float(x)) for i, x in enumerate(sums)],
        written=_written(model, run, unembedding, parts.neurons, top), answer=spec.answer, distractor=spec.distractor,
        token=token_at(model.encode(spec.prompt), spec.position),
    )
    return result, _verdict(model, spec, run, unembedding, tokens) if spec.controls else None


def _refuse(error: float, limit: float) -> None:
    if not error <= limit:
        raise RunError(f"the parts miss the logit by {error:.2g}, where rounding explains {limit:.2g}: this model adds "
                       "something to the residual stream that is neither attention nor MLP, or its weights changed "
                       "after it was loaded; load it again with dtype float32")


def _top_neurons(neurons: list[Neurons], n: int) -> list[tuple[int, int]]:
    """The (layer, unit) of the neurons that add or take most, strongest first."""
    if not neurons:
        return []
    sizes = torch.cat([some.contributions.abs() for some in neurons])
    owner = [(layer, unit) for layer, some in enumerate(neurons) for unit in range(len(some.contributions))]
    return [owner[int(i)] for i in sizes.topk(min(n, len(sizes))).indices]


def _terms(parts: Parts, wanted: tuple[Part, ...], top: list[tuple[int, int]]) -> list[Term]:
    terms: list[Term] = []

    def add(site: str, part: str, layer: int | None, unit: int | None, contribution: float | Tensor) -> None:
        terms.append(Term(site=site, part=part, layer=layer, unit=unit,  # type: ignore[arg-type]
                          contribution=float(contribution)))

    if "block" in wanted:
        add("embed", "embed", None, None, parts.embed)
        for layer, (attn, mlp) in enumerate(zip(parts.attn, parts.mlp, strict=True)):
            add(f"attn.{layer}", "attn", layer, None, attn)
            add(f"mlp.{layer}", "mlp", layer, None, mlp)
        for site, value in parts.constants.items():
            if value:
                add(site, "bias", None, None, value)
    for layer, heads in enumerate(parts.heads):
        for head, value in enumerate(heads.contributions):
            add(f"head.{layer}.{head}", "head", layer, head, value)
        if heads.bias is not None:
            add(f"attn.{layer}", "bias", layer, None, heads.bias)
    for layer, unit in top:
        add(f"neuron.{layer}.{unit}", "neuron", layer, unit, parts.neurons[layer].contributions[unit])
    for layer, neurons in enumerate(parts.neurons):
        listed = sum(float(neurons.contributions[unit]) for of, unit in top if of == layer)
        add(f"neuron.{layer}", "neuron", layer, None, neurons.contributions.sum() - listed)
        if neurons.bias is not None:
            add(f"mlp.{layer}", "bias", layer, None, neurons.bias)
    return terms


def _written(
    model: Model, run: Run, unembedding: FrozenUnembedding, neurons: list[Neurons], top: list[tuple[int, int]]
) -> list[Written]:
    if not top:
        return []
    directions = [neuron_direction(model.anatomy, layer, unit, neurons[layer].into_stream) for layer, unit in top]
    written_NV = unembedding.written(torch.stack(directions))
    n = min(TOKENS_WRITTEN, written_NV.shape[1])
    raised_NK, lowered_NK = written_NV.topk(n).indices.tolist(), (-written_NV).topk(n).indices.tolist()
    return [
        Written(
            site=f"neuron.{layer}.{unit}", activation=float(run[f"neuron.{layer}"][unit]),
            contribution=float(neurons[layer].contributions[unit]),
            raises=[model.say(t) for t in raised], lowers=[model.say(t) for t in lowered],
        )
        for (layer, unit), raised, lowered in zip(top, raised_NK, lowered_NK, strict=True)
    ]


def _verdict(
    model: Model, spec: AttributeSpec, run: Run, unembedding: FrozenUnembedding, tokens: list[int]
) -> Verdict:
    """The answer's strongest component against the strongest component of each matched token."""
    names, values_ND = components(run, model.n_layers)
    like_answer = matched_tokens(model, tokens[0], spec.controls, spec.seed, tokens)
    own_NK = values_ND @ unembedding.read(tokens).directions.T
    like_NC = values_ND @ unembedding.read(like_answer).directions.T
    if spec.distractor is None:
        own_N = own_NK[:, 0] - like_NC.mean(1)
        others_NC = like_NC - (like_NC.sum(1, keepdim=True) - like_NC) / max(1, spec.controls - 1)
        against = "the mean of such tokens"
    else:
        own_N = own_NK[:, 0] - own_NK[:, 1]
        like_distractor = matched_tokens(model, tokens[1], spec.controls, spec.seed, [*tokens, *like_answer])
        others_NC = like_NC - values_ND @ unembedding.read(like_distractor).directions.T
        against = repr(spec.distractor)
    best = int(own_N.argmax())
    return judge(
        float(own_N[best]), others_NC.max(0).values, direction="greater", against="distribution", seed=spec.seed,
        claim=f"{names[best]} writes {spec.answer!r} into the last residual stream (logit against {against}, beside "
              f"the strongest component for each of {spec.controls} tokens of the same form and frequency)",
    )
