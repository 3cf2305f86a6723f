"""The strongest neuron of many: found with one half of the prompts, tried on the other half.

Shape suffixes: N prompts, U neurons, P labellings, S searches.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from patchclamp.evidence.association import Association, associate, scores, strength

TIE = 1e-6
"""Weight of what decides between equals: less than one pair counts in the AUROC of a thousand prompts a side."""


class Search:
    """Every neuron's activations, at one choice of tokens, ready to be set against labels."""

    def __init__(self, values_NU: np.ndarray, first_N: np.ndarray, by: Association) -> None:
        self.by, self.first_N, self.values_NU = by, first_N, values_NU
        self.finding_NU = scores(values_NU[first_N], by)
        self.correlation_NU = scores(values_NU[first_N], "point_biserial")
        self.heldout_NU = scores(values_NU[~first_N], "auroc")
        self.constant = int((np.ptp(values_NU, axis=0) == 0).sum())

    def found(self, labels_PN: np.ndarray) -> np.ndarray:
        """Every neuron's association with each labelling on the finding half, [P, U]."""
        return associate(self.finding_NU, labels_PN[:, self.first_N], self.by)

    def order(self, labels_N: np.ndarray) -> np.ndarray:
        """What the strongest neuron has the most of, [U]: strength of the association, of equals that of the
        correlation, since many neurons tell few prompts apart without a fault."""
        first_N = labels_N[None, self.first_N]
        finer_U = strength(associate(self.correlation_NU, first_N, "point_biserial")[0], "point_biserial")
        return strength(self.found(labels_N[None])[0], self.by) + TIE * finer_U

    def measure(self, labels_N: np.ndarray, units: Sequence[int], by: Association) -> np.ndarray:
        """Some neurons' association on the finding half by another measure, [units]."""
        return associate(scores(self.values_NU[self.first_N][:, list(units)], by), labels_N[None, self.first_N], by)[0]

    def heldout(self, labels_N: np.ndarray, units: Sequence[int]) -> np.ndarray:
        """Some neurons' AUROC on the other half, [units]."""
        return associate(self.heldout_NU[:, list(units)], labels_N[None, ~self.first_N], "auroc")[0]


class Best(NamedTuple):
    """The strongest neuron of several searches."""

    search: int
    unit: int
    association: float
    heldout: float
    """Its AUROC on the other half, turned round if the association is below chance."""


def best_of(searches: Sequence[Search], labels_N: np.ndarray) -> Best:
    """The whole search with one labelling."""
    by = searches[0].by
    order_SU = np.stack([search.order(labels_N) for search in searches])
    at, unit = divmod(int(order_SU.argmax()), order_SU.shape[1])
    association = float(searches[at].measure(labels_N, [unit], by)[0])
    heldout = float(searches[at].heldout(labels_N, [unit])[0])
    is_below = association < (0.5 if by == "auroc" else 0)
    return Best(at, unit, association, 1 - heldout if is_below else heldout)
