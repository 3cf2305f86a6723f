"""SAELens: cfg.json and sae_weights.safetensors, W_enc [D, L] and W_dec [L, O].

    relu((x - b_dec) W_enc + b_enc)       b_dec is taken away unless cfg.json says apply_b_dec_to_input: false

Read are standard, topk, jumprelu, gated and the transcoders of relu and jumprelu; batchtopk and matryoshka_batchtopk
too, which SAELens has in training and saves for use as jumprelu. `rescale_acts_by_decoder_norm` and a constant factor
on inputs (activation_scaler.json) are folded. What depends on each input's own norm, mean or spread cannot be.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchclamp.errors import FileError
from patchclamp.forward.autoencoder import Architecture, Autoencoder
from patchclamp.model.tensors import write_tensors
from patchclamp.sae.formats.files import Config, Tensors, safe_tensors, turned, write_json
from patchclamp.sae.formats.names import TRANSFORMER_LENS, named, site_of
from patchclamp.sae.formats.parts import (
    BY_THRESHOLD,
    Parts,
    detached,
    only_file,
    prefixes_of,
    refuse,
    telling,
    told_by,
)

FORM, CONFIG, WEIGHTS, SCALER = "saelens", "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
VERSION = "6.54.12"
"""The version whose files these are: older ones are read with other defaults."""
KINDS: dict[str, Architecture] = {
    "standard": "relu", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated", "batchtopk": "batchtopk",
    "matryoshka_batchtopk": "matryoshka", "transcoder": "relu", "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu", "jumprelu_skip_transcoder": "jumprelu",
}
TRAINED_AS = {"batchtopk": "batchtopk", "matryoshka": "matryoshka_batchtopk"}
PER_INPUT = {"layer_norm": "each input's own mean and spread", "constant_norm_rescale": "each input's own norm",
             "covariance_whitening": "a whitening that is not in cfg.json"}


def read(source: Path) -> Parts:
    """The autoencoder in a folder. Raises FileError for what is missing, damaged or cannot be folded."""
    config = Config.read(only_file(source, CONFIG))
    found = safe_tensors(only_file(source, WEIGHTS))
    kind = _kind(config)
    is_transcoder = "transcoder" in kind
    tensors = _tensors(found, kind)
    metadata = config.part("metadata")
    hook = metadata.text("hook_name") or config.text("hook_name") or config.text("hook_point")
    _refuse_shaped(config, hook)
    architecture, k, settings = _trained_as(metadata, KINDS[kind], _k(config), tensors)
    return Parts(
        kind=kind, architecture=architecture, tensors=tensors, k=k, is_transcoder=is_transcoder,
        subtracts=not is_transcoder and config.flag("apply_b_dec_to_input", True),
        by_length=config.flag("rescale_acts_by_decoder_norm"), scale=_scale(config, is_transcoder),
        site=site_of(hook, TRANSFORMER_LENS), settings=settings,
        output_site=site_of(metadata.text("hook_name_out") or config.text("hook_name_out"), TRANSFORMER_LENS),
        model=metadata.text("model_name") or config.text("model_name"), told=told_by(found.metadata),
    )


def _kind(config: Config) -> str:
    function = config.text("activation_fn") or config.text("activation_fn_str") or "relu"
    kind = config.text("architecture") or "standard"
    if kind == "standard" and function == "topk":  # before version 6
        kind, function = "topk", "relu"
    if kind not in KINDS:
        raise FileError(f"{config.path}: the architecture {kind!r} has no counterpart here; converted are "
                        f"{', '.join(KINDS)}")
    if function not in ("relu", "topk"):
        raise FileError(f"{config.path}: the activation function {function!r} has no counterpart here, only relu has")
    if config.flag("finetuning_scaling_factor"):
        raise FileError(f"{config.path}: finetuning_scaling_factor is set, which SAELens 6 no longer reads either")
    return kind


def _k(config: Config) -> int | None:
    return config.count("k") or config.part("activation_fn_kwargs").count("k")


def _tensors(found: Tensors, kind: str) -> dict[str, Tensor]:
    is_gated = kind == "gated"
    W_enc_LD, W_dec_LO = found.weights("W_enc", "W_dec", encoder_is_DL=True, decoder_is_LO=True)
    (n_latents, width), out = W_enc_LD.shape, W_dec_LO.shape[1]
    if "scaling_factor" in found and not bool((found.take("scaling_factor", n_latents) == 1).all()):
        raise FileError(f"{found.path}: scaling_factor is not 1, which SAELens 6 no longer reads either")
    tensors = {"W_enc": W_enc_LD, "W_dec": W_dec_LO, "b_enc": found.take("b_gate" if is_gated else "b_enc", n_latents),
               "b_dec": found.take("b_dec", out)}
    if is_gated:
        tensors |= {name: found.take(name, n_latents) for name in ("r_mag", "b_mag")}
    if "skip" in kind:
        tensors["W_skip"] = found.take("W_skip", out, width).T
    if KINDS[kind] in BY_THRESHOLD:
        tensors["threshold"] = _threshold(found, n_latents)
    return tensors


def _threshold(found: Tensors, n_latents: int) -> Tensor:
    shared = found.number("topk_threshold")
    if shared is not None:
        return torch.full((n_latents,), shared)
    if "log_threshold" in found:
        return found.take("log_threshold", n_latents).exp()
    return found.take("threshold", n_latents)


def _trained_as(
    metadata: Config, architecture: Architecture, k: int | None, tensors: dict[str, Tensor]
) -> tuple[Architecture, int | None, dict[str, Any]]:
    """Of one saved for use as jumprelu: what it was trained as, if all latents share a threshold as they then do."""
    names: dict[str, Architecture] = {"batchtopk": "batchtopk", "matryoshka_batchtopk": "matryoshka"}
    trained = names.get(metadata.text("training_architecture") or "")
    if architecture != "jumprelu" or trained is None or len(tensors["threshold"].unique()) > 1:
        return architecture, k, {}
    details = metadata.part("training_architecture_details")
    widths = details.values.get("matryoshka_widths")
    mean = details.values.get("k")  # a mean may have a fraction, which k here has not
    whole = int(mean) if isinstance(mean, int | float) and mean >= 1 and float(mean).is_integer() else k
    return trained, whole, {"prefixes": widths} if trained == "matryoshka" and widths else {}


def _scale(config: Config, is_transcoder: bool) -> float:
    """The constant factor on inputs."""
    how = str(config.values.get("normalize_activations") or "none")
    if how == "none":
        return 1.0
    if how in PER_INPUT:
        raise FileError(f"{config.path}: normalize_activations is {how}: codes depend on {PER_INPUT[how]}, which "
                        "cannot be folded into weights")
    if how not in ("expected_average_only_in", "True"):
        raise FileError(f"{config.path}: normalize_activations {how!r} is unknown")
    path = config.path.with_name(SCALER)
    scaler = Config.read(path) if path.is_file() else Config(path, {})
    factor = scaler.values.get("scaling_factor")
    is_more = is_transcoder or scaler.flag("has_whitening")
    if isinstance(factor, int | float) and 0 < factor < float("inf") and not is_more:
        return float(factor)
    raise FileError(f"{config.path}: normalize_activations is {how}, and the factor by which inputs are multiplied is "
                    f"not in the folder as {SCALER} (scaling_factor), or not the whole of it; fold it with SAELens "
                    "(fold_activation_norm_scaling_factor) and save again")


def _refuse_shaped(config: Config, hook: str | None) -> None:
    shape = config.text("reshape_activations") or "none"
    if shape != "none" and not (shape == "hook_z" and (hook or "").endswith("hook_z")):
        raise FileError(f"{config.path}: reshape_activations is {shape!r} at {hook}; only heads at hook_z are laid "
                        "side by side here")


def write(autoencoder: Autoencoder, folder: Path) -> str:
    """Write the folder's files; returns what SAELens calls it. Raises SpecError for what it has no class for."""
    info, (n_latents, width) = autoencoder.info, autoencoder.W_enc.shape
    kind = _written_kind(autoencoder)
    tensors = turned(detached(autoencoder), ("W_enc", "W_skip"))
    if info.architecture == "gated":
        tensors["b_gate"] = tensors.pop("b_enc")
    hook, out = (named(site, TRANSFORMER_LENS) for site in (info.site, info.output_site))
    metadata: dict[str, Any] = {
        "sae_lens_version": VERSION, "sae_lens_training_version": None, "model_name": info.model, "hook_name": hook,
    }
    if info.output_site:
        metadata["hook_name_out"] = out
    if info.architecture in TRAINED_AS:
        details: dict[str, Any] = {"k": info.k}
        if info.architecture == "matryoshka":
            details["matryoshka_widths"] = prefixes_of(info, n_latents)
        metadata |= {"training_architecture": TRAINED_AS[info.architecture], "training_architecture_details": details}
    config: dict[str, Any] = {
        "architecture": kind, "d_in": width, "d_sae": n_latents, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": False, "normalize_activations": "none",
        "reshape_activations": "hook_z" if hook and hook.endswith("hook_z") else "none", "metadata": metadata,
    }
    if info.output_site:
        config["d_out"] = autoencoder.W_dec.shape[1]
    if kind == "topk":
        config |= {"k": info.k, "rescale_acts_by_decoder_norm": False}
    write_tensors(folder / WEIGHTS, tensors, telling(info))
    write_json(folder / CONFIG, config)
    return kind


def _written_kind(autoencoder: Autoencoder) -> str:
    info, has_skip = autoencoder.info, "W_skip" in autoencoder.tensors
    base = "jumprelu" if info.architecture in BY_THRESHOLD else info.architecture
    if not info.output_site:
        if has_skip:
            raise refuse(autoencoder, FORM, "a linear path is only in its transcoders")
        return "standard" if base == "relu" else base
    if base not in ("relu", "jumprelu"):
        raise refuse(autoencoder, FORM, "its transcoders are relu or jumprelu")
    return ("" if base == "relu" else "jumprelu_") + ("skip_transcoder" if has_skip else "transcoder")
