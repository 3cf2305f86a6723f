"""Whether few latents know what a label says, and whether one concept is one latent.

k-sparse probing (Gurnee et al. 2023, arXiv 2305.01610): the k numbers that go most with the label on one half of the
texts, a logistic regression on these, its AUROC on the other half. Beside latents stand the site's own numbers, a
random dictionary's latents, a regression on all of the site's numbers, and the best latent under shuffled labels. A
text's numbers are means over its tokens but the first.

Splitting and absorption (Chanin et al. 2024, arXiv 2409.14507): a concept is split over k latents if each of them
raises F1 by .03. It is absorbed in a text where the regression on all numbers sees it and these latents are silent, but
another latent alone brings .4 of what the probe sees: a general latent has a hole where a special one has taken over.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from patchclamp.errors import FileError
from patchclamp.evidence.association import associate, half_of_each, scores, shuffled
from patchclamp.evidence.bootstrap import control_range
from patchclamp.evidence.method import Part, Progress
from patchclamp.evidence.verdict import Interval
from patchclamp.forward import Model, Plan
from patchclamp.forward.autoencoder import Autoencoder
from patchclamp.tasks.read import read_rows
from patchclamp.tasks.rows import LabelledRow

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

KS = (1, 2, 5, 20)
MOST_LABELS, MOST_TEXTS, FEWEST = 10, 1000, 8
SPLIT_AT, SPLITS = 0.03, 10
ABSORBED, ALONG = 0.4, 0.025
SHUFFLES, ROWS_AT_ONCE = 20, 32


class KProbe(Part):
    """Held-out AUROC with k numbers."""

    k: int
    latents: float
    neurons: float
    """The site's own numbers."""
    random: float
    """Latents of a random dictionary."""


class ProbedLabel(Part):
    """One label against the others."""

    label: str
    texts: int
    """With the label, both halves."""
    best: int
    """The latent that goes most with it."""
    by_k: list[KProbe]
    dense: float
    """Held-out AUROC of all of the site's numbers."""
    shuffled: Interval
    """Held-out AUROC of the best latent under shuffled labels, turned to be at least .5 where it was chosen: mean and
    95 % range."""
    splits: int
    """Latents the concept is split over."""
    missed: float
    """Of the held-out texts in which all of the site's numbers show the label, the share in which these are silent."""
    absorbed: float
    """The share in which, besides, one other latent brings most of it."""


class Probed(Part):
    """One file of labelled texts."""

    source: str
    texts: int
    labels: list[ProbedLabel]


class _Texts(NamedTuple):
    codes: np.ndarray
    """[N, L]."""
    values: np.ndarray
    """[N, D]."""
    random: np.ndarray
    """[N, L]."""


def probe(
    model: Model, source: str, autoencoder: Autoencoder, random: Autoencoder, seed: int, progress: Progress
) -> Probed:
    """Probe every label of a file, at most ten. FileError if it has one label, or one on fewer than eight texts."""
    rows = read_rows(source, LabelledRow)
    chosen = np.random.default_rng(seed).permutation(len(rows))[:MOST_TEXTS]
    texts, labels_N = [rows[i].text for i in chosen], np.array([str(rows[i].label) for i in chosen])
    names, counts = np.unique(labels_N, return_counts=True)
    if len(names) < 2 or counts.min() < FEWEST:
        raise FileError(f"{source}: probing takes two labels or more, each on {FEWEST} texts or more; it has "
                        + ", ".join(f"{name!r} on {count}" for name, count in zip(names[:10], counts, strict=False)))
    data = _read(model, texts, autoencoder, random, progress)
    asked = [str(name) for name in (names[-1:] if len(names) == 2 else names[:MOST_LABELS])]
    return Probed(source=source, texts=len(texts),
                  labels=[_label(name, labels_N == name, data, autoencoder, seed) for name in asked])


@torch.no_grad()
def _read(
    model: Model, texts: Sequence[str], autoencoder: Autoencoder, random: Autoencoder, progress: Progress
) -> _Texts:
    """Means over each text's tokens but the first."""
    site = autoencoder.info.site
    found: tuple[list[np.ndarray], ...] = ([], [], [])
    starts = range(0, len(texts), ROWS_AT_ONCE)
    for first in progress.track(starts, "reading labelled texts", len(starts)):
        some = texts[first : first + ROWS_AT_ONCE]
        for (value_TD,) in model.execute(Plan.of([(text, (), [site]) for text in some])):
            value_TD = value_TD.flatten(1).float().cpu()
            value_TD = value_TD[1:] if len(value_TD) > 1 else value_TD
            means = (autoencoder.encode(value_TD).mean(0), value_TD.mean(0), random.encode(value_TD).mean(0)
                     if random.W_enc.shape[1] == value_TD.shape[1] else torch.zeros(1))
            for held, mean in zip(found, means, strict=True):
                held.append(mean.numpy())
    return _Texts(*(np.stack(held) for held in found))


def _label(name: str, has_N: np.ndarray, data: _Texts, autoencoder: Autoencoder, seed: int) -> ProbedLabel:
    first_N = half_of_each(has_N, (True, False), seed)
    ranked = [_ranking(values_NU, has_N, first_N) for values_NU in data]
    by_k = [KProbe(k=k, **{kind: _auroc(values_NU[:, order[:k]], has_N, first_N) for kind, values_NU, order in
                           zip(("latents", "neurons", "random"), data, ranked, strict=True)})
            for k in KS if k <= len(ranked[0])]
    whole, (scale_D, centre_D) = _fit(data.values, has_N, first_N)
    splits = _splits(data.codes, ranked[0], has_N, first_N)
    missed, absorbed = _absorption(data, ranked[0][:splits], whole, scale_D, centre_D, has_N & ~first_N, autoencoder)
    return ProbedLabel(
        label=name, texts=int(has_N.sum()), best=int(ranked[0][0]), by_k=by_k,
        dense=_auroc(data.values, has_N, first_N), splits=splits, missed=missed, absorbed=absorbed,
        shuffled=control_range(_chance(data.codes, has_N, first_N, seed), share=True),
    )


def _ranking(values_NU: np.ndarray, has_N: np.ndarray, first_N: np.ndarray) -> np.ndarray:
    """Numbers by how far they go with the label on the first half."""
    found_U = associate(scores(values_NU[first_N], "point_biserial"), has_N[None, first_N], "point_biserial")[0]
    return np.argsort(-np.abs(found_U), kind="stable")


def _fit(
    values_NU: np.ndarray, has_N: np.ndarray, first_N: np.ndarray
) -> "tuple[LogisticRegression, tuple[np.ndarray, np.ndarray]]":
    from sklearn.linear_model import LogisticRegression

    centre_U, scale_U = values_NU[first_N].mean(0), values_NU[first_N].std(0) + 1e-8
    fitted = LogisticRegression(C=0.1, max_iter=500, class_weight="balanced")
    return fitted.fit((values_NU[first_N] - centre_U) / scale_U, has_N[first_N]), (scale_U, centre_U)


def _auroc(values_NU: np.ndarray, has_N: np.ndarray, first_N: np.ndarray) -> float:
    fitted, (scale_U, centre_U) = _fit(values_NU, has_N, first_N)
    said_N = fitted.decision_function((values_NU[~first_N] - centre_U) / scale_U)
    return float(associate(scores(said_N[:, None], "auroc"), has_N[None, ~first_N], "auroc")[0, 0])


def _splits(codes_NL: np.ndarray, order: np.ndarray, has_N: np.ndarray, first_N: np.ndarray) -> int:
    """Latents of which each raises the F1 on the other half by `SPLIT_AT`; one at least."""
    from sklearn.metrics import f1_score

    best, last = 1, 0.0
    for k in range(1, min(SPLITS, len(order)) + 1):
        fitted, (scale_U, centre_U) = _fit(codes_NL[:, order[:k]], has_N, first_N)
        said = fitted.predict((codes_NL[~first_N][:, order[:k]] - centre_U) / scale_U)
        now = float(f1_score(has_N[~first_N], said))
        if k > 1 and now - last <= SPLIT_AT:
            break
        best, last = k, now
    return best


def _absorption(
    data: _Texts, own: np.ndarray, whole: "LogisticRegression", scale_D: np.ndarray, centre_D: np.ndarray,
    asked_N: np.ndarray, autoencoder: Autoencoder,
) -> tuple[float, float]:
    """Shares of the asked texts that the whole probe gets right in which the concept's own latents are silent, and in
    which besides another takes their part. What a text's mean is along the probe is a sum over its latents' means."""
    seen_N = asked_N & whole.predict((data.values - centre_D) / scale_D).astype(bool)
    if not seen_N.any():
        return 0.0, 0.0
    probe_D = whole.coef_[0] / scale_D
    directions_LD = autoencoder.directions.float().cpu().numpy()
    if directions_LD.shape[1] != len(probe_D):  # a transcoder's directions are another site's
        return float((data.codes[seen_N][:, own] == 0).all(1).mean()), 0.0
    along_L = directions_LD @ probe_D
    cosine_L = along_L / (np.linalg.norm(directions_LD, axis=1) * np.linalg.norm(probe_D) + 1e-12)
    silent_N = seen_N & (data.codes[:, own] == 0).all(1)
    parts_NL = data.codes[silent_N] * along_L
    gains_N = np.clip(parts_NL, 0, None).sum(1)
    best_N = parts_NL.argmax(1) if len(parts_NL) else np.zeros(0, dtype=int)
    largest_N = parts_NL[np.arange(len(parts_NL)), best_N]
    absorbed_N = (largest_N > ABSORBED * gains_N) & (cosine_L[best_N] > ALONG) & (gains_N > 0)
    return float(silent_N.sum() / seen_N.sum()), float(absorbed_N.sum() / seen_N.sum())


def _chance(codes_NL: np.ndarray, has_N: np.ndarray, first_N: np.ndarray, seed: int) -> list[float]:
    """Held-out AUROC of the best latent, labels shuffled in either half."""
    found = []
    halves = [shuffled(has_N[some], SHUFFLES, seed + number) for number, some in enumerate((first_N, ~first_N))]
    finding_NL, held_NL = scores(codes_NL[first_N], "point_biserial"), scores(codes_NL[~first_N], "auroc")
    for first, second in zip(*halves, strict=True):
        by_L = associate(finding_NL, first[None], "point_biserial")[0]
        best = int(np.abs(by_L).argmax())
        value = float(associate(held_NL[:, [best]], second[None], "auroc")[0, 0])
        found.append(value if by_L[best] > 0 else 1 - value)
    return found
