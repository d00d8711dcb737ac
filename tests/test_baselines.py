"""MSDN and TransZero where their golden files say nothing: starts, switches, dropout, geometry, what they refuse."""

import pytest
import torch
import torch.nn.functional as F

from core import MSDN as msdn
from core import TransZero as transzero
from core.MSDN import MSDN
from core.TransZero import TransZero
from tests.test_golden import double  # noqa: F401

B, R, D, K, C, V = 6, 9, 16, 11, 7, 5
EXACT = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture
def x():
    return F.normalize(torch.randn(B, R, D, generator=torch.Generator().manual_seed(1)), dim=2)


def small_transzero(space, regions=R, **settings):
    recipe = transzero.Recipe(**{"width": 12, "feed_forward": 10, **settings})
    return TransZero(space, regions, D, recipe).double()


# ---- MSDN


def test_msdn_looks_everywhere_alike_at_first_and_its_second_branch_starts_silent_and_learns(space, x):
    model = MSDN(space, D, msdn.Recipe()).double()
    a = model.attend(x)
    torch.testing.assert_close(a.theta, torch.full((B, R, K), 1 / R))
    torch.testing.assert_close(a.beta, torch.full((B, R, K), 1 / K))
    s1, s2 = model.branch_scores(x)
    assert not s2.any() and s1.any() and 0.5 < model.W2.std() < 1.5
    model.loss(x, torch.tensor([0, 1, 3, 5, 0, 1]))["loss"].backward()
    assert model.W4.grad.abs().sum() > 0


# ---- TransZero


@pytest.mark.parametrize("settings", [{"normalize_vectors": True}, {"attribute_attention": False}])
def test_transzero_as_on_awa2_and_sun(space, x, settings):
    """The golden file is of CUB's settings: the decoder against PyTorch's own attention, one image after the other."""
    model = small_transzero(space, **settings).eval()
    with torch.no_grad():
        model.v.mul_(1.7)
    v, d = F.normalize(model.v, dim=1) if "normalize_vectors" in settings else model.v, model.decoder
    found = model.attend(x)
    for b, m in enumerate(model.encoder(model.embed_regions(x))):
        a = model.embed_attributes(v)
        t = a if d.among is None else d.norm1(a + d.among(a, a, a)[0])
        mixed, theta = d.over(t, m, m)
        t = d.norm2(t + mixed)
        features = d.ffn.norm(t + d.ffn.fc2(torch.relu(d.ffn.fc1(t))))  # (K,d)
        torch.testing.assert_close(found.theta[b], theta.T, **EXACT)
        torch.testing.assert_close(found.e[b], (features * (v @ model.W)).sum(dim=1), **EXACT)
    assert (d.among is None) == ("attribute_attention" in settings)


def test_transzero_starts_as_published(space):
    model = small_transzero(space, width=200)
    bound = (6 / 400) ** 0.5  # Xavier uniform
    for layer in (model.encoder.q, model.encoder.k, model.encoder.v, model.encoder.o):
        assert not layer.bias.any() and 0.98 * bound < layer.weight.abs().max() <= bound
    assert 0.9 < model.W.std() < 1.1
    torch.testing.assert_close(model.v.norm(dim=1), torch.ones(K))
    assert not model.decoder.over.in_proj_bias.any() and not model.decoder.among.out_proj.bias.any()


def test_transzero_drops_where_its_authors_do_and_in_training_only(space, x, monkeypatch):
    model, dropped, plain = small_transzero(space, dropout=0.4), [], F.dropout

    def dropout(tensor, p=0.5, training=True, inplace=False):
        if training:
            dropped.append((p, tuple(tensor.shape[1:])))
        return plain(tensor, p, training, inplace)

    monkeypatch.setattr(F, "dropout", dropout)
    first = model.class_scores(x)
    encoder = [(0.1, (R, R)), (0.4, (R, 12)), (0.4, (R, 12)), (0.4, (R, 10)), (0.4, (R, 12))]
    decoder = [(0.4, (K, K)), (0.4, (K, 12)), (0.4, (K, R)), (0.4, (K, 12)), (0.4, (K, 10)), (0.4, (K, 12))]
    assert dropped == encoder + decoder
    assert not torch.equal(model.class_scores(x), first)
    t = model.decoder.queries(model.embed_attributes(model.v), B)
    assert all((t[0] - t[b]).abs().max() > 1e-3 for b in range(1, B))  # other attributes for every image
    dropped.clear()
    model.eval()
    assert torch.equal(model.class_scores(x), model.class_scores(x)) and not dropped


def test_transzero_drops_weights_of_attributes_as_pytorchs_own_attention_does(space, monkeypatch):
    """The same weights dropped, what is mixed is the same: with half of them gone they do not sum to 1."""
    d, a = small_transzero(space).decoder, torch.randn(K, 12, dtype=torch.float64)
    torch.nn.init.normal_(d.among.out_proj.bias)
    d.among.dropout = d.drop.p
    monkeypatch.setattr(F, "dropout", lambda t, p=0.5, training=True, inplace=False: t.tril() if training else t)
    expected = d.norm1(a + F.dropout(d.among(a, a, a)[0]))
    torch.testing.assert_close(d.queries(a, 2), expected.expand(2, -1, -1), **EXACT)
