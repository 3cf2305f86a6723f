"""A circuit's certificate measured again: every number in it, on the same prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field

from patchclamp.circuits.certificate import Certificate, certify
from patchclamp.circuits.graph import Graph
from patchclamp.circuits.material import runs_of
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, Spec, method
from patchclamp.evidence.verdict import Interval, judge
from patchclamp.forward import Model
from patchclamp.tasks.files import DataFile

if TYPE_CHECKING:
    import altair
    import pandas


class VerifySpec(Spec):
    """Which certificate."""

    certificate: Annotated[DataFile, Positional()]
    """A certificate's file, or the folder that circuits find wrote it in."""
    tolerance: float = Field(1e-3, gt=0)
    """How far a number may be from the certificate's."""


class Checked(Part):
    """One number, as certified and as measured now."""

    name: str
    certified: float
    measured: float


class Verified(Result):
    """The certificate's numbers beside those measured now."""

    holds: bool
    """Whether all of them are as near as the tolerance asks, and the circuit keeps its bound and is minimal if the
    certificate says so."""
    largest_deviation: float
    minimal: bool
    numbers: list[Checked]

    def table(self) -> pandas.DataFrame:
        """One row a number."""
        import pandas

        rows = [{**one.model_dump(), "deviation": one.measured - one.certified} for one in self.numbers]
        return pandas.DataFrame(rows)

    def chart(self) -> altair.TopLevelMixin:
        """Certified against measured."""
        from patchclamp.charts.circuits import verified_chart

        return verified_chart(self)


@method("circuits.verify", spec=VerifySpec, result=Verified)
def verify_circuit(model: Model, spec: VerifySpec, progress: Progress) -> Outcome:
    """Measure a circuit's certificate again on its own prompts.

    The verdict asks whether every number comes out as certified.
    """
    old = Certificate.load(spec.certificate)
    old.require(model)
    graph = Graph.of(model.anatomy, old.grouped)
    search = old.ready(model, old.search)
    by_role = (old.roles.names, old.roles.kept(graph)) if old.roles else None
    runs = runs_of(model, graph, search, old.ablation, by_role and by_role[0])
    new = certify(model, old.kept(graph), (search, runs), old.ready(model, old.heldout),
                  old.ready(model, old.others) if old.others else [], old.task, old.bound, old.ablation, spec.seed,
                  by_role, (old.units.point, old.units.kept()) if old.units else None)
    numbers = [Checked(name=name, certified=a, measured=b) for (name, a), (_, b) in
               zip(_numbers(old), _numbers(new), strict=True)]
    gaps = torch.tensor([abs(one.measured - one.certified) for one in numbers])
    result = Verified(holds=bool((gaps <= spec.tolerance).all()) and new.minimal == old.minimal,
                      largest_deviation=float(gaps.max()), minimal=new.minimal, numbers=numbers)
    verdict = judge(
        gaps, Interval(mean=spec.tolerance, low=spec.tolerance, high=spec.tolerance), direction="less",
        claim=f"the certificate of {old.task} holds (deviation of its {len(numbers)} numbers, against the tolerance)",
        seed=spec.seed)
    if not result.holds:
        verdict = verdict.model_copy(update={
            "outcome": "not supported",
            "reason": f"The largest deviation is {result.largest_deviation:.2g} (tolerance {spec.tolerance:g}) and the "
                      f"circuit is {'' if new.minimal else 'not '}minimal, which does not support that the "
                      f"certificate of {old.task} holds."})
    return result, verdict


def _numbers(of: Certificate) -> list[tuple[str, float]]:
    sets = [("search", of.search), ("held-out", of.heldout), *([("other templates", of.others)] if of.others else [])]
    return [
        *((f"{name}, {what}", value) for name, one in sets for what, value in (
            ("logit difference", one.full), ("corrupted", one.corrupted), ("faithfulness", one.faithfulness.mean))),
        ("completeness", of.completeness),
        *((f"{one.edge}, loss", one.effect.mean) for one in of.edges),
        *((f"{one.edge}, loss on held-out prompts", one.heldout.mean) for one in of.edges),
        *((f"{one.unit}, loss", one.effect.mean) for one in (of.units.units if of.units else ())),
        *((f"{one.edge} at {one.role}, loss", one.effect.mean) for one in (of.roles.edges if of.roles else ())),
    ]
