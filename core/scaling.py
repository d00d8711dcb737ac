"""Pooled features as a baseline was given them: a shift and a scale a channel, both of the training images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Scaling(nn.Module):
    """Pooled features (B,D) as they are, at unit length, standardised a channel, or with each channel in [0,1].

    Statistics are those of the training images (:meth:`fit`); a channel that never varies is shifted and left as it is.
    """

    def __init__(self, kind: str, like: Tensor, D: int) -> None:
        super().__init__()
        self.kind = kind  # "none", "unit", "standard" or "range"
        self.shift = nn.Buffer(like.new_zeros(D))
        self.scale = nn.Buffer(like.new_ones(D))

    @torch.no_grad()
    def fit(self, pooled: Tensor) -> None:
        """From mean-pooled features of the training images (N,D)."""
        if self.kind == "standard":
            self.shift.copy_(pooled.mean(dim=0))
            self.scale.copy_(pooled.std(dim=0, correction=0))
        elif self.kind == "range":
            self.shift.copy_(pooled.amin(dim=0))
            self.scale.copy_(pooled.amax(dim=0) - self.shift)
        self.scale.masked_fill_(self.scale <= 1e-12 * self.scale.max(), 1.0)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B,D)."""
        if self.kind == "unit":
            return F.normalize(pooled, dim=1)
        return (pooled - self.shift) / self.scale
