"""Textbook forms the fast code is held against: every tensor of the papers is formed, (B,K,D) included."""

import torch


def staged_features(x, v, W2, W3, mask):
    """f (B,D) of VSMR's stage 1, masked as the equations are written."""
    theta = mask.unsqueeze(2) * torch.einsum("kv,vd,brd->bkr", v, W2, x).softmax(dim=2)
    h = torch.einsum("bkr,brd->bkd", theta, x)
    w = mask * torch.sigmoid(torch.einsum("kv,vd,bkd->bk", v, W3, h))
    rho = torch.einsum("bk,bkr->br", w, theta)
    return torch.einsum("br,brd->bd", rho, x)
