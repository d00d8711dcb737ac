"""Published results of related work: printed beside measured rows, never mixed with them."""

from collections.abc import Sequence

_AT_7 = "ResNet-101 frozen, 7x7"
_AT_14 = "ResNet-101 frozen, 14x14"
_TUNED = "ResNet-101 fine-tuned, 7x7"
_VIT = "ViT-B fine-tuned"
_README = "its README"
_NOTEBOOKS = "its notebooks, best on test"

# method, then T1, U, S and H in percent (None: not reported), features, source
RELATED_WORK = {
    "CUB": (
        ("DAZLE", 65.9, 56.7, 59.8, 58.2, _AT_7, _NOTEBOOKS),
        ("MSDN", 76.1, 68.7, 67.5, 68.1, _AT_14, _README),
        ("TransZero", 76.8, 69.3, 68.3, 68.8, _AT_14, _README),
        ("TransZero++", 78.3, 67.5, 73.6, 70.4, _AT_14, _README),
        ("APN", 72.1, None, None, 67.2, _TUNED, _README),
        ("ZSLViT", 78.9, 69.4, 78.2, 73.6, _VIT, _README),
        ("SVIP", 79.8, None, None, 75.0, _VIT, _README),
    ),
    "SUN": (
        ("DAZLE", 59.3, 47.8, 26.4, 34.0, _AT_7, _NOTEBOOKS),
        ("MSDN", 65.8, 52.2, 34.2, 41.3, _AT_14, _README),
        ("TransZero", 65.6, 52.6, 33.4, 40.8, _AT_14, _README),
        ("TransZero++", 67.6, 48.6, 37.8, 42.5, _AT_14, _README),
        ("APN", 61.5, None, None, 37.5, _TUNED, _README),
        ("ZSLViT", 68.3, 45.9, 48.4, 47.3, _VIT, _README),
        ("SVIP", 71.6, None, None, 50.7, _VIT, _README),
    ),
    "AWA2": (
        ("DAZLE", 67.9, 60.4, 76.3, 67.4, _AT_7, _NOTEBOOKS),
        ("MSDN", 70.1, 62.0, 74.5, 67.7, _AT_14, _README),
        ("TransZero", 70.1, 61.3, 82.3, 70.2, _AT_14, _README),
        ("TransZero++", 72.6, 64.6, 82.7, 72.5, _AT_14, _README),
        ("APN", 68.6, None, None, 67.4, _TUNED, _README),
        ("ZSLViT", 70.7, 66.1, 84.6, 74.2, _VIT, _README),
        ("SVIP", 69.8, None, None, 74.9, _VIT, _README),
    ),
}


def related_work(dataset: str, backbone: str, notes: Sequence[str]) -> list[str]:
    """Markdown lines of the published results on ``dataset``, in percent, and why they do not compare."""
    if dataset not in RELATED_WORK:
        return []
    if any(note.startswith("a subset of") for note in notes):
        return ["", f"Published rows of {dataset} are not shown: these are not all of its classes and images."]
    why = ": selected on test where the source says so, and from the authors' own runs."
    if backbone.lower() not in ("resnet101", "resnet_101"):
        why = f", on other features than {backbone or 'unknown ones'}: they do not compare."
    lines = ["", f"Published by others{why}", "", "| as published | T1 | U | S | H | features | source |"]
    lines.append("|---" * 7 + "|")
    for method, *numbers, features, source in RELATED_WORK[dataset]:
        cells = " | ".join("-" if v is None else f"{v:.1f}" for v in numbers)
        lines.append(f"| {method} | {cells} | {features} | {source} |")
    return lines
