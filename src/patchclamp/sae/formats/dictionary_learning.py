"""dictionary_learning: ae.pt, a pickle of tensors, and config.json, whose trainer.dict_class says what they are.

    AutoEncoder               relu(W_enc (x - bias) + b_enc), directions brought to length 1 as it is loaded
    AutoEncoderNew            relu(W_enc x + b_enc): what relu is here
    GatedAutoEncoder          (π > 0) relu(eʳ (π - gate_bias) + mag_bias), π = W_enc (x - decoder_bias) + gate_bias
    JumpReluAutoEncoder       W_enc x + b_enc where above its threshold
    AutoEncoderTopK, BatchTopKSAE, MatryoshkaBatchTopKSAE       of relu(W_enc (x - b_dec) + b_enc)

The weights of layers lie [L, D] and [O, L], those of parameters (JumpRelu, Matryoshka) [D, L] and [L, O].
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchclamp.errors import FileError
from patchclamp.forward.autoencoder import Architecture, Autoencoder
from patchclamp.sae.formats.files import Config, Tensors, pickled_tensors, turned, write_json, write_pickled
from patchclamp.sae.formats.names import SUBMODULES, named, site_of
from patchclamp.sae.formats.parts import (
    BY_THRESHOLD,
    Parts,
    detached,
    one_threshold,
    only_file,
    prefixes_of,
    refuse,
    subtracting,
    telling,
    told_by,
)

FORM, CONFIG, WEIGHTS = "dictionary_learning", "config.json", "ae.pt"
KINDS: dict[str, Architecture] = {
    "AutoEncoder": "relu", "AutoEncoderNew": "relu", "GatedAutoEncoder": "gated", "JumpReluAutoEncoder": "jumprelu",
    "AutoEncoderTopK": "topk", "BatchTopKSAE": "batchtopk", "MatryoshkaBatchTopKSAE": "matryoshka",
}
AS_PARAMETERS = ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE")
B_DEC = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}
ENCODES_RAW = ("AutoEncoderNew", "JumpReluAutoEncoder")
TRAINERS = {
    "AutoEncoderNew": "StandardTrainerNew", "GatedAutoEncoder": "GatedSAETrainer",
    "JumpReluAutoEncoder": "JumpReluTrainer", "AutoEncoderTopK": "TopKTrainer", "BatchTopKSAE": "BatchTopKTrainer",
    "MatryoshkaBatchTopKSAE": "MatryoshkaBatchTopKTrainer",
}


def read(source: Path) -> Parts:
    """The autoencoder in a folder. Raises FileError for what is missing, damaged or a pickle of more than tensors."""
    config = Config.read(only_file(source, CONFIG))
    trainer = config.part("trainer")
    kind = trainer.text("dict_class") or ""
    if kind not in KINDS:
        raise FileError(f"{config.path}: trainer.dict_class is {kind!r}; converted are {', '.join(KINDS)}")
    found = pickled_tensors(only_file(source, WEIGHTS))
    tensors = _tensors(found, kind)
    lengths_L = tensors["W_dec"].norm(dim=1)
    stored = found.number("k")
    return Parts(
        kind=kind, architecture=KINDS[kind], tensors=tensors, k=trainer.count("k") or (int(stored) if stored else None),
        subtracts=kind not in ENCODES_RAW,
        # its loader leaves directions alone that are of length 1 within the tolerance that torch has by itself
        by_length=kind == "AutoEncoder" and not torch.allclose(lengths_L, torch.ones_like(lengths_L)),
        site=site_of(trainer.text("submodule_name"), SUBMODULES), model=trainer.text("lm_name"),
        settings=_groups(found) if kind == "MatryoshkaBatchTopKSAE" else {}, told=told_by(config.values),
    )


def _tensors(found: Tensors, kind: str) -> dict[str, Tensor]:
    names = ("W_enc", "W_dec") if kind in AS_PARAMETERS else ("encoder.weight", "decoder.weight")
    lies = kind in AS_PARAMETERS
    W_enc_LD, W_dec_LD = found.weights(*names, encoder_is_DL=lies, decoder_is_LO=lies)
    n_latents, width = W_enc_LD.shape
    b_enc = "gate_bias" if kind == "GatedAutoEncoder" else "b_enc" if lies else "encoder.bias"
    if W_dec_LD.shape[1] != width:
        raise FileError(f"{found.path}: the decoder writes {W_dec_LD.shape[1]} numbers and the encoder reads {width}")
    tensors = {"W_enc": W_enc_LD, "W_dec": W_dec_LD, "b_enc": found.take(b_enc, n_latents),
               "b_dec": found.take(B_DEC.get(kind, "b_dec"), width)}
    if kind == "GatedAutoEncoder":
        tensors |= {"r_mag": found.take("r_mag", n_latents), "b_mag": found.take("mag_bias", n_latents)}
    elif kind == "JumpReluAutoEncoder":
        tensors["threshold"] = found.take("threshold", n_latents)
    elif KINDS[kind] in BY_THRESHOLD:
        tensors["threshold"] = torch.full((n_latents,), float(found.take("threshold")))
    return tensors


def _groups(found: Tensors) -> dict[str, Any]:
    sizes = found.tensors.get("group_sizes")
    return {} if sizes is None or sizes.dim() != 1 else {"prefixes": sizes.cumsum(0).tolist()}


def write(autoencoder: Autoencoder, folder: Path) -> str:
    """Write the folder's files; returns the class they are of. Raises SpecError for a transcoder."""
    info, (n_latents, width) = autoencoder.info, autoencoder.W_enc.shape
    if info.output_site or "W_skip" in autoencoder.tensors:
        raise refuse(autoencoder, FORM, "its dictionaries write what they read, without a linear path")
    kind = _written_kind(autoencoder)
    tensors = detached(autoencoder) if kind in ENCODES_RAW else subtracting(autoencoder)
    write_pickled(folder / WEIGHTS, _named(tensors, kind, autoencoder))
    trainer: dict[str, Any] = {
        "trainer_class": TRAINERS[kind], "dict_class": kind, "activation_dim": width, "dict_size": n_latents,
        "layer": autoencoder.site.layer, "lm_name": info.model, "submodule_name": named(info.site, SUBMODULES),
    }
    if info.k is not None:
        trainer["k"] = info.k
    buffer = {"d_submodule": width, "ctx_len": info.settings.get("identity", {}).get("length")}
    write_json(folder / CONFIG, {"trainer": trainer, "buffer": buffer, **telling(info)})
    return kind


def _written_kind(autoencoder: Autoencoder) -> str:
    info = autoencoder.info
    fixed = {"relu": "AutoEncoderNew", "gated": "GatedAutoEncoder", "topk": "AutoEncoderTopK"}
    if info.architecture in fixed:
        return fixed[info.architecture]
    if info.architecture == "jumprelu" or one_threshold(autoencoder) is None or info.k is None:
        return "JumpReluAutoEncoder"
    return "BatchTopKSAE" if info.architecture == "batchtopk" else "MatryoshkaBatchTopKSAE"


def _named(tensors: dict[str, Tensor], kind: str, autoencoder: Autoencoder) -> dict[str, Tensor]:
    """The tensors under that class's names, with the numbers it keeps among them."""
    if kind in AS_PARAMETERS:
        out = turned({name: tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}, ("W_enc",))
    else:
        b_enc = "gate_bias" if kind == "GatedAutoEncoder" else "encoder.bias"
        out = {"encoder.weight": tensors["W_enc"], b_enc: tensors["b_enc"],
               "decoder.weight": tensors["W_dec"].T.contiguous(), B_DEC.get(kind, "b_dec"): tensors["b_dec"]}
    if kind == "GatedAutoEncoder":
        out |= {"r_mag": tensors["r_mag"], "mag_bias": tensors["b_mag"]}
    elif kind == "JumpReluAutoEncoder":
        out["threshold"] = tensors["threshold"]
    elif kind != "AutoEncoderNew":
        shared = -1.0 if kind == "AutoEncoderTopK" else one_threshold(autoencoder)  # -1: none was measured
        out |= {"k": torch.tensor(autoencoder.info.k, dtype=torch.int), "threshold": torch.tensor(shared)}
    if kind == "MatryoshkaBatchTopKSAE":
        ends = prefixes_of(autoencoder.info, autoencoder.n_latents)
        out["group_sizes"] = torch.tensor([b - a for a, b in zip([0, *ends], ends, strict=False)])
    return out
