"""Three ways to execute a plan, one answer: against brute force with bare hooks, and against each other.

`EXACT` = 1e-5: float32 sums of tens of products on logits near 10, in another order (a batched matrix product, a
padded row). `FAST` is the same here: tiny models have no depth for errors to grow in.
"""

import pytest
import torch
from oracle import Change, capture, find, logits, parts_of
from tiny import CONFIGS, EAGER_ONLY, OWN_ATTENTION, SPREAD, direction, ids, supports, tiny, tiny_model

from patchclamp.errors import EditError, SiteError
from patchclamp.forward import Edit, Plan, Readout, execute
from patchclamp.forward.execute import Layout

EXACT = FAST = 1e-5
MODES = ("single", "batch", "fast")
every = pytest.mark.parametrize("name", CONFIGS)
spread = pytest.mark.parametrize("name", SPREAD)
V = direction(32)
UNIT = V / V.norm()


def close(left, right, atol=EXACT):
    torch.testing.assert_close(torch.as_tensor(left), torch.as_tensor(right), rtol=0, atol=atol)


@pytest.fixture
def prefixes(monkeypatch):
    """Prefix caches even for tiny prompts, and a record of where each batch started."""
    monkeypatch.setattr(execute, "PASS_COST", 1)
    starts = []
    real = execute._run

    def spy(anatomy, layout: Layout, *args):
        starts.append(layout.start)
        return real(anatomy, layout, *args)

    monkeypatch.setattr(execute, "_run", spy)
    return starts


OPS = {
    "zero": (lambda site: Edit.zero(site), torch.zeros_like),
    "set": (lambda site: Edit.set(site, V), lambda x: V.expand_as(x)),
    "scale": (lambda site: Edit.scale(site, -0.5), lambda x: -0.5 * x),
    "add": (lambda site: Edit.add(site, V, 2.0, "raw"), lambda x: x + 2 * V),
    "project_out": (lambda site: Edit.project_out(site, V), lambda x: x - (x @ UNIT)[:, None] * UNIT),
    "clamp": (lambda site: Edit.clamp(site, V, 3.0), lambda x: x + (3 - x @ UNIT)[:, None] * UNIT),
}


@pytest.mark.parametrize("op", OPS)
@spread
def test_operation_equals_brute_force_in_every_mode(name, op):
    """One operation on each stream point of block 1, at the last token and at two in the middle.

    Not zero at resid_mid: the oracle writes there by a difference, whose rounding error a norm would blow up.
    """
    model, prompt = tiny_model(name), ids(7)
    make, fn = OPS[op]
    for point in ("resid_pre", "resid_mid", "resid", "attn", "mlp"):
        if not supports(name, point) or (op, point) == ("zero", "resid_mid"):
            continue
        rows, wanted = [], []
        for positions, tokens in (("last", [6]), ("2:4", [2, 3])):
            rows.append((prompt, [make(f"{point}.1@{positions}")], ["logits"]))
            wanted.append(logits(model.hf, prompt, [Change(point, 1, fn, tokens)]))
        for mode in MODES:
            for (got,), want in zip(model.execute(Plan.of(rows), mode), wanted, strict=True):
                close(got, want)


@every
def test_heads_and_neurons_equal_brute_force_in_every_mode(name):
    """One unit of a layer is changed and the others are left."""
    model, prompt = tiny_model(name), ids(6)
    last_head = slice(model.d_head * (model.n_heads - 1), None)

    def zero(columns):
        def fn(x):
            x = x.clone()
            x[:, columns] = 0
            return x

        return fn

    cases = [(Edit.zero(f"head.1.{model.n_heads - 1}"), Change("head", 1, zero(last_head)))]
    if supports(name, "neuron"):
        cases.append((Edit.zero("neuron.1.5@3"), Change("neuron", 1, zero(5), [3])))
    for mode in MODES:
        got = model.execute(Plan.of([(prompt, [edit], ["logits"]) for edit, _ in cases]), mode)
        for (value,), (_, change) in zip(got, cases, strict=True):
            close(value, logits(model.hf, prompt, [change]))


@every
def test_modes_agree_on_padded_prompts_and_prefix_caches(name, prefixes):
    """Prompts of several lengths, edits in every block at late tokens, all kinds of readout: no mode differs."""
    model = tiny_model(name)
    reads = [
        Readout.logits(),
        Readout.kl(),
        Readout.logit_difference(5, 6),
        Readout.value("resid.1@last"),
        Readout.value("attn.0@-2"),
        Readout.value("mlp.2@last"),
        Readout.log_probability(7),
        Readout.value("q.1.0@-1"),
    ]
    rows = [(ids(5), [], reads)]
    for seed, n in enumerate((9, 6, 12)):
        rows.append((ids(n, seed), [], reads))
        for layer in range(model.n_layers):
            rows += [
                (ids(n, seed), [edit], reads)
                for edit in (
                    Edit.add(f"resid.{layer}@last", V, 1.0, "raw"),
                    Edit.zero(f"attn.{layer}@-2:"),
                    Edit.scale(f"mlp.{layer}@-1", 2.0),
                    Edit.zero(f"head.{layer}.1@last"),
                    Edit.set(f"k.{layer}@-2", 0.5),
                    Edit.zero(f"v.{layer}.0@-2:"),
                    Edit.scale(f"q.{layer}@last", 0.0),
                )
            ]
    single, batch, fast = (model.execute(Plan.of(rows), mode) for mode in MODES)
    if name not in (
        "bloom",
        "falcon",
        "falcon-new",
        "falcon-rw",
    ):  # their bias is built per row: rows cannot join late
        assert any(prefixes), "no prefix was cached, so this test would show nothing"
    for one, two, three in zip(single, batch, fast, strict=True):
        for a, b, c in zip(one, two, three, strict=True):
            close(b, a)
            close(c, a, FAST)


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3", "gpt_neo"])
def test_sliding_windows_with_a_prefix_longer_than_the_window(name, prefixes):
    """Windows of 3 or 4 tokens, a prefix of 27: the cached keys must still be masked by distance."""
    model, prompt = tiny_model(name), ids(30)
    edits = [Edit.add(f"resid_pre.{layer}@-{back}", V, 1.0, "raw") for layer in range(3) for back in (1, 2, 3)]
    rows = [(prompt, [edit], ["logits@last"]) for edit in edits]
    fast = model.execute(Plan.of(rows))
    assert max(prefixes) >= 27
    for (got,), edit in zip(fast, edits, strict=True):
        token = 30 + edit.site.positions.index
        want = logits(model.hf, prompt, [Change("resid_pre", edit.site.layer, lambda x: x + V, [token])])
        close(got, want[-1], FAST)


@spread
def test_edits_of_one_row_apply_in_the_order_given(name):
    """Doubling then adding is not adding then doubling."""
    model, prompt = tiny_model(name), ids(6)
    double, add = Edit.scale("resid.0@2", 2.0), Edit.add("resid.0@2", V, 1.0, "raw")
    for mode in MODES:
        one, two = model.execute(
            Plan.of([(prompt, [double, add], ["logits"]), (prompt, [add, double], ["logits"])]), mode
        )
        close(one[0], logits(model.hf, prompt, [Change("resid", 0, lambda x: 2 * x + V, [2])]))
        close(two[0], logits(model.hf, prompt, [Change("resid", 0, lambda x: 2 * (x + V), [2])]))


@spread
def test_edits_in_several_blocks_act_together(name):
    """Each block's edit meets what the earlier ones made of the stream."""
    model, prompt = tiny_model(name), ids(6)
    edits = [Edit.zero("attn.2@last"), Edit.add("resid.0@1", V, 1.0, "raw"), Edit.scale("mlp.1@3", 3.0)]
    changes = [
        Change("attn", 2, torch.zeros_like, [5]),
        Change("resid", 0, lambda x: x + V, [1]),
        Change("mlp", 1, lambda x: 3 * x, [3]),
    ]
    want = logits(model.hf, prompt, changes)
    for mode in MODES:
        close(model.run(prompt, edits, "logits", mode), want)


@spread
def test_reads_before_the_edit_are_clean_and_reads_after_it_are_not(name):
    """A row that joins late answers reads in earlier blocks from its unedited run."""
    model, prompt = tiny_model(name), ids(6)
    edit = Edit.add("resid_pre.2@last", V, 1.0, "raw")
    for mode in MODES:
        before, at, after = model.run(prompt, [edit], ["resid_pre.1", "resid_pre.2@last", "resid.2@last"], mode)
        close(before, capture(model.hf, prompt, "resid_pre", 1))
        close(at, capture(model.hf, prompt, "resid_pre", 2)[-1] + V)
        assert (after - capture(model.hf, prompt, "resid", 2)[-1]).abs().max() > 0.1


@spread
def test_swap_puts_in_the_value_of_the_other_run(name):
    """Activation patching: the value is the other run's, token by token."""
    model, prompt, other = tiny_model(name), ids(7), ids(9, 3)
    donor = capture(model.hf, other, "resid", 1)
    cases = [
        (Edit.swap("resid.1@last", other), [6], donor[[8]]),
        (Edit.swap("resid.1@2:4", other, "resid.1@5:7"), [2, 3], donor[5:7]),
        (Edit.swap("resid.1@1:4", other, "resid.1@0"), [1, 2, 3], donor[[0]]),
    ]
    for edit, tokens, value in cases:
        want = logits(model.hf, prompt, [Change("resid", 1, lambda x, value=value: value.expand_as(x), tokens)])
        for mode in MODES:
            close(model.run(prompt, [edit], "logits", mode), want)


def test_swap_survives_beside_edits_that_measure_a_corpus():
    """A mean and a deviation run the model while edits are bound; the swapped values must still be there."""
    model, prompt = tiny_model("llama"), ids(5)
    swap = Edit.swap("resid.1@last", ids(6, 2))
    alone = model.run(prompt, [swap])
    beside = model.run(prompt, [Edit.mean("mlp.2@0", ["w3 w4 w5"]), Edit.add("resid.0@0", V, 0.0), swap])
    assert torch.isfinite(beside).all()
    close(model.run(prompt, [Edit.add("resid.0@0", V, 0.0), swap]), alone)


@pytest.mark.parametrize("point", ["resid", "mlp", "head", "neuron"])
def test_mean_is_over_all_tokens_of_the_texts_but_each_first(point):
    """The first token's stream is an outlier, so it is left out."""
    model, texts = tiny_model("llama"), ["w1 w2 w3", "w4 w5 w6 w7 w8"]
    values = torch.cat([capture(model.hf, model.encode(t).ids, point, 1)[1:] for t in texts])
    assert len(values) == 6
    want = logits(model.hf, ids(5), [Change(point, 1, lambda x: values.mean(0).expand_as(x), [4])])
    close(model.run(ids(5), [Edit.mean(f"{point}.1@last", texts)], "logits"), want)


def test_strength_in_deviations_is_measured_along_the_direction():
    """One unit is the standard deviation of x·v̂ over the neutral corpus, so the vector's own length is irrelevant."""
    model, prompt = tiny_model("llama"), ids(5)
    from patchclamp.forward.depend import NEUTRAL_TEXTS
    from patchclamp.tasks.neutral import neutral_texts

    values = torch.cat([capture(model.hf, model.encode(t).ids, "resid", 1)[1:] for t in neutral_texts(NEUTRAL_TEXTS)])
    sd = (values @ UNIT).std()
    want = logits(model.hf, prompt, [Change("resid", 1, lambda x: x + 2 * sd * UNIT, [4])])
    for length in (1.0, 100.0):
        # 1e-4: the deviation of some thousand projections, in batches of another size
        close(model.run(prompt, [Edit.add("resid.1@last", V * length, 2.0)], "logits"), want, 1e-4)


# Capture


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@every
def test_capture_is_hugging_faces_own_hidden_states_bit_for_bit(name, attention):
    """Looking changes nothing: every stream position equals `output_hidden_states` exactly, and so do the logits."""
    if attention == "sdpa" and name in EAGER_ONLY:
        pytest.skip("transformers has no sdpa for this family")
    model, prompt = tiny_model(name, attention), ids(11)
    with torch.no_grad():
        theirs = model.hf(torch.tensor([prompt]), output_hidden_states=True, use_cache=False)
    acts = model.capture([prompt], ["embed", *(f"resid_pre.{i}" for i in range(model.n_layers))])
    assert torch.equal(acts["embed"], theirs.hidden_states[0])
    for layer in range(model.n_layers):
        assert torch.equal(acts[f"resid_pre.{layer}"], theirs.hidden_states[layer])
    assert torch.equal(model.capture([prompt], ["logits"])["logits"], theirs.logits)


@spread
def test_reading_every_site_at_once_changes_no_value(name):
    """Sites share modules and memory; each value must be what it is when read alone, to the bit."""
    model, prompt = tiny_model(name), ids(7)
    sites = [
        f"{p}.{i}"
        for p in ("resid_pre", "resid_mid", "resid", "attn", "mlp", "head", "q", "k", "v", "neuron", "gate")
        for i in range(model.n_layers)
        if supports(name, p)
    ]
    together = model.capture([prompt], sites)
    for site in sites:
        assert torch.equal(together[site], model.capture([prompt], [site])[site]), site


@every
def test_heads_contributions_and_output_bias_sum_to_attn(name):
    """Through the output projection, and with a post-norm times its scale in the actual run."""
    model, prompt = tiny_model(name), ids(6)
    for layer in range(model.n_layers):
        acts = model.capture([prompt], [f"head_out.{layer}", f"attn.{layer}", f"head_out.{layer}.1"])
        block = find(model.hf, parts_of(model.hf).blocks)[layer]
        bias = getattr(find(block, parts_of(model.hf).out_proj), "bias", None)
        total = acts[f"head_out.{layer}"].sum(2) + (0 if bias is None else bias.detach())
        torch.testing.assert_close(total, acts[f"attn.{layer}"], rtol=2e-5, atol=2e-5)
        close(acts[f"head_out.{layer}.1"], acts[f"head_out.{layer}"][:, :, 1])


@spread
def test_padding_changes_no_captured_value(name):
    """A short prompt beside a long one gives its own values, token for token."""
    model, short, long = tiny_model(name), ids(4), ids(11, 2)
    sites = ["resid.1", "attn.2", "q.1", "pattern.1", "head_out.2", "logits"]
    batch = model.capture([short, long], sites)
    for site in sites:
        for row, prompt in enumerate((short, long)):
            close(batch.rows(site)[row], model.capture([prompt], [site])[site][0])


# Attention patterns


def masked_attention(model, prompt, layer, blocked, head):
    """Attention output of a block whose scores are -inf where blocked, by hand from q, k, v: needs no rotary."""
    acts = model.capture([prompt], [f"{p}.{layer}" for p in "qkv"])
    q, k, v = (acts[f"{p}.{layer}"][0].transpose(0, 1) for p in "qkv")
    scores = q @ k.transpose(1, 2) / model.d_head**0.5
    scores = scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), float("-inf"))
    for t, s in blocked:
        scores[head, t, s] = float("-inf")
    z = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(prompt), -1)
    return z


def test_blocking_attention_is_masking_the_scores_before_the_softmax():
    """GPT-2, whose queries and keys need no rotary: the head outputs recomputed with -inf in the scores."""
    model, prompt = tiny_model("gpt2"), ids(8)
    edit = Edit.block("pattern.1.2@5:8", keys="1:4")
    z = masked_attention(model, prompt, 1, [(t, s) for t in (5, 6, 7) for s in (1, 2, 3)], 2)
    want = logits(model.hf, prompt, [Change("head", 1, lambda _: z)])
    for mode in MODES:
        close(model.run(prompt, [edit], "logits", mode), want)


@pytest.mark.parametrize("name", [n for n in CONFIGS if n not in OWN_ATTENTION])
def test_blocked_weights_are_zero_and_the_rest_sum_to_one(name):
    """The pattern as it was, blocked keys out and rescaled, times the values: what the edited heads put out."""
    model, prompt = tiny_model(name), ids(8)
    clean = model.capture([prompt], ["pattern.1", "v.1"])
    pattern, v = clean["pattern.1"][0].clone(), clean["v.1"][0].transpose(0, 1)
    pattern[:, 6:, 5] = 0
    pattern = pattern / pattern.sum(-1, keepdim=True)
    z = pattern @ v.repeat_interleave(len(pattern) // len(v), 0)
    want = logits(model.hf, prompt, [Change("head", 1, lambda _: z.transpose(0, 1).reshape(8, -1))])
    edit = Edit.block("pattern.1@6:", keys="5")
    for mode in MODES:
        seen, got = model.run(prompt, [edit], ["pattern.1", "logits"], mode)
        close(seen, pattern)
        close(got, want)


@pytest.mark.parametrize("name", ["gpt2", "mistral", "gemma3", "olmo2"])
def test_pattern_edits_agree_between_modes_under_padding_and_prefix(name, prefixes):
    """Queries and keys are counted in the prompt's own tokens, wherever padding and cache put them."""
    model = tiny_model(name)
    reads = [Readout.logits(), "pattern.2.1@last"]
    rows = [
        (ids(n, n), [edit], reads)
        for n in (9, 14)
        for edit in (
            Edit.block("pattern.1@last", keys="-3:-1"),
            Edit.block("pattern.2.0@-2:", keys="-2"),
            Edit(op="scale", site="pattern.0@last", value=0.5),
        )
    ]
    single, batch, fast = (model.execute(Plan.of(rows), mode) for mode in MODES)
    assert any(prefixes)
    for one, two, three in zip(single, batch, fast, strict=True):
        for a, b, c in zip(one, two, three, strict=True):
            close(b, a)
            close(c, a, FAST)


def test_attention_implementation_is_restored_after_a_pattern_run():
    """Also when the run fails in the middle."""
    model = tiny_model("llama", "sdpa")
    model.capture([ids(4)], ["pattern.0"])
    assert model.hf.config._attn_implementation == "sdpa"
    with pytest.raises(EditError):
        model.run(ids(4), [Edit(op="set", site="pattern.0@last", value=[1.0, 2.0])], ["pattern.0"])
    assert model.hf.config._attn_implementation == "sdpa"


# Readouts


@spread
def test_readouts_are_functions_of_the_logits(name):
    """Each readout, unembedding only what it needs, equals its definition on the full logits of brute force."""
    model, prompt = tiny_model(name), ids(6)
    full = logits(model.hf, prompt)
    log_p = full.log_softmax(-1)
    at = full[-1]
    got = model.run(
        prompt,
        [],
        [
            Readout.logits(),
            Readout.logit(5, 50),
            Readout.logit_difference(5, 50),
            Readout.probability(5),
            Readout.log_probability(5, at="2"),
            Readout.rank(50),
            Readout.loss(),
            Readout.top(3),
        ],
    )
    wanted = [
        at,
        at[[5, 50]],
        at[5] - at[50],
        at.softmax(-1)[[5]],
        log_p[2, [5]],
        (at > at[50]).sum()[None],
        -log_p[torch.arange(5), torch.tensor(prompt[1:])].mean(),
    ]
    for value, want in zip(got[:-1], wanted, strict=True):
        close(value, want)
    assert [t.id for t in got[-1]] == at.topk(3).indices.tolist()


@spread
def test_kl_is_from_the_unedited_run_to_the_edited_one(name):
    """KL(unedited ‖ edited), and zero for a row without edits."""
    model, prompt = tiny_model(name), ids(6)
    edit, change = Edit.zero("mlp.1@last"), Change("mlp", 1, torch.zeros_like, [5])
    p = logits(model.hf, prompt)[-1].log_softmax(-1)
    q = logits(model.hf, prompt, [change])[-1].log_softmax(-1)
    want = (p.exp() * (p - q)).sum()
    for mode in MODES:
        (none,), (some,) = model.execute(
            Plan.of([(prompt, [], [Readout.kl()]), (prompt, [edit], [Readout.kl()])]), mode
        )
        close(float(some), float(want))
        assert float(none) == 0


# Errors and cleanliness


def hooks_on(hf):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf.modules())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_hook_is_left_behind_by_a_run_that_breaks(error, monkeypatch):
    """An exception, or Ctrl-C, in the middle of the forward pass."""
    model = tiny_model("llama")
    before = hooks_on(model.hf)

    def explode(*args, **kwargs):
        raise error("stop")

    monkeypatch.setattr(model.hf.model.layers[1].mlp, "forward", explode)
    with pytest.raises(error):
        model.run(ids(4), [Edit.zero("mlp.2")], ["logits", "pattern.0"])
    assert hooks_on(model.hf) == before
    assert model.hf.config._attn_implementation == "sdpa"


@spread
def test_a_run_leaves_hooks_and_weights_as_they_were(name):
    """The next plain call of the Hugging Face model gives the same bits as ever."""
    model, prompt = tiny_model(name), ids(6)
    before = logits(tiny(name), prompt)
    hooks = hooks_on(model.hf)
    model.run(prompt, [Edit.set("resid.1", V), Edit.zero("attn.0")], ["resid.2", "logits"])
    assert hooks_on(model.hf) == hooks
    assert torch.equal(logits(model.hf, prompt), before)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Edit.zero("neuron.19.7"), r"llama has 3 blocks \(0 to 2\); neuron.19.7 names block 19"),
        (Edit.zero("head.0.4"), r"block 0 of llama has 4 heads \(0 to 3\); head.0.4 names 4"),
        (Edit.zero("k.0.2"), r"block 0 of llama has 2 key/value heads \(0 to 1\); k.0.2 names 2"),
        (Edit.zero("neuron.1.48"), r"block 1 of llama has 48 neurons \(0 to 47\); neuron.1.48 names 48"),
        (Edit.zero("resid.1@9"), r"resid.1@9: the prompt has 5 tokens \(0 to 4, or -5 to -1"),
        (Edit.zero("resid.1@7:9"), r"resid.1@7:9 selects no token: the prompt has 5 tokens"),
        (Edit.zero("resid.1@response"), r"selects no token: it has no response"),
        (Edit.zero('resid.1@"zebra"'), r"does not contain 'zebra'"),
        (Edit.zero("feature.1.3"), r"no autoencoder is attached"),
    ],
)
def test_a_site_the_model_lacks_is_named(edit, message):
    """What is wrong, where, and what would be right."""
    with pytest.raises(SiteError, match=message):
        tiny_model("llama").run(ids(5), [edit])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Edit.set("resid.1@last", torch.ones(31)), r"has shape \[31\], expected \[32\] or \[1, 32\]"),
        (Edit.set("resid.1@1:4", torch.ones(2, 32)), r"has shape \[2, 32\], expected \[32\] or \[3, 32\]"),
        (Edit.add("resid.1", torch.ones(31), 1.0, "raw"), "direction has width 31 and resid.1 of llama has width 32"),
        (Edit.add("resid.1", torch.ones(31)), "direction has width 31 and resid.1 has width 32"),
        (Edit.add("resid.1", torch.zeros(32)), "all zeros"),
        (Edit.project_out("neuron.1.3", torch.ones(1)), "neuron.1.3 is one number"),
        (
            Edit.swap("resid.1@1:4", ids(6), "resid.1@0:2"),
            "3 tokens are edited and resid.1@0:2 of the other prompt has 2",
        ),
        (Edit.swap("resid.1", ids(6)), "5 tokens are edited and resid.1 of the other prompt has 6"),
        (Edit.swap("resid.1@last", ids(6), "neuron.1@last"), r"has shape \[48\], expected \[32\]"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(edit, message):
    """Nothing is broadcast into a shape that the site does not have."""
    with pytest.raises(EditError, match=message):
        tiny_model("llama").run(ids(5), [edit])


@pytest.mark.parametrize("token", [-1, 101])
def test_a_token_id_outside_the_vocabulary_is_refused(token):
    """-1 would silently read the last token of the vocabulary."""
    from patchclamp.errors import TokenError

    with pytest.raises(TokenError, match=r"llama has 101 tokens \(0 to 100\)"):
        tiny_model("llama").run(ids(4), read=Readout.logit(token))


@pytest.mark.parametrize("prompt", [5, [{"role": "robot", "content": "x"}], None])
def test_what_is_no_prompt_is_refused_as_one(prompt):
    """The same error from running as from generating, not a validation dump."""
    from patchclamp.errors import PromptError

    with pytest.raises(PromptError, match="a prompt is a text"):
        tiny_model("llama").run(prompt)
