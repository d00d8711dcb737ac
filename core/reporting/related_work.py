"""Rows that are printed beside the headline but never mixed with it: relatives' numbers and the authors' procedure."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from core.features.regions import RegionFeatures
from core.training.loop import Fold
from core.VSMR_staged import VSMRStaged

# method, T1, U, S, H in percent, features, where the numbers come from
RELATIVES: dict[str, list[tuple[str, float | None, float | None, float | None, float | None, str, str]]] = {
    "CUB": [
        ("DAZLE", 65.9, 56.7, 59.8, 58.2, "ResNet-101 frozen, 7x7", "its notebooks, best on test"),
        ("MSDN", 76.1, 68.7, 67.5, 68.1, "ResNet-101 frozen, 14x14", "its README"),
        ("TransZero", 76.8, 69.3, 68.3, 68.8, "ResNet-101 frozen, 14x14", "its README"),
        ("TransZero++", 78.3, 67.5, 73.6, 70.4, "ResNet-101 frozen, 14x14", "its README"),
        ("APN", 72.1, None, None, 67.2, "ResNet-101 fine-tuned, 7x7", "its README"),
        ("ZSLViT", 78.9, 69.4, 78.2, 73.6, "ViT-B fine-tuned", "its README"),
        ("SVIP", 79.8, None, None, 75.0, "ViT-B fine-tuned", "its README"),
    ],
    "SUN": [
        ("DAZLE", 59.3, 47.8, 26.4, 34.0, "ResNet-101 frozen, 7x7", "its notebooks, best on test"),
        ("MSDN", 65.8, 52.2, 34.2, 41.3, "ResNet-101 frozen, 14x14", "its README"),
        ("TransZero", 65.6, 52.6, 33.4, 40.8, "ResNet-101 frozen, 14x14", "its README"),
        ("TransZero++", 67.6, 48.6, 37.8, 42.5, "ResNet-101 frozen, 14x14", "its README"),
        ("APN", 61.5, None, None, 37.5, "ResNet-101 fine-tuned, 7x7", "its README"),
        ("ZSLViT", 68.3, 45.9, 48.4, 47.3, "ViT-B fine-tuned", "its README"),
        ("SVIP", 71.6, None, None, 50.7, "ViT-B fine-tuned", "its README"),
    ],
    "AWA2": [
        ("DAZLE", 67.9, 60.4, 76.3, 67.4, "ResNet-101 frozen, 7x7", "its notebooks, best on test"),
        ("MSDN", 70.1, 62.0, 74.5, 67.7, "ResNet-101 frozen, 14x14", "its README"),
        ("TransZero", 70.1, 61.3, 82.3, 70.2, "ResNet-101 frozen, 14x14", "its README"),
        ("TransZero++", 72.6, 64.6, 82.7, 72.5, "ResNet-101 frozen, 14x14", "its README"),
        ("APN", 68.6, None, None, 67.4, "ResNet-101 fine-tuned, 7x7", "its README"),
        ("ZSLViT", 70.7, 66.1, 84.6, 74.2, "ViT-B fine-tuned", "its README"),
        ("SVIP", 69.8, None, None, 74.9, "ViT-B fine-tuned", "its README"),
    ],
}


@torch.no_grad()
def published_procedure(model: VSMRStaged, features: RegionFeatures, fold: Fold) -> dict[str, Any]:
    """Stage 5 as the authors report it: TRANSDUCTIVE, plain sample average.

    Each unseen prototype is averaged with its k nearest unlabelled test-image features. Diagnostic only: it uses the
    test images to make the model, so it does not compare with inductive rows.
    """
    model.eval()

    def image_features(rows: np.ndarray) -> torch.Tensor:
        parts = [model.image_features(x, model.predicted_mask(x)) for _, x in features.blocks(rows)]
        return F.normalize(torch.cat(parts), dim=1)

    f_unseen = image_features(fold.unseen_rows)  # (N,D)
    f_seen = image_features(fold.seen_rows)
    prototypes = F.normalize(model.prototypes, dim=1)  # (C,D)
    unseen = model.unseen
    k = min(model.recipe.neighbours, len(f_unseen))
    nearest = (prototypes[unseen] @ f_unseen.T).topk(k, dim=1).indices  # (U,k)
    adapted = prototypes.clone()
    together = torch.cat([prototypes[unseen].unsqueeze(1), f_unseen[nearest]], dim=1)  # (U,k+1,D)
    adapted[unseen] = F.normalize(together.mean(dim=1), dim=1)
    device = adapted.device
    y_u = torch.from_numpy(fold.unseen_labels).to(device)
    y_s = torch.from_numpy(fold.seen_labels).to(device)
    t1 = (unseen[(f_unseen @ adapted[unseen].T).argmax(1)] == y_u).float().mean().item()
    u = ((f_unseen @ adapted.T).argmax(1) == y_u).float().mean().item()
    s = ((f_seen @ adapted.T).argmax(1) == y_s).float().mean().item()
    return {"T1": t1, "U": u, "S": s, "H": 2 * u * s / (u + s) if u + s else 0.0}
