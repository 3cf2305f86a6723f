"""Patchscopes: a hidden state, put into another prompt, is read aloud by the model itself.

    h = resid_l of the source prompt at one token;   run the target prompt with resid_l*(placeholder) := h

Ghandeharioun et al. 2024, arXiv 2401.06102. A state whose norm is far from what the target layer is used to says
nothing (residual norms grow by orders of magnitude in Gemma): it is then rescaled to the placeholder's own norm.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator
from torch import Tensor

from patchclamp.errors import SpecError
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, Spec, method
from patchclamp.evidence.verdict import Verdict, judge
from patchclamp.forward import Edit, Model, Plan, Readout
from patchclamp.forward.streams import streams
from patchclamp.lenses.affine import fit_maps, mapped
from patchclamp.lenses.reading import TopToken
from patchclamp.lenses.regress import Start
from patchclamp.model.tokens import Prompt
from patchclamp.tasks.files import DataFile
from patchclamp.tasks.neutral import neutral_texts

if TYPE_CHECKING:
    import altair
    import pandas

DESCRIBE = "Japan: a country in East Asia\nMozart: a composer from Austria\nToyota: a Japanese maker of cars\nx"
IDENTITY = "cat -> cat\n135 -> 135\nhello -> hello\nx ->"
TARGETS = {"describe": DESCRIBE, "identity": IDENTITY}
ROWS_AT_ONCE = 128
CONTROL_TOKENS = 12
FAR = 10.0
"""How many times larger or smaller than the placeholder's own a state's norm may be before it is rescaled."""


class StateReading(Spec):
    """How a state is read aloud: the prompt it is put into, and where."""

    target: str = "describe"
    """The target prompt: `describe` (a few-shot prompt of descriptions), `identity` (a prompt that repeats), or your
    own text with the placeholder in it."""
    placeholder: str = Field("x", min_length=1)
    """What the state replaces in the target prompt: its last occurrence's last token."""
    target_layer: int | None = Field(None, ge=0)
    """The block after which the state is put in; by default the same as it was taken from."""
    norm: Literal["auto", "raw", "matched"] = "auto"
    """Put the state in as it is, or rescaled to the placeholder's own norm; auto rescales where they differ more than
    tenfold."""
    affine: DataFile | None = None
    """A corpus on which to fit an affine map from every layer to the target layer; states are put in mapped."""
    max_new_tokens: int = Field(12, ge=1, le=200)
    """Length of each continuation."""


class PatchscopeSpec(StateReading):
    """Which hidden state to read, and which prompt to read it with."""

    text: Annotated[Prompt | None, Positional()] = None
    """The source prompt, e.g. "Diana, princess of Wales". Left out with `relation`."""
    position: str = "last"
    """The source token: `last`, an index, or a quoted substring."""
    expect: tuple[str, ...] = ()
    """Words to look for in the continuations; the verdict is then about them."""
    relation: DataFile | None = None
    """A relation file: read the object off the subject's state, with the relation's prompt as target."""
    limit: int = Field(60, ge=12)
    """At most this many of the relation's samples."""
    controls: int = Field(20, ge=0, le=40)
    """From how many other texts a state is put in the same way as a control; 0 for no verdict."""

    @model_validator(mode="after")
    def _one_source(self) -> "PatchscopeSpec":
        if (self.text is None) == (self.relation is None):
            raise ValueError("give either a text to read or a relation file")
        return self


class PatchscopeRow(Part):
    """What the state of one source layer says in the target prompt."""

    source_layer: int
    target_layer: int
    text: str
    """The continuation."""
    top: list[TopToken]
    """The likeliest next tokens of the target prompt."""
    surprisal: float
    """Of the source prompt's own next token, read through the identity prompt, in nats."""
    agrees: bool
    """Whether that token is the first choice there (precision@1)."""
    found: list[str]
    """Which of the expected words the continuation holds."""


class Baselines(Part):
    """The same objects found by other means, by source layer."""

    logit_lens: list[float]
    """The object's first token is the logit lens's first choice at the subject's last token."""
    linear_probe: list[float] | None
    """A linear classifier of the same states, five-fold cross-validated; null where the objects do not repeat."""
    model: float
    """The model's own answer to the relation's prompt."""


class PatchscopeResult(Result):
    """The states of all layers, in the model's own words."""

    rows: list[PatchscopeRow] = Field(default_factory=list)
    norm_matched: bool
    """Whether states were rescaled to the placeholder's norm."""
    prediction: str | None = None
    """The source prompt's own next token."""
    precision: float | None = None
    """Share of layers whose state says that token through the identity prompt."""
    accuracy_by_layer: list[float] | None = None
    """With a relation: share of samples whose continuation holds the object, by source layer."""
    baselines: Baselines | None = None
    samples: int | None = None
    """Samples of the relation read."""

    def table(self) -> "pandas.DataFrame":
        """One row a source layer."""
        import pandas

        if self.accuracy_by_layer is not None:
            assert self.baselines is not None
            return pandas.DataFrame({
                "source layer": range(len(self.accuracy_by_layer)), "patchscope": self.accuracy_by_layer,
                "logit lens": self.baselines.logit_lens,
                **({"linear probe": self.baselines.linear_probe} if self.baselines.linear_probe else {}),
            })
        return pandas.DataFrame([
            {"source layer": r.source_layer, "target layer": r.target_layer, "text": r.text, "next": r.top[0].token,
             "surprisal": r.surprisal, "agrees": r.agrees, "found": ", ".join(r.found)}
            for r in self.rows
        ])

    def chart(self) -> "altair.TopLevelMixin":
        """The continuations by layer, or the accuracy by layer beside the baselines."""
        from patchclamp.charts.patchscope import patchscope_chart

        return patchscope_chart(self)


class Target(NamedTuple):
    """A prompt with a place for a state."""

    ids: tuple[int, ...]
    position: int
    norms: Tensor
    """Length of the placeholder's own residual stream after each block."""
    layer: int | None
    matched: bool
    maps: Start | None

    def edits(self, place_LD: Tensor) -> list[list[Edit]]:
        """For each block's state of one source place [L,D] the edit that puts it in; the embeddings are left out."""
        out = []
        for source, state_D in enumerate(place_LD[1:]):
            at = source if self.layer is None else self.layer
            value = state_D if self.maps is None else mapped(self.maps, source, state_D)
            value = value * (self.norms[at] / value.norm()) if self.matched else value
            out.append([Edit.set(f"resid.{at}@{self.position}", value)])
        return out


@method("lens.patchscope", spec=PatchscopeSpec, result=PatchscopeResult)
def patchscope(model: Model, spec: PatchscopeSpec, progress: Progress) -> Outcome:
    """Put the hidden state of every layer into another prompt and let the model say what it stands for.

    The verdict asks whether the state says something that states of other texts do not: the expected words, or else
    the source prompt's own next token through the identity prompt. With a relation file it asks whether the object
    can be read off the subject, against the objects of other subjects, at a layer chosen on other samples.
    """
    if spec.relation is not None:
        from patchclamp.lenses.extraction import extract

        return extract(model, spec, progress)
    assert spec.text is not None
    place_LD = streams(model, [spec.text], spec.position)[0]
    own = _own_next(model, spec)
    maps = maps_for(model, spec, progress)
    target = make_target(model, spec, TARGETS.get(spec.target, spec.target), place_LD, maps=maps)
    identity = make_target(model, spec, IDENTITY, place_LD, "x", maps)
    texts = continuations(model, target, [place_LD], spec.max_new_tokens, progress)[0]
    tops = _readouts(model, target, place_LD, Readout.top(5))
    scores = _surprisals(model, identity, place_LD, own)
    rows = [
        PatchscopeRow(
            source_layer=layer, target_layer=layer if spec.target_layer is None else spec.target_layer, text=text,
            top=[TopToken(token=t.text, prob=t.probability) for t in top], surprisal=nats, agrees=rank == 0,
            found=found_in(text, spec.expect),
        )
        for layer, (text, top, (nats, rank)) in enumerate(zip(texts, tops, scores, strict=True))
    ]
    result = PatchscopeResult(rows=rows, norm_matched=target.matched, prediction=model.say(own),
                              precision=sum(r.agrees for r in rows) / len(rows))
    return result, _verdict(model, spec, result, target, identity, own, progress) if spec.controls else None


def _own_next(model: Model, spec: PatchscopeSpec) -> int:
    (top,) = model.run(spec.text, read=Readout.top(1, at=spec.position))
    return int(top.id)


def make_target(
    model: Model, spec: StateReading, text: str, place_LD: Tensor, placeholder: str | None = None,
    maps: Start | None = None,
) -> Target:
    """The target prompt, and whether states have to be rescaled for it: mapped ones are not, unless asked for.

    SpecError if the prompt lacks its placeholder, or the model its target layer.
    """
    placeholder = placeholder or spec.placeholder
    if placeholder not in text:
        raise SpecError(f"the target prompt {text!r} does not contain the placeholder {placeholder!r}: write it where "
                        "the state belongs, or name another one")
    _check_layer(model, spec)
    encoded = model.encode(text)
    position = encoded.find(placeholder)
    norms = streams(model, [encoded.ids], position)[0][1:].norm(dim=-1)
    at = norms if spec.target_layer is None else norms[spec.target_layer].expand_as(norms)
    ratio = place_LD[1:].norm(dim=-1) / at
    is_far = bool(((ratio > FAR) | (ratio < 1 / FAR)).any())
    matched = spec.norm == "matched" or (spec.norm == "auto" and maps is None and is_far)
    return Target(encoded.ids, position, norms, spec.target_layer, matched, maps)


def _check_layer(model: Model, spec: StateReading) -> None:
    if spec.target_layer is not None and spec.target_layer >= model.n_layers:
        raise SpecError(f"{model.name} has {model.n_layers} blocks (0 to {model.n_layers - 1}); the target layer is "
                        f"{spec.target_layer}")


def maps_for(model: Model, spec: StateReading, progress: Progress) -> Start | None:
    """The affine maps a specification asks for."""
    _check_layer(model, spec)
    return None if spec.affine is None else fit_maps(model, spec.affine, spec.target_layer, progress)


def continuations(
    model: Model, target: Target, places: Sequence[Tensor], n: int, progress: Progress
) -> list[list[str]]:
    """What the target prompt goes on with, for every source place and layer: texts [place][layer]."""
    edits = [edit for place_LD in places for edit in target.edits(place_LD)]
    texts: list[str] = []
    starts = range(0, len(edits), ROWS_AT_ONCE)
    for first in progress.track(starts, "reading states aloud", len(starts)):
        some = edits[first : first + ROWS_AT_ONCE]
        texts += [g.text for g in model.generate([target.ids] * len(some), some, max_new_tokens=n)]
    return [texts[i : i + model.n_layers] for i in range(0, len(texts), model.n_layers)]


def _readouts(model: Model, target: Target, place_LD: Tensor, *reads: Readout) -> list[Any]:
    """Readouts of the target prompt under each layer's state."""
    rows = model.execute(Plan.of([(target.ids, edit, reads) for edit in target.edits(place_LD)]))
    return [row[0] if len(reads) == 1 else row for row in rows]


def _surprisals(model: Model, identity: Target, place_LD: Tensor, token: int) -> list[tuple[float, int]]:
    """Surprisal in nats and rank of a token through the identity prompt, by source layer."""
    values = _readouts(model, identity, place_LD, Readout.log_probability(token), Readout.rank(token))
    return [(-float(logp), int(rank)) for logp, rank in values]


def found_in(text: str, words: Sequence[str]) -> list[str]:
    """Which words a text holds, capitals aside."""
    lowered = text.casefold()
    return [word for word in words if word.strip().casefold() in lowered]


def _verdict(
    model: Model, spec: PatchscopeSpec, result: PatchscopeResult, target: Target, identity: Target, own: int,
    progress: Progress,
) -> Verdict:
    """The same measure for states of unrelated texts."""
    others = streams(model, [model.encode(t).ids[:CONTROL_TOKENS] for t in neutral_texts(spec.controls)])
    if spec.expect:
        texts = continuations(model, target, others, spec.max_new_tokens, progress)
        shares = [sum(bool(found_in(t, spec.expect)) for t in some) / len(some) for some in texts]
        effect = sum(bool(r.found) for r in result.rows) / len(result.rows)
        claim = (f"the states of {spec.text!r} speak of {' or '.join(spec.expect)} (share of layers whose continuation "
                 "does, against states of unrelated texts)")
    else:
        shares = [max(-nats for nats, _ in _surprisals(model, identity, place, own)) for place in others]
        effect = max(-r.surprisal for r in result.rows)
        claim = (f"the states say the text's own next token {model.say(own)!r} in another prompt (its greatest "
                 "log-probability over the layers, against states of unrelated texts)")
    return judge(
        effect, shares, claim=claim, direction="greater", against="distribution", share=bool(spec.expect),
        seed=spec.seed,
    )
