"""Information flow: which tokens the answer is read from, and in which blocks.

Attention to the tokens of one role is blocked in a window of blocks, the weights left over rescaled (attention
knockout: Geva et al. 2023, arXiv 2304.14767; Stolfo et al. 2023, arXiv 2305.15054).

    effect = (p_blocked - p) / p        p: probability of the answer

-1: without those links the answer is gone; 0: they do not matter. As many tokens drawn at random among those without a
role are blocked beside. The window is chosen on some prompts, the verdict is about others.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydantic import Field

from patchclamp.circuits.material import (
    FEWEST,
    LAST,
    REST,
    ReadyPair,
    TaskSpec,
    logit_differences,
    material,
    require_preferred,
)
from patchclamp.errors import SpecError
from patchclamp.evidence.bootstrap import bootstrap_mean
from patchclamp.evidence.method import Outcome, Part, Progress, Result, method
from patchclamp.evidence.verdict import Interval, judge
from patchclamp.forward import Edit, Model, Plan, Readout

if TYPE_CHECKING:
    import altair
    import pandas

RANDOM, FIRST = "random words", "first token"


class FlowSpec(TaskSpec):
    """Between which tokens, and in how many blocks at once."""

    to: str = LAST
    """Whose attention is blocked: the last token's, or that of a role of the task, e.g. S2."""
    window: int = Field(5, ge=1)
    """Blocks in which attention is blocked at once; a narrow window is bridged by the blocks beside it."""
    controls: int = Field(6, ge=2)
    """Draws of random tokens that the verdict compares with."""


class FlowPoint(Part):
    """Attention to one role blocked in one window."""

    layer: int
    """The window's middle."""
    effect: Interval
    """Relative change of the answer's probability, over prompts."""


class RoleFlow(Part):
    """One role."""

    role: str
    words: str
    """Its tokens in the first prompt."""
    peak: int
    """The window whose blocking costs most, by its middle."""
    points: list[FlowPoint]


class Flow(Result):
    """What blocking attention to each role costs, block by block."""

    to: str
    window: int
    probability: float
    """Mean probability of the answer, nothing blocked."""
    roles: list[RoleFlow]
    prompts: int

    def table(self) -> pandas.DataFrame:
        """One row a role and window."""
        import pandas

        return pandas.DataFrame([{"role": one.role, "block": point.layer, "effect": point.effect.mean,
                                  "low": point.effect.low, "high": point.effect.high}
                                 for one in self.roles for point in one.points])

    def chart(self) -> altair.TopLevelMixin:
        """Loss of probability by block, a line a role."""
        from patchclamp.charts.circuits import flow_chart

        return flow_chart(self)


class _Prompt(NamedTuple):
    """One prompt with the tokens of its roles."""

    ids: tuple[int, ...]
    answer: int
    roles: dict[str, tuple[int, ...]]


@method("circuits.flow", spec=FlowSpec, result=Flow)
def flow(model: Model, spec: FlowSpec, progress: Progress) -> Outcome:
    """Block attention to the tokens of each role, block after block, and see when the answer is lost.

    The verdict is about the role whose blocking costs most, the rest left aside: does it cost more, on prompts that the
    window was not chosen on, than blocking as many random tokens of the rest does? No verdict where the rest has fewer.
    """
    found = material(model, spec)
    require_preferred(logit_differences(model, found.search), spec)
    looked, tested = ([_prompt(pair) for pair in pairs] for pairs in (found.search, found.heldout))
    names = list(dict.fromkeys(name for prompt in looked for name in prompt.roles))
    if spec.to != LAST and spec.to not in names:
        raise SpecError(f"there is no role {spec.to!r}; there are {', '.join(names)} and {LAST}")
    read = [name for name in names if name not in (FIRST, spec.to)]
    before = np.array(_probabilities(model, looked, [() for _ in looked]))
    if not set(read) - {REST}:
        raise SpecError(f"{spec.what} has no other role than {spec.to!r} whose words could be hidden from it")
    window = min(spec.window, model.n_layers)
    layers = range(window // 2, window // 2 + model.n_layers - window + 1)  # the middles of whole windows
    rng = random.Random(spec.seed)
    roles = []
    for name in progress.track([*read, RANDOM, FIRST], "blocking attention", len(read) + 2):
        effects_LB = np.stack([_effects(model, looked, before, name, layer, spec, rng) for layer in layers])
        points = [FlowPoint(layer=layer, effect=bootstrap_mean(effects_B, spec.seed))
                  for layer, effects_B in zip(layers, effects_LB, strict=True)]
        shown = model.decode([looked[0].ids[t] for t in _tokens(looked[0], name, read, rng)])
        roles.append(RoleFlow(role=name, words=shown, peak=layers[int(effects_LB.mean(1).argmin())], points=points))
    result = Flow(to=spec.to, window=window, probability=float(before.mean()), roles=roles, prompts=len(looked))
    named = [one for one in roles if one.role in read and one.role != REST]  # random words are drawn from the rest
    best = min(named, key=lambda one: min(point.effect.mean for point in one.points))
    tested = [prompt for prompt in tested if 0 < len(prompt.roles.get(best.role, ())) <= len(prompt.roles[REST])]
    if len(tested) < FEWEST:  # too few other words to block as many
        return result, None
    without = np.array(_probabilities(model, tested, [() for _ in tested]))
    effect = _effects(model, tested, without, best.role, best.peak, spec, rng)
    control = [_effects(model, tested, without, RANDOM, best.peak, spec, rng, best.role) for _ in range(spec.controls)]
    verdict = judge(
        effect, np.stack(control), direction="less", against="distribution", seed=spec.seed,
        claim=f"the answer is read from {best.role} around block {best.peak} (relative change of its probability when "
              f"attention from {spec.to} is blocked in {spec.window} blocks, against as many random words)")
    return result, verdict


def _prompt(pair: ReadyPair) -> _Prompt:
    """A pair's clean prompt; what has no role is the rest, but for the first token, where attention rests, and the
    last."""
    n, roles = len(pair.clean), dict(pair.roles)
    taken = {0, n - 1, *(t for tokens in roles.values() for t in tokens)}
    return _Prompt(pair.clean, pair.choice[0], {**roles, REST: tuple(sorted(set(range(n)) - taken)), FIRST: (0,)})


def _tokens(prompt: _Prompt, name: str, read: Sequence[str], rng: random.Random) -> tuple[int, ...]:
    """The tokens of a role; for `RANDOM` as many without a role as the first of `read` has."""
    if name != RANDOM:
        return prompt.roles.get(name, ())
    rest = prompt.roles[REST]
    return tuple(sorted(rng.sample(rest, min(len(rest), len(prompt.roles.get(read[0], (0,)))))))


def _effects(
    model: Model, prompts: Sequence[_Prompt], before_B: np.ndarray, name: str, layer: int, spec: FlowSpec,
    rng: random.Random, like: str | None = None,
) -> np.ndarray:
    """Relative change of each prompt's probability with attention to a role blocked in one window, [B]."""
    width = min(spec.window, model.n_layers)
    window = range(layer - width // 2, layer - width // 2 + width)
    read = [like] if like else [next(n for n in prompts[0].roles if n not in (FIRST, REST))]
    edits = []
    for prompt in prompts:
        readers = _runs((len(prompt.ids) - 1,) if spec.to == LAST else prompt.roles[spec.to])
        keys = _tokens(prompt, name, read, rng)
        edits.append([Edit.block(f"pattern.{block}@{reader}", key) for block in window for reader in readers
                      for key in _runs(_before(keys, reader))])
    after = np.array(_probabilities(model, prompts, edits))
    return (after - before_B) / before_B


def _before(keys: Sequence[int], reader: str) -> tuple[int, ...]:
    """The keys that the reading tokens see, less those tokens themselves."""
    first = int(reader.split(":")[0])
    return tuple(t for t in keys if t < first)


def _runs(tokens: Sequence[int]) -> list[str]:
    """Neighbouring tokens as slices."""
    found: list[list[int]] = []
    for token in tokens:
        if found and token == found[-1][1]:
            found[-1][1] += 1
        else:
            found.append([token, token + 1])
    return [f"{first}:{behind}" for first, behind in found]


def _probabilities(model: Model, prompts: Sequence[_Prompt], edits: Sequence[Sequence[Edit]]) -> list[float]:
    plan = Plan.of([(prompt.ids, own, [Readout.probability(prompt.answer)])
                    for prompt, own in zip(prompts, edits, strict=True)])
    return [float(value[0]) for value in model.execute(plan)]
