"""The yardsticks: DAZLE's step as its equations are written, and extraction as a plain loop.

ReferenceDAZLE forms what the original forms: the region scores S, the region weights θ and the attribute features h
(B,K,D), each by one einsum over V, W and x. It leaves out what the original computes and never uses (its uniform
baseline, its second attribute prediction) and contracts the class scores at once instead of through (B,K,C).

B images · R regions · D channels · K attributes · C classes · V word-vector size
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from core.DAZLE import DAZLE
from core.features.images import IMAGENET_MEAN, IMAGENET_STD


class ReferenceDAZLE(nn.Module):
    """The textbook form, started from a copy of the parameters of core's model."""

    z: Tensor
    unseen: Tensor
    margin: Tensor

    def __init__(self, model: DAZLE) -> None:
        super().__init__()
        a = model.attention
        assert a.W1 is not None and model.recipe.use_w and not a.normalize_vectors
        self.v = nn.Parameter(a.v.detach().clone())  # (K,V)
        self.W1 = nn.Parameter(a.W1.detach().clone())  # (V,D), and W2, W3
        self.W2 = nn.Parameter(a.W2.detach().clone())
        self.W3 = nn.Parameter(a.W3.detach().clone())
        self.lambda_cal = model.recipe.lambda_cal
        self.register_buffer("z", model.z.clone())
        self.register_buffer("unseen", model.unseen.clone())
        margin = -torch.ones(len(self.z))  # (C,) m: +1 unseen, -1 seen
        margin[self.unseen] = 1
        self.register_buffer("margin", margin)

    def class_scores(self, x: Tensor) -> Tensor:
        """x (B,R,D) of unit regions; (B,C) back."""
        S = torch.einsum("kv,vd,brd->bkr", self.v, self.W1, x)
        theta = torch.einsum("kv,vd,brd->bkr", self.v, self.W2, x).softmax(dim=2)
        h = torch.einsum("bkr,brd->bkd", theta, x)
        e = torch.einsum("bkr,bkr->bk", theta, S)
        w = torch.sigmoid(torch.einsum("kv,vd,bkd->bk", self.v, self.W3, h))
        return torch.einsum("bk,bk,ck->bc", w, e, self.z)

    def loss(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of s over all classes + λ self-calibration of s + m; y (B,) class numbers."""
        s = self.class_scores(x)
        ce = F.cross_entropy(s, y)
        cal = -torch.log((s + self.margin).softmax(dim=1)[:, self.unseen].sum(dim=1).mean())
        return {"loss": ce + self.lambda_cal * cal, "ce": ce, "cal": cal}


def plain_transform(size: int) -> transforms.Compose:
    """torchvision's own evaluation transform."""
    steps = [transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor()]
    return transforms.Compose([*steps, transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])


@torch.no_grad()
def plain_extraction(paths: Sequence[Path], network: nn.Module, size: int, batch: int) -> np.ndarray:
    """(N,D,h,w) float32: one process, decode then forward, batch after batch, every feature kept in a list."""
    transform = plain_transform(size)
    features = []
    for start in range(0, len(paths), batch):
        images = [transform(Image.open(path).convert("RGB")) for path in paths[start : start + batch]]
        features.append(network(torch.stack(images)).numpy())
    return np.concatenate(features)
