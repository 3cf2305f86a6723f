"""Using a vector on one prompt: the answer without it, with it, and with a random direction as strong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from patchclamp.errors import SpecError
from patchclamp.evidence.cli_hints import CommaList, Positional
from patchclamp.evidence.method import Outcome, Progress, Result, Spec, method
from patchclamp.evidence.written import kl_on, perplexity_ratio, surprise
from patchclamp.forward import Edit, Model, Site
from patchclamp.forward.asked import as_prompt, has_template
from patchclamp.model.tokens import Prompt
from patchclamp.tasks.files import DataFile
from patchclamp.tasks.neutral import neutral_texts
from patchclamp.vectors.match import added, matched, random_directions
from patchclamp.vectors.search import natural_strength, projected_out
from patchclamp.vectors.states import Example, states
from patchclamp.vectors.vector import Setting, SteeringVector, Unit, load_vector

if TYPE_CHECKING:
    import altair
    import pandas

How = Literal["add", "subtract", "project_out", "clamp"]
CONTROL_TEXTS = 32
MATCHING = 4
"""Neutral texts on which the random direction's KL is matched."""


class ApplySpec(Spec):
    """Which vectors to use, how, and on which prompt."""

    prompt: Annotated[Prompt, Positional()]
    """What the model is asked; a text is a user's message if the vector's behaviour is asked for in chat."""
    vector: tuple[DataFile, ...] = Field(min_length=1)
    """Saved vectors; several are used together."""
    how: How = "add"
    """Add, subtract, remove from everything written to the residual stream, or clamp the coordinate to a value."""
    sites: Annotated[tuple[str, ...], CommaList()] = ()
    """Where; by default as chosen with vectors select, else the middle block."""
    strength: float | None = None
    """How much: standard deviations of projections over a neutral corpus; by default as chosen. With clamp: the
    coordinate."""
    unit: Unit = "sd"
    """Unit of the strength: raw multiplies the vector as it is."""
    when: DataFile | None = None
    """A second saved vector: use the first only at tokens where this one is active."""
    above: float | None = None
    """The coordinate along the second vector above which it counts as active; by default half-way between the means of
    its two sides."""
    positions: str = "all"
    """On which tokens: all, prompt, response, or another form of a site's positions."""
    format: Literal["auto", "chat", "text"] = "auto"
    """Whether the prompt is a user's message; auto: if the model has a chat template."""
    max_new_tokens: int = Field(64, ge=1, le=2000)
    """Length of the answers."""


class ApplyResult(Result):
    """Three answers to one prompt."""

    base: str
    """Without the vector."""
    steered: str
    random: str | None
    """With a random direction at the same sites that moves the model as far on neutral text; null but for adding."""
    edits: list[str]
    """What was done, in order."""
    kl: float
    """KL of the first token of the answer, nats."""
    perplexity_ratio: float | None
    """Of the steered answer over the unedited one, under the unedited model."""

    def table(self) -> pandas.DataFrame:
        """One row an answer."""
        import pandas

        return pandas.DataFrame(
            [
                {"condition": name, "answer": getattr(self, name)}
                for name in ("base", "steered", "random")
                if getattr(self, name) is not None
            ]
        )

    def chart(self) -> altair.TopLevelMixin:
        """The answers side by side."""
        from patchclamp.charts.vectors import apply_chart

        return apply_chart(self)


@method("vectors.apply", spec=ApplySpec, result=ApplyResult)
def apply_vector(model: Model, spec: ApplySpec, progress: Progress) -> Outcome:
    """Answer a prompt with a vector and without it, and beside them with a random direction that is as strong."""
    prompt, conditions = conditions_of(model, spec)
    edits = conditions["steered"]
    base, steered = (model.generate(prompt, conditions[name], max_new_tokens=spec.max_new_tokens)
                     for name in ("base", "steered"))
    random = None
    if "random" in conditions:
        random = model.generate(prompt, conditions["random"], max_new_tokens=spec.max_new_tokens).text
    before, after = (surprise(model, [prompt], [said]) for said in (base, steered))
    ratio = perplexity_ratio(after, before)
    first = float(kl_on(model, [prompt], [edits])[0, 0]) if spec.positions != "response" else 0.0
    return ApplyResult(
        base=base.text,
        steered=steered.text,
        random=random,
        kl=first,
        edits=[f"{edit.op} {edit.strength:g} at {edit.site}" for edit in edits],
        perplexity_ratio=ratio if ratio == ratio else None,
    ), None


def conditions_of(model: Model, spec: ApplySpec, matched_random: bool = True) -> tuple[Prompt, dict[str, list[Edit]]]:
    """The prompt as it is asked, and the edits under which it is answered: none (`base`), the vectors (`steered`) and,
    where they are added, a random direction as strong (`random`), which takes a few seconds to match."""
    vectors = [load_vector(path, model) for path in spec.vector]
    auto = "chat" if has_template(model) else "text"
    prompt = (
        as_prompt(model, spec.prompt, auto if spec.format == "auto" else spec.format)
        if isinstance(spec.prompt, str)
        else spec.prompt
    )
    conditions = {"base": [], "steered": [edit for vector in vectors for edit in edits_for(model, vector, spec)]}
    if matched_random and spec.how in ("add", "subtract"):
        conditions["random"] = _random(model, vectors, spec)
    return prompt, conditions


def setting_for(
    model: Model,
    vector: SteeringVector,
    how: How,
    sites: Sequence[str] = (),
    strength: float | None = None,
    unit: Unit = "sd",
    positions: str = "all",
) -> Setting:
    """Where and how strongly: as asked, else as chosen, else the middle block and as far as from one side's mean to the
    other's (in raw units: the vector as it is)."""
    chosen = vector.info.remove if how == "subtract" else vector.info.add
    where = tuple(sites) or (chosen.sites if chosen else (list(vector.directions)[len(vector.directions) // 2],))
    if strength is None and chosen is not None and not sites and unit == chosen.unit:
        strength = abs(chosen.strength)
    elif strength is None:
        strength = 1.0 if unit == "raw" else natural_strength(model, vector, where)
    signed = -abs(strength) if how == "subtract" else strength
    return Setting(sites=where, strength=signed, unit=unit, positions=positions)


def edits_for(model: Model, vector: SteeringVector, spec: ApplySpec) -> list[Edit]:
    """One vector's edits."""
    setting = setting_for(model, vector, spec.how, spec.sites, spec.strength, spec.unit, spec.positions)
    when = {}
    if spec.when is not None:
        if spec.how == "project_out":
            raise SpecError("a condition holds at one site, and project_out works everywhere; use subtract or clamp")
        condition = load_vector(spec.when, model)
        when = {site: condition.active(site, spec.above) for site in setting.sites}
    if spec.how == "project_out":
        chosen = vector.info.ablate if not spec.sites else None
        return projected_out(model, vector, chosen or vector.ablation(setting.sites[0], model))
    if spec.how == "clamp":
        if spec.strength is None:
            raise SpecError("clamp needs the coordinate to clamp to: --strength")
        return [
            Edit.clamp(Site.parse(site).at(spec.positions), direction, spec.strength, when.get(site))
            for site, direction in vector.at(setting.sites).items()
        ]
    return vector.edits(setting, when)


def _random(model: Model, vectors: Sequence[SteeringVector], spec: ApplySpec) -> list[Edit]:
    """A random direction at the first vector's sites, as strong as all vectors together: matched on neutral texts at
    all positions, since positions of the prompt mean nothing there."""
    everywhere = spec.model_copy(update={"positions": "all"})
    target = [edit for vector in vectors for edit in edits_for(model, vector, everywhere)]
    setting = setting_for(model, vectors[0], spec.how, spec.sites, spec.strength, spec.unit)
    texts = [model.encode(text).ids[:24] for text in neutral_texts(CONTROL_TEXTS)]
    states_SNW = states(model, [Example(ids, "last") for ids in texts], setting.sites)
    (direction,) = random_directions(dict(zip(setting.sites, states_SNW, strict=True)), 1, spec.seed)
    kl = float(kl_on(model, texts[:MATCHING], [target]).mean())
    start = natural_strength(model, vectors[0], setting.sites) if spec.unit == "raw" else setting.strength or 1.0
    (found,) = matched(model, [direction], kl, start, texts[:MATCHING], "all")
    return added(direction, found, spec.positions)
