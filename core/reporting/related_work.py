"""Published results of related work: printed beside measured rows, never mixed with them."""

from collections.abc import Sequence

_SETS = ("CUB", "SUN", "AWA2")
# fmt: off
_ROWS = (  # method, features, source; T1, U, S and H in percent of CUB, of SUN and of AWA2 (None: not reported)
    ("DAZLE", "ResNet-101 frozen, 7x7", "its notebooks, best on test",
     (65.9, 56.7, 59.8, 58.2), (59.3, 47.8, 26.4, 34.0), (67.9, 60.4, 76.3, 67.4)),
    ("MSDN", "ResNet-101 frozen, 14x14", "its README",
     (76.1, 68.7, 67.5, 68.1), (65.8, 52.2, 34.2, 41.3), (70.1, 62.0, 74.5, 67.7)),
    ("TransZero", "ResNet-101 frozen, 14x14", "its README",
     (76.8, 69.3, 68.3, 68.8), (65.6, 52.6, 33.4, 40.8), (70.1, 61.3, 82.3, 70.2)),
    ("TransZero++", "ResNet-101 frozen, 14x14", "its README",
     (78.3, 67.5, 73.6, 70.4), (67.6, 48.6, 37.8, 42.5), (72.6, 64.6, 82.7, 72.5)),
    ("APN", "ResNet-101 fine-tuned, 7x7", "its README",
     (72.1, None, None, 67.2), (61.5, None, None, 37.5), (68.6, None, None, 67.4)),
    ("ZSLViT", "ViT-B fine-tuned", "its README",
     (78.9, 69.4, 78.2, 73.6), (68.3, 45.9, 48.4, 47.3), (70.7, 66.1, 84.6, 74.2)),
    ("SVIP", "ViT-B fine-tuned", "its README",
     (79.8, None, None, 75.0), (71.6, None, None, 50.7), (69.8, None, None, 74.9)),
)
# fmt: on


def related_work(dataset: str, backbone: str, notes: Sequence[str]) -> list[str]:
    """Markdown lines of the published results on ``dataset``, in percent, and why they do not compare."""
    if dataset not in _SETS:
        return []
    if any(note.startswith("a subset of") for note in notes):
        return ["", f"Published rows of {dataset} are not shown: these are not all of its classes and images."]
    why = ": selected on test where the source says so, and from the authors' own runs."
    if backbone.lower() not in ("resnet101", "resnet_101"):
        why = f", on other features than {backbone or 'unknown ones'}: they do not compare."
    lines = ["", f"Published by others{why}", "", "| as published | T1 | U | S | H | features | source |"]
    lines.append("|---" * 7 + "|")
    for method, features, source, *numbers in _ROWS:
        cells = " | ".join("-" if v is None else f"{v:.1f}" for v in numbers[_SETS.index(dataset)])
        lines.append(f"| {method} | {cells} | {features} | {source} |")
    return lines
