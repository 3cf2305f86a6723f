"""EleutherAI's sparsify: cfg.json and sae.safetensors in a folder named after the module whose output is read.

    top k of relu(W_enc (x - b_dec) + b_enc); of a transcoder, top k of relu(W_enc x + b_enc) + W_skip x

encoder.weight and W_dec are [L, D]. It has topk and groupmax (the greatest of each of k groups), which has no
counterpart here, and one width for what is read and what is written.
"""

from pathlib import Path

import torch

from patchclamp.errors import FileError
from patchclamp.forward.autoencoder import Autoencoder
from patchclamp.model.tensors import write_tensors
from patchclamp.sae.formats.files import Config, safe_tensors, turned, write_json
from patchclamp.sae.formats.names import SPARSIFY, SPARSIFY_TOO, site_of
from patchclamp.sae.formats.parts import Parts, detached, only_file, refuse, subtracting, telling, told_by

FORM, CONFIG, WEIGHTS = "sparsify", "cfg.json", "sae.safetensors"


def read(source: Path) -> Parts:
    """The autoencoder in a folder. Raises FileError for what is missing, damaged or has no counterpart."""
    config = Config.read(only_file(source, CONFIG))
    found = safe_tensors(only_file(source, WEIGHTS))
    activation, k, transcodes = config.text("activation") or "topk", config.count("k"), config.flag("transcode")
    if activation != "topk" or config.flag("signed"):
        what = "signed codes" if activation == "topk" else f"the activation {activation!r}"
        raise FileError(f"{config.path}: {what} cannot be said by an architecture here; topk can")
    if k is None:
        raise FileError(f"{config.path} does not say k")
    W_enc_LD, W_dec_LD = found.weights("encoder.weight", "W_dec", encoder_is_DL=False, decoder_is_LO=True)
    n_latents, width = W_enc_LD.shape
    found.take("W_dec", n_latents, width)
    tensors = {"W_enc": W_enc_LD, "W_dec": W_dec_LD, "b_enc": found.take("encoder.bias", n_latents),
               "b_dec": found.take("b_dec", width)}
    if config.flag("skip_connection") or "W_skip" in found:
        tensors["W_skip"] = found.take("W_skip", width, width).T
    # a transcoder's folder names the module whose input it reads, often behind a norm: no site
    site = None if transcodes else site_of(config.path.parent.name, SPARSIFY, SPARSIFY_TOO)
    return Parts(
        kind="transcoder" if transcodes else "sae", architecture="topk", tensors=tensors, k=k,
        subtracts=not transcodes, is_transcoder=transcodes, site=site, raw_output=site is not None,
        told=told_by(found.metadata),
    )


def write(autoencoder: Autoencoder, folder: Path) -> str:
    """Write the folder's files; returns what sparsify calls it. Raises SpecError for what it cannot hold."""
    info, (n_latents, width) = autoencoder.info, autoencoder.W_enc.shape
    if info.architecture != "topk":
        raise refuse(autoencoder, FORM, "it has topk alone")
    if autoencoder.W_dec.shape[1] != width:
        raise refuse(autoencoder, FORM, f"it writes {autoencoder.W_dec.shape[1]} numbers and reads {width}, and there "
                                        "they have to be as many")
    transcodes, has_skip = info.output_site is not None, "W_skip" in autoencoder.tensors
    tensors = turned(detached(autoencoder) if transcodes else subtracting(autoencoder), ("W_skip",))
    tensors["encoder.weight"], tensors["encoder.bias"] = tensors.pop("W_enc"), tensors.pop("b_enc")
    lengths_L = tensors["W_dec"].norm(dim=1)
    write_tensors(folder / WEIGHTS, tensors, telling(info))
    write_json(folder / CONFIG, {
        "activation": "topk", "expansion_factor": max(1, n_latents // width),
        "normalize_decoder": bool(torch.allclose(lengths_L, torch.ones_like(lengths_L), atol=1e-5)),
        "num_latents": n_latents, "k": info.k, "multi_topk": False, "skip_connection": has_skip,
        "transcode": transcodes, "d_in": width,
    })
    return "transcoder" if transcodes else "sae"
