"""Where vsmr looks, in closed form (core/closed_forms.py), and sae where its equation is singular."""

import pytest
import torch
import torch.nn.functional as F

from core.closed_forms import readability, readable_regions, region_kinds, sampled_regions
from core.method import ClassSpace
from core.SAE import SAE
from tests.helpers_page import Shown

S, K, R, D, N = 12, 6, 9, 24, 120


class Pictures(Shown):
    """Images of three kinds of regions, three of each in any places; attributes 2k and 2k+1 show in kind k alone."""

    def __init__(self, block: int = 50) -> None:
        g = torch.Generator().manual_seed(3)
        self.z = torch.randn(S, K, generator=g)
        labels = torch.arange(N) % S
        base = torch.linalg.qr(torch.randn(D, D, generator=g))[0]
        self.kind = torch.stack([torch.randperm(R, generator=g) // 3 for _ in range(N)])  # (N,R)
        x = 3 * base[self.kind]
        for i in range(K):  # a direction for each attribute, in regions of its kind
            shown = (self.kind == i // 2).unsqueeze(2) * self.z[labels, i].view(-1, 1, 1)
            x = x + 0.5 * shown * base[3 + i]
        x = F.normalize(x + 0.1 * torch.randn(N, R, D, generator=g), dim=2)
        super().__init__(x, labels, block)


def attention(images: Pictures, looks: torch.Tensor, sharpness: float = 40.0) -> torch.Tensor:
    """(K,3) share of each attribute's attention on each kind of region."""
    theta = (sharpness * images.x @ looks.T).softmax(dim=1)  # (N,R,K)
    return torch.stack([(theta * (images.kind == k).unsqueeze(2)).sum(1).mean(0) for k in range(3)], dim=1)


@pytest.mark.parametrize("classes", [1024, 10])  # that readability is judged on
def test_an_attribute_is_looked_for_where_it_can_be_read(classes, monkeypatch):
    monkeypatch.setattr("core.closed_forms._CLASSES", classes)
    images = Pictures()
    looks = readable_regions(images, torch.arange(S), images.z, torch.arange(K))
    assert looks.shape == (K, D) and looks.dtype == torch.float32
    on = attention(images, looks)
    assert (on.argmax(dim=1) == torch.arange(K) // 2).all()
    assert (on[torch.arange(K), torch.arange(K) // 2] > 0.6).all()  # everywhere alike is 1/3


def test_it_is_what_its_words_say():
    """16 kinds, shares of sharpness 20, a ridge of 0.1 mean diagonals for the shares."""
    images = Pictures()
    regions = sampled_regions(images)
    mean = regions.mean(dim=0)
    centres = region_kinds(regions - mean)
    assert centres.shape == (16, D)

    def shares(x):
        return (20 * F.normalize(x - mean, dim=-1) @ centres.T).softmax(dim=-1)

    c = (regions - mean).double()
    gram = c.T @ c
    P = shares(regions).double().T @ c @ torch.linalg.inv(gram + 0.1 * gram.diagonal().mean() * torch.eye(D))  # (k,D)
    q = shares(images.x)  # (N,R,k)
    shown = torch.einsum("nrk,nrd->nkd", q, images.x) / q.sum(dim=1).unsqueeze(2)
    means = torch.stack([shown[images.labels == s].mean(dim=0) for s in range(S)])  # (S,k,D)
    A = torch.stack([readability(means[:, k], images.z, torch.arange(K)) for k in range(16)], dim=1).double()
    expected = A @ P
    found = readable_regions(images, torch.arange(S), images.z, torch.arange(K)).double()
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)


def test_readability_is_the_correlation_of_leaving_each_class_out():
    g = torch.Generator().manual_seed(0)
    m, z = torch.randn(7, 4, generator=g).double(), torch.randn(7, 3, generator=g).double()
    c, t = m - m.mean(0), z - z.mean(0)
    penalty = 0.3 * (c @ c.T).diagonal().mean()
    predicted = torch.empty(7, 3).double()
    for s in range(7):
        rest = [i for i in range(7) if i != s]
        X, Y = c[rest], t[rest]
        predicted[s] = c[s] @ torch.linalg.solve(X.T @ X + penalty * torch.eye(4), X.T @ Y)
    expected = (predicted * t).sum(0) / predicted.norm(dim=0) / t.norm(dim=0)
    torch.testing.assert_close(readability(m, z, torch.arange(3)), expected)
    both = predicted[:, [0, 2]], t[:, [0, 2]]  # answers to one question: over classes and answers
    asked = (both[0] * both[1]).sum() / both[0].norm() / both[1].norm()
    torch.testing.assert_close(readability(m, z, torch.tensor([1, 0, 1])), torch.stack([expected[1], asked]))


def test_what_says_nothing_of_classes_cannot_be_read():
    g = torch.Generator().manual_seed(1)
    assert readability(torch.randn(200, 3, generator=g), torch.randn(200, 5, generator=g), torch.arange(5)).max() < 0.25
    assert readability(torch.ones(5, 3), torch.randn(5, 2, generator=g), torch.arange(2)).isfinite().all()
    assert region_kinds(torch.randn(3, D, generator=g)).shape == (3, D)  # few regions make few kinds
    same = torch.ones(5, 2)  # attributes that all classes have
    assert (readability(torch.randn(5, 3, generator=g), same, torch.arange(2)) == 0).all()


@pytest.mark.parametrize("block", [1, 7, N])
def test_blocks_of_any_size_give_the_same(block):
    one, other = Pictures(), Pictures(block)
    assert torch.equal(sampled_regions(one), sampled_regions(other))
    assert torch.equal(*(readable_regions(i, torch.arange(S), i.z, torch.arange(K)) for i in (one, other)))


@pytest.mark.parametrize(("most", "rows", "shown"), [(60, 60, 60), (240, 240, N), (50, 40, 40), (5000, N * R, N)])
def test_as_many_regions_as_are_wanted_are_drawn_alike_from_all_images(most, rows, shown, monkeypatch):
    monkeypatch.setattr("core.closed_forms._SAMPLE", most)
    images = Pictures(block=7)
    found = sampled_regions(images)
    assert len(found) == rows
    of_image = (found[:, None, None] == images.x[None]).all(dim=3).nonzero()[:, 1]
    assert len(of_image.unique()) == shown
    assert (of_image.bincount(minlength=N)[of_image.unique()] == rows // shown).all()


def test_sae_takes_the_shortest_of_many_solutions() -> None:
    """With fewer classes than attributes and fewer images than channels the equation is singular."""
    g = torch.Generator().manual_seed(0)
    space = ClassSpace(torch.rand(3, 6, generator=g), torch.arange(3), torch.arange(0), torch.eye(6))
    x, y, penalty = torch.rand(4, 8, generator=g), torch.tensor([0, 1, 2, 0]), 5000.0
    model = SAE(space, 8).double()
    model.decompose(x, y)
    model.solve(penalty, True)
    X, T = F.normalize(x, dim=1).double(), space.z.double()[y]
    left = torch.kron(T.T @ T, torch.eye(8)) + penalty * torch.kron(torch.eye(6), X.T @ X)
    shortest = torch.linalg.pinv(left, rtol=1e-9) @ ((1 + penalty) * T.T @ X).flatten()
    assert torch.allclose(model.W.flatten(), shortest, atol=1e-6)
