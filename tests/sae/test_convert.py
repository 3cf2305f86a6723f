"""A converted autoencoder belongs to the model, says how near it is, and goes back to where it came from."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny, tiny_model, wrap

from patchclamp.errors import InputError, SiteError, SpecError
from patchclamp.evidence.record import Record
from patchclamp.forward.autoencoder import FILE, NEEDS, Autoencoder, AutoencoderInfo
from patchclamp.sae.convert import compare, convert_autoencoder

WIDTH, LATENTS, K = 32, 64, 6


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def tensors():
    return {"W_enc": draw(LATENTS, WIDTH), "b_enc": draw(LATENTS, seed=1), "b_dec": draw(WIDTH, seed=2),
            "W_dec": draw(LATENTS, WIDTH, seed=3)}


def own(folder, architecture="topk", model="llama", **changed):
    """A random autoencoder of the tiny model, in a folder."""
    parts = tensors() | {name: draw(LATENTS, seed=4).abs() for name in NEEDS[architecture]}
    info = {"name": "own", "architecture": architecture, "k": K if architecture == "topk" else None, "site": "resid.1",
            "model": model, "weights": tiny_model(model).weights_hash, "tokens": 5} | changed
    Autoencoder(AutoencoderInfo(**info), parts).save(folder)
    return folder


def foreign(folder, hook="blocks.1.hook_resid_post", width=WIDTH, **changed):
    """The same in SAELens's format, which knows no model of ours."""
    folder.mkdir(parents=True)
    parts = tensors()
    parts["W_enc"], parts["W_dec"] = parts["W_enc"].T[:width].contiguous(), parts["W_dec"][:, :width].contiguous()
    parts["b_dec"] = parts["b_dec"][:width]
    save_file(parts, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({
        "architecture": "standard", "normalize_activations": "none", **changed,
        "metadata": {"sae_lens_version": "6.0.0", "hook_name": hook, "model_name": "gpt2-small"}}))
    return folder


def save_again(path):
    """As another project would: without what patchclamp wrote about it."""
    save_file(load_file(path), path)


def converted(source, to, out, model="llama", **changed):
    return convert_autoencoder(tiny_model(model), source=str(source), to=to, out=str(out), **changed)


@pytest.mark.parametrize(("architecture", "to", "written_as", "is_same"), [
    ("topk", "saelens", "topk", True), ("topk", "sparsify", "sae", False), ("gated", "saelens", "gated", True),
    ("relu", "dictionary_learning", "AutoEncoderNew", True), ("jumprelu", "gemmascope", "jumprelu", True),
    ("relu", "gemmascope2", "jump_relu", True), ("topk", "dictionary_learning", "AutoEncoderTopK", False),
])
def test_there_and_back(tmp_path, architecture, to, written_as, is_same):
    there = converted(own(tmp_path / "a", architecture), to, tmp_path / "b").result
    back = converted(tmp_path / "b", "patchclamp", tmp_path / "c", site="resid.1", name="own").result

    assert (there.origin, there.target, there.written_as, there.site) == ("patchclamp", to, written_as, "resid.1")
    assert back.origin == to
    assert back.same_tensors  # what was read is written as it is
    assert there.same_tensors is is_same
    for one in (*there.compared, *back.compared):
        assert one.changed == 0
        assert one.l0 > 1
        # b_dec's part of a bias is added and taken away, rounded to float32 each time
        assert one.difference == 0 if is_same or one in back.compared else one.difference < 1e-5
    original, again = Autoencoder.load(tmp_path / "a"), Autoencoder.load(tmp_path / "c")
    assert again.info.weights == original.info.weights
    assert to == "gemmascope" or again.info == original.info


def test_what_comes_from_elsewhere_becomes_the_models(tmp_path):
    model = tiny_model("llama")
    result = converted(foreign(tmp_path / "blocks.1 sae"), "patchclamp", tmp_path / "b").result
    info = Autoencoder.load(tmp_path / "b").info

    assert (info.model, info.weights, info.site) == (model.name, model.weights_hash, "resid.1")
    assert (info.name, result.said_model) == ("blocks_1_sae", "gpt2-small")
    assert info.settings == {"converted": {"from": "saelens", "as": "standard", "model": "gpt2-small"}}


def test_its_features_are_sites_of_the_model(tmp_path):
    model = wrap(tiny("llama"), "llama")
    converted(foreign(tmp_path / "a", apply_b_dec_to_input=False), "patchclamp", tmp_path / "b")
    attached = model.attach(Autoencoder.load(tmp_path / "b"))
    values = model.capture("w1 w2 w3", ["resid.1", "feature.1"])
    parts = tensors()
    expected = (values["resid.1"] @ parts["W_enc"].T + parts["b_enc"]).relu()

    assert torch.allclose(values["feature.1"], expected, atol=1e-5)
    assert attached.n_latents == LATENTS


def test_a_transcoder_needs_both_its_sites(tmp_path):
    there = converted(own(tmp_path / "a", "jumprelu", output_site="mlp.1", site="resid_mid.1"), "gemmascope",
                      tmp_path / "b").result
    back = converted(tmp_path / "b", "patchclamp", tmp_path / "c", site="resid_mid.1", output_site="mlp.1").result

    assert (there.output_site, back.output_site, back.same_tensors) == ("mlp.1", "mlp.1", True)
    converted(tmp_path / "c", "saelens", tmp_path / "d")
    config = json.loads((tmp_path / "d" / "cfg.json").read_text())
    del config["metadata"]["hook_name_out"]
    (tmp_path / "d" / "cfg.json").write_text(json.dumps(config))
    save_again(tmp_path / "d" / "sae_weights.safetensors")
    with pytest.raises(SpecError, match="say it with --output-site"):
        converted(tmp_path / "d", "patchclamp", tmp_path / "e")


def test_a_site_that_is_not_understood_has_to_be_said(tmp_path):
    foreign(tmp_path / "a", hook="blocks.1.ln2.hook_normalized")
    with pytest.raises(SpecError, match="say it with --site"):
        converted(tmp_path / "a", "patchclamp", tmp_path / "b")
    assert converted(tmp_path / "a", "patchclamp", tmp_path / "b", site="mlp.2").result.site == "mlp.2"


def test_heads_are_read_side_by_side(tmp_path):
    foreign(tmp_path / "a", hook="blocks.1.attn.hook_z", reshape_activations="hook_z")
    assert converted(tmp_path / "a", "patchclamp", tmp_path / "b").result.site == "head.1"


def test_a_modules_own_output_is_no_site_behind_a_norm(tmp_path):
    """sparsify reads what the MLP module gives, Gemma puts a norm on that before it is added."""
    for model in ("llama", "gemma3"):
        converted(own(tmp_path / model / "a", site="mlp.1", model=model), "sparsify",
                  tmp_path / model / "layers.1.mlp", model=model)
        path = tmp_path / model / "layers.1.mlp" / "sae.safetensors"
        save_again(path)
    assert converted(path.parents[2] / "llama" / "layers.1.mlp", "patchclamp", tmp_path / "b").result.site == "mlp.1"
    with pytest.raises(SpecError, match="changes that before it is added"):
        converted(path.parent, "patchclamp", tmp_path / "c", model="gemma3")


@pytest.mark.parametrize(("made", "asked", "kind", "why"), [
    ({"width": 20}, {}, SpecError, "reads 20 numbers, but resid.1 of .* has 32"),
    ({"hook": "blocks.7.hook_resid_post"}, {}, SiteError, "has 3 blocks"),
    ({}, {"site": "resid.1.4"}, InputError, "resid takes a layer"),
    ({}, {"site": "resid.1@last"}, SpecError, "a whole site"),
    ({}, {"site": "logits"}, SpecError, "a whole site"),
    ({}, {"name": "a.b"}, SpecError, "choose another"),
    ({}, {"to": "pyvene"}, SpecError, "Input should be 'patchclamp'"),
    ({}, {"from": "sparsify"}, InputError, "sae.safetensors"),
])
def test_wrong_questions_are_refused_and_nothing_is_written(tmp_path, made, asked, kind, why):
    fields = {"source": str(foreign(tmp_path / "a", **made)), "to": "patchclamp", "out": str(tmp_path / "b"), **asked}
    with pytest.raises(kind, match=why):
        convert_autoencoder(tiny_model("llama"), **fields)
    assert not (tmp_path / "b").exists()


def test_one_of_another_model_is_refused(tmp_path):
    with pytest.raises(SpecError, match="load that model with --model"):
        converted(own(tmp_path / "a"), "saelens", tmp_path / "b", model="gpt2")
    converted(tmp_path / "a", "saelens", tmp_path / "b")
    with pytest.raises(SpecError, match="load that model with --model"):
        converted(tmp_path / "b", "patchclamp", tmp_path / "c", model="gpt2")


def test_no_other_autoencoder_is_mixed_in_or_written_over(tmp_path):
    own(tmp_path / "a")
    with pytest.raises(SpecError, match="holds an autoencoder of patchclamp already"):
        converted(tmp_path / "a", "saelens", tmp_path / "a")
    with pytest.raises(SpecError, match="is the source itself"):
        converted(tmp_path / "a", "patchclamp", tmp_path / "a")
    converted(tmp_path / "a", "saelens", tmp_path / "b")
    assert converted(tmp_path / "a", "saelens", tmp_path / "b").result.same_tensors  # again is the same


def test_a_difference_is_seen(tmp_path):
    one = Autoencoder.load(own(tmp_path / "a"))
    moved = Autoencoder(one.info, one.tensors | {"b_enc": one.b_enc + 0.01})
    lost = Autoencoder(one.info, one.tensors | {"b_enc": one.b_enc - 100 * (torch.arange(LATENTS) == 3)})
    rows_ND = draw(300, WIDTH)

    codes_NL = one.encode(rows_ND)

    assert compare(one, one, "", rows_ND).difference == 0
    assert compare(one, moved, "", rows_ND).difference == pytest.approx(0.01 / float(codes_NL.max()), rel=1e-3)
    assert compare(one, lost, "", rows_ND).changed >= int((codes_NL[:, 3] > 0).sum()) > 0


def test_it_is_drawn_and_comes_back_from_json(tmp_path):
    record = converted(own(tmp_path / "a"), "sparsify", tmp_path / "b")

    assert record.save(tmp_path / "chart.svg").read_text().startswith("<svg")
    assert Record.from_json(record.to_json()).to_json() == record.to_json()
    assert len(record.table()) == 2
    assert [name.endswith(FILE) for name in record.provenance.inputs] == [True]


def test_the_command(tmp_path, model_folder):
    foreign(tmp_path / "a")
    command = [sys.executable, "-m", "patchclamp", "sae", "convert", str(tmp_path / "a"), "--to", "patchclamp", "--out",
               str(tmp_path / "b"), "--model", model_folder, "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["result"]["same_tensors"] is True
    assert (tmp_path / "b" / FILE).is_file()
    assert json.loads((tmp_path / "b" / "record.json").read_text())["method"] == "sae.convert"

    (tmp_path / "a" / "cfg.json").write_text("{")
    failed = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert failed.returncode == 2
    assert "not valid JSON" in failed.stderr
    assert "Traceback" not in failed.stderr
