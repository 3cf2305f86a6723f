"""The linear map of a relation, fitted at every layer: what is fitted, how it is used, and its file.

    z ≈ β · W_l h_l + b_l        W_l = E[∂z/∂h_l],   b_l = E[z] - W_l E[h_l]

h_l is the residual stream at the subject's last token after block l, z the last block's at the end of the prompt,
before the final norm; the means are over the samples it was fitted on (Hernandez et al. 2023, "Linearity of Relation
Decoding in Transformer Language Models", arXiv 2308.09124, equations 3 to 5). Turned round it is an edit (equation 6):

    Δh_l = W⁺_l (z_target - z_source)     W⁺_l of the r largest singular values

Shape suffixes: N samples, L layers (embeddings first, without the last block), D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from patchclamp.errors import FileError, InputError
from patchclamp.evidence.record import write_whole
from patchclamp.forward import Model

METADATA = "patchclamp.relation"
FILE = "relation.safetensors"


class RelationInfo(BaseModel):
    """What a fitted relation says of itself."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    name: str
    """The relation."""
    model: str
    """The model it was fitted in."""
    weights: str
    """Hash of that model's weights."""
    template: str
    """The prompt it was fitted on."""
    fitted: tuple[tuple[str, str], ...]
    """Subject and object of the samples it was fitted on."""
    examples: tuple[tuple[str, str], ...]
    """Subject and object of the samples told before a prompt."""
    question: str
    """Hash of the weights, the prompt and the samples that decide it."""


@dataclass(frozen=True, eq=False)
class LinearRelation:
    """The maps of all layers but the last."""

    info: RelationInfo
    weight: Tensor
    """W_l, [L, D, D]; rows are outputs."""
    subject_mean: Tensor
    """E[h_l], [L, D]."""
    object_mean: Tensor
    """E[z], [D]."""
    path: str | None = None
    """The folder that holds it, if one does."""
    _svd: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def bias(self, layer: int) -> Tensor:
        """b_l, [D]; `layer` is -1 for the embeddings, else a block."""
        return self.object_mean - self.weight[layer + 1] @ self.subject_mean[layer + 1]

    def objects(self, h_ND: Tensor, layer: int, beta: float = 1.0) -> Tensor:
        """What the map makes of subjects' streams [..., D] after block `layer` (-1: the embeddings): z [..., D]."""
        return beta * (h_ND @ self.weight[layer + 1].T) + self.bias(layer)

    def change(self, dz_ND: Tensor, layer: int, rank: int) -> Tensor:
        """What to add to a subject's stream after block `layer` for the object's to change by `dz_ND` [..., D]."""
        if layer not in self._svd:
            self._svd[layer] = torch.linalg.svd(self.weight[layer + 1].double(), full_matrices=False)
        u_DR, s_R, vh_RD = self._svd[layer]
        kept = min(rank, int((s_R > s_R[0] * 1e-6).sum()))
        return ((dz_ND.double() @ u_DR[:, :kept] / s_R[:kept]) @ vh_RD[:kept]).float()

    def save(self, folder: str | Path) -> Path:
        """Write `relation.safetensors` in a folder, whole or not at all. StoreError if it cannot."""
        from safetensors.torch import save

        tensors = {"weight": self.weight.contiguous(), "subject_mean": self.subject_mean.contiguous(),
                   "object_mean": self.object_mean.contiguous()}
        place = Path(folder).expanduser()
        write_whole(place / FILE, save(tensors, {METADATA: self.info.model_dump_json()}))
        return place


def load_relation(folder: str | Path, model: Model) -> LinearRelation:
    """The fitted relation in a folder. FileError if there is none or it is damaged, InputError if it was fitted in
    another model."""
    from safetensors import SafetensorError, safe_open

    path = Path(folder).expanduser() / FILE
    if not path.is_file():
        raise FileError(f"{folder} holds no fitted relation: there is no {FILE}; `patchclamp relations fit` makes one")
    try:
        with safe_open(path, "pt") as file:
            info = RelationInfo.model_validate_json((file.metadata() or {}).get(METADATA, ""))
            weight, mean, end = (file.get_tensor(name) for name in ("weight", "subject_mean", "object_mean"))
    except (SafetensorError, ValidationError, OSError) as error:
        raise FileError(f"{path} is no fitted relation: {str(error).strip().splitlines()[0]}; fit it again") from error
    if info.weights != model.weights_hash:
        raise InputError(f"{path} was fitted in {info.model} (weights {info.weights[:12]}), not in {model.name} "
                         f"({model.weights_hash[:12]}); load that model, or fit the relation in this one")
    shape = (model.n_layers, model.d_model)
    if weight.shape != (*shape, model.d_model) or mean.shape != shape or end.shape != shape[1:]:
        raise FileError(f"{path}: the maps have not the shape of {model.name}'s layers; fit the relation again")
    if not all(bool(one.isfinite().all()) for one in (weight, mean, end)):
        raise FileError(f"{path} holds NaN or infinity; fit the relation again")
    return LinearRelation(info, weight, mean, end, str(path.parent))
