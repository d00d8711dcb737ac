"""Text embeddings of classes: prompts of their names, and of their names with attributes; one file a model.

The file holds (C,2,E) float32 with the class names, so that a subset of the classes finds its rows, and the digest of
the weights, so that no other model's images are compared with them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from core.files.atomic import write_bytes
from core.files.errors import UserError
from core.files.system import utf8_name

# of CLIP's own prompts for data sets like these; {} is the class name
TEMPLATES = {"CUB": "a photo of a {}, a type of bird.", "AWA2": "a photo of a {}, a type of animal."}
TEMPLATE = "a photo of a {}."
TELLING = 8  # attributes of a class that are named, one a prompt
_LIMIT = 1 << 30  # bytes of such a file
_KEY = "class_text"
Encode = Callable[[Sequence[str]], np.ndarray]  # texts (n,) to unit embeddings (n,E)


def class_words(name: str) -> str:
    """A class name as it is spoken: 001.Black_footed_Albatross -> Black footed Albatross, blue+whale -> blue whale."""
    return " ".join(re.split(r"[\W_]+", re.sub(r"^\d+\.", "", name))).strip()


def attribute_phrase(name: str) -> str:
    """An attribute as part of a prompt: has_bill_shape::curved_(up_or_down) -> which has curved bill shape."""
    part, _, value = re.sub(r"_?\([^)]*\)", "", name).partition("::")
    words = [" ".join(re.split(r"[\W_]+", text)).strip() for text in (value, part.removeprefix("has_"))]
    return f"which has {words[0]} {words[1]}" if value else words[1]


def prompts(source: str, class_names: Sequence[str], att: np.ndarray, attributes: Sequence[str]) -> list[list[str]]:
    """(C,) lists: first the prompt of the class's name, then one a telling attribute.

    Args:
        att: (C,K) class attributes; a class's telling ones are those furthest above the mean of all classes.
        attributes: (K,) names.
    """
    template, found = TEMPLATES.get(source, TEMPLATE), []
    for name, row in zip(class_names, att - att.mean(axis=0), strict=True):
        word = class_words(name)
        telling = np.argsort(-row, kind="stable")[:TELLING]
        said = [f"a photo of a {word}, {attribute_phrase(attributes[k])}." for k in telling if row[k] > 0]
        found.append([template.format(word), *said])
    return found


def embed(texts: Sequence[Sequence[str]], encode: Encode) -> np.ndarray:
    """(C,2,E) float32: the embedding of each class's first prompt, and the mean of those of its others.

    Raises:
        UserError: the encoder gives numbers that are not finite.
    """
    counts = [len(own) for own in texts]
    rows = np.asarray(encode([text for own in texts for text in own]), dtype=np.float32)
    if not np.isfinite(rows).all():
        raise UserError("the text embeddings are not finite; are the weights damaged?")
    parts = np.split(rows, np.cumsum(counts)[:-1])
    # a class without an attribute above the mean is known by its name alone
    return np.stack([np.stack([p[0], p[1:].mean(axis=0) if len(p) > 1 else p[0]]) for p in parts])


def write_class_text(out: Path, text: np.ndarray, class_names: Sequence[str], record: dict[str, object]) -> None:
    """Write (C,2,E) embeddings with what they are; ``record`` holds model and weights_sha256 at least."""
    header = json.dumps(record | {"class_names": list(class_names)}, sort_keys=True)
    write_bytes(out, save({"text": np.ascontiguousarray(text, np.float32)}, metadata={_KEY: header}))


def load_class_text(path: Path, class_names: Sequence[str], weights_sha256: str) -> np.ndarray:
    """(C,2,E) float32 of the named classes.

    Raises:
        UserError: a damaged file, one of other weights than the features', or one that lacks a class.
    """
    again = "make it again with extract_feature/extract_class_text.py"
    try:
        if path.stat().st_size > _LIMIT:
            raise ValueError(f"more than {_LIMIT} bytes")
        with utf8_name(path) as named, safe_open(named, framework="np") as file:
            record = json.loads((file.metadata() or {})[_KEY])
            text: np.ndarray = file.get_tensor("text")
        known = {str(name): c for c, name in enumerate(record["class_names"])}
        if (
            text.ndim != 3
            or text.shape[:2] != (len(known), 2)
            or text.dtype != np.float32
            or not np.isfinite(text).all()
        ):
            raise ValueError(f"text is {text.dtype} {text.shape} of {len(known)} classes, or not finite")
        digest = str(record["weights_sha256"])
    except Exception as error:  # safetensors raises its own kinds
        raise UserError(
            f"{path} is not a readable file of class texts ({type(error).__name__}: {error}); {again}"
        ) from error
    if digest != weights_sha256:
        raise UserError(f"{path} is of other weights than the features ({digest[:12]}, {weights_sha256[:12]}); {again}")
    if lost := [name for name in class_names if name not in known]:
        raise UserError(f"{path} lacks the classes {lost[:5]}; {again}")
    return text[[known[name] for name in class_names]]
