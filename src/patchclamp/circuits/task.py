"""A task's pairs of prompts, and whether a model can do it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchclamp.circuits.material import PairsSpec, PromptPair, example_pairs, logit_differences, material
from patchclamp.evidence.bootstrap import bootstrap_mean
from patchclamp.evidence.method import Outcome, Part, Progress, Result, method
from patchclamp.evidence.verdict import Interval, judge
from patchclamp.forward import Model

if TYPE_CHECKING:
    import altair
    import pandas


class SolvedPair(Part):
    """One pair and what the model says to it."""

    pair: PromptPair
    template: str
    """What the pair is made from; empty for a file's."""
    tokens: int
    clean: float
    """Logit difference of answer and distractor on the clean prompt."""
    corrupted: float


class TaskPairs(Result):
    """Pairs, and how many of them the model solves."""

    task: str
    pairs: list[SolvedPair]
    solved: Interval
    """Share of pairs whose answer the model prefers."""
    by_template: dict[str, float]
    skipped: int
    """Pairs whose prompts are not equally long in this model's tokens, or whose answers begin alike."""

    def table(self) -> pandas.DataFrame:
        """One row a pair."""
        import pandas

        return pandas.DataFrame([{**one.pair.model_dump(exclude={"roles"}), "tokens": one.tokens, "m clean": one.clean,
                                  "m corrupted": one.corrupted} for one in self.pairs])

    def chart(self) -> altair.TopLevelMixin:
        """Logit differences of clean and corrupted prompts."""
        from patchclamp.charts.circuits import task_chart

        return task_chart(self)


@method("circuits.task", spec=PairsSpec, result=TaskPairs)
def show_task(model: Model, spec: PairsSpec, progress: Progress) -> Outcome:
    """Make a task's pairs of prompts, check them against the model's tokens, and see how many the model solves.

    The verdict asks whether the model prefers the answer more on the clean prompts than on the corrupted ones.
    """
    found = material(model, spec)
    pairs = [*found.search, *found.heldout, *found.others]
    clean = logit_differences(model, pairs)
    corrupted = logit_differences(model, pairs, corrupted=True)
    rows = [SolvedPair(pair=shown, template=pair.pair.template, tokens=len(pair.clean), clean=a, corrupted=b)
            for pair, shown, a, b in zip(pairs, example_pairs(pairs), clean, corrupted, strict=True)]
    right = [float(m > 0) for m in clean]
    templates = dict.fromkeys(row.template for row in rows)
    by_template = {name: sum(row.clean > 0 for row in rows if row.template == name)
                   / sum(row.template == name for row in rows) for name in templates}
    result = TaskPairs(task=spec.what, pairs=rows, solved=bootstrap_mean(right, spec.seed), by_template=by_template,
                       skipped=found.skipped)
    verdict = judge(clean, corrupted, direction="greater", seed=spec.seed,
                    claim=f"the model does {spec.what} (logit difference of answer and distractor, against the "
                          "corrupted prompts)")
    return result, verdict

