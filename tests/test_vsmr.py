"""The additive VSMR and ESZSL: closed forms against brute force, and that every point is an attribute at a place."""

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from core.closed_forms import readable_regions
from core.datasets.metadata import questions_of
from core.ESZSL import ESZSL
from core.ESZSL import Recipe as EszslRecipe
from core.preparation import ClassEncoder, prepared_attributes, shrunk_whitening, signed_root
from core.VSMR import CHOICES, VSMR, Recipe, build
from tests.helpers import C, K
from tests.helpers_page import Shown

R, D = 9, 16
# mean_share not ½, where plain mean and saliency could be exchanged
RECIPE = Recipe(width=8, mean_share=0.3, sharpness=30.0, root_attributes=True)


def images(n=40):
    g = torch.Generator().manual_seed(1)
    y = torch.tensor([0, 1, 3, 5]).repeat(n // 4)
    y[:6] = 0  # classes of other sizes
    centre = torch.randn(C, 1, D, generator=g, dtype=torch.float64)
    x = centre[y] + torch.randn(n, R, D, generator=g, dtype=torch.float64)
    return F.normalize(x, dim=2), y


def trained(space, recipe=RECIPE):
    model = VSMR(space, D, recipe).double().eval()
    x, y = images()
    model.fit(Shown(x, y))
    return model, x, y


def test_prepared_attributes_by_hand():
    att = torch.tensor([[16.0, 0.0], [0.0, 9.0], [8.0, 6.0], [3.0, -4.0]])
    z = prepared_attributes(att, torch.tensor([0, 1]))
    # roots of unit rows: (1,0), (0,1), (√.8,√.6), and with their sign (√.6,-√.8); the seen mean is (.5,.5)
    roots = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8**0.5, 0.6**0.5], [0.6**0.5, -(0.8**0.5)]])
    torch.testing.assert_close(z, F.normalize(roots - 0.5, dim=1))
    plain = ClassEncoder.of(att, torch.tensor([0, 1]), root=False, centre=False).prepare(att)
    torch.testing.assert_close(plain, F.normalize(att, dim=1))


def test_shares_of_the_answers_to_a_question_by_hand():
    names = ["has_bill::long", "large", "has_bill::short", "wing: red", "spotted", "tail: red", "wing: blue"]
    asked = torch.from_numpy(questions_of(names))
    assert asked.tolist() == [0, -1, 0, 1, -1, -1, 1]  # of one tail nothing else is said
    assert questions_of(["large", "wing: red"]) is None
    att = torch.tensor([[30.0, 9.0, 10.0, 0.0, 36.0, 0.0, 5.0], [-16.0, 2.0, 9.0, 0.0, 1.0, -2.0, 0.0]])
    shares = ClassEncoder.of(att, torch.tensor([0]), root=True, centre=False, questions=asked).rooted(7 * att)
    of_first = torch.tensor([3 / 4, 1 / 4, 1 / 4, 0, 1, 0, 1]).sqrt()
    of_second = torch.tensor([16 / 25, 1, 9 / 25, torch.nan, 1 / 2, 1, torch.nan]).sqrt() * torch.tensor(
        [-1, 1, 1, 1, 1, -1, 1]
    )
    torch.testing.assert_close(shares, torch.stack([of_first, of_second]), equal_nan=True)
    few = torch.tensor([[0.0, 2.0, 0.0, 4.0, 1.0, 0.0, 0.0]])  # of the bill nothing is said: as the mean of the seen
    encoder = ClassEncoder.of(att, torch.tensor([0, 1]), root=True, centre=True, questions=asked)
    z = encoder.prepare(few)
    said = torch.tensor([0, 1, 0, 1, 0.5, 0, 0]).sqrt() - shares.nanmean(dim=0)
    torch.testing.assert_close(z, F.normalize(said * torch.tensor([0, 1, 0, 1, 1, 1, 1]), dim=0).unsqueeze(0))
    lacking = encoder.prepare(few * torch.tensor([0, 0, 0, 1, 0, 0, 0]))[0]  # nothing that stands alone: it has none
    assert lacking[[0, 2]].eq(0).all() and lacking[[1, 4]].lt(0).all()
    plain = prepared_attributes(att, torch.tensor([0, 1]), root=False)
    torch.testing.assert_close(plain, prepared_attributes(att, torch.tensor([0, 1]), root=False, questions=asked))


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


@pytest.mark.parametrize("attributes", [3, K])  # fewer and more than seen classes: the penalty's two forms
def test_what_is_fitted_is_of_the_training_images(space, attributes):
    questions = torch.tensor([1, -1, 1, 0, 0, -1, *[2] * (K - 6)])[:attributes]
    space = replace(space, att=space.att[:, :attributes] + 0.1, questions=questions)
    model, x, y = trained(space)
    z = prepared_attributes(space.att, space.seen, questions=questions)[space.seen]
    places = torch.tensor([1, 3, 1, 0, 0, 4, *[2] * (K - 6)] if attributes == K else [0, 1, 0])
    looks = readable_regions(Shown(x, y), model.seen_index, z, places)
    torch.testing.assert_close(model.looks, looks)
    theta = (30 * x @ looks[places].T).softmax(dim=1)  # (N,R,K)
    torch.testing.assert_close(model.attend(x).theta, theta)
    rho = 0.3 / R + 0.7 * theta.mean(dim=2)
    phi = signed_root((rho.unsqueeze(2) * x).sum(dim=1))
    torch.testing.assert_close(model.mu, phi.mean(0))
    torch.testing.assert_close(model.P, shrunk_whitening(phi - phi.mean(0), 8, 10.0))
    f = (phi - phi.mean(0)) @ model.P.T
    torch.testing.assert_close(model.attend(x).f, f)
    means = torch.stack([f[y == c].mean(0) for c in space.seen])
    torch.testing.assert_close(model.means, means)
    penalty = 0.8 * 4 / min(4, attributes) * torch.eye(attributes)
    torch.testing.assert_close(model.W, torch.linalg.inv(z.T @ z + penalty) @ z.T @ means)
    torch.testing.assert_close(model.length, (model.z @ model.W).norm(dim=1))
    hub = F.normalize(model.z @ model.W, dim=1) @ F.normalize(means, dim=1).T
    torch.testing.assert_close(model.hub, hub.max(dim=1).values)


def test_the_switch_asks_no_question(space):
    asked = replace(space, att=space.att.abs(), questions=torch.arange(K) % 3)
    without, x, _ = trained(replace(asked, questions=None))
    switched, _, _ = trained(asked, replace(RECIPE, questions=False))
    torch.testing.assert_close(switched.class_scores(x), without.class_scores(x))
    assert not torch.allclose(trained(asked)[0].class_scores(x), without.class_scores(x))


def test_without_attention_of_its_own_a_score_is_a_cosine(space):
    model, x, _ = trained(space, replace(RECIPE, own=0.0, hubness=0.0, seen_expert=0.0))
    cosines = F.normalize(model.attend(x).f, dim=1) @ F.normalize(model.z @ model.W, dim=1).T
    torch.testing.assert_close(model.class_scores(x), 100 * cosines)


def test_evidence_of_a_region_is_what_its_removal_takes(space):
    """With |f|, the gains and the weights held; computed from pooled features, as the score is."""
    model, x, _ = trained(space)
    a, own = model.attend(x), RECIPE.own
    theta = (30 * x @ model.looks.T).softmax(dim=1)
    rho = 0.3 / R + 0.7 * theta.mean(dim=2)
    t = (1 - own) * rho.unsqueeze(2) + own * theta  # (B,R,K)
    g = (rho.unsqueeze(2) * x).sum(dim=1)
    scale = D**0.5 / g.norm(dim=1, keepdim=True)
    gains = 1 / (((scale * g).abs() + 1e-2).sqrt() + 0.1)

    def evidence(kept):  # of attributes, from the regions that are kept
        pooled = torch.einsum("brk,brd->bkd", t[:, kept], x[:, kept]) * (scale * gains).unsqueeze(1)
        pooled = pooled - t[:, kept].sum(dim=1).unsqueeze(2) * model.mu
        return 100 * (pooled @ model.P.T * model.W).sum(dim=2) / a.f.norm(dim=1, keepdim=True)

    everything = list(range(R))
    torch.testing.assert_close(evidence(everything), a.e)
    for r in everything:
        lost = evidence(everything) - evidence([s for s in everything if s != r])
        assert float((lost - a.ev[:, r]).abs().max()) < 1e-6


def test_hubness_and_seen_expert_by_hand(space):
    model, x, y = trained(space)
    a, seen = model.attend(x), space.seen.tolist()
    means = {c: a.f[y == c].mean(0) for c in seen}
    within = sum(torch.outer(r - means[c], r - means[c]) for r, c in zip(a.f, y.tolist(), strict=True)) / len(y)
    within = within + 0.3 * within.diagonal().mean() * torch.eye(len(within), dtype=within.dtype)
    inverse = torch.linalg.inv(within)
    logits = torch.stack([a.f @ inverse @ means[c] - 0.5 * means[c] @ inverse @ means[c] for c in seen], dim=1)
    expected = (logits - logits.mean(1, keepdim=True)) / logits.std(1, correction=0, keepdim=True)
    found = model.corrections(x, a)
    torch.testing.assert_close(found["seen expert"][:, seen], 2.5 * expected)
    assert not found["seen expert"][:, space.unseen].any()
    for c in range(C):
        prototype = model.z[c] @ model.W
        nearest = max(float(F.cosine_similarity(prototype, m, dim=0)) for m in means.values())
        torch.testing.assert_close(found["hubness"][:, c], torch.full_like(found["hubness"][:, c], -10 * nearest))


def test_validation_chooses_sharpness_and_root_and_switches_reach_the_model(space):
    x, y = images()
    method = build(replace(RECIPE, sharpness=None, root_attributes=None), space, (R, D), 0, 0)
    method.model.double()
    settings = [dict(zip(CHOICES, values, strict=True)) for values in product(*CHOICES.values())]
    assert list(method.grid) == settings and not build(RECIPE, space, (R, D), 0, 0).grid
    method.begin(Shown(x, y))
    reference = method.model.class_scores(x)
    for setting in settings[::-1]:
        method.set_params(setting)
        expected, _, _ = trained(space, replace(RECIPE, **setting))
        torch.testing.assert_close(method.model.class_scores(x), expected.class_scores(x))
        weights, correction = method.model.class_encoder(space).encode(space.att)
        torch.testing.assert_close((weights, correction), (expected.class_attributes(), -10 * expected.hub))
    for name, value in (("root_attributes", False), ("root_features", False), ("own", 1.0), ("mean_share", 1.0)):
        other, _, _ = trained(space, replace(RECIPE, **{name: value}))
        assert (other.class_scores(x) - reference).abs().max() > 1e-3, name


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
