"""Gemma Scope: JumpReLU autoencoders and transcoders of Gemma, which encode what they are given.

    a = z where z = x W_enc + b_enc is above its latent's threshold and above 0

Gemma Scope (Gemma 2, arXiv 2408.05147): params.npz with W_enc [D, L], W_dec [L, O], b_enc, b_dec, threshold; what it
reads only its folder's name says. Gemma Scope 2 (Gemma 3): params.safetensors with the same in small letters, for a
transcoder with a linear path affine_skip_connection [D, O], and config.json. Relu is jumprelu with thresholds of 0.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchclamp.errors import FileError
from patchclamp.forward.autoencoder import Autoencoder
from patchclamp.model.tensors import write_tensors
from patchclamp.sae.formats.files import Config, Tensors, numpy_tensors, safe_tensors, turned, write_json, write_numpy
from patchclamp.sae.formats.names import GEMMA, named, site_of
from patchclamp.sae.formats.parts import BY_THRESHOLD, Parts, detached, only_file, refuse, telling, told_by

FORM, FORM_2 = "gemmascope", "gemmascope2"
ARRAYS, CONFIG, WEIGHTS = "params.npz", "config.json", "params.safetensors"
SKIP = "affine_skip_connection"
COLLECTIONS = {"res": "resid", "mlp": "mlp", "att": "head"}
"""Ends of the names of Gemma Scope's repositories."""
FOLDERS = {"resid_post": "resid", "mlp_out": "mlp", "attn_out": "head"}
"""Beginnings of the names of Gemma Scope 2's folders."""


def read(source: Path) -> Parts:
    """The autoencoder in params.npz. Raises FileError for what is missing or damaged, or arrays of Python objects."""
    path = only_file(source, ARRAYS)
    found = numpy_tensors(path)
    names = {name.lower(): tensor for name, tensor in found.tensors.items()}
    return Parts(kind="jumprelu", architecture="jumprelu", tensors=_tensors(Tensors(path, names)),
                 site=_place(path, r"gemma-scope-[^/]*-(res|mlp|att)\b", COLLECTIONS))


def read_2(source: Path) -> Parts:
    """The autoencoder in params.safetensors. Raises FileError for what is missing, damaged or across layers."""
    path = only_file(source, WEIGHTS)
    found = safe_tensors(path)
    beside = path.with_name(CONFIG)
    config = Config.read(beside) if beside.is_file() else Config(beside, {})
    kind = config.text("architecture") or "jump_relu"
    if kind != "jump_relu":
        raise FileError(f"{beside}: the architecture is {kind!r}; Gemma Scope 2 has jump_relu")
    name, out = config.text("hf_hook_point_in"), config.text("hf_hook_point_out")
    return Parts(
        kind="jump_relu", architecture="jumprelu", tensors=_tensors(found), model=config.text("model_name"),
        site=site_of(name, GEMMA) if name else _place(path, rf"({'|'.join(FOLDERS)})[^/]*/", FOLDERS),
        output_site=site_of(out, GEMMA) if out != name else None,
        is_transcoder=config.text("type") == "transcoder" or SKIP in found or out not in (None, name),
        told=told_by(found.metadata),
    )


def _tensors(found: Tensors) -> dict[str, Tensor]:
    dec = found.tensors.get("w_dec")
    if dec is not None and dec.dim() > 2:
        raise FileError(f"{found.path}: w_dec has shape {list(dec.shape)}: a transcoder that writes to several layers, "
                        "which an autoencoder here does not")
    W_enc_LD, W_dec_LO = found.weights("w_enc", "w_dec", encoder_is_DL=True, decoder_is_LO=True)
    (n_latents, width), out = W_enc_LD.shape, W_dec_LO.shape[1]
    scale = found.tensors.get("scaling_factor")
    if scale is not None and not bool((scale == 1).all()):
        raise FileError(f"{found.path}: scaling_factor is not 1; what it scales the format does not say")
    tensors = {"W_enc": W_enc_LD, "W_dec": W_dec_LO, "b_enc": found.take("b_enc", n_latents),
               "b_dec": found.take("b_dec", out), "threshold": found.take("threshold", n_latents)}
    if SKIP in found:
        tensors["W_skip"] = found.take(SKIP, width, out)
    return tensors


def _place(path: Path, kind: str, points: dict[str, str]) -> str | None:
    """The site that a folder's name tells."""
    text = path.absolute().as_posix()
    found, layer = re.search(kind, text), re.search(r"/layer_(\d{1,9})(?!\d)", text)
    return f"{points[found[1]]}.{int(layer[1])}" if found and layer else None


def write(autoencoder: Autoencoder, folder: Path) -> str:
    """Write params.npz; returns jumprelu. Raises SpecError for what thresholds do not say, or a linear path."""
    if "W_skip" in autoencoder.tensors:
        raise refuse(autoencoder, FORM, f"it has no linear path; {FORM_2} has one for transcoders")
    write_numpy(folder / ARRAYS, turned(_thresholded(autoencoder, FORM), ("W_enc",)))
    return "jumprelu"


def write_2(autoencoder: Autoencoder, folder: Path) -> str:
    """Write params.safetensors and config.json; returns jump_relu. Raises SpecError as `write`."""
    info, has_skip = autoencoder.info, "W_skip" in autoencoder.tensors
    if has_skip and not info.output_site:
        raise refuse(autoencoder, FORM_2, "a linear path is only in its transcoders")
    tensors = turned(_thresholded(autoencoder, FORM_2), ("W_enc",))
    if has_skip:
        tensors[SKIP] = tensors.pop("W_skip")
    write_tensors(folder / WEIGHTS, {name.lower(): tensor for name, tensor in tensors.items()},
                  telling(info))
    config: dict[str, Any] = {
        "architecture": "jump_relu", "model_name": info.model, "hf_hook_point_in": named(info.site, GEMMA),
        "hf_hook_point_out": named(info.output_site or info.site, GEMMA), "width": autoencoder.n_latents,
        "affine_connection": has_skip, "type": "transcoder" if info.output_site else "sae",
    }
    write_json(folder / CONFIG, config)
    return "jump_relu"


def _thresholded(autoencoder: Autoencoder, form: str) -> dict[str, Tensor]:
    tensors = detached(autoencoder)
    if autoencoder.info.architecture == "relu":
        tensors["threshold"] = torch.zeros_like(tensors["b_enc"])
    elif autoencoder.info.architecture not in BY_THRESHOLD:
        raise refuse(autoencoder, form, "it keeps a code for being above a threshold, nothing else")
    return tensors
