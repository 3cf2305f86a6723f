"""Edits, readouts, rows and plans are frozen values: equal by content, hashable, JSON both ways."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny, wrap

from patchclamp.errors import EditError, InputError, SiteError, SpecError
from patchclamp.forward import Edit, Plan, Readout, Row, When
from patchclamp.forward.values import Values

numbers = st.floats(-1e6, 1e6, width=32)
vectors = st.lists(numbers, min_size=1, max_size=5)
directions = vectors.filter(any)
sites = st.sampled_from(["resid.1", "mlp.0@last", "head.1.2@1:3", "neuron.3.7@-1", 'attn.2@"a \\\\ b"', "q.0@prompt"])
messages = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text()})
prompts = st.one_of(
    st.text(), st.lists(st.integers(0, 99), min_size=1, max_size=4), st.lists(messages, min_size=1, max_size=2)
)
edits = st.one_of(
    st.builds(Edit.zero, sites),
    st.builds(Edit.mean, sites, st.lists(st.text(), max_size=2)),
    st.builds(Edit.set, sites, st.one_of(numbers, vectors)),
    st.builds(Edit.scale, sites, numbers),
    st.builds(Edit.add, sites, directions, numbers, st.sampled_from(["sd", "raw"])),
    st.builds(Edit.project_out, sites, directions),
    st.builds(Edit.clamp, sites, directions, numbers),
    st.builds(Edit.swap, sites, prompts, st.none() | sites),
    st.builds(Edit.block, st.just("pattern.1.0@last"), st.sampled_from(["all", "0", "1:3", '"Poland"'])),
)
tokens = st.one_of(st.integers(0, 99), st.text(min_size=1))
at = st.sampled_from(["last", "0", "-2", '"word"'])
readouts = st.one_of(
    st.builds(Readout.logits, at),
    st.builds(Readout.kl, at),
    st.builds(Readout.loss, st.sampled_from(["all", "1:"])),
    st.builds(Readout.top, st.integers(1, 50), at),
    st.builds(Readout.value, sites),
    st.builds(Readout.logit_difference, tokens, tokens, at),
    st.builds(lambda t, a: Readout.rank(*t, at=a), st.lists(tokens, min_size=1, max_size=3), at),
)
rows = st.builds(
    lambda p, e, r: Row(prompt=p, edits=e, reads=r),
    prompts,
    st.lists(edits, max_size=2),
    st.lists(readouts, max_size=2),
)


@given(edits)
def test_edit_survives_json(edit):
    """Float32 values included, to the bit."""
    again = Edit.model_validate_json(edit.model_dump_json())
    assert again == edit
    assert hash(again) == hash(edit)


@given(readouts)
def test_readout_survives_json(readout):
    """A token id stays an id, and a token text that looks like a number stays a text."""
    again = Readout.model_validate_json(readout.model_dump_json())
    assert again == readout
    assert [type(t) for t in again.tokens] == [type(t) for t in readout.tokens]


@given(rows)
def test_row_survives_json(row):
    """Texts, token ids and conversations are told apart."""
    again = Row.model_validate_json(row.model_dump_json())
    assert again == row
    assert hash(again) == hash(row)
    assert type(again.prompt) is type(row.prompt)


@given(st.lists(rows, max_size=3))
def test_plan_survives_json(many):
    """A whole plan is data."""
    plan = Plan(rows=many)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


@given(edits, edits)
def test_equal_edits_hash_alike(one, two):
    """Edits are keys of caches: equal ones must meet."""
    assert one != two or hash(one) == hash(two)


def test_minus_zero_is_zero():
    """-0.0 == 0.0, so the hashes must be equal too."""
    assert hash(Values.of([-0.0, 1.0])) == hash(Values.of([0.0, 1.0]))


def test_an_edit_cannot_be_changed():
    """Neither its fields nor, through the vector it was made from, its content."""
    vector = torch.ones(3)
    edit = Edit.set("resid.1", vector)
    vector.zero_()
    assert edit.value.tensor.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="frozen"):
        edit.op = "zero"


@given(st.text(max_size=20))
def test_bad_site_text_never_raises_anything_but_input_errors(text):
    """Whatever is typed."""
    for make in (
        Edit.zero,
        Readout.value,
        Edit.block,
        lambda t: Readout.logits(at=t),
        lambda t: Edit.block("pattern.0", t),
    ):
        try:
            made = make(text)
        except InputError as error:
            assert str(error)
        else:
            assert type(made).model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e39])
@pytest.mark.parametrize(
    "make",
    [
        lambda x: Edit.set("resid.1", [1.0, x]),
        lambda x: Edit.set("resid.1", x),
        lambda x: Edit.scale("resid.1", x),
        lambda x: Edit.add("resid.1", [x, 1.0]),
        lambda x: Edit.project_out("resid.1", [1.0, x]),
        lambda x: Edit.clamp("resid.1", [1.0], x),
    ],
)
def test_values_must_be_finite(make, bad):
    """1e39 is finite in Python and infinite in float32."""
    with pytest.raises(EditError, match="not finite: entry"):
        make(bad)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_strength_must_be_finite(bad):
    """A NaN strength would fill the stream with NaN, and JSON cannot even write it."""
    with pytest.raises(EditError, match=r"add at resid.1: the strength is .*, not a finite number"):
        Edit.add("resid.1", [1.0], bad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Edit.project_out("resid.1", [0.0, 0.0]), "all zeros, so it points nowhere"),
        (lambda: Edit.clamp("resid.1", [0.0], 1.0), "all zeros"),
        (lambda: Edit.add("resid.1", [[1.0], [2.0]]), r"a direction is one vector, not shape \[2, 1\]"),
        (lambda: Edit.scale("resid.1", [1.0, 2.0]), r"scale takes one number, not shape \[2\]"),
        (lambda: Edit.set("resid.1", []), "empty list"),
        (lambda: Edit.set("resid.1", "much"), "expected numbers, got str"),
        (lambda: Edit.set("resid.1", [[1.0], [1.0, 2.0]]), "expected numbers"),
        (lambda: Edit(op="set", site="resid.1"), "set at resid.1 needs value"),
        (lambda: Edit(op="clamp", site="resid.1", value=1.0), "clamp at resid.1 needs direction"),
        (lambda: Edit(op="zero", site="resid.1", value=1.0), "zero at resid.1 takes no value"),
        (lambda: Edit(op="zero", site="resid.1", strength=2.0), "takes no strength"),
        (lambda: Edit(op="zero", site="resid.1", keys="0"), "keys and renormalize belong to pattern"),
        (lambda: Edit.zero("logits"), "can be read but not edited: change the residual stream"),
        (lambda: Edit.zero("head_out.1.2"), r"edit head\.L\.h"),
        (lambda: Edit.add("pattern.1", [1.0]), "add is not defined on attention weights"),
        (lambda: Edit(op="double", site="resid.1"), "'zero', 'mean', 'set'"),
        (lambda: Edit(op="zero", site="resid.1", fctor=2), "Extra inputs"),
    ],
)
def test_a_malformed_edit_says_why(make, message):
    """Through the class methods EditError; through the constructor pydantic's error with the same sentence."""
    with pytest.raises((EditError, ValueError), match=message):
        make()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Readout.logits(at="all"), SpecError, "logits is measured at one position, not at @all"),
        (lambda: Readout.logits(at="1:3"), SpecError, "one position"),
        (lambda: Readout.logits(at="first"), SiteError, "names no positions"),
        (lambda: Readout.logit(), SpecError, "logit takes 1 token, got 0"),
        (lambda: Readout.top(0), SpecError, "k of at least 1"),
        (lambda: Readout.value("mlp"), SiteError, "needs a layer"),
        (lambda: Edit.block("attn.3"), SiteError, r"attention is blocked at pattern\.L"),
    ],
)
def test_a_malformed_readout_says_why(make, error, message):
    """Before any model has run."""
    with pytest.raises(error, match=message):
        make()


def test_a_condition_is_a_direction_of_the_same_site():
    when = When(direction=[0.0, 1.0], above=0.5)
    edit = Edit.add("resid.1", [1.0, 0.0], when=when)
    assert Edit.model_validate_json(edit.model_dump_json()) == edit
    with pytest.raises(EditError, match="both are vectors at the same site"):
        Edit.add("resid.1", [1.0, 0.0, 0.0], when=when)
    with pytest.raises(EditError, match="takes no when"):
        Edit._make("zero", "resid.1", when=when)
    with pytest.raises(ValueError, match="finite"):
        When(direction=[0.0, 1.0], above=math.nan)


@pytest.mark.parametrize(("kind", "strength"), [("float16", 1e6), ("bfloat16", 1e39)])
def test_an_edit_too_large_for_half_precision_is_refused(kind, strength):
    model = wrap(copy.deepcopy(tiny("llama")).to(getattr(torch, kind)), "half")
    direction = torch.ones(model.d_model)
    with pytest.raises(EditError, match=f"overflows {kind}"):
        model.run("w1 w2", [Edit.add("resid.1", direction, strength, "raw")])
    with pytest.raises(EditError, match=f"overflows {kind}"):
        model.generate("w1 w2", [Edit.add("resid.1", direction * min(strength, 3.4e38), 1.0, "raw")])
    assert torch.isfinite(model.run("w1 w2", [Edit.add("resid.1", direction, 2.0, "raw")])).all()


@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
def test_an_edit_whose_square_overflows_the_norms_is_refused(kind):
    model = wrap(copy.deepcopy(tiny("llama")).to(getattr(torch, kind)), "wide")
    direction = torch.ones(model.d_model)
    for edit in (
        Edit.add("resid.1", direction, 1e20, "raw"),
        Edit.clamp("resid.1", direction, 1e20),
        Edit.set("resid.1", direction * 1e20),
        Edit.set("neuron.1.0", 1e20),
        Edit.scale("resid.1", 1e20),
    ):
        with pytest.raises(EditError, match=f"overflows {kind}: numbers of .*e\\+(19|20) have a square"):
            model.run("w1 w2", [edit])
    assert torch.isfinite(model.run("w1 w2", [Edit.add("resid.1", direction, 1e15, "raw")])).all()


@pytest.mark.parametrize("size", [1e5, 1e-9])
def test_a_directions_length_does_not_matter_in_half_precision(size):
    model = wrap(copy.deepcopy(tiny("llama")).half(), "half")
    direction = torch.linspace(-1, 1, model.d_model)
    for edit in (lambda d: Edit.project_out("resid.1", d), lambda d: Edit.clamp("resid.1", d, 2.0)):
        plain, scaled = (model.run("w1 w2", [edit(direction * factor)]) for factor in (1.0, size))
        assert torch.allclose(plain, scaled, atol=1e-2)
        assert not torch.allclose(plain, model.run("w1 w2"), atol=1e-2)


def test_a_direction_too_long_for_its_norm_still_points():
    model = wrap(tiny("llama"), "long")
    direction = torch.linspace(-1, 1, model.d_model)
    for edit in (lambda d: Edit.project_out("resid.1", d), lambda d: Edit.clamp("resid.1", d, 2.0)):
        plain, scaled = (model.run("w1 w2", [edit(direction * factor)]) for factor in (1.0, 1e30))
        assert torch.allclose(plain, scaled, atol=1e-5)
        assert not torch.allclose(plain, model.run("w1 w2"), atol=1e-2)
