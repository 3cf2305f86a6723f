"""The attention chart: a few heads with their tokens, many on one page that stays small."""

import json

import pytest
from tiny import tiny_model

from patchclamp.charts.attention import LEAST, attention_chart
from patchclamp.lenses.attention import Attention, Head, attention

SHARES = {"entropy": 0.0, "first": 0.0, "previous": 0.0, "itself": 0.0, "induction": None}


def even(layer, head, n):
    """A head that attends evenly to all tokens so far: the pattern with most cells to draw."""
    pattern = [[1 / (i + 1)] * (i + 1) + [0.0] * (n - i - 1) for i in range(n)]
    return Head(layer=layer, head=head, **SHARES, pattern=pattern, norms=[[2 * w for w in row] for row in pattern])


def drawn(chart):
    """The lists of cells of a grid's heads, both panels."""
    return [row["cell"] for data in chart.to_dict()["datasets"].values() for row in data if "cell" in row]


@pytest.fixture(scope="module")
def page():
    return attention_chart(Attention(tokens=[f" t{i}" for i in range(14)],
                                     heads=[even(layer, head, 14) for layer in range(30) for head in range(9)]))


def test_270_heads_of_14_tokens_stay_below_a_megabyte(page):
    assert len(json.dumps(page.to_dict())) < 1_000_000


def test_a_grid_draws_every_cell_of_every_head_in_both_panels(page):
    cells = drawn(page)
    assert len(cells) == 2 * 270
    assert {len(c) for c in cells} == {14 * 15 // 2}


def test_faint_cells_of_a_grid_are_left_blank():
    pattern, norms = [[1.0, 0.0], [1 - LEAST / 2, LEAST / 2]], [[30.0, 0.0], [30 * LEAST / 2, 10.0]]
    heads = [Head(layer=0, head=i, **SHARES, pattern=pattern, norms=norms) for i in range(5)]
    assert set(map(tuple, drawn(attention_chart(Attention(tokens=["a", "b"], heads=heads))))) == {(0, 2), (0, 3)}


def test_one_head_shows_each_token_it_may_read():
    data = attention_chart(Attention(tokens=["a", "b", "a"], heads=[even(5, 1, 3)])).to_dict()["datasets"]
    rows = next(iter(data.values()))
    assert [(r["reads"], r["from"]) for r in rows] == [
        ("0 a", "0 a"), ("1 b", "0 a"), ("1 b", "1 b"), ("2 a", "0 a"), ("2 a", "1 b"), ("2 a", "2 a")]


@pytest.mark.parametrize("asked", [{"heads": ("pattern.1.2",)}, {}])
def test_records_render(asked, tmp_path):
    record = attention(tiny_model("llama"), prompt="w1 w2 w3 w1", **asked)
    assert record.save(tmp_path / "attention.svg").read_text().startswith("<svg")


def test_tokens_of_quotes_and_line_breaks_do_not_break_the_page(tmp_path):
    from vl_convert import vegalite_to_svg

    tokens = ["'", '"', "\\", "\n", "</script>"]
    chart = attention_chart(Attention(tokens=tokens, heads=[even(0, head, 5) for head in range(5)]))
    assert vegalite_to_svg(chart.to_dict()).count("<path") >= 2 * 5 * 15
