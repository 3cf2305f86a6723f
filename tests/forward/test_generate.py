"""Generation under edits: Hugging Face's own tokens without them, and with them the tokens of reading all again.

Tokens are compared, not logits: greedy choices of random tiny models are far apart beside float32 errors.
"""

import gc
import threading

import pytest
import torch
from oracle import Change, greedy
from tiny import SPREAD, direction, ids, tiny_model, tiny_tokenizer

from patchclamp.errors import EditError, InputError, PromptError, SiteError
from patchclamp.forward import Edit, When
from patchclamp.forward.batch import compute_prefix

V = direction(32)
N = 8
STEER = Edit.add("resid.1@response", V, 3.0, "raw")
spread = pytest.mark.parametrize("name", SPREAD)
weights = pytest.mark.weights


@pytest.fixture(autouse=True)
def never_ends(monkeypatch):
    """Tiny models must not stop early by chance: no token ends their answers."""
    for name in SPREAD:
        monkeypatch.setattr(tiny_model(name).hf.generation_config, "eos_token_id", None)


def plain(hf, prompt, n=N, **settings):
    """What transformers itself generates."""
    torch.manual_seed(0)
    with torch.no_grad():
        out = hf.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=n,
            **{"do_sample": False, "pad_token_id": 0, **settings},
        )
    return tuple(out[0, len(prompt) :].tolist())


def hooks_on(hf):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf.modules())


@spread
def test_without_edits_it_is_hugging_faces_generate(name):
    """Token for token."""
    model = tiny_model(name)
    assert model.generate(ids(5), max_new_tokens=N).tokens == plain(model.hf, ids(5))


@pytest.mark.parametrize("use_cache", [True, False])
@spread
def test_response_edit_gives_the_tokens_of_reading_everything_again(name, use_cache):
    """Brute force: for each new token the whole text is read anew, every answer token steered. Cache or not."""
    model, prompt = tiny_model(name), ids(5)
    strength = 30 if name == "bloom" else 3  # its stream is that much larger
    want = greedy(
        model.hf,
        prompt,
        N,
        lambda start, total: (
            [Change("resid", 1, lambda x: x + strength * V, range(start, total))] if total > start else []
        ),
    )
    got = model.generate(prompt, [Edit.add("resid.1@response", V, strength, "raw")], N, use_cache=use_cache).tokens
    assert got == tuple(want)
    assert got != model.generate(prompt, max_new_tokens=N).tokens, (
        "this steering changes nothing, so it tests nothing"
    )


@pytest.mark.parametrize("use_cache", [True, False])
@spread
def test_prompt_edit_stays_on_the_prompt(name, use_cache):
    """Its effect on later tokens goes through attention alone."""
    model, prompt = tiny_model(name), ids(5)
    want = greedy(model.hf, prompt, N, lambda start, total: [Change("resid", 0, lambda x: x + 3 * V, range(start))])
    got = model.generate(prompt, [Edit.add("resid.0@prompt", V, 3.0, "raw")], N, use_cache=use_cache)
    assert got.tokens == tuple(want)


@pytest.mark.parametrize("use_cache", [True, False])
@spread
def test_edit_at_all_tokens_goes_on_through_the_answer(name, use_cache):
    """Position `all` means prompt and answer."""
    model, prompt = tiny_model(name), ids(5)
    want = greedy(model.hf, prompt, N, lambda start, total: [Change("mlp", 1, lambda x: -x)])
    assert model.generate(prompt, [Edit.scale("mlp.1", -1.0)], N, use_cache=use_cache).tokens == tuple(want)


@pytest.mark.parametrize(
    "edits",
    [(), (STEER,), (Edit.zero("attn.1@2"), Edit.add("resid.2@last", V, 2.0, "raw"))],
    ids=["plain", "response", "prompt"],
)
@spread
def test_padded_prompts_answer_as_they_do_alone(name, edits):
    """Three lengths in one batch, padded on the left."""
    model, prompts = tiny_model(name), [ids(4), ids(9, 1), ids(6, 2)]
    together = model.generate(prompts, edits, N)
    assert [a.tokens for a in together] == [model.generate(p, edits, N).tokens for p in prompts]


@spread
def test_a_beginning_in_common_is_computed_once_and_changes_no_token(name, monkeypatch):
    """Each row has its own edit behind the beginning; the last prompt differs in its last token."""
    model, prompts = tiny_model(name), [ids(9), ids(9), (*ids(9)[:-1], ids(1, 5)[0])]
    edits = [[Edit.add("resid.1@5", V, 2.0, "raw")], [STEER], [Edit.zero("attn.1@6:")]]
    lengths = []
    monkeypatch.setattr("patchclamp.forward.generate.compute_prefix",
                        lambda *args: lengths.append(args[2]) or compute_prefix(*args))
    together = model.generate(prompts, edits, N)
    assert lengths == ([5] if model.anatomy.family.rows_may_join else [])
    assert [a.tokens for a in together] == [
        model.generate(p, e, N).tokens for p, e in zip(prompts, edits, strict=True)]
    assert lengths == lengths[:1], "a single prompt shares nothing"


@pytest.mark.parametrize(("prompts", "edits"), [
    ([ids(9), ids(8)], []), ([ids(9), ids(9, 1)], []), ([ids(9)] * 2, [Edit.zero("attn.1")]),
], ids=["other lengths", "other beginnings", "edited from the start"])
def test_nothing_is_shared_where_nothing_is_common(prompts, edits, monkeypatch):
    monkeypatch.setattr("patchclamp.forward.generate.compute_prefix", None)
    assert len(tiny_model("gemma3").generate(prompts, edits, 2)) == 2


@pytest.mark.parametrize("name", ["gpt2", "llama-wide-heads", "mistral", "gemma3", "gemma2"])
@pytest.mark.parametrize("keys", ["2", "-2:", "0:3"])
def test_blocked_attention_is_the_same_with_and_without_cache(name, keys):
    """Sliding-window caches drop old keys, so a key's place in them moves; the blocked tokens must not."""
    model, prompt = tiny_model(name), ids(9)
    edits = [Edit.block(f"pattern.{layer}@response", keys=keys) for layer in range(3)]
    cached = model.generate(prompt, edits, N).tokens
    assert cached == model.generate(prompt, edits, N, use_cache=False).tokens


def test_edits_apply_in_the_stream_s_order_as_in_a_run():
    """embed comes before resid_pre.0, whichever is written first: the same in a run and in generation."""
    model, prompt = tiny_model("llama-wide-heads"), ids(5)
    edits = [Edit.add("resid_pre.0", V, 1.0, "raw"), Edit.zero("embed")]
    first = int(model.run(prompt, edits).argmax())
    assert model.generate(prompt, edits, 1).tokens == (first,)


# Sampling and streaming


def test_sampling_is_hugging_faces_and_seeded():
    """The same seed gives the same tokens, another seed others."""
    model, prompt = tiny_model("llama-wide-heads"), ids(5)
    one, again, other = (
        model.generate(prompt, max_new_tokens=24, sample=True, temperature=2.0, seed=s).tokens for s in (0, 0, 1)
    )
    assert one == again != other
    assert one == plain(model.hf, prompt, 24, do_sample=True, temperature=2.0, top_k=0, top_p=1.0)


@pytest.mark.parametrize("edits", [(), (STEER,)], ids=["plain", "steered"])
@spread
def test_streamed_pieces_join_to_the_answer(name, edits):
    """Piece by piece, the same text."""
    model = tiny_model(name)
    assert "".join(model.stream(ids(5), edits, N)) == model.generate(ids(5), edits, N).text


def test_streaming_draws_the_same_sample():
    """Whatever random numbers the caller uses between asking and reading."""
    model = tiny_model("llama-wide-heads")
    settings = {"max_new_tokens": 16, "sample": True, "temperature": 2.0, "seed": 3}
    stream = model.stream(ids(5), **settings)
    torch.rand(5)
    assert "".join(stream) == model.generate(ids(5), **settings).text


@pytest.mark.parametrize("name", ["llama-wide-heads", "gemma3", "gpt_neox"])
@pytest.mark.parametrize("site", ["resid.1", "head.0.1", "mlp.2", "neuron.1"])
def test_a_watched_answer_comes_with_the_values_it_is_written_from(name, site):
    model, prompt = tiny_model(name), ids(5)
    edits = [Edit.add("resid.0", torch.ones(model.d_model), 0.5, "raw")]
    pieces, values = zip(*model.watch(prompt, site, edits, N), strict=True)
    said = model.generate(prompt, edits, N)
    assert "".join(pieces) == said.text
    whole = model.run((*prompt, *said.tokens[:-1]), edits, read=site)
    assert torch.allclose(torch.cat(values), whole[len(prompt) - 1 :], atol=1e-4)
    assert "".join(model.stream(prompt, edits, N)) == said.text


def test_what_is_watched_has_no_positions():
    with pytest.raises(SiteError, match="leave the positions out"):
        tiny_model("llama-wide-heads").watch(ids(5), "resid.1@last")


def test_stream_is_a_stream():
    """The first piece comes before the last token is computed."""
    model = tiny_model("llama-wide-heads")
    calls = []
    handle = model.hf.model.register_forward_hook(lambda *_: calls.append(1))
    try:
        stream = model.stream(ids(5), max_new_tokens=100)
        next(stream)
        assert len(calls) < 100
        stream.close()
    finally:
        handle.remove()


def test_abandoned_stream_stops_and_removes_its_hooks():
    """A reader who has seen enough must not leave a steered model behind."""
    model = tiny_model("llama-wide-heads")
    before, threads = hooks_on(model.hf), threading.active_count()
    stream = model.stream(ids(5), [STEER], max_new_tokens=100)
    next(stream)
    del stream
    gc.collect()
    assert hooks_on(model.hf) == before
    assert threading.active_count() == threads


def test_error_in_the_generating_thread_reaches_the_reader():
    """An edit that never fires is an error in a stream too."""
    model = tiny_model("llama-wide-heads")
    with pytest.raises(EditError, match="did not fire"):
        list(model.stream(ids(5), [STEER], max_new_tokens=1))


# Errors and cleanliness


def test_edit_that_never_fires_raises():
    """One new token: nothing of the answer is ever read, so a response edit changed nothing."""
    with pytest.raises(EditError, match=r"add at resid.1@response did not fire in row 0"):
        tiny_model("gpt2").generate(ids(5), [STEER], 1)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Edit.set("resid.1", torch.ones(5, 32)), "one value per token does not reach generated tokens"),
        (Edit.set("neuron.1.3", torch.ones(5)), "one value per token does not reach generated tokens"),
        (Edit.swap("resid.1", ids(5, 1)), "one value per token does not reach generated tokens"),
        (Edit.set("resid.1@response", torch.ones(3, 32)), r"expected \[32\] or \[1, 32\]"),
    ],
)
def test_values_per_token_do_not_fit_an_open_answer(edit, message):
    """Also for a swap, whose value is known only after the other run."""
    with pytest.raises(EditError, match=message):
        tiny_model("gpt2").generate(ids(5), [edit], 4)


def test_one_value_for_a_whole_layer_of_heads_is_accepted():
    """[heads, width] is one value at one token, not one value per token."""
    model = tiny_model("gpt2")
    want = greedy(model.hf, ids(5), 4, lambda *_: [Change("head", 1, lambda x: torch.ones_like(x))])
    assert model.generate(ids(5), [Edit.set("head.1", torch.ones(4, 8))], 4).tokens == tuple(want)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"max_new_tokens": 0}, InputError),
        ({"max_new_tokens": 200}, PromptError),
        ({"sample": True, "temperature": 0.0}, InputError),
        ({"sample": True, "top_p": 1.5}, InputError),
    ],
)
def test_bad_settings_are_refused(settings, error):
    """Before the model runs."""
    with pytest.raises(error):
        tiny_model("gpt2").generate(ids(5), **settings)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_hook_is_left_behind_by_a_generation_that_breaks(error, monkeypatch):
    """An exception or Ctrl-C after some tokens."""
    model = tiny_model("llama-wide-heads")
    before, real, calls = hooks_on(model.hf), model.hf.model.layers[1].mlp.forward, []

    def explode(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise error("stop")
        return real(*args, **kwargs)

    monkeypatch.setattr(model.hf.model.layers[1].mlp, "forward", explode)
    with pytest.raises(error):
        model.generate(ids(5), [STEER, Edit.block("pattern.0@response", keys="0")], N)
    assert hooks_on(model.hf) == before
    assert model.hf.config._attn_implementation == "sdpa"


def test_prefilled_answer_is_response(monkeypatch):
    """In messages that end with the assistant's words, those are `response`, in generation as in a run."""
    tokenizer = tiny_tokenizer()
    template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    model = tiny_model("llama-wide-heads")
    messages = [{"role": "user", "content": "w1 w2 w3"}, {"role": "assistant", "content": "w4 w5"}]
    edit = Edit.add("resid.1@response", V, 3.0, "raw")
    first = int(model.run(messages, [edit]).argmax())
    assert model.generate(messages, [edit], 1).tokens == (first,)


# Real weights

QUESTIONS = ("What is the capital of Poland?", "Name three colours, please.", "Hi")


def chat(text):
    return [{"role": "user", "content": text}]


@weights
def test_real_model_generates_what_hugging_face_generates(smollm2):
    """A chat prompt, greedy."""
    encoded = smollm2.encode(chat(QUESTIONS[0]))
    answer = smollm2.generate(chat(QUESTIONS[0]), max_new_tokens=16)
    theirs = plain(smollm2.hf, list(encoded.ids), 16)
    assert answer.tokens == theirs[: len(answer.tokens)]
    assert "Warsaw" in answer.text


@weights
def test_real_model_steers_alike_with_and_without_cache(smollm2):
    """30 blocks, an edit in the middle of them, on the answer only."""
    edit = Edit.add("resid.15@response", direction(smollm2.d_model), 20.0, "raw")
    with_cache, without = (
        smollm2.generate(chat(QUESTIONS[1]), [edit], 12, use_cache=c).tokens for c in (True, False)
    )
    assert with_cache == without != smollm2.generate(chat(QUESTIONS[1]), max_new_tokens=12).tokens


@weights
def test_real_model_answers_padded_prompts_as_alone(smollm2):
    """Chat prompts of several lengths."""
    prompts = [chat(q) for q in QUESTIONS]
    together = smollm2.generate(prompts, max_new_tokens=12)
    assert [a.tokens for a in together] == [smollm2.generate(p, max_new_tokens=12).tokens for p in prompts]


@weights
def test_real_stream_joins_to_the_answer_even_in_the_middle_of_a_character(smollm2):
    """Emoji take several tokens; a limit may cut one in two."""
    prompt = "🎉🎊🥳🎉🎊🥳🎉🎊🥳🎉🎊"
    for n in (1, 2, 3, 4, 5):
        assert "".join(smollm2.stream(prompt, max_new_tokens=n)) == smollm2.generate(prompt, max_new_tokens=n).text


def test_each_prompt_can_have_its_own_edits():
    model = tiny_model("llama")
    prompts = [tuple(range(10, 16)), tuple(range(20, 29))]
    edits = [[Edit.zero("mlp.1")], [Edit.scale("attn.0@response", 3.0)]]
    together = model.generate(prompts, edits, max_new_tokens=6)
    alone = [model.generate(p, e, max_new_tokens=6) for p, e in zip(prompts, edits, strict=True)]
    assert [g.tokens for g in together] == [g.tokens for g in alone]


def test_swaps_of_several_prompts_are_all_at_hand():
    model = tiny_model("llama")
    prompt, sources = tuple(range(10, 16)), [tuple(range(20, 25)), tuple(range(30, 37))]
    edits = [[Edit.swap("resid.1@last", source)] for source in sources]
    together = model.generate([prompt, prompt], edits, max_new_tokens=4)
    alone = [model.generate(prompt, e, max_new_tokens=4) for e in edits]
    assert [g.tokens for g in together] == [g.tokens for g in alone]


def test_lists_of_edits_have_to_match_the_prompts():
    with pytest.raises(EditError, match="2 lists of edits for 1 prompts"):
        tiny_model("llama").generate([(1, 2, 3)], [[Edit.zero("mlp.1")], []], max_new_tokens=2)


def test_a_condition_holds_token_by_token_with_and_without_the_cache():
    """Steered only where a token lies far along another direction: the same tokens as reading everything again."""
    model, prompt = tiny_model("llama"), ids(5)
    other = direction(32).flip(0)
    coordinates = model.run(prompt, read="resid.1@all") @ (other / other.norm())
    when = When(direction=other, above=float(coordinates.median()))
    edit = Edit.add("resid.1", V, 3.0, "raw", when)
    changed = model.run(prompt, [edit], "resid.1@all") - model.run(prompt, read="resid.1@all")
    assert ((changed.norm(dim=-1) > 1e-6) == (coordinates > when.above)).all()
    cached, plain = (model.generate(prompt, [edit], N, use_cache=use).tokens for use in (True, False))
    assert cached == plain
