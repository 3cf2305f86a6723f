"""An affine map from the states of every layer to those of one: a state put in at another depth speaks its language.

    h' = h + A_l h + b_l   minimises   E|h_target - h'|²   over the tokens of a corpus

Ghandeharioun et al. 2024, arXiv 2401.06102, section 3 (the map f of a Patchscope); Yom Din et al. 2023, arXiv
2303.09435. Ridge regression as in `regress`, towards h' = h.
"""

import torch
from torch import Tensor

from patchclamp.corpus.pack import need_sequences, pack
from patchclamp.errors import SpecError
from patchclamp.evidence.method import Progress
from patchclamp.forward import Model
from patchclamp.lenses.corpus import SEQUENCES_AT_ONCE, read_places
from patchclamp.lenses.regress import Regression, Start

LENGTH = 64
MOST_SEQUENCES = 256
FEWEST_SEQUENCES = 16


def fit_maps(model: Model, corpus: str, target_layer: int | None, progress: Progress) -> Start:
    """The maps from the stream after every block to that after `target_layer`. SpecError without a target layer,
    FileError for too little text."""
    if target_layer is None:
        raise SpecError("an affine map leads from every layer to one: name the target layer as well")
    sequences = pack(model, corpus, LENGTH, MOST_SEQUENCES)
    need_sequences(len(sequences), FEWEST_SEQUENCES, LENGTH, corpus, "an affine map is fitted on them")
    regression = Regression()
    starts = range(0, len(sequences), SEQUENCES_AT_ONCE)
    for first in progress.track(starts, "fitting affine maps", len(starts)):
        some = sequences[first : first + SEQUENCES_AT_ONCE]
        places_NSD = read_places(model, some, [range(1, LENGTH)] * len(some))
        regression.add(torch.cat([places_NSD[:, 1:], places_NSD[:, target_layer + 1, None]], dim=1))
    return regression.solve()


def mapped(maps: Start, layer: int, state_D: Tensor) -> Tensor:
    """A state taken after block `layer`, in the target layer's terms."""
    return state_D + (maps.weight[layer] @ state_D.float() + maps.bias[layer]).to(state_D)
