"""Textbook forms the fast code is held against: every tensor of the papers is formed, (B,K,D) included."""

import torch
import torch.nn.functional as F


def dazle_forward(x, v, W1, W2, W3, z, use_w=True):
    """Class scores (B,C) with attribute features h (B,K,D)."""
    theta = torch.einsum("kv,vd,brd->bkr", v, W2, x).softmax(dim=2)
    h = torch.einsum("bkr,brd->bkd", theta, x)
    w = torch.sigmoid(torch.einsum("kv,vd,bkd->bk", v, W3, h))
    e = torch.einsum("kv,vd,bkd->bk", v, W1, h)
    return torch.einsum("bk,bk,ck->bc", w if use_w else torch.ones_like(w), e, z)


def dazle_loss(s, y, unseen, lam):
    margin = torch.full((s.shape[1],), -1.0)
    margin[unseen] = 1.0
    calibration = -torch.log((s + margin).softmax(1)[:, unseen].sum(1).mean())
    return F.cross_entropy(s, y) + lam * calibration


def staged_features(x, v, W2, W3, mask):
    """f (B,D) of VSMR's stage 1, masked as the equations are written."""
    theta = mask.unsqueeze(2) * torch.einsum("kv,vd,brd->bkr", v, W2, x).softmax(dim=2)
    h = torch.einsum("bkr,brd->bkd", theta, x)
    w = mask * torch.sigmoid(torch.einsum("kv,vd,bkd->bk", v, W3, h))
    rho = torch.einsum("bk,bkr->br", w, theta)
    return torch.einsum("br,brd->bd", rho, x)


def staged_losses(f, y):
    """L_PS + L_PP by loops over images and classes."""
    classes = sorted(set(y.tolist()))
    p = {c: f[y == c].mean(0) for c in classes}

    def cos(a, b):
        return F.cosine_similarity(a, b, dim=0)

    every = sum(cos(f[b], p[c]) for b in range(len(f)) for c in classes)
    own = sum(cos(f[b], p[int(y[b])]) for b in range(len(f)))
    between = sum(cos(p[a], p[b]) for a in classes for b in classes if a != b)
    return (every - own) / own + between / (2 * len(classes))
