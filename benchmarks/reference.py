"""The yardstick of a training step: DAZLE as its equations are written.

B images · R regions · D channels · K attributes · C classes · V word-vector size
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.DAZLE import DAZLE


class ReferenceDAZLE(nn.Module):
    """DAZLE's step as its equations are written, each by one einsum over V, W and x; parameters are core's, copied.

    What the original computes and never uses is left out, and the class scores are contracted at once.
    """

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
