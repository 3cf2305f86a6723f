"""A direction as a detector: how far along it a prompt's state lies tells whether the model will show the behaviour.

Beside a random direction of the activations' own covariance and a logistic probe, both on the same held-out prompts.
With a prompt: the projection at every token of it and of the answer, as it is generated.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.controls import random_split_directions
from patchclamp.evidence.method import Outcome, Part, Progress, Result, Spec, method
from patchclamp.evidence.verdict import judge
from patchclamp.forward import Model, Site
from patchclamp.forward.asked import as_prompt
from patchclamp.model.tokens import Prompt
from patchclamp.tasks.behaviour import BehaviourName
from patchclamp.tasks.files import DataFile
from patchclamp.vectors.directions import auroc, direction
from patchclamp.vectors.match import within_sides
from patchclamp.vectors.source import behaviour_for
from patchclamp.vectors.states import examples_of, states
from patchclamp.vectors.vector import SteeringVector, load_vector

if TYPE_CHECKING:
    import altair
    import pandas


class ReadSpec(Spec):
    """Which vector to read with, and what."""

    vector: Annotated[DataFile, Positional()]
    """A saved vector."""
    behaviour: BehaviourName | None = None
    """The behaviour whose test prompts to tell apart; by default the one it was found with."""
    prompt: Prompt | None = None
    """A prompt to read token by token, with its answer."""
    site: str | None = None
    """Where the prompt is read; by default the chosen site, else the one that tells validation prompts apart best."""
    controls: int = Field(20, ge=2, le=200)
    """Random directions."""
    max_new_tokens: int = Field(48, ge=1, le=500)
    """Length of the prompt's answer."""


class ReadSite(Part):
    """AUROC at one site, on test prompts: .5 is chance."""

    site: str
    vector: float
    probe: float
    """A logistic probe of the training prompts' states."""
    random: float
    """Mean over random directions, each turned the way it tells training prompts apart."""


class ReadToken(Part):
    """One token of the prompt or its answer."""

    token: str
    cosine: float
    """Of the state, less the mean state of the plain training prompts, and the direction."""
    answer: bool
    """Whether the model generated it."""


class ReadResult(Result):
    """How well the direction tells, and where a prompt lies along it."""

    sites: list[ReadSite]
    site: str
    """The site chosen on validation prompts."""
    tokens: list[ReadToken]
    text: str | None
    """The prompt's answer."""

    def table(self) -> pandas.DataFrame:
        """One row a site."""
        import pandas

        return pandas.DataFrame([site.model_dump() for site in self.sites])

    def chart(self) -> altair.TopLevelMixin:
        """AUROC by block, and the prompt's tokens."""
        from patchclamp.charts.vectors import read_chart

        return read_chart(self)


@method("vectors.read", spec=ReadSpec, result=ReadResult)
def read_vector(model: Model, spec: ReadSpec, progress: Progress) -> Outcome:
    """Tell held-out prompts that show the behaviour from those that do not by their projection on the direction.

    The verdict asks whether it does so better than random directions at the site chosen on validation prompts.
    """
    vector = load_vector(spec.vector, model)
    behaviour = behaviour_for(vector, spec.behaviour)
    sites = list(vector.directions)
    train, validation, test = (
        [
            states(model, side, sites, progress)
            for side in examples_of(model, some, behaviour.format, vector.info.position)
        ]
        for some in (behaviour.train, behaviour.validation, behaviour.test)
    )
    rows, random = [], {}
    for i, site in enumerate(sites):
        v = vector.directions[site].double()
        probe = direction("logistic", train[0][i], train[1][i])
        random[site] = [
            _score(_turned(r.double(), train, i), test, i)
            for r in random_split_directions(within_sides(train[0][i], train[1][i]), spec.controls, spec.seed)
        ]
        rows.append(
            ReadSite(
                site=site,
                vector=_score(v, test, i),
                probe=_score(probe, test, i),
                random=sum(random[site]) / spec.controls,
            )
        )
    on_validation = {site: _score(vector.directions[site].double(), validation, i) for i, site in enumerate(sites)}
    best = spec.site or (
        vector.info.add.sites[0] if vector.info.add else max(on_validation, key=on_validation.__getitem__)
    )
    vector.at([best])
    tokens, text = _tokens(model, spec, vector, best, train[1][sites.index(best)].mean(0), behaviour.format)
    result = ReadResult(sites=rows, site=best, tokens=tokens, text=text)
    pairs = test[0].shape[1] * test[1].shape[1]
    verdict = judge(
        log_odds(next(row.vector for row in rows if row.site == best), pairs),
        [log_odds(one, pairs) for one in random[best]],
        direction="greater",
        against="distribution",
        seed=spec.seed,
        claim=f"the projection on the {vector.info.name} vector at {best} tells test prompts apart (log "
        "odds of the AUROC, which ends at 1, at a site chosen on others, against random directions of the activations' "
        "covariance)",
    )
    return result, verdict


def _score(direction_W: Tensor, sides: list[Tensor], site: int) -> float:
    return auroc(*(side[site] @ direction_W for side in sides))


def log_odds(auroc: float, pairs: int) -> float:
    """ln(a / (1 - a)) of an AUROC over so many pairs of prompts, half a pair added on either side so that 1 is finite:
    a scale without ends, on which the spread of controls means something."""
    return math.log((auroc * pairs + 0.5) / ((1 - auroc) * pairs + 0.5))


def _turned(direction_W: Tensor, train: list[Tensor], site: int) -> Tensor:
    return direction_W if _score(direction_W, train, site) >= 0.5 else -direction_W


def _tokens(
    model: Model, spec: ReadSpec, vector: SteeringVector, site: str, center_W: Tensor, format: str
) -> tuple[list[ReadToken], str | None]:
    """The cosine at every token of a prompt and its answer."""
    if spec.prompt is None:
        return [], None
    prompt = as_prompt(model, spec.prompt, format) if isinstance(spec.prompt, str) else spec.prompt
    encoded = model.encode(prompt)
    said = model.generate(prompt, max_new_tokens=spec.max_new_tokens)
    ids = (*encoded.ids, *said.tokens)
    states_TW = model.run(ids, read=str(Site.parse(site).at("all"))).double()
    cosines = torch.cosine_similarity(states_TW - center_W, vector.directions[site].double(), dim=-1)
    pieces = model.encode(ids).pieces
    return [
        ReadToken(token=piece, cosine=float(cosine), answer=i >= len(encoded))
        for i, (piece, cosine) in enumerate(zip(pieces, cosines, strict=True))
    ], said.text
