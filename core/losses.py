"""Losses that several methods share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def margins(C: int, unseen: Tensor) -> Tensor:
    """m (C,) of +1 for unseen and -1 for seen classes (DAZLE's calibration)."""
    return torch.full((C,), -1.0, device=unseen.device).index_fill(0, unseen, 1.0)


def self_calibration(s: Tensor, unseen: Tensor, margin: Tensor) -> Tensor:
    """-log mean_b Σ_{c unseen} softmax(s + m)[b,c] of scores s (B,C) with the margin m (C,); a scalar.

    D. Huynh, E. Elhamifar, CVPR 2020, as their released code has it: the softmax is of the scores WITH the margin.
    """
    return -(s + margin).softmax(dim=1)[:, unseen].sum(dim=1).mean().clamp_min(1e-12).log()


def classification_losses(s: Tensor, y: Tensor, unseen: Tensor, margin: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy over all classes without the margin m, and self-calibration with it; s (B,C), y (B,)."""
    return F.cross_entropy(s, y), self_calibration(s, unseen, margin)
