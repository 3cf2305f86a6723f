"""Back-patching: a later state of a run is copied to an earlier layer of the same token, and the run goes on.

    run again with resid_t*(token) := resid_s*(token) of the first run,   s > t

Biran et al. 2024, "Hopping Too Late", arXiv 2406.12775, section 5: a second hop that starts where the first one ended
has blocks left to finish in. Copying adds nothing that the model did not know, but it gives as many tries as there are
pairs of layers: a random vector of the same length at the same place shows what tries alone are worth.

Shape suffixes: N questions, P pairs of layers, L layers, D width, K controls.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from patchclamp.evidence.bootstrap import control_range, mean_if_any
from patchclamp.evidence.method import Part, Progress
from patchclamp.evidence.verdict import NO_INTERVAL, Interval, Verdict, judge
from patchclamp.forward import Edit, Model, Plan, Readout

QUESTIONS_AT_ONCE = 8

Pair = tuple[int, int]
"""(source block, target block): the state after the first is put in after the second."""


class PairCell(Part):
    """One pair of layers, on the test questions."""

    source_layer: int
    target_layer: int
    repaired: float | None
    """Share of wrong answers that became right; null if there was none."""
    kept: float | None
    """Share of right answers that stayed right."""


class Backpatch(Part):
    """What copying back does, on questions that had no part in choosing the pair."""

    source_layer: int
    target_layer: int
    development: int
    """Questions the pair was chosen on."""
    wrong: int
    """Test questions answered wrong in the first run."""
    right: int
    repaired: Interval
    """Share of wrong answers that became right."""
    kept: Interval
    """Share of right answers that stayed right."""
    random_repaired: Interval
    """The same for random vectors in the copied state's place: mean and 95 % range."""
    random_kept: Interval
    best_repaired: Interval
    """Share of wrong answers that at least one pair of layers repairs: a pair chosen knowing the answer."""
    best_random: Interval
    """The same with one random vector for every pair: what so many tries are worth."""
    pairs: list[PairCell]


class Asked(NamedTuple):
    """A prompt, the token whose state is moved, and the token that answers it."""

    prompt: Any
    at: int
    answer: int
    right: bool
    """Whether the first run answered it."""
    stream: Tensor
    """The residual stream at that token in the first run, embeddings first, [L,D]."""


def pairs_of(n_layers: int, step: int = 1) -> list[Pair]:
    """Every block with every earlier one; of every `step` blocks only the last."""
    blocks = range((n_layers - 1) % step, n_layers, step)
    return [(source, target) for source in blocks for target in blocks if target < source]


def copied(asked: Asked, pair: Pair) -> Tensor:
    """The state that back-patching puts in."""
    return asked.stream[pair[0] + 1]


def random_instead(seed: int) -> Callable[[Asked, Pair], Tensor]:
    """In the copied state's place a random vector of its length."""
    generator = torch.Generator().manual_seed(seed)

    def draw(asked: Asked, pair: Pair) -> Tensor:
        state_D = copied(asked, pair)
        noise_D = torch.randn(state_D.shape, generator=generator).to(state_D)
        return noise_D * (state_D.norm() / noise_D.norm())

    return draw


def answers_after(
    model: Model, questions: Sequence[Asked], pairs: Sequence[Pair], value: Callable[[Asked, Pair], Tensor] = copied,
    progress: Progress | None = None,
) -> np.ndarray:
    """Whether the answer is the first choice once `value` stands after the pair's target block, [N,P]."""
    starts: Any = range(0, len(questions), QUESTIONS_AT_ONCE)
    found: list[bool] = []
    for first in progress.track(starts, "back-patching", len(starts)) if progress else starts:
        plan = Plan.of([
            (one.prompt, [Edit.set(f"resid.{pair[1]}@{one.at}", value(one, pair))], [Readout.rank(one.answer)])
            for one in questions[first : first + QUESTIONS_AT_ONCE] for pair in pairs
        ])
        found += [int(rank) == 0 for (rank,) in model.execute(plan)]
    return np.array(found, dtype=bool).reshape(len(questions), len(pairs))


def best_pair(pairs: Sequence[Pair], right_NP: np.ndarray) -> Pair:
    """The pair after which most questions are answered right; of several the one that moves the state least."""
    counts = right_NP.sum(0)
    return max(zip(pairs, counts, strict=True), key=lambda each: (each[1], each[0][1] - each[0][0]))[0]


def move_back(
    model: Model, pairs: Sequence[Pair], development: Sequence[Asked], test: Sequence[Asked], controls: int, seed: int,
    progress: Progress,
) -> tuple[Backpatch, Verdict | None]:
    """Choose a pair of layers on one set of questions and judge it on another; no verdict without a wrong answer."""
    chosen = best_pair(pairs, answers_after(model, development, pairs, progress=progress))
    sets = [[one for one in test if one.right is right] for right in (False, True)]
    after = [answers_after(model, some, pairs, progress=progress) for some in sets]
    wrong, right = sets
    repaired_N, kept_N = (found_NP[:, pairs.index(chosen)] for found_NP in after)
    noise = random_instead(seed)
    repaired_KN, kept_KN = (
        answers_after(model, some * controls, [chosen], noise).reshape(controls, len(some)) for some in sets)
    best_random_NP = answers_after(model, wrong, pairs, noise, progress)
    shares = [shares_of(found_NP) for found_NP in after]
    result = Backpatch(
        source_layer=chosen[0], target_layer=chosen[1], development=len(development), wrong=len(wrong),
        right=len(right), repaired=mean_if_any(repaired_N, seed), kept=mean_if_any(kept_N, seed),
        random_repaired=_range(repaired_KN), random_kept=_range(kept_KN),
        best_repaired=mean_if_any(np.any(after[0], axis=1), seed),
        best_random=mean_if_any(np.any(best_random_NP, axis=1), seed),
        pairs=[PairCell(source_layer=source, target_layer=target, repaired=repaired, kept=kept)
               for (source, target), repaired, kept in zip(pairs, *shares, strict=True)],
    )
    if not wrong:
        return result, None
    verdict = judge(
        repaired_N.astype(float), repaired_KN.astype(float), direction="greater", against="distribution", share=True,
        seed=seed,
        claim=f"copying the state after block {chosen[0]} back to block {chosen[1]} repairs wrong answers (the pair "
              f"was chosen on {len(development)} other questions; share of {len(wrong)} wrong ones, against random "
              "vectors of the same length in the same place)",
    )
    return result, verdict


def shares_of(found_NP: np.ndarray) -> list[Any]:
    """The share of questions in each column; None each where there is no question."""
    return found_NP.mean(0).tolist() if len(found_NP) else [None] * found_NP.shape[1]


def _range(found_KN: np.ndarray) -> Interval:
    return control_range(found_KN.mean(1), share=True) if found_KN.size else NO_INTERVAL
