"""The joint VSMR and ESZSL: closed forms against brute force, both directions' gradients, what an epoch renews."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from core.ESZSL import ESZSL
from core.ESZSL import Recipe as EszslRecipe
from core.preparation import prepared_attributes, ridge_weights, shrunk_whitening, signed_root
from core.VSMR import VSMR, Recipe, build, closed_form_W1
from tests.helpers import C, K

B, R, D = 6, 9, 16
RECIPE = Recipe(width=8)


def images(n=40):
    g = torch.Generator().manual_seed(1)
    y = torch.tensor([0, 1, 3, 5]).repeat(n // 4)
    centre = torch.randn(C, 1, D, generator=g, dtype=torch.float64)
    x = centre[y] + torch.randn(n, R, D, generator=g, dtype=torch.float64)
    return F.normalize(x, dim=2), y


def test_prepared_attributes_by_hand():
    att = torch.tensor([[16.0, 0.0], [0.0, 9.0], [8.0, 6.0]])
    z = prepared_attributes(att, torch.tensor([0, 1]))
    # roots of unit rows: (1,0), (0,1), (√.8,√.6); the seen mean is (.5,.5)
    half = 0.5**0.5
    third = F.normalize(torch.tensor([0.8**0.5 - 0.5, 0.6**0.5 - 0.5]), dim=0)
    torch.testing.assert_close(z, torch.stack([torch.tensor([half, -half]), torch.tensor([-half, half]), third]))
    plain = prepared_attributes(att, torch.tensor([0, 1]), root=False, centre=False)
    torch.testing.assert_close(plain, F.normalize(att, dim=1))


def test_unseen_attributes_do_not_change_how_seen_classes_are_prepared(space):
    z = prepared_attributes(space.att, space.seen)
    other = space.att.clone()
    other[space.unseen] = other[space.unseen].flip(1)
    torch.testing.assert_close(prepared_attributes(other, space.seen)[space.seen], z[space.seen])


def test_signed_root_is_odd_and_scale_free():
    g = torch.randn(5, 30, dtype=torch.float64)
    torch.testing.assert_close(signed_root(-g), -signed_root(g))
    torch.testing.assert_close(signed_root(7 * g), signed_root(g))
    unit = F.normalize(g, dim=1) * 30**0.5
    torch.testing.assert_close(signed_root(g).abs(), (unit.abs() + 0.01).sqrt() - 0.1)


def test_whitening_limits():
    phi = torch.randn(500, 6, dtype=torch.float64) * torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5, 0.1])
    phi = phi - phi.mean(0)
    full = phi @ shrunk_whitening(phi, 6, 1e-9).T
    variance = full.square().mean(0)
    torch.testing.assert_close(variance / variance.mean(), torch.ones(6, dtype=torch.float64), atol=1e-4, rtol=0)
    rotated = phi @ shrunk_whitening(phi, 6, 1e12).T
    torch.testing.assert_close(rotated @ rotated.T, phi @ phi.T)
    kept = phi @ shrunk_whitening(phi, 2, 1e12).T
    assert kept.square().sum() > 0.8 * phi.square().sum()  # the leading axes


@pytest.mark.parametrize("attributes", [3, 11])  # fewer and more than seen classes: both solves
def test_ridge_weights_are_ridge_regression(attributes):
    g = torch.Generator().manual_seed(3)
    z = F.normalize(torch.randn(C, attributes, generator=g, dtype=torch.float64), dim=1)
    seen = torch.tensor([0, 1, 3, 5])
    target = torch.randn(4, 2, generator=g, dtype=torch.float64)
    penalty = 0.3 * 4 / min(4, attributes)
    zs = z[seen]
    W = torch.linalg.inv(zs.T @ zs + penalty * torch.eye(attributes)) @ zs.T @ target  # (K,2)
    torch.testing.assert_close(ridge_weights(z, seen, 0.3) @ target, z @ W)


def test_closed_form_W1_scores_attributes_like_eszsl(space):
    x, y = images()
    u = x.mean(1)
    u = u - u.mean(0)
    z = prepared_attributes(space.att, space.seen)[space.seen]
    index = torch.searchsorted(space.seen, y)
    v = torch.eye(K, dtype=torch.float64)  # word vectors that can express any map: the pull-back only shrinks
    W1 = closed_form_W1(u, index, z, v).double()
    Y = -torch.ones(len(y), 4, dtype=torch.float64)
    Y[torch.arange(len(y)), index] = 1
    cov = u.T @ u
    cov = cov + 10 * cov.diagonal().mean() * torch.eye(D)
    W = torch.linalg.inv(cov) @ u.T @ Y @ z @ torch.linalg.inv(z.T @ z + torch.eye(K))
    torch.testing.assert_close(W1, W.T / 1.1, atol=1e-6, rtol=1e-5)


def textbook(model, x):
    """Scores by loops over images and classes, the equations of core/VSMR.py one by one."""
    a, r = model.attention, model.recipe
    v = a.v
    out = []
    for image in x:
        S = v @ a.W1 @ (image - model.x_mean).T  # (K,R); taking x̄ away is taking vᵀW1x̄ away
        theta = torch.softmax(v @ a.W2 @ image.T, dim=1)
        w = torch.sigmoid((theta * (v @ a.W3 @ image.T)).sum(1))
        e = (theta * S).sum(1)
        rho = r.mean_share / R + (1 - r.mean_share) * (w @ theta) / w.sum()
        f = model.P @ (signed_root((rho @ image)[None])[0] - model.phi_mean)
        row = []
        for c in range(C):
            s1 = torch.dot(w * e, model.z[c]) / (w * e).norm() / model.z[c].norm()
            prototype = sum(
                model.ridge_weights[c, s] * (model.P @ model.class_means[s]) for s in range(len(model.seen))
            )
            s2 = torch.dot(f, prototype) / f.norm() / prototype.norm()
            row.append(r.alpha * (s1 + r.beta * s2))
        out.append(torch.stack(row))
    return torch.stack(out)


def trained(space, recipe=RECIPE):
    torch.manual_seed(0)
    model = VSMR(space, D, recipe).double()
    x, y = images()
    model.fit_closed_form(x.mean(1), y)
    with torch.no_grad():
        model.attention.W2.normal_()
        model.attention.W3.normal_()
    return model, x, y


def test_scores_and_gradients_equal_the_textbook_form(space):
    model, x, _ = trained(space)
    fast, slow = model.class_scores(x[:4]), textbook(model, x[:4])
    torch.testing.assert_close(fast, slow)
    parameters = [model.attention.v, model.attention.W1, model.attention.W2, model.attention.W3]
    mark = torch.randn(4, C, dtype=torch.float64)
    got = torch.autograd.grad((fast * mark).sum(), parameters)
    for a, b in zip(got, torch.autograd.grad((slow * mark).sum(), parameters), strict=True):
        torch.testing.assert_close(a, b)


def test_each_direction_alone_teaches_the_attention(space):
    for switch in ("loss_semantic", "loss_visual"):
        model, x, y = trained(space, replace(RECIPE, **{switch: False}))
        model.loss(x[:8], y[:8])["loss"].backward()
        for parameter in (model.attention.v, model.attention.W2, model.attention.W3):
            assert parameter.grad.abs().sum() > 0
    assert model.attention.W1.grad is not None  # s1 alone moves W1; s2 does not see it
    model, x, y = trained(space, replace(RECIPE, loss_semantic=False))
    model.loss(x[:8], y[:8])["loss"].backward()
    assert not model.attention.W1.grad.any()


def test_class_means_are_those_of_the_epoch(space):
    model, x, y = trained(space)
    before = model.class_means.clone()
    model.loss(x[:3], y[:3])  # classes 0, 1, 3
    model.update_class_means()
    torch.testing.assert_close(model.class_means[:3], model.pooled(x[:3], model.attend(x[:3])))
    assert torch.equal(model.class_means[3], before[3])  # class 5 was not drawn: its mean stays
    prototypes = F.normalize(model.ridge_weights @ model.class_means @ model.P.T, dim=1)
    torch.testing.assert_close(model.prototypes(), prototypes)
    model.loss(x[1:2], y[1:2])  # the next epoch counts anew
    model.update_class_means()
    torch.testing.assert_close(model.class_means[1:2], model.pooled(x[1:2], model.attend(x[1:2])))


def test_every_epoch_ends_with_new_class_means(space):
    method = build(RECIPE, space, (R, D), 0, 3)
    model = method.model.double()
    x, y = images()
    model.fit_closed_form(x.mean(1), y)
    (phase,) = method.phases
    means, scores = model.class_means.clone(), model.class_scores(x)
    with torch.no_grad():
        model.attention.W2.normal_()
        model.attention.W3.normal_()
    phase.loss(x[:8], y[:8])
    looked = model.class_scores(x)
    phase.after_epoch()
    assert (model.class_means - means).abs().max() > 1e-3
    assert (model.class_scores(x) - looked).abs().max() > 1e-3 and (looked - scores).abs().max() > 1e-3


def test_the_learning_rate_falls_along_a_cosine(space):
    method = build(replace(RECIPE, lr=8e-4), space, (R, D), 0, 6)
    rates = [method.phases[0].lr_at(done) for done in (0, 1.5, 2, 3, 4, 6)]
    # half the rate times 1 + cos of 0, 45, 60, 90, 120 and 180 degrees
    assert rates == pytest.approx([8e-4, 4e-4 * (1 + 0.5**0.5), 6e-4, 4e-4, 2e-4, 0], abs=1e-12)
    assert method.phases[0].epochs == 6


def test_an_unprepared_class_is_never_known_but_by_its_attributes(space):
    """Only the attributes of unseen classes enter: scores of seen classes do not change with them."""
    model, x, _ = trained(space)
    other = space.att.clone()
    other[space.unseen] = other[space.unseen].flip(1)
    changed, _, _ = trained(replace(space, att=other))
    a, b = model.class_scores(x), changed.class_scores(x)
    torch.testing.assert_close(a[:, space.seen], b[:, space.seen])
    assert (a[:, space.unseen] - b[:, space.unseen]).abs().max() > 1e-3


@pytest.mark.parametrize("prepared", [False, True])
def test_eszsl_is_its_closed_form(space, prepared):
    x, y = images()
    model = ESZSL(space, D, EszslRecipe(prepared=prepared)).double()
    model.decompose(x.mean(1), y)
    model.solve(0.1, 10.0)
    X = model.inputs(x.mean(1))
    Z = model.z[space.seen]
    Y = -torch.ones(len(y), 4, dtype=torch.float64)
    Y[torch.arange(len(y)), torch.searchsorted(space.seen, y)] = 1
    left = torch.linalg.inv(X.T @ X + 0.1 * torch.eye(D))
    W = left @ X.T @ Y @ Z @ torch.linalg.inv(Z.T @ Z + 10 * torch.eye(K))
    torch.testing.assert_close(model.W, W / W.norm())
    torch.testing.assert_close(model.class_scores(x), X @ model.W @ model.z.T)


def test_switches_reach_the_model(space):
    base, x, _ = trained(space)
    reference = base.class_scores(x).detach()
    for name in ("root_attributes", "centre_attributes", "root_features", "whiten", "closed_start", "ridge_encoder"):
        other, _, _ = trained(space, replace(RECIPE, **{name: False}))
        assert (other.class_scores(x).detach() - reference).abs().max() > 1e-4, name
    assert np.isfinite(reference.numpy()).all()
