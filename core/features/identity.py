"""Whose features a file holds: the command that makes it, and how its metadata differ from a data root's."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.datasets.metadata import Metadata
from core.datasets.registry import DATASETS

_TOLERANCE = 1e-4  # to which attributes of the file and of the data root agree


def extraction_command(
    path: Path, provenance: Mapping[str, Any], store: str | None, data_root: Path | str | None = None
) -> str:
    """The complete command that makes a feature file, from what it records; a general one where it records nothing."""
    names = [d.source for d in DATASETS.values() if path.stem.endswith(f"_{d.source}")]
    source = str(provenance.get("dataset", names[0] if names else "<data set>"))
    root = [] if data_root is None else ["--data-root", str(data_root)]
    if source == "DEMO":
        return shlex.join(["python", "DEMO_ours.py", *root])
    if source == "OWN":
        return shlex.join(["python", "OWN_ours.py", "--features", str(path), *root])
    command = ["--out", str(path), *root]
    for key in ("backbone", "weights", "input_size", "dtype", "batch_size"):
        if key in provenance:
            command += [f"--{key.replace('_', '-')}", str(provenance[key])]
    if "backbone" in provenance:
        earlier = ",".join(str(provenance.get("layer", "")).split("+")[1:])
        command += ["--layers", earlier] if earlier else []
        command += ["--pool", str(provenance["pool"])] if provenance.get("pool", 1) != 1 else []
        command += ["--flip"] if provenance.get("flip", "no") != "no" else []
        command += ["--regions", "none"] if "regions_kept" in provenance else []
        command += ["--keep-global"] if "global" in provenance else []
    if "backbone" in provenance and store is not None:
        command += ["--store", store]
    return f"python extract_feature/extract_feature_map_ResNet_101_{source}.py {shlex.join(command)}"


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
            return f"it has {len(a)} ({what}: {_few(a)}), the split file {len(b)} ({_few(b)})"
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


def _few(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values if len(values) < 5 else [*values[:3], "...", values[-1]]))
