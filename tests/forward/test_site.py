"""Site strings: parsing and printing are inverse; whatever is malformed raises SiteError and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from patchclamp.errors import SiteError
from patchclamp.forward.prepare import token_indices
from patchclamp.forward.site import POINTS, STREAM_POINTS, UNIT_POINTS, Positions, Site
from patchclamp.model.tokens import Encoded

whole = st.integers(0, 9999)
signed = st.integers(-9999, 9999)
bound = st.none() | signed
positions = st.one_of(
    st.sampled_from(["all", "last", "prompt", "response"]).map(Positions),
    signed.map(lambda i: Positions("index", index=i)),
    st.tuples(bound, bound, st.none() | st.integers(1, 9)).map(lambda b: Positions("slice", bounds=b)),
    st.text(min_size=1).map(lambda t: Positions("text", text=t)),
)
names = st.none() | st.text(st.characters(exclude_characters=".@", exclude_categories=("Z", "C")), min_size=1)
sites = st.one_of(
    st.builds(Site, st.sampled_from(["embed", "logits"]), positions=positions),
    st.builds(Site, st.sampled_from(STREAM_POINTS), whole, positions=positions),
    st.builds(Site, st.sampled_from([p for p in UNIT_POINTS if p != "feature"]), whole, st.none() | whole, positions),
    st.builds(Site, st.just("feature"), whole, st.none() | whole, positions, names),
)


class Holder(BaseModel):
    """A model with a site in it."""

    site: Site


@given(sites)
def test_printing_and_parsing_are_inverse(site):
    """Any site, with any positions: quotes, backslashes, newlines and emoji in substrings included."""
    assert Site.parse(str(site)) == site
    assert hash(Site.parse(str(site))) == hash(site)


@given(sites)
def test_json_and_back(site):
    """In JSON a site is its string."""
    holder = Holder(site=site)
    assert holder.model_dump(mode="json") == {"site": str(site)}
    assert Holder.model_validate_json(holder.model_dump_json()) == holder


@given(sites, sites)
def test_two_sites_are_equal_exactly_if_they_print_alike(one, two):
    """The string is the address: no two addresses share one."""
    assert (one == two) == (str(one) == str(two))


@given(st.text())
def test_any_text_is_a_site_or_raises_site_error(text):
    """Nothing else is ever raised, and what parses prints to something that parses to the same."""
    try:
        site = Site.parse(text)
    except SiteError as error:
        assert str(error)
    else:
        assert Site.parse(str(site)) == site


@given(st.sampled_from(POINTS), st.text('0123456789.@:-+"\\ab²٣ ', max_size=12))
def test_any_tail_of_a_real_point_is_a_site_or_raises_site_error(point, tail):
    """Near misses are likelier here than in free text."""
    try:
        site = Site.parse(point + tail)
    except SiteError:
        return
    assert Site.parse(str(site)) == site


@pytest.mark.parametrize(
    ("string", "message"),
    [
        ("", "is not a site: write point.layer"),
        ("residual.3", "no point 'residual'; points are embed, resid_pre"),
        ("resid", "resid needs a layer, as in resid.0"),
        ("resid.", "whole numbers from 0"),
        ("resid.-1", "whole numbers from 0, as in resid.3"),
        ("resid.1.2", "resid takes a layer, no more"),
        ("head.1.2.3", "head takes a layer and a unit, no more"),
        ("embed.0", "embed has no layer or unit"),
        ("resid:name.3", "only a feature belongs to a named autoencoder"),
        ("resid.3@", "names no positions: use @all, @last"),
        ("resid.3@first", "names no positions"),
        ('resid.3@""', "names no positions"),
        ("resid.3@Poland", 'quoted substring (@"Poland")'),
        ("resid.3@::0", "step 0; a step is 1 or more"),
        ("resid.3@4:1:-1", "a step is 1 or more"),
        ("resid." + "9" * 5000, "whole numbers"),
        ("resid.1@" + "9" * 5000, "names no positions"),
        ("Resid.1", "is not a site"),
        (" resid.1", "is not a site"),
    ],
)
def test_message_says_what_is_wrong_and_what_would_be_right(string, message):
    """The messages that users meet."""
    with pytest.raises(SiteError) as caught:
        Site.parse(string)
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [None, 3, 1.5, b"resid.1", ["resid.1"]])
def test_what_is_no_string_is_no_site(value):
    """SiteError, not TypeError."""
    with pytest.raises(SiteError, match="is not a site"):
        Site.parse(value)


# Positions on a prompt

FIVE = Encoded((10, 11, 12, 13, 14), 3, tokenizer=None)  # three prompt tokens, two of an answer


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("all", [0, 1, 2, 3, 4]),
        ("last", [4]),
        ("prompt", [0, 1, 2]),
        ("response", [3, 4]),
        ("0", [0]),
        ("-1", [4]),
        ("-5", [0]),
        ("1:3", [1, 2]),
        (":", [0, 1, 2, 3, 4]),
        ("-2:", [3, 4]),
        ("::2", [0, 2, 4]),
        ("3:99", [3, 4]),
    ],
)
def test_positions_select_as_python_does(text, tokens):
    """Indices and slices are Python's, on the prompt's own tokens."""
    assert list(token_indices(Positions.parse(text), FIVE, "resid.0")) == tokens


@pytest.mark.parametrize("text", ["5", "-6", "2:2", "9:"])
def test_positions_that_select_nothing_are_an_error(text):
    """An empty selection would be an edit that never fires."""
    with pytest.raises(SiteError, match="5 tokens"):
        token_indices(Positions.parse(text), FIVE, "resid.0")
