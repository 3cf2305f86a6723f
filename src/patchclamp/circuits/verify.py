"""A circuit's certificate measured again: every number in it, on the same prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field

from patchclamp.circuits.certificate import Certificate, certify
from patchclamp.circuits.graph import Graph
from patchclamp.circuits.material import runs_of
from patchclamp.circuits.search import holds
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
    tolerance: float = Field(1e-3, gt=0, allow_inf_nan=False)
    """How far a number may be from the certificate's."""


class Checked(Part):
    """One number, as certified and as measured now."""

    name: str
    certified: float
    measured: float


class Verified(Result):
    """The certificate's numbers beside those measured now."""

    holds: bool
    """Whether all of them are as near as the tolerance asks, the circuit keeps its bound, with its roles and units too,
    and all that is said to be minimal is."""
    largest_deviation: float
    minimal: bool
    keeps_bound: bool
    wrong: list[str]
    """What else is not as certified."""
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
                  old.ready(model, old.others) if old.others else [], old.task, old.bound, old.ablation, old.seed,
                  by_role, (old.units.point, old.units.kept()) if old.units else None)
    certified, measured = dict(_leaves(old.model_dump())), dict(_leaves(new.model_dump()))
    wrong = [f"{name}: {certified.get(name)} certified, {measured.get(name)} measured"
             for name in dict.fromkeys([*certified, *measured])
             if not _is_number(certified.get(name)) and certified.get(name) != measured.get(name)]
    numbers = [Checked(name=name, certified=value, measured=measured[name]) for name, value in certified.items()
               if _is_number(value) and _is_number(measured.get(name))]
    gaps = torch.tensor([abs(one.measured - one.certified) for one in numbers])
    parts = [new.search, *(part for part in (new.roles, new.units) if part is not None)]
    keeps = all(holds(part.faithfulness.mean, old.bound) for part in parts)
    result = Verified(holds=bool((gaps <= spec.tolerance).all()) and keeps and not wrong, keeps_bound=keeps,
                      largest_deviation=float(gaps.max()), minimal=new.minimal, wrong=wrong, numbers=numbers)
    verdict = judge(
        gaps, Interval(mean=spec.tolerance, low=spec.tolerance, high=spec.tolerance), direction="less",
        claim=f"the certificate of {old.task} holds (deviation of its {len(numbers)} numbers, against the tolerance)",
        seed=spec.seed)
    if not result.holds:
        also = f"; {len(wrong)} other values are not as certified, the first is {wrong[0]}" if wrong else ""
        verdict = verdict.model_copy(update={
            "outcome": "not supported",
            "reason": f"The largest deviation is {result.largest_deviation:.2g} (tolerance {spec.tolerance:g}), the "
                      f"bound of {old.bound:g} is {'' if keeps else 'not '}kept{also}: that does not support that the "
                      f"certificate of {old.task} holds."})
    return result, verdict


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All values of a certificate by name: edges and units by theirs, whatever their order; None for NaN."""
    if isinstance(value, dict):
        for key, one in value.items():
            if key != "pairs":  # what is asked, not what is found
                yield from _leaves(one, f"{path}, {key}" if path else str(key))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            name = " at ".join(str(one[key]) for key in ("edge", "role", "unit") if key in one) if isinstance(
                one, dict) else str(number)
            yield from _leaves(one, f"{path}, {name}")
    else:
        yield path, None if isinstance(value, float) and math.isnan(value) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, float)
