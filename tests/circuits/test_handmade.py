"""A transformer made by hand, whose circuit is known: exactly its edges are found."""

import pytest
import torch
import transformers as tf
from tiny import wrap

from patchclamp.circuits.graph import Graph
from patchclamp.circuits.runs import Runs
from patchclamp.circuits.search import acdc, optimised, prune, prune_roles, shortlist

TOKENS, PLACES = 10, 8
TOKEN, PLACE, HELD, ANSWER, WASTE = (slice(0, 10), slice(10, 18), slice(18, 28), slice(28, 38), slice(38, 48))
"""Of the 48 numbers of the stream: the token, where it stands, a token moved on by one place, what is answered, and
what nobody reads."""
WIDTH, HEADS, HEAD = 48, 4, 12

TWO_STEPS = {"embed->v.0.0", "head.0.0->v.1.1", "head.1.1->logits"}
"""Head 0.0 moves each token on by one place, head 1.1 moves it on to the last place and writes it as the answer."""
DIRECT = {"embed->v.1.2", "head.1.2->logits"}
"""Head 1.2 moves a token two places on at once and writes half as much."""


def handmade(decoys=True):
    """GPT-2 with two blocks. The last token says the token two places before it; what the decoys write is not read."""
    torch.manual_seed(0)
    model = tf.GPT2LMHeadModel(tf.GPT2Config(
        vocab_size=TOKENS, n_positions=PLACES, n_embd=WIDTH, n_layer=2, n_head=HEADS, n_inner=16,
        tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=0)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.zero_()
        model.transformer.wte.weight[:, TOKEN] = torch.eye(TOKENS)
        model.transformer.wpe.weight[:, PLACE] = torch.eye(PLACES)
        model.lm_head.weight[:, ANSWER] = torch.eye(TOKENS)
        moves(model, 0, 0, 1, TOKEN, HELD)
        moves(model, 1, 1, 1, HELD, ANSWER)
        moves(model, 1, 2, 2, TOKEN, ANSWER, 0.5)
        if decoys:
            wastes(model)
    return wrap(model, "handmade")


def moves(model, layer, head, back, source, target, strength=1.0):
    """A head that looks so many places back and writes there what it reads here."""
    attention = model.transformer.h[layer].attn
    own = head * HEAD
    for place in range(PLACES):
        attention.c_attn.weight[PLACE.start + place, own + place] = 3.0
        if place + back < PLACES:
            attention.c_attn.weight[PLACE.start + place, WIDTH + own + place + back] = 3.0
    for token in range(TOKENS):
        attention.c_attn.weight[source.start + token, 2 * WIDTH + own + token] = strength
        attention.c_proj.weight[own + token, target.start + token] = 1.0


def wastes(model):
    """Heads and MLPs that read everything and write where nothing is read; of the token they get a little into the
    answer's norm."""
    for layer in range(2):
        block = model.transformer.h[layer]
        own = slice(3 * HEAD, 4 * HEAD)
        for start in (0, WIDTH, 2 * WIDTH):
            block.attn.c_attn.weight[:, start + own.start : start + own.stop] = 0.3 * torch.randn(WIDTH, HEAD)
        block.attn.c_proj.weight[own, WASTE] = 0.1 * torch.randn(HEAD, 10)
        block.mlp.c_fc.weight.copy_(0.3 * torch.randn(WIDTH, 16))
        block.mlp.c_proj.weight[:, WASTE] = 0.1 * torch.randn(16, 10)


PROMPTS = [(3, 4, 5, 6, 7), (8, 9, 4, 3, 5), (5, 3, 8, 9, 4), (4, 6, 9, 7, 8), (3, 8, 6, 9, 6), (9, 5, 3, 7, 4)]
"""The answer is the third token."""


@pytest.fixture(scope="module")
def runs():
    others = [(p[2] + 1 if p[2] < 9 else 3) for p in PROMPTS]
    corrupted = [(*p[:2], other, *p[3:]) for p, other in zip(PROMPTS, others, strict=True)]
    model = handmade()
    roles = [[2, 2, 0, 2, 1] for _ in PROMPTS]
    return Runs(model, Graph.of(model.anatomy), PROMPTS, corrupted,
                [(p[2], other) for p, other in zip(PROMPTS, others, strict=True)], roles=roles)


def names(graph, kept):
    return {graph.name(d, s) for d, s in kept.nonzero().tolist()}


def test_the_model_does_what_it_was_made_for(runs):
    model = runs.groups[0].model
    with torch.no_grad():
        assert [int(model.hf(torch.tensor([p])).logits[0, -1].argmax()) for p in PROMPTS] == [p[2] for p in PROMPTS]
    assert (runs.corrupted_B < -0.5).all()


@pytest.mark.parametrize("steps", [0, 5])
def test_exactly_its_edges_are_found(runs, steps):
    kept = prune(runs, shortlist(runs, runs.attribution(steps).mean(-1), 0.95), 0.95)
    assert names(runs.graph, kept) == TWO_STEPS | DIRECT
    assert runs.faithfulness(kept[None])[0] == pytest.approx(1, abs=0.05)
    assert runs.faithfulness((runs.graph.edges & ~kept)[None])[0] == pytest.approx(0, abs=0.05)


def test_from_the_whole_graph_they_are_what_is_left(runs):
    """Without a shortlist, the decoys' edges go one after the other."""
    assert names(runs.graph, prune(runs, runs.graph.edges, 0.95)) == TWO_STEPS | DIRECT


def test_every_search_finds_them(runs):
    """Threshold and masks, and the decoys go by pruning if they have not gone before."""
    for first in (acdc(runs, 0.01), shortlist(runs, optimised(runs, 0.002), 0.95),
                  shortlist(runs, runs.attribution(frozen=True).mean(-1), 0.95)):
        assert int(first.sum()) < 20
        assert names(runs.graph, prune(runs, first, 0.95)) == TWO_STEPS | DIRECT


def test_acdc_leaves_what_no_single_cut_can_take(runs):
    """Done slowly: no edge of what is left changes F by less than the threshold."""
    kept = acdc(runs, 0.02)
    whole = runs.faithfulness(kept[None])[0]
    for d, s in kept.nonzero().tolist():
        fewer = kept.clone()
        fewer[d, s] = False
        assert abs(runs.faithfulness(fewer[None])[0] - whole) >= 0.02


def test_a_lower_bound_is_kept_by_the_stronger_way_alone(runs):
    kept = prune(runs, runs.graph.edges, 0.5)
    assert names(runs.graph, kept) == TWO_STEPS


def test_each_edge_is_needed_where_the_token_is(runs):
    kept = torch.zeros_like(runs.graph.edges)
    for name in TWO_STEPS | DIRECT:
        kept[runs.graph.find(name)] = True
    by_role = prune_roles(runs, kept, 3, 0.95)
    found = {(runs.graph.name(d, s), role) for d, s, role in by_role.nonzero().tolist()}
    token, last, rest = 0, 1, 2
    assert found == {("embed->v.0.0", token), ("head.0.0->v.1.1", rest), ("head.1.1->logits", last),
                     ("embed->v.1.2", token), ("head.1.2->logits", last)}
