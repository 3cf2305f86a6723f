"""Sketches: exact against brute force, and the same however a corpus is cut."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchclamp.corpus.sketch import BINS, EDGES, Sketch, keys_of, places_of, values_of

T, F, K = 6, 4, 3
EXACT = ("count", "active_F", "low_F", "high_F", "histogram_FB", "top_FK", "bottom_FK", "places_P", "sample_PF")
SUMS = ("total_F", "squares_F")


def values(windows, seed=0, coarse=False):
    """Values [W, T, F]; `coarse` ones are few, so that ties abound."""
    generator = torch.Generator().manual_seed(seed)
    if coarse:
        return torch.randint(-2, 3, (windows, T, F), generator=generator) / 2
    return torch.randn(windows, T, F, generator=generator) * torch.tensor([0.001, 1.0, 30.0, 5000.0])


def sketch(values_WTF, first=0, places=()):
    out = Sketch(F, K, places)
    out.add(values_WTF, range(first, first + len(values_WTF)))
    return out


def same(one, other):
    assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in EXACT)
    for name in SUMS:  # float64 sums in another order
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-12, atol=1e-12)


def by_hand(values_WTF, unit, sign):
    """The windows' extremes as (value, place): sorted by value, then by place, in plain Python."""
    found = []
    for window, tokens in enumerate(values_WTF[..., unit].tolist()):
        position = max(range(1, T), key=lambda t: (sign * tokens[t], -t))
        found.append((tokens[position], window * T + position))
    return sorted(found, key=lambda pair: (-sign * pair[0], pair[1]))[:K]


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize(("name", "sign"), [("top_FK", 1), ("bottom_FK", -1)])
def test_extremes_are_those_of_a_search_through_everything(coarse, name, sign):
    values_WTF = values(9, coarse=coarse)
    keys_FK = getattr(sketch(values_WTF), name)
    for unit in range(F):
        found = list(zip((sign * values_of(keys_FK[unit])).tolist(), places_of(keys_FK[unit]).tolist(), strict=True))
        assert found == by_hand(values_WTF, unit, sign)


def test_statistics_are_numpys_without_the_first_token():
    values_WTF = values(9)
    found = sketch(values_WTF)
    own_NF = values_WTF[:, 1:].reshape(-1, F).numpy().astype(np.float64)
    assert int(found.count) == len(own_NF)
    assert np.array_equal(found.active_F, (own_NF > 0).sum(0))
    assert np.array_equal(found.high_F, own_NF.max(0).astype(np.float32))
    assert np.array_equal(found.low_F, own_NF.min(0).astype(np.float32))
    # the five values of a window are added in float32
    np.testing.assert_allclose(found.total_F, own_NF.sum(0), rtol=1e-6, atol=1e-6 * np.abs(own_NF).sum(0).max())
    np.testing.assert_allclose(found.squares_F, (own_NF**2).sum(0), rtol=1e-6)


def test_the_histogram_is_numpys():
    values_WTF = values(200)
    edges = [-np.inf, *EDGES, np.inf]
    for unit in range(F):
        own = values_WTF[:, 1:, unit].reshape(-1).numpy()
        assert np.array_equal(sketch(values_WTF).histogram_FB[unit], np.histogram(own, edges)[0])


def test_an_edge_belongs_to_the_bin_farther_from_zero():
    edges = torch.tensor(EDGES)
    found = Sketch(1, 1)
    found.add(torch.cat([torch.zeros(1), edges])[None, :, None], [0])
    negative, positive = found.histogram_FB[0, : BINS // 2], found.histogram_FB[0, BINS // 2 + 1 :]
    assert found.histogram_FB[0, BINS // 2] == 0
    assert negative.tolist() == positive.tolist() == [1] * (BINS // 2)


def test_sampled_are_the_places_asked_for():
    values_WTF = values(5)
    places = [1, 8, 9, 29]
    found = sketch(values_WTF, places=places)
    assert found.places_P.tolist() == places
    assert torch.equal(found.sample_PF, values_WTF.reshape(-1, F)[places])


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.randoms(use_true_random=False), st.booleans())
def test_however_a_corpus_is_cut_and_in_whatever_order_it_is_merged(sizes, random, coarse):
    values_WTF = values(sum(sizes), seed=sum(sizes), coarse=coarse)
    places = sorted(random.sample([p for p in range(sum(sizes) * T) if p % T], min(4, sum(sizes))))
    whole = sketch(values_WTF, places=places)
    starts = np.cumsum([0, *sizes])[:-1].tolist()
    parts = [sketch(values_WTF[s : s + n], s, [p for p in places if s * T <= p < (s + n) * T])
             for s, n in zip(starts, sizes, strict=True)]
    random.shuffle(parts)
    while len(parts) > 1:
        one, other = parts.pop(), parts.pop(random.randrange(len(parts)))
        parts.insert(random.randrange(len(parts) + 1), one.merge(other))
    same(parts[0], whole)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
def test_a_key_holds_value_and_place_and_sorts_as_they_do(numbers):
    numbers_N = torch.tensor(numbers)
    places_N = torch.arange(len(numbers)) * 211_000_000
    keys_N = keys_of(numbers_N, places_N)
    assert torch.equal(values_of(keys_N), numbers_N + 0.0)
    assert torch.equal(places_of(keys_N), places_N)
    assert keys_N.argsort(descending=True).tolist() == sorted(range(len(numbers)), key=lambda i: (-numbers[i], i))


def test_a_sketch_comes_back_from_its_tensors():
    found = sketch(values(5), places=[1, 8])
    same(Sketch.of(found.tensors()), found)


def test_a_value_that_is_no_number_is_noticed():
    values_WTF = values(3)
    assert sketch(values_WTF).finite
    values_WTF[1, 2, 0] = torch.nan
    assert not sketch(values_WTF).finite
    values_WTF[1, 2, 0] = -torch.inf
    assert not sketch(values_WTF).finite
