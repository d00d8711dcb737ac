"""Texts of classes and attributes for text encoders, and vectors of attributes from these: a whole name is one text."""

import re
import sys
from collections.abc import Callable, Sequence

import numpy as np

from core.files.errors import UserError, first_line, library

# of CLIP's own prompts for data sets like these; {} is the class name
TEMPLATES = {"CUB": "a photo of a {}, a type of bird.", "AWA2": "a photo of a {}, a type of animal."}
TEMPLATE = "a photo of a {}."
SENTENCE = "sentence-transformers:"  # begins --source NAME
TELLING = 8  # attributes of a class that are named, one a prompt


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


def embed(texts: Sequence[Sequence[str]], encode: Callable[[Sequence[str]], np.ndarray]) -> np.ndarray:
    """(C,2,E) float32: the embedding of each class's first prompt, and the mean of those of its others."""
    rows = np.asarray(encode([text for own in texts for text in own]), dtype=np.float32)  # (n,E)
    parts = np.split(rows, np.cumsum([len(own) for own in texts])[:-1])
    # a class without an attribute above the mean is known by its name alone
    return np.stack([np.stack([p[0], p[1:].mean(axis=0) if len(p) > 1 else p[0]]) for p in parts])


def attribute_text(name: str) -> str:
    """An attribute's name as an encoder reads it: has_bill_shape::curved_(up_or_down) -> curved bill shape."""
    return attribute_phrase(name).removeprefix("which has ")


def encode_attributes(name: str, texts: Sequence[str]) -> np.ndarray:
    """(K,V) float32 of the texts, unit rows, by a model of sentence-transformers' hub, or of a folder."""
    with library(f"{SENTENCE}{name}", "sentence-transformers"):
        import sentence_transformers
    try:  # no code of a repository is run: trust_remote_code stays off
        if hub := sys.modules.get("transformers"):
            hub.utils.logging.disable_progress_bar()  # of weights that load in a blink
        model = sentence_transformers.SentenceTransformer(name, device="cpu", trust_remote_code=False)
        rows = np.asarray(model.encode(texts, convert_to_numpy=True, show_progress_bar=False), dtype=np.float32)
    except Exception as error:  # of the hub's client: nearly anything
        why = first_line(error)
        raise UserError(f"{SENTENCE}{name} could not be loaded ({why}). Offline? Name a downloaded folder") from error
    with np.errstate(invalid="ignore"):  # a row of zeros becomes NaN, which is refused
        unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
