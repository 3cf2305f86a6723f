"""What a score of reconstruction has to do, whatever reconstructs."""

import pytest
import torch

from patchclamp.forward.autoencoder import Autoencoder, AutoencoderInfo
from patchclamp.sae.quality import Tally, quality

N, D, L = 500, 16, 40


@pytest.fixture
def rows():
    torch.manual_seed(0)
    return torch.randn(N, D) * torch.arange(1, D + 1) + 30


def fvu(y, out):
    tally = Tally(L)
    tally.add(y, out, torch.zeros(L, dtype=torch.long))
    return tally.quality().fvu


def any_autoencoder(**changed):
    torch.manual_seed(1)
    info = AutoencoderInfo(**{"name": "a", "architecture": "topk", "k": 4, "site": "resid.1", "model": "m",
                              "weights": "w", **changed})
    return Autoencoder(info, {"W_enc": torch.randn(L, D), "b_enc": torch.randn(L), "W_dec": torch.randn(L, D),
                              "b_dec": torch.full((D,), 30.0)})


def test_saying_the_mean_explains_nothing(rows):
    assert fvu(rows, rows.mean(0).expand_as(rows)) == pytest.approx(1, abs=1e-6)


def test_saying_everything_explains_all(rows):
    assert fvu(rows, rows) == 0


def test_being_off_by_one_is_not_perfect(rows):
    """Correlation would say so."""
    assert fvu(rows, rows + 1) == pytest.approx(D / float((rows - rows.mean(0)).square().sum(1).mean()), rel=1e-5)


def test_a_large_constant_does_not_hide_an_error(rows):
    noise = torch.randn(N, D)
    near = fvu(rows, rows + noise)
    assert fvu(rows.double() + 1e6, rows.double() + 1e6 + noise) == pytest.approx(near, rel=1e-4)


def test_worse_than_the_mean_is_above_one(rows):
    assert fvu(rows, torch.zeros_like(rows)) > 1


def test_rows_may_be_cut_anyhow(rows):
    autoencoder = any_autoencoder()
    whole = quality(autoencoder, [(rows,)])
    cut = quality(autoencoder, [(part,) for part in rows.split(7)])

    assert cut.fvu == pytest.approx(whole.fvu, rel=1e-6)
    assert (cut.rows, cut.l0, cut.dead) == (whole.rows, whole.l0, whole.dead)


def test_it_is_the_quotient_of_the_definition(rows):
    autoencoder = any_autoencoder()
    got = quality(autoencoder, [(rows,)])
    out = autoencoder.decode(autoencoder.encode(rows)).double()
    y = rows.double()

    assert got.fvu == pytest.approx(float((y - out).square().sum() / (y - y.mean(0)).square().sum()), rel=1e-6)
    codes = autoencoder.encode(rows)
    assert got.l0 == pytest.approx(float((codes > 0).sum(1).double().mean()))
    assert got.dead == pytest.approx(float((codes <= 0).all(0).double().mean()))


def test_rows_that_never_vary_leave_nothing_to_explain():
    assert fvu(torch.ones(5, D), torch.ones(5, D)) == 1.0


def test_a_row_far_out_counts_as_one_row(rows):
    """One row a thousand times as far out as the others is nearly all of FVU, and one row in as many by row."""
    far, out = rows.clone(), rows.clone()
    far[7] = rows.mean(0) + 1000 * (rows[7] - rows.mean(0))
    tally = Tally(L, centre_O=rows.mean(0))
    tally.add(far, out, torch.zeros(L, dtype=torch.long))
    assert tally.quality().fvu > 0.9
    assert tally.fvu_by_row(0).mean == pytest.approx(1 / N, rel=0.02)
