"""Published results of related work: printed beside measured rows, never mixed with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from core.features.regions import RegionFeatures
from core.training.loop import Fold
from core.VSMR_staged import VSMRStaged


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published result, in percent; None where it was not reported."""

    method: str
    T1: float | None
    U: float | None = None
    S: float | None = None
    H: float | None
    features: str
    source: str


_AT_7 = "ResNet-101 frozen, 7x7"
_AT_14 = "ResNet-101 frozen, 14x14"
_TUNED = "ResNet-101 fine-tuned, 7x7"
_VIT = "ViT-B fine-tuned"
_README = "its README"
_NOTEBOOKS = "its notebooks, best on test"

RELATED_WORK: dict[str, tuple[Published, ...]] = {
    "CUB": (
        Published(method="DAZLE", T1=65.9, U=56.7, S=59.8, H=58.2, features=_AT_7, source=_NOTEBOOKS),
        Published(method="MSDN", T1=76.1, U=68.7, S=67.5, H=68.1, features=_AT_14, source=_README),
        Published(method="TransZero", T1=76.8, U=69.3, S=68.3, H=68.8, features=_AT_14, source=_README),
        Published(method="TransZero++", T1=78.3, U=67.5, S=73.6, H=70.4, features=_AT_14, source=_README),
        Published(method="APN", T1=72.1, H=67.2, features=_TUNED, source=_README),
        Published(method="ZSLViT", T1=78.9, U=69.4, S=78.2, H=73.6, features=_VIT, source=_README),
        Published(method="SVIP", T1=79.8, H=75.0, features=_VIT, source=_README),
    ),
    "SUN": (
        Published(method="DAZLE", T1=59.3, U=47.8, S=26.4, H=34.0, features=_AT_7, source=_NOTEBOOKS),
        Published(method="MSDN", T1=65.8, U=52.2, S=34.2, H=41.3, features=_AT_14, source=_README),
        Published(method="TransZero", T1=65.6, U=52.6, S=33.4, H=40.8, features=_AT_14, source=_README),
        Published(method="TransZero++", T1=67.6, U=48.6, S=37.8, H=42.5, features=_AT_14, source=_README),
        Published(method="APN", T1=61.5, H=37.5, features=_TUNED, source=_README),
        Published(method="ZSLViT", T1=68.3, U=45.9, S=48.4, H=47.3, features=_VIT, source=_README),
        Published(method="SVIP", T1=71.6, H=50.7, features=_VIT, source=_README),
    ),
    "AWA2": (
        Published(method="DAZLE", T1=67.9, U=60.4, S=76.3, H=67.4, features=_AT_7, source=_NOTEBOOKS),
        Published(method="MSDN", T1=70.1, U=62.0, S=74.5, H=67.7, features=_AT_14, source=_README),
        Published(method="TransZero", T1=70.1, U=61.3, S=82.3, H=70.2, features=_AT_14, source=_README),
        Published(method="TransZero++", T1=72.6, U=64.6, S=82.7, H=72.5, features=_AT_14, source=_README),
        Published(method="APN", T1=68.6, H=67.4, features=_TUNED, source=_README),
        Published(method="ZSLViT", T1=70.7, U=66.1, S=84.6, H=74.2, features=_VIT, source=_README),
        Published(method="SVIP", T1=69.8, H=74.9, features=_VIT, source=_README),
    ),
}


def related_work_table(dataset: str) -> list[str]:
    """Markdown lines of the published results on ``dataset``, in percent; none where there are none."""
    if dataset not in RELATED_WORK:
        return []
    lines = ["| as published | T1 | U | S | H | features | source |", "|---|---|---|---|---|---|---|"]
    for row in RELATED_WORK[dataset]:
        cells = " | ".join("-" if v is None else f"{v:.1f}" for v in (row.T1, row.U, row.S, row.H))
        lines.append(f"| {row.method} | {cells} | {row.features} | {row.source} |")
    return lines


# moves to core/VSMR_staged.py
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
