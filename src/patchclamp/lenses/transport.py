"""Affine transports: each layer's residual stream mapped into the basis of the last one, and read there.

    h  ->  h + A_l h + b_l        then the model's own final norm and unembedding

One map a layer l: -1 for the embeddings entering block 0, then the stream after blocks 0 to n-2; the last stream
stays as it is. A tuned lens (Belrose et al. 2023, arXiv 2303.08112) is such a transport, trained; so is a Jacobian
lens (A_l = J_l - I), measured; all zeros are the logit lens. A folder holds one:

    config.json           whose it is and how it was made: `TransportConfig`
    params.safetensors    `0.weight` [D, D], `0.bias` [D] for the embeddings, `1.…` after block 0, and so on

Names and meaning are those of the tuned-lens project (version 0.2.0), whose translator i reads `hidden_states[i]`
and is added to it; that project keeps the same tensors in `params.pt`, which is read as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from patchclamp.errors import FileError, InputError
from patchclamp.evidence.record import write_whole
from patchclamp.forward import Model
from patchclamp.forward.streams import Decode

CONFIG, PARAMS, PICKLED = "config.json", "params.safetensors", "params.pt"
COMMIT_LENGTH = 40
"""Hexadecimal digits of a full commit: only two of those can be compared, a branch's name says nothing."""


class TransportConfig(BaseModel):
    """Whose transport it is; the tuned-lens project's keys, and below them our own."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)

    base_model_name_or_path: str
    """The model it was made for."""
    base_model_revision: str | None = None
    """That model's commit or package."""
    d_model: int = Field(ge=1)
    """Width of the residual stream."""
    num_hidden_layers: int = Field(ge=1)
    """Number of blocks."""
    bias: bool = True
    """Whether the maps have a constant."""
    unembed_hash: str | None = None
    """The tuned-lens project's hash of the unembedding, in the lenses it wrote."""
    lens_type: Literal["linear_tuned_lens", "jacobian_lens"] = "linear_tuned_lens"
    """How the maps were found: trained, or measured as average Jacobians."""
    weights_hash: str | None = None
    """Hash of the weights it was made for, in the lenses we wrote."""
    settings: dict[str, Any] = {}
    """The spec it was made with."""
    held_out: dict[str, list[float]] = {}
    """Mean KL to the final layer on held-out text, nats, by lens: one value a layer, from the embeddings."""
    training: list[float] = []
    """For a trained lens KL of each step, mean over layers."""

    @classmethod
    def of(
        cls, model: Model, lens_type: str, settings: dict[str, Any], training: Sequence[float] = ()
    ) -> "TransportConfig":
        """The config of a transport made now for `model`."""
        return cls.model_validate({
            "base_model_name_or_path": model.name, "base_model_revision": model.revision, "d_model": model.d_model,
            "num_hidden_layers": model.n_layers, "lens_type": lens_type, "weights_hash": model.weights_hash,
            "settings": settings, "training": list(training),
        })


@dataclass(frozen=True, eq=False)
class Transport:
    """The maps of all layers but the last: L = n_layers of them, the first for the embeddings."""

    config: TransportConfig
    weight: Tensor
    """A_l of every layer, [L, D, D]; rows are outputs: (A h)_i = Σ_j A[i, j] h_j."""
    bias: Tensor
    """b_l of every layer, [L, D]."""

    @classmethod
    def identity(cls, model: Model) -> "Transport":
        """All maps zero: the logit lens."""
        shape = (model.n_layers, model.d_model, model.d_model)
        config = TransportConfig.of(model, "linear_tuned_lens", {})
        return cls(config, torch.zeros(shape), torch.zeros(shape[:2]))

    def __call__(self, places_NSD: Tensor) -> Tensor:
        """Every layer's stream in the last one's basis: [..., layers + 1, D] -> the same, embeddings first.

        Computed in the maps' float type or the streams', whichever is wider; the last layer is returned as given.
        """
        early_NLD = places_NSD[..., :-1, :]
        dtype = torch.promote_types(early_NLD.dtype, self.weight.dtype)
        weight_LDD = self.weight.to(early_NLD.device, dtype)
        bias_LD = self.bias.to(early_NLD.device, dtype)
        change_NLD = torch.einsum("lij,...lj->...li", weight_LDD, early_NLD.to(dtype)) + bias_LD
        return torch.cat([(early_NLD + change_NLD).to(places_NSD.dtype), places_NSD[..., -1:, :]], dim=-2)

    def logits(self, model: Model) -> Decode:
        """What the lens says: streams [..., layers + 1, D] -> logits [..., layers + 1, V]."""
        return lambda places_NSD: model.anatomy.unembed(self(places_NSD))

    def save(self, folder: str | Path) -> Path:
        """Write the folder, the config last, so that a folder with a config is whole. StoreError if it cannot."""
        from safetensors.torch import save

        place = Path(folder).expanduser()
        tensors = {f"{layer}.{name}": tensor.contiguous() for layer in range(len(self.bias))
                   for name, tensor in (("weight", self.weight[layer]), ("bias", self.bias[layer]))}
        write_whole(place / PARAMS, save(tensors))
        write_whole(place / CONFIG, self.config.model_dump_json(indent=1).encode() + b"\n")
        return place


def load_transport(folder: str | Path, model: Model) -> Transport:
    """The transport in `folder`, ours or the tuned-lens project's, after checking that it is `model`'s.

    Raises FileError if the folder holds none or a damaged one; InputError, saying what differs, if it was made for
    another width, number of blocks, weights, unembedding or commit.
    """
    place = Path(folder).expanduser()
    config = read_config(place)
    refuse_other_model(config, model, place)
    tensors = _read_tensors(place)
    shape = (model.d_model, model.d_model)
    weights, biases = [], []
    for layer in range(model.n_layers):
        weight = tensors.get(f"{layer}.weight")
        bias = tensors.get(f"{layer}.bias", None if config.bias else torch.zeros(model.d_model))
        if weight is None or bias is None or weight.shape != shape or bias.shape != shape[:1]:
            raise FileError(f"{place}: the map of layer {layer - 1} is missing or not {model.d_model} wide; there "
                            f"should be {layer}.weight {list(shape)} and {layer}.bias [{model.d_model}]")
        weights.append(weight)
        biases.append(bias)
    weight_LDD, bias_LD = torch.stack(weights).float(), torch.stack(biases).float()
    if not bool(weight_LDD.isfinite().all() and bias_LD.isfinite().all()):
        raise FileError(f"{place}: the maps hold NaN or infinity, so the lens is damaged; train it again")
    return Transport(config, weight_LDD, bias_LD)


def read_config(folder: Path) -> TransportConfig:
    """The config of a transport's folder. FileError if there is none or it is not one."""
    path = folder / CONFIG
    if not path.is_file():
        raise FileError(f"{folder} holds no lens: there is no {CONFIG} in it; `patchclamp lens tuned train` makes one")
    try:
        return TransportConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise FileError(f"{path} is not a lens's config: {where}: {first['msg']}") from error


def refuse_other_model(config: TransportConfig, model: Model, folder: Path) -> None:
    """InputError, naming every difference, unless the transport was made for this model's weights."""
    pairs: list[tuple[str, object, object]] = [
        ("width", config.d_model, model.d_model), ("number of blocks", config.num_hidden_layers, model.n_layers),
        ("weights", config.weights_hash and config.weights_hash[:12], model.weights_hash[:12]),
        ("commit", _commit(config.base_model_revision), _commit(model.revision)),
    ]
    if config.unembed_hash and config.d_model == model.d_model:
        pairs.append(("hash of the unembedding", config.unembed_hash[:12], _unembed_hash(model)[:12]))
    wrong = [f"{what} {theirs}, not {ours}" for what, theirs, ours in pairs if theirs and ours and theirs != ours]
    if wrong:
        raise InputError(f"the lens in {folder} was made for {config.base_model_name_or_path} and does not fit "
                         f"{model.name}: {'; '.join(wrong)}. Train one for this model, or load the lens's own")


def _commit(revision: str | None) -> str | None:
    return revision if revision and len(revision) == COMMIT_LENGTH else None


def _unembed_hash(model: Model) -> str:
    """As tuned-lens 0.2.0 (`tensor_hash`): the sha256 of numpy's summary of the unembedding, one digit each."""
    import hashlib

    import numpy as np

    weight = model.anatomy.unembedding.weight.detach().cpu().float().numpy()
    return hashlib.sha256(str.encode(np.array_str(weight, precision=1))).hexdigest()


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of `params.safetensors`, else of `params.pt`.

    The latter is a zip of raw tensors and a pickled index. It is read with `weights_only=True`, under which torch
    interprets the index itself and builds tensors in dictionaries only; at anything else, which a pickle needs in
    order to run code, it stops (torch 2.6, the oldest we allow, closed the one known hole, CVE-2025-32434).
    """
    import pickle

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / PARAMS
    pickled = folder / PICKLED
    try:
        if path.is_file():
            return load_file(path)
        if pickled.is_file():
            found = torch.load(pickled, map_location="cpu", weights_only=True)
        else:
            raise FileError(f"{folder} holds no lens: neither {PARAMS} nor {PICKLED} is in it")
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise FileError(f"{folder}: the lens's tensors cannot be read, nothing was run: {first_line}") from error
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise FileError(f"{pickled} is not a dictionary of tensors, so it is no tuned lens")
    return found
