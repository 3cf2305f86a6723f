"""A tiny method and a stand-in for a model, for tests of records and the store."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from pydantic import Field

import patchclamp.evidence.method as method_module
from patchclamp.evidence.method import Method, Result, Spec, method
from patchclamp.evidence.verdict import judge


class SumSpec(Spec):
    words: list[str] = Field(["one", "two"])
    """Words to measure."""


class SumResult(Result):
    words: list[str]
    """The words."""
    lengths: list[float]
    """Their measures; NaN for an empty word, infinity for "boundless"."""
    comment: float | None = None
    """A number that may be missing."""

    def table(self):
        import pandas

        return pandas.DataFrame({"word": self.words, "length": self.lengths})

    def chart(self):
        import altair

        return altair.Chart(self.table()).mark_bar().encode(x="word", y="length")


class BareResult(Result):
    number: float
    """One number, without table or chart."""


@pytest.fixture
def measure(monkeypatch) -> Method:
    """The only registered method: the lengths of words, times the model's `factor`."""
    monkeypatch.setattr(method_module, "BUILT_IN", ())
    monkeypatch.setattr(method_module, "ENTRY_POINT_GROUP", "patchclamp.none")
    monkeypatch.setattr(method_module, "_registry", {})

    @method("test.sum", spec=SumSpec, result=SumResult)
    def run(model, spec, progress):
        """Measure words."""
        special = {"": math.nan, "boundless": math.inf}
        lengths = [
            special.get(word, model.factor * len(word)) for word in progress.track(spec.words, "measuring")
        ]
        finite = [length for length in lengths if math.isfinite(length)]
        verdict = judge(finite, [0.0] * 6, claim="words are long", seed=spec.seed) if finite else None
        return SumResult(words=spec.words, lengths=lengths), verdict

    return run


@pytest.fixture
def bare(measure) -> Method:
    """A method whose result has neither table nor chart."""

    @method("test.bare", spec=Spec, result=BareResult)
    def run(model, spec, progress):
        """One number."""
        return BareResult(number=model.factor), None

    return run


@pytest.fixture
def model() -> SimpleNamespace:
    """What provenance asks of a model, and the one number the method above uses."""
    return SimpleNamespace(
        ref="some/model",
        name="model",
        revision=None,
        weights_hash="f" * 16,
        dtype=torch.float32,
        device=torch.device("cpu"),
        factor=0.1,
    )
