"""Ways of finding a direction, against numpy, scikit-learn and definitions."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from patchclamp.errors import InputError
from patchclamp.vectors.directions import WAYS, auroc, direction, held_out_auroc


@pytest.fixture
def sides():
    """Two sides that differ along the third axis, with much more spread along the first."""
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(40, 8, generator=generator, dtype=torch.float64) * torch.tensor([9.0, *[1.0] * 7])
    showing = torch.randn(40, 8, generator=generator, dtype=torch.float64) * torch.tensor([9.0, *[1.0] * 7])
    showing[:, 2] += 4
    return showing, plain


def test_mean_is_the_difference_of_means(sides):
    showing, plain = sides
    assert torch.equal(direction("mean", *sides), showing.mean(0) - plain.mean(0))


def test_pca_is_scikit_learns_first_component_of_the_differences_turned_towards_showing(sides):
    showing, plain = sides
    theirs = torch.from_numpy(PCA(1).fit((showing - plain).numpy()).components_[0])
    ours = direction("pca", *sides)
    assert abs(float(ours @ theirs)) == pytest.approx(1, abs=1e-9)
    assert ((showing - plain) @ ours > 0).float().mean() >= 0.5


def test_pca_needs_pairs(sides):
    with pytest.raises(InputError, match="40 showing and 39 plain"):
        direction("pca", sides[0], sides[1][:39])


@pytest.mark.parametrize("how", ["logistic", "mass-mean"])
def test_probes_ignore_spread_that_says_nothing(how, sides):
    """The mean difference is off by the chance difference along the wide axis; a probe weighs it down."""

    def slant(found):
        return abs(float(found[0] / found[2]))

    assert slant(direction(how, *sides)) < 0.1 * slant(direction("mean", *sides)) + 0.02
    assert direction(how, *sides)[2] > 0


@pytest.mark.parametrize("how", WAYS)
def test_half_precision_states_give_the_direction_of_their_exact_values(how, sides):
    half = [side.to(torch.bfloat16) for side in sides]
    assert torch.allclose(direction(how, *half), direction(how, *(side.double() for side in half)))


def test_equal_sides_have_no_direction():
    same = torch.ones(4, 3)
    with pytest.raises(InputError, match="points nowhere"):
        direction("mean", same, same)


def test_a_state_that_is_no_number_is_refused(sides):
    sides[0][0, 0] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        direction("mean", *sides)


def test_auroc_is_scikit_learns():
    generator = torch.Generator().manual_seed(1)
    first, second = (
        torch.randn(20, generator=generator).round(decimals=1),
        torch.randn(30, generator=generator).round(decimals=1),
    )
    labels = np.repeat([1, 0], [20, 30])
    assert auroc(first, second) == pytest.approx(roc_auc_score(labels, torch.cat([first, second]).numpy()))


def test_held_out_auroc_finds_what_is_there_and_nothing_else(sides):
    assert held_out_auroc("mass-mean", *sides) > 0.95
    generator = torch.Generator().manual_seed(2)
    noise = [torch.randn(2, 40, 8, generator=generator, dtype=torch.float64) for _ in range(40)]
    # one draw of noise is off by .1 or so; the mean of forty by .02
    assert np.mean([held_out_auroc("mean", *pair) for pair in noise]) == pytest.approx(0.5, abs=0.06)
