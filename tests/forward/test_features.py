"""Features of an attached autoencoder are sites: read as its codes, edited along their directions."""

import pytest
import torch
from tiny import tiny, tiny_model, tiny_tokenizer

import patchclamp as pc
from patchclamp.errors import FileError, InputError, SiteError, SpecError
from patchclamp.forward.autoencoder import Autoencoder, AutoencoderInfo

PROMPT = "w3 w14 w15 w9 w26 w5"
LOGITS = pc.Readout.value("logits")
D, L = 32, 50
CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # batched and single runs round apart, and directions are long


def autoencoder(model, name="a", site="resid.1", architecture="relu"):
    torch.manual_seed(len(name) + L)
    width = {"neuron": model.n_neurons(1), "head": model.n_heads * model.d_head}.get(site.split(".")[0], D)
    tensors = {"W_enc": torch.randn(L, width), "b_enc": torch.randn(L) - 1, "W_dec": torch.randn(L, width),
               "b_dec": torch.randn(width)}
    if architecture == "jumprelu":
        tensors["threshold"] = torch.rand(L)
    info = AutoencoderInfo(name=name, architecture=architecture, k=5, site=site, model=model.name,
                           weights=model.weights_hash)
    return Autoencoder(info, tensors)


@pytest.fixture(params=["llama", "gpt2", "gemma3"])
def model(request):
    made = tiny_model(request.param)
    yield made
    made.anatomy._codecs.clear()
    made.anatomy._taps.clear()


def unit_of(one, value_TD):
    return int(one.encode(value_TD)[2].argmax())


def by_hand(model, one, change, prompt=PROMPT):
    """Logits with a plain hook: the value plus what the changed codes add."""
    def hook(_, args, output):
        x = output[0] if isinstance(output, tuple) else output
        codes = one.encode(x[0])
        moved = x + (change(codes.clone()) - codes) @ one.W_dec
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handle = model.anatomy.blocks[1].register_forward_hook(hook)
    try:
        with torch.no_grad():
            return model.hf(torch.tensor([model.encode(prompt).ids])).logits[0]
    finally:
        handle.remove()


def written(codes, token, unit, value):
    codes[token, unit] = value
    return codes


@pytest.mark.parametrize("site", ["resid.1", "mlp.1", "resid_pre.2", "attn.0", "neuron.1", "head.1"])
def test_a_feature_reads_as_the_autoencoders_code(model, site):
    one = model.attach(autoencoder(model, site=site))
    layer = one.site.layer
    codes_TL = one.encode(model.run(PROMPT, read=site).flatten(1))

    torch.testing.assert_close(model.run(PROMPT, read=f"feature.{layer}"), codes_TL)
    unit = int(codes_TL[-1].argmax())
    assert float(model.run(PROMPT, read=f"feature:a.{layer}.{unit}@last")) == float(codes_TL[-1, unit])


@pytest.mark.parametrize("architecture", ["relu", "topk", "jumprelu"])
@pytest.mark.parametrize("mode", ["fast", "single"])
def test_edits_move_the_value_along_the_direction(model, architecture, mode):
    one = model.attach(autoencoder(model, architecture=architecture))
    unit = unit_of(one, model.run(PROMPT, read="resid.1"))
    site, every = f"feature.1.{unit}", slice(None)
    cases = [
        (pc.Edit.set(site, 9.0), lambda c: written(c, every, unit, 9.0)),
        (pc.Edit.zero(site), lambda c: written(c, every, unit, 0.0)),
        (pc.Edit.scale(site, -2.0), lambda c: written(c, every, unit, -2 * c[:, unit])),
    ]
    for edit, change in cases:
        got = model.run(PROMPT, [edit], read=LOGITS, mode=mode)
        torch.testing.assert_close(got, by_hand(model, one, change), **CLOSE)


def test_one_position_and_the_mean_over_texts(model):
    one = model.attach(autoencoder(model))
    texts = ["w1 w2 w3 w4", "w7 w8 w9 w10 w11"]
    codes = torch.cat([one.encode(model.run(text, read="resid.1")[1:]) for text in texts])
    unit = int(codes.mean(0).argmax())

    got = model.run(PROMPT, [pc.Edit.mean(f"feature.1.{unit}@2", texts)], read=LOGITS)

    torch.testing.assert_close(got, by_hand(model, one, lambda c: written(c, 2, unit, codes[:, unit].mean())), **CLOSE)


def test_a_value_can_be_swapped_in_from_another_prompt(model):
    one = model.attach(autoencoder(model))
    other = "w40 w41 w42"
    value_L = one.encode(model.run(other, read="resid.1"))[-1]
    unit = int(value_L.argmax())

    got = model.run(PROMPT, [pc.Edit.swap(f"feature.1.{unit}@last", other)], read=LOGITS)

    torch.testing.assert_close(got, by_hand(model, one, lambda c: written(c, -1, unit, value_L[unit])), **CLOSE)


def test_an_edit_that_changes_nothing_changes_no_bit(model):
    """What the codes do not explain stays as it is."""
    one = model.attach(autoencoder(model))
    codes_TL = one.encode(model.run(PROMPT, read="resid.1"))
    silent = int((codes_TL == 0).all(0).nonzero()[0])

    got = model.run(PROMPT, [pc.Edit.zero(f"feature.1.{silent}")], read=LOGITS, mode="single")
    assert torch.equal(got, model.run(PROMPT, read=LOGITS, mode="single"))


def test_a_readout_sees_the_edits_of_its_place(model):
    one = model.attach(autoencoder(model))
    edit = pc.Edit.set("feature.1.3@last", 5.0)
    before, after = model.run(PROMPT, read="resid.1@last"), model.run(PROMPT, [edit], read="resid.1@last")

    torch.testing.assert_close(after - before, (5.0 - one.encode(before[None])[0, 3]) * one.W_dec[3], **CLOSE)


def test_of_heads_the_direction_is_cut_into_heads(model):
    one = model.attach(autoencoder(model, site="head.1"))
    edit = pc.Edit.set("feature.1.3@last", 5.0)
    before, after = model.run(PROMPT, read="head.1@last"), model.run(PROMPT, [edit], read="head.1@last")
    step = 5.0 - one.encode(before.flatten()[None])[0, 3]

    torch.testing.assert_close(after - before, (step * one.W_dec[3]).view_as(before), **CLOSE)


def test_edits_hold_while_an_answer_is_generated(model):
    one = model.attach(autoencoder(model))
    answer = model.generate(PROMPT, [pc.Edit.set("feature.1.7", 30.0)], 5)
    ids = list(model.encode(PROMPT).ids)
    for token in answer.tokens:
        logits_TV = by_hand(model, one, lambda c: written(c, slice(None), 7, 30.0), tuple(ids))
        assert int(logits_TV[-1].argmax()) == token
        ids.append(token)


@pytest.mark.parametrize("site", ["resid.1", "head.1"])
def test_the_gradient_by_a_code_is_along_its_direction(model, site):
    one = model.attach(autoencoder(model, site=site))
    readout = pc.Readout.logit_difference(5, 6)
    by_value_D = model.gradients(PROMPT, readout, f"{site}@3")[f"{site}@3"][0].flatten()
    by_code_L = model.gradients(PROMPT, readout, "feature.1@3")["feature.1@3"][0]

    torch.testing.assert_close(by_code_L, one.W_dec @ by_value_D, rtol=1e-4, atol=1e-5)


def test_a_scan_hands_over_the_codes(model):
    one = model.attach(autoencoder(model))
    seen = []
    model.scan([model.encode(PROMPT).ids], "feature.1", lambda site, value: seen.append(value.clone()))

    torch.testing.assert_close(seen[0][0], one.encode(model.run(PROMPT, read="resid.1")))


def test_two_at_one_block_are_told_apart_by_name(model):
    first, second = model.attach(autoencoder(model, "one")), model.attach(autoencoder(model, "second", "mlp.1"))
    with pytest.raises(SiteError, match="block 1 has one, second; say which"):
        model.run(PROMPT, read="feature.1")

    torch.testing.assert_close(model.run(PROMPT, read="feature:one.1"), first.encode(model.run(PROMPT, read="resid.1")))
    torch.testing.assert_close(model.run(PROMPT, read="feature:second.1"),
                               second.encode(model.run(PROMPT, read="mlp.1")))


def test_what_is_not_there_is_named(model):
    with pytest.raises(SiteError, match="no autoencoder is attached"):
        model.run(PROMPT, read="feature.1")
    model.attach(autoencoder(model))
    with pytest.raises(SiteError, match=r"no such autoencoder; attached are feature:a\.1"):
        model.run(PROMPT, read="feature.0")
    with pytest.raises(SiteError, match=r"50 features \(0 to 49\)"):
        model.run(PROMPT, read="feature.1.50")
    with pytest.raises(SiteError, match="no such autoencoder"):
        model.run(PROMPT, read="feature:b.1.3")


def test_a_saved_one_is_part_of_the_models_reference(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    plain = pc.load(str(tmp_path / "model"))
    made = autoencoder(plain)
    made.save(tmp_path / "sae")

    loaded = pc.load(f"{tmp_path / 'model'}+sae={tmp_path / 'sae'}")
    again = pc.load(loaded.ref)
    for one in (loaded, again):
        torch.testing.assert_close(one.run(PROMPT, read="feature.1"), made.encode(plain.run(PROMPT, read="resid.1")))


def test_one_of_another_model_is_refused(tmp_path):
    llama, gpt2 = tiny_model("llama"), tiny_model("gpt2")
    with pytest.raises(SpecError, match="belongs to llama"):
        gpt2.attach(autoencoder(llama))
    transcoder = autoencoder(llama, site="resid_mid.1")
    transcoder.info = transcoder.info.model_copy(update={"output_site": "mlp.1"})
    with pytest.raises(SpecError, match=r"transcoder from resid_mid\.1 to mlp\.1"):
        llama.attach(transcoder)
    with pytest.raises(FileError, match="there is no"):
        llama.attach(tmp_path / "nothing")
    with pytest.raises(InputError, match="has no W_enc"):
        Autoencoder(AutoencoderInfo(name="a", architecture="relu", site="resid.1", model="m", weights="w"), {})
