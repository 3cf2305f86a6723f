"""What bfloat16 screens is what float32 chooses, whatever bfloat16 cannot tell apart."""

import pytest
import torch

from patchclamp.forward import screened
from patchclamp.forward.codes import select_batch_top, select_top
from patchclamp.forward.screened import Screen, batch_top_of_product, top_of_product

B, D, L, K = 600, 24, 640, 5  # more inputs than are looked at at once


def ordinary():
    return torch.randn(B, D), torch.randn(L, D), torch.randn(L)


def of_all_sizes():
    """Inputs, weights and biases from a thousandth to a thousand, some of them zero."""
    x_BD, weight_LD, bias_L = ordinary()
    x_BD, weight_LD = x_BD * 10 ** (6 * torch.rand(B, 1) - 3), weight_LD * 10 ** (6 * torch.rand(L, 1) - 3)
    x_BD[7], weight_LD[:9] = 0, 0
    return x_BD, weight_LD, bias_L * 10 ** (6 * torch.rand(L) - 3)


def nearly_alike():
    """Weights that differ by less than bfloat16 can tell."""
    x_BD, weight_LD, bias_L = ordinary()
    return x_BD, weight_LD[:1] + 1e-4 * weight_LD, 1e-4 * bias_L


GIVEN = {"ordinary": ordinary, "of all sizes": of_all_sizes, "nearly alike": nearly_alike}


@pytest.fixture(params=GIVEN)
def given(request):
    torch.manual_seed(0)
    return GIVEN[request.param]()


@pytest.fixture
def dense(monkeypatch):
    """How many inputs all entries were computed of."""
    counts = []
    whole = Screen.all

    def counted(self, x_ND):
        counts.append(len(x_ND))
        return whole(self, x_ND)

    monkeypatch.setattr(Screen, "all", counted)
    return counts


def true(x_BD, weight_LD, bias_L):
    return torch.addmm(bias_L.double(), x_BD.double(), weight_LD.double().T)


def test_no_entry_is_above_its_bound(given):
    x_BD, weight_LD, bias_L = given

    bounds_BL = screened._most(Screen.of(weight_LD, bias_L).bounds(x_BD))

    assert bool((bounds_BL >= true(*given)).all())


def test_the_k_greatest_of_each_input_are_found(given):
    values_P, active = top_of_product(*given, K)

    truth_BL = true(*given)
    found_BK = truth_BL.gather(1, active.latents.view(B, K)).sort(1, descending=True).values
    # float32's rounding may change the order of entries that are equal but for it
    torch.testing.assert_close(found_BK, truth_BL.topk(K, 1).values, rtol=1e-6, atol=0)
    torch.testing.assert_close(values_P.double(), truth_BL[active.inputs, active.latents], rtol=1e-4, atol=1e-4)


def test_the_greatest_of_all_inputs_together_are_found(given):
    values_P, active = batch_top_of_product(*given, K * B)

    truth_BL = true(*given)
    found_P = truth_BL[active.inputs, active.latents]
    want_P = truth_BL.flatten().topk(K * B).values
    torch.testing.assert_close(found_P.sort(descending=True).values, want_P, rtol=1e-6, atol=0)
    torch.testing.assert_close(values_P.double(), found_P, rtol=1e-4, atol=1e-4)


def test_ordinary_inputs_are_not_computed_whole(dense):
    torch.manual_seed(0)
    given = ordinary()

    top_of_product(*given, K)
    batch_top_of_product(*given, K * B)

    assert sum(dense) < B / 50


def test_inputs_whose_greatest_cannot_be_told_apart_are(dense):
    torch.manual_seed(0)

    top_of_product(*nearly_alike(), K)

    assert sum(dense) > B / 2


def test_pairs_are_in_the_order_of_the_dense_selections():
    torch.manual_seed(0)
    x_BD, weight_LD, bias_L = ordinary()
    pre_BL = torch.addmm(bias_L, x_BD, weight_LD.T)

    _, own = batch_top_of_product(x_BD, weight_LD, bias_L, K * B)
    _, whole = select_batch_top(pre_BL, K * B)
    _, each = top_of_product(x_BD, weight_LD, bias_L, K)

    assert own.latents.equal(whole.latents) and own.starts.equal(whole.starts)
    assert each.starts.equal(select_top(pre_BL, K)[1].starts)


def test_what_is_no_number_is_chosen_as_without_a_screen():
    torch.manual_seed(0)
    x_BD, weight_LD, bias_L = ordinary()
    x_BD[3] = torch.nan

    values_P, _ = top_of_product(x_BD, weight_LD, bias_L, K)

    assert bool(values_P.view(B, K)[3].isnan().all()) and int(values_P.isnan().sum()) == K
