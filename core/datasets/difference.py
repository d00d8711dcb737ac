"""In what two descriptions of a data set differ: those of a feature file and of the data root."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from core.datasets.metadata import Metadata

_TOLERANCE = 1e-4  # to which attributes of the file and of the data root agree


def first_difference(mine: Metadata, root: Metadata, splits: Sequence[str], attributes: Sequence[str]) -> str:
    """In what a feature file's metadata are not the data root's, counted from 1; empty if in nothing.

    Images are compared by their file names, where the file has any.
    """
    images, others = ([Path(file).name for file in m.image_files] for m in (mine, root))
    compared = {"image": ([*range(len(mine.labels))], [*range(len(root.labels))])}
    compared |= {"class": ([n.strip() for n in mine.class_names], root.class_names)}
    compared |= {"label": (mine.labels.tolist(), root.labels.tolist())}
    compared |= {f"row of {key}": (getattr(mine, key).tolist(), getattr(root, key).tolist()) for key in splits}
    compared |= {"image file": (images or others, others)}
    for what, (a, b) in compared.items():
        if len(a) != len(b):
            return f"it has {len(a)} ({what}), the split file {len(b)}"
        for i, (one, other) in enumerate(zip(a, b, strict=True), start=1):
            if one != other:
                return f"its {what} {i} is {one}, the split file's {other}"
    for key in attributes:
        x, y = getattr(mine, key), getattr(root, key)
        if x.shape != y.shape:
            return f"its {key} is {x.shape}, the split file's {y.shape}"
        clipped = np.where(y >= 0, np.maximum(x, 0), x)  # as xlsa17's rule for negative attributes has it
        for c, k in np.argwhere(~np.isclose(clipped, y, rtol=_TOLERANCE, atol=_TOLERANCE))[:1]:
            at = f"{key} of {root.class_names[c]}, attribute {k + 1},"
            return f"its {at} is {x[c, k]:.6g}, the split file's {y[c, k]:.6g}"
    return ""
