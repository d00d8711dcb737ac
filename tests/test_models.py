"""The fast attention, DAZLE and the staged VSMR against the textbook forms, in float64."""

import pytest
import torch

from core.DAZLE import DAZLE, region_products, self_calibration
from core.recipes import STAGED_RECIPES
from core.VSMR_staged import VSMRStaged, visual_losses
from tests import reference
from tests.conftest import C, K

B, R, D = 6, 9, 16


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(1)
    x = torch.nn.functional.normalize(torch.randn(B, R, D, generator=g, dtype=torch.float64), dim=2)
    return x, torch.tensor([0, 1, 3, 5, 0, 1])


@pytest.mark.parametrize("use_w", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_dazle_equals_textbook_in_scores_loss_and_gradients(space, batch, use_w, normalize):
    x, y = batch
    model = DAZLE(space, D, use_w=use_w, normalize_vectors=normalize).double()
    a = model.attention
    with torch.no_grad():  # away from the zero start, so that every path carries gradient
        a.W2.normal_()
        a.W3.normal_()
        a.v.mul_(1.7)
    losses = model.loss(x, y)
    losses["loss"].backward()
    fast = [p.grad.clone() for p in (a.v, a.W1, a.W2) + ((a.W3,) if use_w else ())]
    model.zero_grad()
    v = torch.nn.functional.normalize(a.v, dim=1) if normalize else a.v
    s = reference.dazle_forward(x, v, a.W1, a.W2, a.W3, space.z, use_w)
    expected = reference.dazle_loss(s, y, space.unseen, 0.1)
    torch.testing.assert_close(model.class_scores(x), s)
    torch.testing.assert_close(losses["loss"], expected)
    expected.backward()
    for got, parameter in zip(fast, (a.v, a.W1, a.W2, a.W3), strict=False):
        torch.testing.assert_close(got, parameter.grad)


def test_dazle_starts_as_published(space):
    a = DAZLE(space, D).attention
    assert not a.W2.any() and not a.W3.any()
    assert 0.7 < a.W1.std() < 1.3
    torch.testing.assert_close(a.v.norm(dim=1), torch.ones(K))
    assert a.v.requires_grad


def test_self_calibration_by_hand():
    s = torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]))
    assert self_calibration(s, torch.tensor([1, 2])).item() == pytest.approx(-torch.tensor(0.7).log().item())


def test_staged_visual_branch_equals_textbook(space, batch):
    x, y = batch
    model = VSMRStaged(space, D, STAGED_RECIPES["CUB50"], seed=0).double()
    a = model.attention
    f = model.image_features(x, model.presence[y])
    torch.testing.assert_close(f, reference.staged_features(x, a.v, a.W2, a.W3, model.presence[y]))
    losses = visual_losses(f, y)
    torch.testing.assert_close(losses["loss"], reference.staged_losses(f, y))
    losses["loss"].backward()
    assert a.W2.grad.abs().sum() > 0 and a.v.grad is None


def test_staged_semantic_stage_fits_seen_prototypes_and_is_seeded(space):
    model = VSMRStaged(space, D, STAGED_RECIPES["CUB50"], seed=3).double()
    g = torch.Generator().manual_seed(2)
    total = torch.randn(C, D, generator=g, dtype=torch.float64)
    counts = torch.full((C,), 2.0, dtype=torch.float64)
    model.finish(total, counts)
    first = model.prototypes.clone()
    torch.testing.assert_close(first[space.seen], total[space.seen] / 2)
    fitted = torch.nn.functional.mse_loss(model.E(space.att[space.seen]), total[space.seen] / 2)
    assert fitted < 0.1 * (total[space.seen] / 2).pow(2).mean()
    torch.manual_seed(99)
    model.finish(total, counts)
    assert torch.equal(first, model.prototypes)


def test_staged_training_sees_the_label_mask_and_testing_does_not(space, batch):
    x, _ = batch
    model = VSMRStaged(space, D, STAGED_RECIPES["CUB50"], seed=0).double()
    with torch.no_grad():
        model.predictor.weight.zero_()
        model.predictor.bias.fill_(-5.0)
    assert not model.predicted_mask(x).any()
    with torch.no_grad():
        model.predictor.bias.fill_(5.0)
    assert model.predicted_mask(x).all()


def test_building_a_model_leaves_the_callers_random_numbers_alone(space):
    from core.training.loop import seeded

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with seeded(1):
        DAZLE(space, D)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("columns", [33, 700])  # a convolution below the width where that pays, a product above
def test_region_products_are_a_matrix_product(columns):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 9, 64, generator=g)
    q = torch.randn(columns, 64, generator=g, requires_grad=True)
    mark = torch.randn(4, 9, columns, generator=g)
    got = region_products(x, q)
    assert got.shape == (4, 9, columns) and got.is_contiguous()
    torch.testing.assert_close(got, x @ q.T, atol=1e-4, rtol=1e-4)
    (gradient,) = torch.autograd.grad((got * mark).sum(), q)
    (expected,) = torch.autograd.grad(((x @ q.T) * mark).sum(), q)
    torch.testing.assert_close(gradient, expected, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(region_products(x.transpose(0, 1).contiguous().transpose(0, 1), q), got)
