"""The joint VSMR and ESZSL: closed forms against brute force, both directions' gradients, what an epoch renews."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from core.closed_forms import closed_form_W1, closed_form_W2
from core.ESZSL import ESZSL
from core.ESZSL import Recipe as EszslRecipe
from core.preparation import Mixing, prepared_attributes, shrunk_whitening, signed_root
from core.VSMR import VSMR, Recipe, build
from tests.helpers import C, K

B, R, D = 6, 9, 16
RECIPE = Recipe(width=8, mean_share=0.3)  # not ½, where the plain mean and the saliency could be exchanged


def images(n=40):
    g = torch.Generator().manual_seed(1)
    y = torch.tensor([0, 1, 3, 5]).repeat(n // 4)
    centre = torch.randn(C, 1, D, generator=g, dtype=torch.float64)
    x = centre[y] + torch.randn(n, R, D, generator=g, dtype=torch.float64)
    return F.normalize(x, dim=2), y


def test_prepared_attributes_by_hand():
    att = torch.tensor([[16.0, 0.0], [0.0, 9.0], [8.0, 6.0], [3.0, -4.0]])
    z = prepared_attributes(att, torch.tensor([0, 1]))
    # roots of unit rows: (1,0), (0,1), (√.8,√.6), and with their sign (√.6,-√.8); the seen mean is (.5,.5)
    roots = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8**0.5, 0.6**0.5], [0.6**0.5, -(0.8**0.5)]])
    torch.testing.assert_close(z, F.normalize(roots - 0.5, dim=1))
    plain = prepared_attributes(att, torch.tensor([0, 1]), root=False, centre=False)
    torch.testing.assert_close(plain, F.normalize(att, dim=1))


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


@pytest.mark.parametrize("attributes", [3, 11])  # fewer and more than seen classes: the penalty's two forms
def test_without_a_kernel_the_mixture_is_ridge_regression(attributes):
    g = torch.Generator().manual_seed(3)
    z = F.normalize(torch.randn(C, attributes, generator=g, dtype=torch.float64), dim=1)
    target = torch.randn(4, 2, generator=g, dtype=torch.float64)
    penalty = 0.3 * 4 / min(4, attributes)
    zs = z[torch.tensor([0, 1, 3, 5])]
    W = torch.linalg.inv(zs.T @ zs + penalty * torch.eye(attributes)) @ zs.T @ target  # (K,2)
    mixing = Mixing.solve(zs, ridge=0.3, width=None)
    torch.testing.assert_close(mixing.weights(z) @ target, z @ W)
    torch.testing.assert_close(mixing.expected(z, target), z @ W)


def test_the_mixture_is_kernel_ridge_regression():
    g = torch.Generator().manual_seed(4)
    known, z = (F.normalize(torch.randn(n, 5, generator=g, dtype=torch.float64), dim=1) for n in (7, 3))
    target = torch.randn(7, 2, generator=g, dtype=torch.float64)
    # textbook: Gaussian processes with that kernel, one system an output
    K = torch.tensor([[float(torch.exp((a @ b - 1) / 2)) for b in known] for a in known], dtype=torch.float64)
    across = torch.tensor([[float(torch.exp((a @ b - 1) / 2)) for b in known] for a in z], dtype=torch.float64)
    expected = across @ torch.linalg.inv(K + 0.2 * torch.eye(7)) @ target
    torch.testing.assert_close(Mixing.solve(known, ridge=0.2, width=2.0).expected(z, target), expected)


@pytest.mark.parametrize("width", [2.0, None])
def test_landmarks_stand_for_all_classes_and_few_come_near(width):
    g = torch.Generator().manual_seed(5)
    known, z = (F.normalize(torch.randn(n, 6, generator=g, dtype=torch.float64), dim=1) for n in (80, 20))
    target = torch.tanh(known @ torch.randn(6, 3, generator=g, dtype=torch.float64))
    full = Mixing.solve(known, ridge=0.2, width=width).expected(z, target)
    few = Mixing.solve(known, ridge=0.2, width=width, most=40)
    assert few.landmarks.shape == (40, 6) and few.A.shape == (40, 80)
    assert (few.expected(z, target) - full).norm() < 0.05 * full.norm()


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
    weights = model.mixing.weights(model.z)
    for image in x:
        S = v @ a.W1 @ (image - model.x_mean).T  # (K,R); taking x̄ away is taking vᵀW1x̄ away
        theta = torch.softmax(v @ a.W2 @ image.T, dim=1)
        w = torch.sigmoid((theta * (v @ a.W3 @ image.T)).sum(1))
        e = (theta * S).sum(1)
        rho = r.mean_share / R + (1 - r.mean_share) * (w @ theta) / w.sum()
        f = model.P @ (signed_root((rho @ image)[None])[0] - model.phi_mean)
        logits = model.expert @ f + model.expert_bias
        row = []
        for c in range(C):
            s1 = torch.dot(w * e, model.z[c]) / (w * e).norm() / model.z[c].norm()
            means = [model.P @ M for M in model.class_means]
            prototype = sum(weights[c, s] * means[s] for s in range(len(model.seen)))
            s2 = torch.dot(f, prototype) / f.norm() / prototype.norm()
            nearest = max(torch.dot(m, prototype) / m.norm() / prototype.norm() for m in means)
            s2 = s2 - model.hubness * nearest.detach()
            if c in model.seen:
                place = model.seen.tolist().index(c)
                s2 = s2 + r.seen_expert * (logits[place] - logits.mean()) / logits.std(correction=0)
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
    for switch, other in (("loss_semantic", "s2"), ("loss_visual", "s1")):
        model, x, y = trained(space, replace(RECIPE, **{switch: False}))
        losses = model.loss(x[:8], y[:8])
        assert losses["loss"] == losses[other]
        losses["loss"].backward()
        for parameter in (model.attention.v, model.attention.W2, model.attention.W3):
            assert parameter.grad.abs().sum() > 0
    assert model.attention.W1.grad is not None  # s1 alone moves W1; s2 does not see it
    model, x, y = trained(space, replace(RECIPE, loss_semantic=False))
    model.loss(x[:8], y[:8])["loss"].backward()
    assert not model.attention.W1.grad.any()


def test_class_means_are_those_of_the_epoch_and_the_rate_falls_along_a_cosine(space):
    method = build(replace(RECIPE, lr=8e-4), space, (R, D), 0, 6)
    rates = [method.phases[0].lr_at(done) for done in (0, 1.5, 2, 3, 4, 6)]
    # half the rate times 1 + cos of 0, 45, 60, 90, 120 and 180 degrees
    assert rates == pytest.approx([8e-4, 4e-4 * (1 + 0.5**0.5), 6e-4, 4e-4, 2e-4, 0], abs=1e-12)
    assert method.phases[0].after_epoch == method.model.update_closed_forms
    model, x, y = trained(space)
    before = model.class_means.clone()
    model.loss(x[:3], y[:3])  # classes 0, 1, 3
    model.update_closed_forms()
    torch.testing.assert_close(model.class_means[:3], model.pooled(x[:3], model.attend(x[:3])))
    assert torch.equal(model.class_means[3], before[3])  # class 5 was not drawn: its mean stays
    prototypes = F.normalize(model.mixing.weights(model.z) @ model.class_means @ model.P.T, dim=1)
    torch.testing.assert_close(model.prototypes(), prototypes)
    model.loss(x[1:2], y[1:2])  # the next epoch counts anew
    model.update_closed_forms()
    torch.testing.assert_close(model.class_means[1:2], model.pooled(x[1:2], model.attend(x[1:2])))


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
def test_eszsl_is_its_closed_form(space, prepared, monkeypatch):
    monkeypatch.setattr("core.ESZSL._PART", 7)  # of 40 images: sums over several parts
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


def test_the_seen_expert_is_a_linear_discriminant_of_the_epochs_images(space):
    model, x, y = trained(space)
    with torch.no_grad():
        for part in (slice(0, 8), slice(8, 24), slice(24, 40)):
            model.loss(x[part], y[part])
        model.update_closed_forms()
        u = model.branch_scores(x)[3]  # (N,d)
    seen = space.seen.tolist()
    means = {c: u[y == c].mean(0) for c in seen}
    within = sum(torch.outer(row - means[c], row - means[c]) for row, c in zip(u, y.tolist(), strict=True)) / len(u)
    within = within + 0.3 * within.diagonal().mean() * torch.eye(len(within), dtype=within.dtype)
    inverse = torch.linalg.inv(within)
    logits = torch.stack([u @ inverse @ means[c] - 0.5 * means[c] @ inverse @ means[c] for c in seen], dim=1)  # (N,S)
    expected = (logits - logits.mean(1, keepdim=True)) / logits.std(1, correction=0, keepdim=True)
    got = model.corrections(x, model.attend(x)).detach()
    scale = model.recipe.alpha * model.recipe.beta
    torch.testing.assert_close(got[:, seen] + scale * model.hubness * model.hub[seen], scale * 0.025 * expected)
    torch.testing.assert_close(
        got[:, space.unseen], (-scale * model.hubness * model.hub[space.unseen]).expand(len(x), -1)
    )


class Shown:
    """Images as a method's hooks see them."""

    def __init__(self, x, labels):
        self.x, self.labels = x, labels

    def pooled(self):
        return self.x.mean(dim=1)

    def blocks(self):
        yield from zip(self.x.split(3), self.labels.split(3), strict=True)


@pytest.mark.parametrize("share", [0.15, 0.0])
def test_validation_chooses_the_share_of_hubness_among_unseen_classes(space, share):
    model, _, _ = trained(space)
    for seed in range(8):
        g = torch.Generator().manual_seed(seed)
        x = F.normalize(torch.randn(60, R, D, generator=g, dtype=torch.float64), dim=2)
        with torch.no_grad():
            model.hub[space.unseen] = torch.linspace(-1, 1, len(space.unseen), dtype=torch.float64)
            best = {}
            for model.hubness in (0.15, 0.0):
                best[model.hubness] = model.class_scores(x)[:, space.unseen].argmax(1)
        assert (best[0.15] != best[0.0]).sum() > 3
        images = Shown(x, space.unseen[best[share]])  # labels as the one share would have them
        assert model.tune_hubness(images) == {"hubness": share} and model.hubness == share
    model.set_params({"hubness": 0.07})
    assert model.hubness == 0.07
    given = build(replace(RECIPE, hubness=0.3), space, (R, D), 0, 1)  # what is given is not tuned
    assert given.tune is None and given.model.hubness == 0.3 and build(RECIPE, space, (R, D), 0, 1).tune


def test_the_share_of_hubness_is_judged_by_classes_and_the_first_of_equals_is_taken(space):
    """The first class is a hub, 10 ahead in every image; four images are of it, and one of each other class.

    With all of the share the hub falls 24 and loses its own four images, but two of three classes are right.
    """
    model, _, _ = trained(space)
    first, second, third = space.unseen.tolist()
    s1 = torch.zeros(6, C, dtype=torch.float64)
    s1[:, first], s1[4, second], s1[5, third] = 20.0, 10.0, 10.0
    s1[:4, second] = 10.0
    model.branch_scores = lambda x: (s1, torch.zeros_like(s1), None, None)
    images = Shown(torch.zeros(6, R, D), torch.tensor([first] * 4 + [second, third]))
    images.blocks = lambda: iter([(images.x, images.labels)])
    with torch.no_grad():
        model.hub.zero_()
        assert model.tune_hubness(images) == {"hubness": 0.15}  # nothing is changed by either share
        model.hub[first] = 1.0
    assert model.tune_hubness(images) == {"hubness": 0.15}
    images.labels[4:] = first  # now it is right to take the hub
    assert model.tune_hubness(images) == {"hubness": 0.0}


def test_what_has_a_closed_form_is_of_the_training_images(space):
    torch.manual_seed(0)
    model = VSMR(space, D, RECIPE).double()
    x, y = images()
    y[:12] = 0  # classes of other sizes
    pooled = x.mean(1)
    model.fit_closed_form(pooled, y)
    phi = signed_root(pooled)
    torch.testing.assert_close(model.x_mean, pooled.mean(0))
    torch.testing.assert_close(model.phi_mean, phi.mean(0))
    phi = phi - phi.mean(0)
    torch.testing.assert_close(model.P, shrunk_whitening(phi, 8, 10.0))
    torch.testing.assert_close(model.class_means, torch.stack([phi[y == c].mean(0) for c in space.seen]))


def test_the_attention_starts_where_attributes_can_be_read_and_means_are_measured_with_it(space):
    x, y = images()
    shown = Shown(x.float(), y)
    method = build(RECIPE, space, (R, D), 0, 1)
    method.begin(shown)
    model = method.model
    W2 = closed_form_W2(shown, model.seen_index, model.z[space.seen], F.normalize(model.attention.v, dim=1))
    assert W2.abs().max() > 1e-4
    torch.testing.assert_close(model.attention.W2.detach(), 40 * W2)
    phi = model.pooled(x.float(), model.attend(x.float())).detach()
    means = torch.stack([phi[y == c].mean(0) for c in space.seen])
    torch.testing.assert_close(model.class_means, means)
    assert not model.epoch_counts.any()  # the first epoch counts anew
    plain = build(replace(RECIPE, sharpness=0.0), space, (R, D), 0, 1)
    plain.begin(shown)
    assert not plain.model.attention.W2.any()
    assert (plain.model.class_means - means).abs().max() > 1e-4
