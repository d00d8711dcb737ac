"""What the weights of a fine-tuned backbone, and features made with them, say of the images they were fine-tuned on."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from core.files.errors import UserError
from core.files.kinds import unreadable

KEY = "finetuned"  # entry of the weights file's header; one alone, since the format orders several at random


def finetuned_record(weights: str | Path | None) -> dict[str, str]:
    """What a file that :func:`finetune` wrote says of itself; empty of any other weights."""
    if weights is None or Path(weights).suffix != ".safetensors" or not Path(weights).is_file():
        return {}
    try:
        with safe_open(weights, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
        record: dict[str, str] = json.loads(text or "{}")
    except Exception as error:  # safetensors raises its own kinds
        raise unreadable(weights, "weights file", error) from error
    return record


def finetuned_provenance(weights: str | Path | None) -> dict[str, str]:
    """The same as entries of a feature file's provenance."""
    record = finetuned_record(weights)
    kept = {f"finetuned_{key}": record[key] for key in ("dataset", "fold", "split_sha256", "rows") if record}
    return {"finetuned": "true", **kept} if record else {}


def pack_rows(rows: np.ndarray, count: int) -> str:
    """A set of rows of ``count`` as text: a bit a row, base64 (CUB's 11788 rows take 2 kB)."""
    bits = np.zeros(count, dtype=bool)
    bits[rows] = True
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def unpack_rows(text: str) -> np.ndarray:
    """The reverse of :func:`pack_rows`."""
    return np.flatnonzero(np.unpackbits(np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)))


def refuse_finetuned(
    provenance: Mapping[str, Any], dataset: str, labels: np.ndarray, seen_rows: np.ndarray, unseen_rows: np.ndarray
) -> None:
    """Raise where a fine-tuned backbone's features would be measured on what it was fine-tuned on.

    Args:
        dataset: source of the data set that is measured on; row numbers mean nothing in another.
        labels: (N,) class numbers.
        seen_rows, unseen_rows: images that are measured on.
    """
    if provenance.get("finetuned") != "true" or provenance.get("finetuned_dataset") != dataset:
        return
    used = unpack_rows(str(provenance["finetuned_rows"]))
    used = used[used < len(labels)]
    classes = np.intersect1d(labels[used], labels[unseen_rows])
    images = np.intersect1d(used, seen_rows)
    if len(classes) or len(images):
        what = f"{len(classes)} classes taken for unseen" if len(classes) else f"{len(images)} images measured on"
        raise UserError(
            f"the features' backbone ({provenance.get('finetuned_fold')}) was fine-tuned on {what} here; fine-tune it "
            f"on this fold: python finetune.py {dataset} --split <seed>; or choose nothing (--select last)"
        )
