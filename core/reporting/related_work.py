"""Published results of related work: printed beside measured rows, never mixed with them."""

from __future__ import annotations

from dataclasses import dataclass


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
