"""Vectors of attributes from text encoders, as many numbers each as the encoder has.

Unlike the sums of word vectors, an encoder reads the whole name: "curved bill shape" is one text.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import numpy as np

from core.datasets.class_text import attribute_phrase
from core.files.errors import UserError, first_line, library

OPEN_CLIP, SENTENCE = "open_clip:", "sentence-transformers:"
SOURCES = (f"{OPEN_CLIP}MODEL/PRETRAINED", f"{SENTENCE}NAME")


def attribute_text(name: str) -> str:
    """An attribute's name as an encoder reads it: has_bill_shape::curved_(up_or_down) -> curved bill shape."""
    return attribute_phrase(name).removeprefix("which has ")


def encode_attributes(source: str, names: Sequence[str]) -> np.ndarray:
    """(K,V) float32 of attribute names, unit rows.

    Args:
        source: open_clip:MODEL/PRETRAINED or sentence-transformers:NAME (a model of its hub, or a folder).

    Raises:
        UserError: the library is not installed, no such model, a failed download, or vectors that are not usable.
    """
    texts = [attribute_text(name) for name in names]
    if source.startswith(OPEN_CLIP):
        rows = importlib.import_module("core.features.clip").load_clip(source).encode(texts)
    else:
        rows = _sentences(source.removeprefix(SENTENCE), texts)
    rows = np.asarray(rows, dtype=np.float32)
    if rows.ndim != 2 or len(rows) != len(names) or not np.isfinite(rows).all() or not rows.any(axis=1).all():
        raise UserError(f"--source {source}: its vectors {rows.shape} are not one a text, not finite, or zero")
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def _sentences(name: str, texts: list[str]) -> np.ndarray:
    sentences = library("sentence_transformers", f"--source {SENTENCE}{name}", "sentence-transformers")
    try:
        # no code of a repository is run: trust_remote_code stays off
        model = sentences.SentenceTransformer(name, device="cpu", trust_remote_code=False)
        rows: np.ndarray = model.encode(texts, convert_to_numpy=True, show_progress_bar=False)
    except Exception as error:  # of the hub's client: nearly anything
        raise UserError(
            f"--source {SENTENCE}{name} could not be loaded ({first_line(error)}). Offline? Download the model's "
            f"folder elsewhere and name it: --source {SENTENCE}FOLDER"
        ) from error
    return rows
