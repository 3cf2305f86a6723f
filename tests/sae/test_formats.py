"""Other projects' files are read as their own definitions say, and what is written comes back as it was.

Files are written by hand from each format's published definition, whose codes are computed plainly here; the projects
themselves read and write in `benchmarks/sae_formats.py`.
"""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from patchclamp.errors import FileError, InputError, SpecError
from patchclamp.forward.autoencoder import NEEDS, Autoencoder, AutoencoderInfo
from patchclamp.sae.formats.names import GEMMA, SPARSIFY, TRANSFORMER_LENS, named, site_of
from patchclamp.sae.formats.registry import FORMATS, detect

WIDTH, LATENTS, OUT, K = 12, 40, 9, 5
ROUNDING = 1e-5
"""Relative to the largest code. Taking W_enc b_dec away and adding it again rounds each bias twice, by 6e-8 of sums
that are a few times the code; and a sum of 12 products rounds otherwise where another bias is added."""
ARCHITECTURES = tuple(NEEDS)
PLACES = {"site": "resid.3", "output_site": None, "model": "m", "weights": "0" * 64, "settings": {}}


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def inputs(n=200):
    return draw(n, WIDTH, seed=7) * 2 + 0.5


def autoencoder(architecture, output_site=None, skip=False, out=WIDTH, **changed):
    """Random, with biases and directions of all lengths."""
    tensors = {"W_enc": draw(LATENTS, WIDTH), "b_enc": draw(LATENTS, seed=1), "b_dec": draw(out, seed=2),
               "W_dec": draw(LATENTS, out, seed=3) * draw(LATENTS, 1, seed=4).exp()}
    each = {"threshold": draw(LATENTS, seed=5).abs(), "r_mag": draw(LATENTS, seed=6) * 0.3, "b_mag": draw(LATENTS)}
    if architecture in ("batchtopk", "matryoshka"):
        each["threshold"] = torch.full((LATENTS,), 0.7)
    tensors |= {name: each[name] for name in NEEDS[architecture]}
    if skip:
        tensors["W_skip"] = draw(WIDTH, out, seed=8)
    k = K if architecture in ("topk", "batchtopk", "matryoshka") else None
    info = {"name": "a", "architecture": architecture, "k": k, "site": "resid.3", "output_site": output_site,
            "model": "m", "weights": "0" * 64, "tokens": 99, "settings": {"prefixes": [10, 40]}} | changed
    return Autoencoder(AutoencoderInfo(**info), tensors)


def read(folder, form=None, **places):
    folder = Path(folder)
    return FORMATS[form or detect(folder)].read(folder).autoencoder("a", **{**PLACES, **places})


def difference(codes_NL, expected_NL):
    return float((codes_NL - expected_NL).abs().max() / expected_NL.abs().max())


def same_tensors(one, other):
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


# What is written comes back

ENCODES_RAW = {
    "patchclamp": ARCHITECTURES, "saelens": ARCHITECTURES, "sparsify": (), "dictionary_learning": ("relu", "jumprelu"),
    "gemmascope": ("relu", "jumprelu", "batchtopk", "matryoshka"),
    "gemmascope2": ("relu", "jumprelu", "batchtopk", "matryoshka"),
}
"""Where b_dec has nothing to do with encoding, so that nothing is folded and every bit is kept."""
SUBTRACTS = {"sparsify": ("topk",), "dictionary_learning": ("topk", "batchtopk", "gated", "matryoshka")}


@pytest.mark.parametrize(("form", "architecture"), [
    (form, one) for form in FORMATS for one in (*ENCODES_RAW[form], *SUBTRACTS.get(form, ()))])
def test_an_autoencoder_comes_back_as_it_was(tmp_path, form, architecture):
    original = autoencoder(architecture)
    FORMATS[form].write(original, tmp_path)
    again = read(tmp_path, form)

    assert detect(tmp_path) == form
    assert difference(again.encode(inputs()), original.encode(inputs())) < ROUNDING
    assert difference(again.reconstruct(inputs()), original.reconstruct(inputs())) < ROUNDING
    if form != "gemmascope":  # which has numbers only
        assert again.info == original.info
    if architecture in ENCODES_RAW[form] and not (form == "gemmascope" and architecture == "relu"):
        assert same_tensors(again, original)


@pytest.mark.parametrize(("form", "architecture", "skip"), [
    ("saelens", "relu", False), ("saelens", "relu", True), ("saelens", "jumprelu", False),
    ("saelens", "jumprelu", True), ("saelens", "batchtopk", True), ("gemmascope", "jumprelu", False),
    ("gemmascope2", "jumprelu", False), ("gemmascope2", "jumprelu", True), ("patchclamp", "gated", True),
    ("patchclamp", "topk", True),
])
def test_a_transcoder_comes_back_bit_for_bit(tmp_path, form, architecture, skip):
    original = autoencoder(architecture, output_site="mlp.3", skip=skip, out=OUT)
    FORMATS[form].write(original, tmp_path)
    again = read(tmp_path, form, output_site="mlp.3")

    assert same_tensors(again, original)
    assert torch.equal(again.reconstruct(inputs()), original.reconstruct(inputs()))


@pytest.mark.parametrize("skip", [False, True])
def test_sparsify_takes_nothing_from_what_a_transcoder_reads(tmp_path, skip):
    original = autoencoder("topk", output_site="mlp.3", skip=skip)
    FORMATS["sparsify"].write(original, tmp_path)

    assert same_tensors(read(tmp_path, output_site="mlp.3"), original)


def test_thresholds_of_their_own_are_jumprelu_where_a_format_has_one_for_all(tmp_path):
    original = autoencoder("batchtopk")
    original.tensors["threshold"] = draw(LATENTS).abs()

    assert FORMATS["dictionary_learning"].write(original, tmp_path) == "JumpReluAutoEncoder"
    assert same_tensors(read(tmp_path), original)


@pytest.mark.parametrize(("form", "made", "why"), [
    ("sparsify", {"architecture": "gated"}, "topk alone"),
    ("sparsify", {"architecture": "topk", "output_site": "mlp.3", "out": OUT}, "as many"),
    ("saelens", {"architecture": "topk", "output_site": "mlp.3"}, "relu or jumprelu"),
    ("saelens", {"architecture": "topk", "skip": True}, "only in its transcoders"),
    ("dictionary_learning", {"architecture": "relu", "output_site": "mlp.3"}, "write what they read"),
    ("gemmascope", {"architecture": "topk"}, "above a threshold"),
    ("gemmascope", {"architecture": "jumprelu", "output_site": "mlp.3", "skip": True}, "gemmascope2 has one"),
    ("gemmascope2", {"architecture": "gated"}, "above a threshold"),
    ("gemmascope2", {"architecture": "jumprelu", "skip": True}, "only in its transcoders"),
])
def test_what_a_format_cannot_hold_is_not_written(tmp_path, form, made, why):
    with pytest.raises(SpecError, match=why):
        FORMATS[form].write(autoencoder(**made), tmp_path)
    assert not list(tmp_path.iterdir())


# Files of other projects, written by hand, and codes by their definitions

def saelens(folder, tensors, **config):
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors")
    whole = {"d_in": WIDTH, "d_sae": LATENTS, "dtype": "float32", "normalize_activations": "none",
             "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.3.hook_resid_post", "model_name": "m"}}
    (folder / "cfg.json").write_text(json.dumps(whole | config))
    return folder


def weights():
    return {"W_enc": draw(WIDTH, LATENTS), "b_enc": draw(LATENTS, seed=1), "b_dec": draw(WIDTH, seed=2),
            "W_dec": draw(LATENTS, WIDTH, seed=3) * draw(LATENTS, 1, seed=4).exp()}


def kept_top(pre_NL, k):
    values, latents = pre_NL.topk(k, -1)
    return torch.zeros_like(pre_NL).scatter(-1, latents, values.relu())


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("kind", ["standard", "topk", "jumprelu", "gated"])
def test_saelens(tmp_path, kind, subtracts):
    parts = weights()
    x = inputs() - parts["b_dec"] if subtracts else inputs()
    if kind == "gated":
        parts |= {"b_gate": parts.pop("b_enc"), "b_mag": draw(LATENTS, seed=5), "r_mag": draw(LATENTS, seed=6) * 0.3}
        gate = x @ parts["W_enc"] + parts["b_gate"] > 0
        expected = gate * (x @ (parts["W_enc"] * parts["r_mag"].exp()) + parts["b_mag"]).relu()
    else:
        pre = x @ parts["W_enc"] + parts["b_enc"]
        if kind == "jumprelu":
            parts["threshold"] = draw(LATENTS, seed=5)
        expected = {"standard": pre.relu(), "topk": kept_top(pre, K),
                    "jumprelu": pre.relu() * (pre > parts.get("threshold", 0))}[kind]
    one = read(saelens(tmp_path, parts, architecture=kind, apply_b_dec_to_input=subtracts, k=K))

    assert difference(one.encode(inputs()), expected) < ROUNDING
    assert difference(one.reconstruct(inputs()), expected @ parts["W_dec"] + parts["b_dec"]) < ROUNDING


def test_saelens_may_choose_by_code_times_length(tmp_path):
    parts = weights()
    length = parts["W_dec"].norm(dim=-1)
    pre = ((inputs() - parts["b_dec"]) @ parts["W_enc"] + parts["b_enc"]) * length
    expected = kept_top(pre, K)
    one = read(saelens(tmp_path, parts, architecture="topk", k=K, rescale_acts_by_decoder_norm=True))

    assert difference(one.encode(inputs()), expected) < ROUNDING
    assert difference(one.reconstruct(inputs()), (expected / length) @ parts["W_dec"] + parts["b_dec"]) < ROUNDING


def test_saelens_in_training_has_one_threshold(tmp_path):
    parts = weights() | {"topk_threshold": torch.tensor(1.3, dtype=torch.float64)}
    pre = (inputs() - parts["b_dec"]) @ parts["W_enc"] + parts["b_enc"]
    one = read(saelens(tmp_path, parts, architecture="matryoshka_batchtopk", k=2.5 * 2))

    assert one.info.architecture == "matryoshka"
    assert one.info.k == 5
    assert difference(one.encode(inputs()), pre * (pre > 1.3)) < ROUNDING


def test_saelens_may_have_multiplied_what_it_reads(tmp_path):
    parts, scale = weights(), 0.31
    expected = ((scale * inputs() - parts["b_dec"]) @ parts["W_enc"] + parts["b_enc"]).relu()
    saelens(tmp_path, parts, architecture="standard", normalize_activations="expected_average_only_in")
    with pytest.raises(FileError, match=r"activation_scaler\.json"):
        read(tmp_path)
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": scale}))
    one = read(tmp_path)

    assert difference(one.encode(inputs()), expected) < ROUNDING
    assert difference(one.reconstruct(inputs()), (expected @ parts["W_dec"] + parts["b_dec"]) / scale) < ROUNDING


@pytest.mark.parametrize("kind", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"])
def test_saelens_transcoders(tmp_path, kind):
    parts = weights() | {"W_dec": draw(LATENTS, OUT), "b_dec": draw(OUT)}
    pre = inputs() @ parts["W_enc"] + parts["b_enc"]
    expected = pre.relu()
    if "jumprelu" in kind:
        parts["threshold"] = draw(LATENTS, seed=5).abs()
        expected = expected * (pre > parts["threshold"])
    written = expected @ parts["W_dec"] + parts["b_dec"]
    if "skip" in kind:
        parts["W_skip"] = draw(OUT, WIDTH)
        written = written + inputs() @ parts["W_skip"].T
    metadata = {"hook_name": "blocks.3.hook_resid_mid", "hook_name_out": "blocks.3.hook_mlp_out"}
    saelens(tmp_path, parts, architecture=kind, apply_b_dec_to_input=False, d_out=OUT, metadata=metadata)
    found = FORMATS["saelens"].read(tmp_path)
    one = read(tmp_path, output_site="mlp.3")

    assert (found.site, found.output_site, found.is_transcoder) == ("resid_mid.3", "mlp.3", True)
    assert difference(one.encode(inputs()), expected) < ROUNDING
    assert difference(one.reconstruct(inputs()), written) < ROUNDING


def test_saelens_before_version_6(tmp_path):
    parts = weights() | {"scaling_factor": torch.ones(LATENTS)}
    pre = (inputs() - parts["b_dec"]) @ parts["W_enc"] + parts["b_enc"]
    saelens(tmp_path, parts, activation_fn_str="topk", activation_fn_kwargs={"k": K}, metadata=None,
            hook_point="blocks.3.attn.hook_z", model_name="gpt2", normalize_activations=False)
    found = FORMATS["saelens"].read(tmp_path)

    assert (found.site, found.model, found.kind) == ("head.3", "gpt2", "topk")
    assert difference(read(tmp_path).encode(inputs()), kept_top(pre, K)) < ROUNDING


@pytest.mark.parametrize("transcodes", [False, True])
def test_sparsify(tmp_path, transcodes):
    parts = weights()
    skip = draw(WIDTH, WIDTH, seed=9)
    folder = tmp_path / "layers.3"
    folder.mkdir()
    save_file({"encoder.weight": parts["W_enc"].T.contiguous(), "encoder.bias": parts["b_enc"], "W_dec": parts["W_dec"],
               "b_dec": parts["b_dec"], "W_skip": skip}, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({
        "activation": "topk", "k": K, "d_in": WIDTH, "num_latents": LATENTS, "skip_connection": True,
        "transcode": transcodes, "normalize_decoder": True}))
    x = inputs() if transcodes else inputs() - parts["b_dec"]
    expected = kept_top((x @ parts["W_enc"] + parts["b_enc"]).relu(), K)
    one = read(folder)

    assert FORMATS["sparsify"].read(folder).site == (None if transcodes else "resid.3")
    assert difference(one.encode(inputs()), expected) < ROUNDING
    assert difference(one.reconstruct(inputs()),
                      expected @ parts["W_dec"] + parts["b_dec"] + inputs() @ skip.T) < ROUNDING


def dictionary(folder, kind, tensors, **trainer):
    torch.save(tensors, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": kind, **trainer}, "buffer": {}}))
    return folder


def as_layers(parts, b_dec="b_dec"):
    return {"encoder.weight": parts["W_enc"].T.contiguous(), "encoder.bias": parts["b_enc"],
            "decoder.weight": parts["W_dec"].T.contiguous(), b_dec: parts["b_dec"]}


def test_dictionary_learning_autoencoder_has_directions_of_length_1_once_loaded(tmp_path):
    parts = weights()
    length = parts["W_dec"].norm(dim=-1)
    expected = ((inputs() - parts["b_dec"]) @ parts["W_enc"] + parts["b_enc"]).relu() * length
    one = read(dictionary(tmp_path, "AutoEncoder", as_layers(parts, "bias")))

    assert difference(one.encode(inputs()), expected) < ROUNDING
    assert one.W_dec.norm(dim=1) == pytest.approx(1.0, abs=1e-6)


def test_dictionary_learning_new_autoencoder(tmp_path):
    parts = weights()
    one = read(dictionary(tmp_path, "AutoEncoderNew", as_layers(parts, "decoder.bias")))
    assert difference(one.encode(inputs()), (inputs() @ parts["W_enc"] + parts["b_enc"]).relu()) < ROUNDING


def test_dictionary_learning_gated(tmp_path):
    parts, r_mag, mag_bias = weights(), draw(LATENTS, seed=6) * 0.3, draw(LATENTS, seed=5)
    tensors = as_layers(parts, "decoder_bias") | {"r_mag": r_mag, "mag_bias": mag_bias}
    tensors["gate_bias"] = tensors.pop("encoder.bias")
    plain = (inputs() - parts["b_dec"]) @ parts["W_enc"]
    expected = (plain + parts["b_enc"] > 0) * (r_mag.exp() * plain + mag_bias).relu()

    assert difference(read(dictionary(tmp_path, "GatedAutoEncoder", tensors)).encode(inputs()), expected) < ROUNDING


def test_dictionary_learning_jumprelu(tmp_path):
    parts = weights() | {"threshold": draw(LATENTS, seed=5)}
    pre = inputs() @ parts["W_enc"] + parts["b_enc"]
    one = read(dictionary(tmp_path, "JumpReluAutoEncoder", parts))
    assert difference(one.encode(inputs()), (pre * (pre > parts["threshold"])).relu()) < ROUNDING


@pytest.mark.parametrize("kind", ["AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_dictionary_learning_by_rank(tmp_path, kind):
    parts = weights()
    pre = ((inputs() - parts["b_dec"]) @ parts["W_enc"] + parts["b_enc"]).relu()
    tensors = parts if kind.startswith("Matryoshka") else as_layers(parts)
    tensors |= {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(0.9),
                "group_sizes": torch.tensor([10, LATENTS - 10])}
    folder = dictionary(tmp_path, kind, tensors, submodule_name="resid_post_layer_3", lm_name="m")
    one = read(folder)
    expected = kept_top(pre, K) if kind == "AutoEncoderTopK" else pre * (pre > 0.9)

    assert FORMATS["dictionary_learning"].read(folder).site == "resid.3"
    assert one.info.k == K
    assert one.info.settings.get("prefixes") == ([10, LATENTS] if "Matryoshka" in kind else None)
    assert difference(one.encode(inputs()), expected) < ROUNDING


def test_a_threshold_that_was_never_measured_keeps_all_that_is_positive(tmp_path):
    parts = weights()
    pre = ((inputs() - parts["b_dec"]) @ parts["W_enc"] + parts["b_enc"]).relu()
    tensors = as_layers(parts) | {"k": torch.tensor(K), "threshold": torch.tensor(-1.0)}
    assert difference(read(dictionary(tmp_path, "BatchTopKSAE", tensors)).encode(inputs()), pre) < ROUNDING


def test_gemma_scope(tmp_path):
    folder = tmp_path / "models--google--gemma-scope-2b-pt-res" / "layer_20" / "width_16k" / "average_l0_71"
    folder.mkdir(parents=True)
    parts = weights() | {"threshold": draw(LATENTS, seed=5)}
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in parts.items()})
    pre = inputs() @ parts["W_enc"] + parts["b_enc"]
    one = read(folder)

    assert FORMATS["gemmascope"].read(folder / "params.npz").site == "resid.20"
    assert difference(one.encode(inputs()), pre.relu() * (pre > parts["threshold"])) < ROUNDING


def test_gemma_scope_2(tmp_path):
    parts = weights() | {"threshold": draw(LATENTS, seed=5), "affine_skip_connection": draw(WIDTH, OUT),
                         "W_dec": draw(LATENTS, OUT), "b_dec": draw(OUT)}
    save_file({name.lower(): tensor for name, tensor in parts.items()}, tmp_path / "params.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({
        "architecture": "jump_relu", "model_name": "google/gemma-3-270m", "affine_connection": True,
        "hf_hook_point_in": "model.layers.5.pre_feedforward_layernorm.output", "type": "transcoder",
        "hf_hook_point_out": "model.layers.5.post_feedforward_layernorm.output", "width": LATENTS, "l0": 9}))
    found = FORMATS["gemmascope2"].read(tmp_path)
    pre = inputs() @ parts["W_enc"] + parts["b_enc"]
    expected = pre.relu() * (pre > parts["threshold"])
    one = read(tmp_path, output_site="mlp.5")

    assert (found.site, found.output_site, found.is_transcoder) == (None, "mlp.5", True)
    assert difference(one.encode(inputs()), expected) < ROUNDING
    assert difference(one.reconstruct(inputs()), expected @ parts["W_dec"] + parts["b_dec"]
                      + inputs() @ parts["affine_skip_connection"]) < ROUNDING


def test_gemma_scope_2_without_its_config_tells_the_site_by_its_folder(tmp_path):
    folder = tmp_path / "attn_out_all" / "layer_12_width_16k_l0_small"
    FORMATS["gemmascope2"].write(autoencoder("jumprelu"), folder)
    (folder / "config.json").unlink()
    assert FORMATS["gemmascope2"].read(folder).site == "head.12"


def test_half_precision_is_widened(tmp_path):
    parts = {name: tensor.to(torch.bfloat16) for name, tensor in weights().items()}
    one = read(saelens(tmp_path, parts, architecture="standard", apply_b_dec_to_input=False))
    assert torch.equal(one.W_enc, parts["W_enc"].T.float())


@pytest.mark.parametrize(("names", "site", "name"), [
    (TRANSFORMER_LENS, "resid.15", "blocks.15.hook_resid_post"),
    (TRANSFORMER_LENS, "resid_pre.0", "blocks.0.hook_resid_pre"),
    (TRANSFORMER_LENS, "head.7", "blocks.7.attn.hook_z"),
    (TRANSFORMER_LENS, "attn.7", "blocks.7.hook_attn_out"),
    (SPARSIFY, "resid.15", "layers.15"),
    (SPARSIFY, "mlp.15", "layers.15.mlp"),
    (GEMMA, "head.3", "model.layers.3.self_attn.o_proj.input"),
])
def test_sites_have_names_elsewhere(names, site, name):
    assert named(site, names) == name
    assert site_of(name, names) == site


@pytest.mark.parametrize("name", ["blocks.15.ln2.hook_normalized", "blocks.x.hook_resid_post", "hook_embed", "", None])
def test_a_name_that_is_no_site_is_none(name):
    assert site_of(name, TRANSFORMER_LENS, SPARSIFY, GEMMA) is None


# What is wrong is said

def test_a_missing_or_unknown_source_is_named(tmp_path):
    with pytest.raises(FileError, match="does not exist"):
        detect(tmp_path / "none")
    with pytest.raises(FileError, match=r"no autoencoder of a known format.*params\.npz"):
        detect(tmp_path)
    FORMATS["gemmascope"].write(autoencoder("jumprelu"), tmp_path)
    FORMATS["sparsify"].write(autoencoder("topk"), tmp_path)
    with pytest.raises(FileError, match="say which with --from"):
        detect(tmp_path)
    assert detect(tmp_path / "sae.safetensors") == "sparsify"


@pytest.mark.parametrize(("config", "why"), [
    ({"architecture": "temporal"}, "'temporal' has no counterpart"),
    ({"architecture": "abstopk"}, "'abstopk' has no counterpart"),
    ({"architecture": "standard", "activation_fn": "tanh-relu"}, "tanh-relu"),
    ({"architecture": "standard", "normalize_activations": "layer_norm"}, "own mean and spread"),
    ({"architecture": "standard", "normalize_activations": "constant_norm_rescale"}, "own norm"),
    ({"architecture": "standard", "normalize_activations": ["x"]}, "unknown"),
    ({"architecture": "standard", "reshape_activations": "hook_z"}, "hook_z"),
    ({"architecture": "standard", "finetuning_scaling_factor": True}, "finetuning_scaling_factor"),
    ({"architecture": 3}, "architecture is the number 3, not a text"),
    ({"architecture": "topk", "k": "five"}, "k is the text 'five'"),
    ({"architecture": "topk", "k": 2.5}, "not a whole number"),
    ({"architecture": "topk", "k": 41}, "k 41"),
    ({"architecture": "topk"}, "k None"),
    ({"architecture": "jumprelu"}, "no threshold"),
    ({"architecture": "gated"}, "no b_gate"),
    ({"architecture": "transcoder", "metadata": []}, "metadata is a list"),
])
def test_what_saelens_has_and_we_have_not_is_refused(tmp_path, config, why):
    with pytest.raises(InputError, match=why):
        read(saelens(tmp_path, weights(), **config))


@pytest.mark.parametrize(("text", "why"), [("{", "not valid JSON"), ("[1]", "holds a list"), (None, "there is no cfg")])
def test_a_config_that_is_none_is_named(tmp_path, text, why):
    saelens(tmp_path, weights())
    if text is None:
        (tmp_path / "cfg.json").unlink()
    else:
        (tmp_path / "cfg.json").write_text(text)
    with pytest.raises(FileError, match=why):
        read(tmp_path)


@pytest.mark.parametrize(("name", "value", "why"), [
    ("W_dec", draw(LATENTS + 1, WIDTH), r"W_dec has shape \[41, 12\], expected \[40, 'any'\]"),
    ("b_dec", draw(WIDTH + 1), r"b_dec has shape \[13\], expected \[12\]"),
    ("W_enc", draw(WIDTH), r"W_enc has shape \[12\]"),
    ("b_enc", torch.zeros(LATENTS, dtype=torch.int), "holds torch.int32"),
    ("b_enc", torch.full((LATENTS,), torch.nan), "NaN"),
])
def test_a_tensor_of_another_shape_or_kind_is_named(tmp_path, name, value, why):
    with pytest.raises(FileError, match=why):
        read(saelens(tmp_path, weights() | {name: value}, architecture="standard"))


@pytest.mark.parametrize(("config", "why"), [
    ({"activation": "groupmax", "k": K}, "groupmax"), ({"k": K, "signed": True}, "signed"), ({}, "does not say k")])
def test_what_sparsify_has_and_we_have_not_is_refused(tmp_path, config, why):
    FORMATS["sparsify"].write(autoencoder("topk"), tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(FileError, match=why):
        read(tmp_path)


class Harmful:
    """Unpickled, it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    FORMATS["dictionary_learning"].write(autoencoder("topk"), tmp_path)
    trap = tmp_path / "ran"
    for payload in (pickle.dumps({"W": Harmful(str(trap))}, protocol=2), b"no pickle", b""):
        (tmp_path / "ae.pt").write_bytes(payload)
        with pytest.raises(FileError, match="nothing in it was run"):
            read(tmp_path)
    torch.save({"encoder.weight": Harmful(str(trap))}, tmp_path / "ae.pt")
    with pytest.raises(FileError, match="nothing in it was run"):
        read(tmp_path)
    torch.save([draw(3)], tmp_path / "ae.pt")
    with pytest.raises(FileError, match="not a dictionary of tensors"):
        read(tmp_path)
    assert not trap.exists()


def test_a_class_that_is_unknown_is_named(tmp_path):
    with pytest.raises(FileError, match="'CrossCoder'; converted are AutoEncoder,"):
        read(dictionary(tmp_path, "CrossCoder", weights()))


def test_arrays_of_objects_and_no_arrays_are_refused(tmp_path):
    trap = tmp_path / "ran"
    np.savez(tmp_path / "params.npz", W_enc=np.array([Harmful(str(trap))], dtype=object))
    with pytest.raises(FileError, match="nothing in it was run"):
        read(tmp_path)
    assert not trap.exists()
    (tmp_path / "params.npz").write_bytes(b"PK no zip")
    with pytest.raises(FileError, match="cannot be read"):
        read(tmp_path)


def test_a_transcoder_across_layers_is_named(tmp_path):
    save_file({"w_enc": draw(WIDTH, LATENTS), "w_dec": draw(LATENTS, 3, WIDTH)}, tmp_path / "params.safetensors")
    with pytest.raises(FileError, match="several layers"):
        read(tmp_path)


def test_damaged_tensors_are_named(tmp_path):
    saelens(tmp_path, weights(), architecture="standard")
    path = tmp_path / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FileError, match="damaged"):
        read(tmp_path)
