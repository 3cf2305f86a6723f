"""The logit lens: what the residual stream after each block says when it is unembedded at once.

    lens_L(x) = unembed(norm_final(resid_L))

nostalgebraist 2020, "interpreting GPT: the logit lens"; the residual stream as a channel every block adds to:
Elhage et al. 2021. Final norm, scale and softcap are the model's own, so that the last layer is its output.
"""

from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, Spec, method
from patchclamp.evidence.verdict import judge
from patchclamp.forward import Model, metrics
from patchclamp.forward.plan import Plan
from patchclamp.forward.readout import Readout
from patchclamp.forward.streams import decoded, streams, token_at
from patchclamp.lenses.reading import Layer, first_top, read_layers
from patchclamp.model.tokens import Prompt
from patchclamp.tasks.neutral import neutral_texts

if TYPE_CHECKING:
    import altair
    import pandas

CONTROL_TOKENS = 12
MOST_CELLS = 4000
"""Layers times positions in one heatmap."""


class LogitLensSpec(Spec):
    """What to read with the logit lens."""

    prompt: Annotated[Prompt, Positional()]
    """The text the model reads."""
    watch: tuple[str, ...] = ()
    """Tokens to follow through the layers, each one token of the model; most begin with a space."""
    position: str = "last"
    """The token whose residual stream is read: `last`, an index, a quoted substring; `all` adds a heatmap of every
    token."""
    beside: Prompt | None = None
    """A second prompt to read beside the first, such as one that states the fact the first one asks for."""
    top: int = Field(5, ge=1, le=50)
    """How many of the likeliest tokens to list for each layer."""
    controls: int = Field(8, ge=0, le=40)
    """On how many neutral texts the first watched token is looked for as a control; 0 for no verdict."""


class Cell(Part):
    """What one layer says at one token."""

    layer: int
    position: int
    top: str
    """The first choice."""
    prob: float
    entropy: float
    watch: dict[str, float]
    """Probability of each watched token."""


class Reading(Part):
    """One prompt, read through the layers."""

    layers: list[Layer]
    prediction: str
    token: str
    tokens: list[str]


class LogitLens(Result):
    """The lens at every layer."""

    layers: list[Layer]
    """From the embeddings to the last block."""
    prediction: str
    """The token the model itself ranks first."""
    token: str
    """The token whose residual stream was read."""
    tokens: list[str]
    """The prompt's tokens."""
    first_top: dict[str, int | None]
    """For each watched token the first layer at which it is the first choice; null if it never is."""
    beside: Reading | None = None
    """The second prompt."""
    cells: list[Cell] = Field(default_factory=list)
    """With position `all`: every layer at every token."""

    def table(self) -> "pandas.DataFrame":
        """One row a layer: its first choice, entropy, KL, and rank and probability of each watched token."""
        import pandas

        rows = []
        for name, layers in [("", self.layers), *([("beside", self.beside.layers)] if self.beside else [])]:
            for layer in layers:
                row: dict[str, Any] = {"prompt": name} if self.beside else {}
                row |= {"layer": layer.layer, "top": layer.top[0].token, "prob": layer.top[0].prob,
                        "entropy": layer.entropy, "KL to final": layer.kl}
                for token, seen in layer.watch.items():
                    row |= {f"rank of {token!r}": seen.rank, f"prob of {token!r}": seen.prob}
                rows.append(row)
        return pandas.DataFrame(rows)

    def chart(self) -> "altair.TopLevelMixin":
        """Top tokens by layer as a heatmap, the watched tokens' probabilities, entropy and KL."""
        from patchclamp.charts.lens import logit_lens_chart

        return logit_lens_chart(self)


@method("lens.logit", spec=LogitLensSpec, result=LogitLens)
def logit_lens(model: Model, spec: LogitLensSpec, progress: Progress) -> Outcome:
    """Unembed the residual stream after every block: what the model would say if it stopped there.

    The verdict compares the first watched token (else the prediction): is it more probable in the stream before
    the last block than the same token is in other texts?
    """
    watch = {text: model.token(text) for text in spec.watch}
    position = "last" if spec.position == "all" else spec.position
    reading, logits_LV = _read(model, spec.prompt, position, watch, spec.top)
    beside = None if spec.beside is None else _read(model, spec.beside, "last", watch, spec.top)[0]
    cells = list(_cells(model, spec, watch, progress)) if spec.position == "all" else []
    result = LogitLens(
        **dict(reading), beside=beside, cells=cells,
        first_top={token: first_top(reading.layers, token) for token in watch},
    )
    if not spec.controls:
        return result, None
    text, token = next(iter(watch.items()), (reading.prediction, int(metrics.first_choice(logits_LV[-1]))))
    others = streams(model, [model.encode(t).ids[:CONTROL_TOKENS] for t in neutral_texts(spec.controls)])
    verdict = judge(
        _peak(logits_LV, token), [_peak(other_LV, token) for other_LV in decoded(model, others)],
        claim=f"{text!r} is written in the residual stream before the last block (greatest log-probability over "
              "these layers, against the same token in neutral texts)",
        direction="greater", against="distribution", seed=spec.seed,
    )
    return result, verdict


def _read(model: Model, prompt: Any, position: str, watch: dict[str, int], top: int) -> tuple[Reading, Tensor]:
    encoded = model.encode(prompt)
    logits_LV = next(decoded(model, streams(model, [prompt], position)))
    layers = read_layers(model, logits_LV, watch, top)
    reading = Reading(layers=layers, prediction=layers[-1].top[0].token, token=token_at(encoded, position),
                      tokens=list(encoded.pieces))
    return reading, logits_LV


def _cells(model: Model, spec: LogitLensSpec, watch: dict[str, int], progress: Progress) -> Any:
    """Every layer at every token, token by token."""
    from patchclamp.errors import SpecError

    n = len(model.encode(spec.prompt))
    if n * (model.n_layers + 1) > MOST_CELLS:
        raise SpecError(f"{n} tokens at {model.n_layers + 1} layers are more than {MOST_CELLS} cells; shorten the "
                        "prompt, or read one position")
    reads = [Readout.value("embed"), *(Readout.value(f"resid.{layer}") for layer in range(model.n_layers))]
    (values,) = model.execute(Plan.of([(spec.prompt, (), reads)]))
    places = torch.stack(values, 1)
    for position, logits_LV in enumerate(progress.track(decoded(model, places), "unembedding", n)):
        entropy_L = metrics.entropy(logits_LV)
        p_LV = logits_LV.float().softmax(-1)
        ids_L = metrics.first_choice(logits_LV)
        best_L = p_LV.gather(-1, ids_L[:, None])[:, 0]
        for index in range(len(p_LV)):
            yield Cell(layer=index - 1, position=position, top=model.say(int(ids_L[index])), prob=float(best_L[index]),
                       entropy=float(entropy_L[index]),
                       watch={text: float(p_LV[index, token]) for text, token in watch.items()})


def _peak(logits_LV: Tensor, token: int) -> float:
    """Greatest log-probability of a token over the layers before the last block's output."""
    return float(metrics.log_probability(logits_LV, token)[:-1].max())
