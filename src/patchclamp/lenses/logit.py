"""The logit lens: what the residual stream after each block says when it is unembedded at once.

    lens_L(x) = unembed(norm_final(resid_L))

nostalgebraist 2020, "interpreting GPT: the logit lens"; the residual stream as a channel every block adds to:
Elhage et al. 2021. Final norm, scale and softcap are the model's own, so that the last layer is its output.
"""

from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from patchclamp.errors import SpecError
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Progress, Result, Spec, method
from patchclamp.evidence.verdict import judge
from patchclamp.forward import Model, metrics
from patchclamp.forward.plan import Plan
from patchclamp.forward.readout import Readout
from patchclamp.model.tokens import Prompt

if TYPE_CHECKING:
    import altair
    import pandas

CONTROL_TOKENS = 12


class LogitLensSpec(Spec):
    """What to read with the logit lens."""

    prompt: Annotated[Prompt, Positional()]
    """The text the model reads."""
    watch: tuple[str, ...] = ()
    """Tokens to follow through the layers, each one token of the model; most begin with a space."""
    position: str = "last"
    """The token whose residual stream is read: `last`, an index, or a quoted substring."""
    top: int = Field(5, ge=1, le=50)
    """How many of the likeliest tokens to list for each layer."""
    controls: int = Field(8, ge=0, le=40)
    """On how many neutral texts the first watched token is looked for as a control; 0 for no verdict."""


class TopToken(BaseModel):
    """A token and its probability."""

    token: str
    prob: float


class Watched(BaseModel):
    """A watched token at one layer."""

    rank: int
    """Among all tokens, from 0."""
    prob: float
    logit: float


class Layer(BaseModel):
    """What one layer says."""

    layer: int
    """-1 for the embeddings, then the block after which the stream is read."""
    top: list[TopToken]
    watch: dict[str, Watched]


class LogitLens(Result):
    """The lens at every layer."""

    layers: list[Layer]
    """From the embeddings to the last block."""
    prediction: str
    """The token the model itself ranks first."""
    token: str
    """The token whose residual stream was read."""

    def table(self) -> "pandas.DataFrame":
        """One row a layer: its first choice, then rank and probability of each watched token."""
        import pandas

        rows = []
        for layer in self.layers:
            row: dict[str, Any] = {"layer": layer.layer, "top": layer.top[0].token, "prob": layer.top[0].prob}
            for token, seen in layer.watch.items():
                row |= {f"rank of {token!r}": seen.rank, f"prob of {token!r}": seen.prob}
            rows.append(row)
        return pandas.DataFrame(rows)

    def chart(self) -> "altair.TopLevelMixin":
        """Top tokens by layer as a heatmap, and the watched tokens' probabilities."""
        from patchclamp.charts.lens import logit_lens_chart

        return logit_lens_chart(self)


@method("lens.logit", spec=LogitLensSpec, result=LogitLens)
def logit_lens(model: Model, spec: LogitLensSpec, progress: Progress) -> Outcome:
    """Unembed the residual stream after every block: what the model would say if it stopped there.

    The verdict compares the first watched token (else the prediction): is it more probable in the stream before
    the last block than the same token is in other texts?
    """
    ids = {text: model.token(text) for text in spec.watch}
    encoded = model.encode(spec.prompt)
    logits_LV = _lens(model, [spec.prompt], spec.position)[0]
    probs_LV = logits_LV.float().softmax(-1)
    prediction = int(logits_LV[-1].argmax())
    watched = torch.tensor(list(ids.values()), device=logits_LV.device)
    layers = []
    for index, (logits_V, probs_V) in enumerate(zip(logits_LV, probs_LV, strict=True)):
        values, tokens = probs_V.topk(spec.top)
        ranks = metrics.rank(logits_V.expand(len(ids), -1), watched).tolist() if ids else []
        layers.append(Layer(
            layer=index - 1,
            top=[TopToken(token=model.say(int(t)), prob=float(p)) for t, p in zip(tokens, values, strict=True)],
            watch={text: Watched(rank=rank, prob=float(probs_V[token]), logit=float(logits_V[token]))
                   for (text, token), rank in zip(ids.items(), ranks, strict=True)},
        ))
    result = LogitLens(layers=layers, prediction=model.say(prediction), token=_token_at(model, spec, encoded))
    if not spec.controls:
        return result, None
    text, token = next(iter(ids.items()), (model.say(prediction), prediction))
    others = _lens(model, [_start_of(model, t) for t in _neutral(spec.controls)], "last")
    verdict = judge(
        _peak(logits_LV, token), [_peak(other, token) for other in others],
        claim=f"{text!r} is written in the residual stream before the last block (greatest log-probability over "
              "these layers, against the same token in neutral texts)",
        direction="greater", against="distribution", seed=spec.seed,
    )
    return result, verdict


def _lens(model: Model, prompts: list[Any], position: str) -> list[Tensor]:
    """Logits [layers + 1, V] for each prompt, from the embeddings to the last block."""
    sites = [f"embed@{position}", *(f"resid.{layer}@{position}" for layer in range(model.n_layers))]
    reads = [Readout.value(site) for site in sites]
    if any(not r.site.positions.single for r in reads if r.site):
        raise SpecError(f"position {position!r} is several tokens; the lens reads one: last, an index or a quoted word")
    rows = model.execute(Plan.of([(prompt, (), reads) for prompt in prompts]))
    with torch.no_grad():
        return [model.anatomy.unembed(torch.stack(row)) for row in rows]


def _token_at(model: Model, spec: LogitLensSpec, encoded: Any) -> str:
    from patchclamp.forward.prepare import token_indices
    from patchclamp.forward.site import Positions

    index = token_indices(Positions.parse(spec.position), encoded, f"@{spec.position}")[0]
    return encoded.pieces[index]


def _neutral(n: int) -> tuple[str, ...]:
    from patchclamp.tasks.neutral import neutral_texts

    return neutral_texts(n)


def _start_of(model: Model, text: str) -> tuple[int, ...]:
    return model.encode(text).ids[:CONTROL_TOKENS]


def _peak(logits_LV: Tensor, token: int) -> float:
    """Greatest log-probability of a token over the layers before the last block's output."""
    return float(metrics.log_probability(logits_LV, token)[:-1].max())
