"""Vectors of attributes from text encoders, which read the whole name: "curved bill shape" is one text."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch

from core.datasets.class_text import attribute_phrase
from core.files.errors import UserError, first_line, library

OPEN_CLIP, SENTENCE = "open_clip:", "sentence-transformers:"
SOURCES = (f"{OPEN_CLIP}MODEL/PRETRAINED", f"{SENTENCE}NAME")


def attribute_text(name: str) -> str:
    """An attribute's name as an encoder reads it: has_bill_shape::curved_(up_or_down) -> curved bill shape."""
    return attribute_phrase(name).removeprefix("which has ")


@torch.inference_mode()
def encode_attributes(source: str, texts: Sequence[str]) -> np.ndarray:
    """(K,V) float32 of the texts, unit rows; ``source`` is one of SOURCES (NAME: a model of its hub, or a folder)."""
    name, of_clip = source.partition(":")[2], source.startswith(OPEN_CLIP)
    with library(f"--source {source}", "open_clip_torch" if of_clip else "sentence-transformers"):
        if of_clip:
            import open_clip
        else:
            import sentence_transformers
    try:
        if of_clip:
            model_name, _, tag = name.partition("/")
            quick = bool((open_clip.get_pretrained_cfg(model_name, tag) or {}).get("quick_gelu"))
            clip = open_clip.create_model(model_name, pretrained=tag, force_quick_gelu=quick).eval()
            rows = clip.encode_text(open_clip.get_tokenizer(model_name)(texts), normalize=True).numpy()
        else:  # no code of a repository is run: trust_remote_code stays off
            if hub := sys.modules.get("transformers"):
                hub.utils.logging.disable_progress_bar()  # of weights that load in a blink
            model = sentence_transformers.SentenceTransformer(name, device="cpu", trust_remote_code=False)
            rows = model.encode(texts, convert_to_numpy=True, show_progress_bar=False)
    except Exception as error:  # of the hub's client: nearly anything
        why = first_line(error)
        raise UserError(f"--source {source} could not be loaded ({why}). Offline? Name a downloaded folder") from error
    rows = np.asarray(rows, dtype=np.float32)
    with np.errstate(invalid="ignore"):  # a row of zeros becomes NaN, which is refused
        unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
