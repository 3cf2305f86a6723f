"""Choosing, on validation prompts, at which token a vector is found, and then where and how strongly it is used.

Of several tokens that is chosen of which adding the vector, where the search's coarse round likes it best, makes most
plain prompts show the behaviour. (Arditi et al. 2024, arXiv 2406.11717, choose among the tokens after a prompt.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from patchclamp.errors import SpecError
from patchclamp.evidence.method import Part, Progress
from patchclamp.forward import Site
from patchclamp.tasks.behaviour import Behaviour
from patchclamp.vectors.behave import Asking, Case
from patchclamp.vectors.directions import WAYS, held_out_auroc
from patchclamp.vectors.find import found_vector
from patchclamp.vectors.search import ROUNDS, ChoosingSpec, Trial, Tried, choose
from patchclamp.vectors.source import FindingSpec, Source, hashes
from patchclamp.vectors.vector import SteeringVector


class TriedPosition(Part):
    """The vector found at one token, where the coarse round likes it best."""

    position: str
    site: str
    """Several heads together: joined by plus signs."""
    strength: float
    rate: float
    """Share of plain validation prompts that show the behaviour with it added."""


class Choice(NamedTuple):
    """All that was tried."""

    tried: list[Tried]
    positions: list[TriedPosition]


def choose_all(
    vector: SteeringVector,
    asking: Asking,
    behaviour: Behaviour,
    cases: Sequence[Case],
    spec: ChoosingSpec,
    progress: Progress,
) -> tuple[SteeringVector, Choice]:
    """The vector, found at the best of the positions asked for, with its best settings."""
    positions: list[TriedPosition] = []
    if spec.positions:
        candidates = found_at(vector, asking, behaviour, spec.positions, progress)
        vector, positions = best_found(candidates, asking, cases, spec, progress)
    vector, tried = choose(vector, asking, cases, spec, progress)
    return vector, Choice(tried, positions)


def best_found(
    candidates: Sequence[SteeringVector],
    asking: Asking,
    cases: Sequence[Case],
    bounds: ChoosingSpec,
    progress: Progress,
) -> tuple[SteeringVector, list[TriedPosition]]:
    """Of one vector found at several tokens the one that does most when it is added; of equals the first."""
    plain = [case for case in cases if case.kind == "plain"]
    n, tokens = ROUNDS[1]
    trials = [Trial(vector, asking, plain, "add", bounds) for vector in candidates]
    firsts = [trial.first_round(progress)[0] for trial in trials]
    settings = [trial.edits(one) for trial, one in zip(trials, firsts, strict=True)]
    tokens = min(tokens, asking.max_new_tokens)
    rates = asking.rates(plain[:n], settings, tokens, progress, "choosing at which token to find it").mean(1)
    tried = [
        TriedPosition(position=str(vector.info.position), site="+".join(one.sites), strength=one.strength, rate=rate)
        for vector, one, rate in zip(candidates, firsts, rates.tolist(), strict=True)
    ]
    return candidates[int(rates.argmax())], tried


def found_at(
    vector: SteeringVector, asking: Asking, behaviour: Behaviour, positions: Sequence[str], progress: Progress
) -> list[SteeringVector]:
    """The same vector found again at each of these tokens, from those training prompts that it was found with.

    SpecError where these are not among the behaviour's, or nobody knows how it was found."""
    info, training = vector.info, behaviour.train.questions
    known = {asked for asked, mark in zip(training, hashes(training), strict=True) if mark in info.prompts}
    if not known or info.how not in WAYS:
        raise SpecError(
            f"the vector {info.name!r} cannot be found again at other tokens: the prompts and the way it was found "
            "are not known; find it with a behaviour's name or file, or leave out --positions"
        )
    examples = behaviour.train.only(known.__contains__)
    source = Source(info.name, info.format or behaviour.format, None, examples, behaviour, info.behaviour)
    point = Site.parse(next(iter(vector.directions))).point
    found = []
    for position in positions:
        fields = {"source": info.name, "how": info.how, "point": point, "position": position}
        spec = FindingSpec.model_validate(fields)
        again, sides, _ = found_vector(asking.model, source, spec, progress)
        pairs = zip(again.directions, *sides, strict=True)
        found.append(again.with_info(auroc={site: held_out_auroc(spec.how, *pair) for site, *pair in pairs}))
    return found
