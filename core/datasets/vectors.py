"""Word vectors of attributes: one (K,V) float32 array a data set, the sum of the vectors of each name's words.

The published files (DAZLE's) are sums of word2vec-google-news-300 vectors, V = 300.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.datasets.names import FALLBACK, clean_name, read_names_file, words_of
from core.datasets.text_vectors import SOURCES, attribute_text, encode_attributes
from core.datasets.word_vectors import WIDEST, load_words
from core.files.atomic import read_json, sha256_file, write_bytes
from core.files.errors import UserError
from core.files.kinds import missing, unreadable
from core.files.pickles import load_array_pickle

log = logging.getLogger(__name__)

_READY = (".pkl", ".pickle", ".npy")


@dataclass
class AttributeVectors:
    """Vectors of a data set's attributes and how they were made."""

    vectors: np.ndarray  # (K,V) float32
    names: list[str]  # (K,)
    words: list[list[str]]  # (K,) the words summed; empty for ready-made vectors
    unknown: dict[str, list[str]]  # attribute -> its words outside the vocabulary


def sum_vectors(names: Sequence[str], vocabulary: Mapping[str, np.ndarray]) -> AttributeVectors:
    """Sum the vectors of each name's words -> (K,V) float32; words outside the vocabulary are logged and listed."""
    made = AttributeVectors(np.empty(0, np.float32), list(names), [], {})
    sums = []
    for name in names:
        parts = []
        for word in clean_name(name):
            parts += [word] if word in vocabulary else FALLBACK.get(word, word).split()
        used = [word for word in parts if word in vocabulary]
        if unknown := [word for word in parts if word not in vocabulary]:
            made.unknown[name] = unknown
            log.warning("%s: outside the vocabulary, left out: %s", name, ", ".join(unknown))
        if not used:
            raise UserError(f"no word of the attribute {name!r} is among the word vectors; use another --source")
        sums.append(np.sum([np.asarray(vocabulary[word], dtype=np.float64) for word in used], axis=0))
        if not (np.abs(sums[-1]) <= np.finfo(np.float32).max).all():  # NaN is not either
            raise UserError(f"the word vectors of the attribute {name!r} are not finite; use another --source")
        made.words.append(used)
    made.vectors = np.array(sums, np.float32)
    return made


def write_attribute_vectors(out: Path | str, made: AttributeVectors, source: str, source_sha256: str | None) -> None:
    """Write the pickle (plain float32 array, protocol 2: DAZLE's scripts read it) and its .json sidecar."""
    out = Path(out)
    content = pickle.dumps(np.ascontiguousarray(made.vectors, dtype=np.float32), protocol=2)
    # numpy 1, which DAZLE's scripts run on, knows the function by its old module only; numpy 2 knows both
    content = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n", 1)
    sidecar = {
        "source": source,
        "source_sha256": source_sha256,
        "sha256": hashlib.sha256(content).hexdigest(),
        "shape": list(made.vectors.shape),
        "zero_rows": np.flatnonzero(~made.vectors.any(1)).tolist(),
        "names": made.names,
        "words": made.words,
        "out_of_vocabulary": made.unknown,
    }
    out.with_suffix(".json").unlink(missing_ok=True)  # never a sidecar of other vectors
    write_bytes(out, content)
    write_bytes(out.with_suffix(".json"), (json.dumps(sidecar, indent=1) + "\n").encode())


def load_attribute_vectors(path: Path | str, K: int, command: str = "") -> np.ndarray:
    """Attribute vectors (K,V) float32; ``command`` makes them, for messages.

    A row of zeros is accepted only where the sidecar declares it (the published SUN file has one: man-made).
    """
    path = Path(path)
    again = f"make the vectors again{command and f' with: {command}'}"
    if not path.is_file():
        raise UserError(missing(path, "attribute vectors") + (command and f". Make them with: {command}"))
    if path.suffix.lower() not in _READY:
        made = f"vectors of attributes are made of them with: {command or 'extract_attribute_w2v_*.py'} --source {path}"
        raise UserError(f"{path} is no .pkl or .npy file. Are they word vectors? {made}")
    vectors = _ready_vectors(path, K, again)
    declared: list[int] = []
    sidecar = path.with_suffix(".json")
    if sidecar.is_file():
        record = read_json(sidecar)
        if not isinstance(record, dict) or record.get("sha256") != sha256_file(path):
            raise UserError(f"{path} is not the file that {sidecar.name} describes; {again}")
        declared = record.get("zero_rows", [])
    if zero := sorted({*np.flatnonzero(~vectors.any(1)).tolist()} - {*declared}):
        raise UserError(f"{path}: attributes {[z + 1 for z in zero]} have a vector of zeros; {again}")
    return vectors


def _ready_vectors(path: Path, K: int, again: str) -> np.ndarray:
    """The array (K,V) float32 of a .npy file or a pickle."""
    vectors = read_npy(path) if path.suffix.lower() == ".npy" else load_array_pickle(path)
    if vectors.ndim != 2 or len(vectors) != K or not 0 < vectors.shape[1] <= WIDEST:
        needed = f"({K}, V), one row an attribute, is needed"
        raise UserError(f"{path} holds an array of shape {vectors.shape}; {needed}: {again}")
    with np.errstate(over="ignore"):  # to infinity, which the next line refuses
        vectors = vectors.astype(np.float32)
    if not np.isfinite(vectors).all():
        raise UserError(f"{path} holds values that are not finite; {again}")
    return vectors


def read_npy(path: Path | str) -> np.ndarray:
    """The array of real numbers in a .npy file."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise unreadable(path, "numpy array", error) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise UserError(f"{path} is not one array of real numbers; save it with np.save(FILE, a.astype('float32'))")
    return array


def hashed_word_vectors(words: Sequence[str], dim: int = 300) -> np.ndarray:
    """A fixed random unit vector per word (len(words),dim) float32, drawn from the word's SHA-256."""
    seeds = [int.from_bytes(hashlib.sha256(word.encode()).digest(), "big") for word in words]
    draws = [np.random.default_rng(seed).standard_normal(dim) for seed in seeds]
    return np.stack([draw / np.linalg.norm(draw) for draw in draws]).astype(np.float32)


def write_demo_vectors(attribute_file: Path | str, out: Path | str) -> None:
    """Vectors of an attribute file (``1 has_wing_color::red`` lines) from hashed words: no download."""
    names = read_names_file(attribute_file)
    words = words_of(names)
    made = sum_vectors(names, dict(zip(words, hashed_word_vectors(words), strict=True)))
    write_attribute_vectors(out, made, "hashed words (no meaning; demo only)", None)


def attribute_vectors(source: str, names: Sequence[str]) -> AttributeVectors:
    """Vectors of attributes from word vectors, a text encoder, or ready ones (K,V) from a .pkl or .npy file."""
    path = Path(source)
    if source.startswith(tuple(encoder.partition(":")[0] + ":" for encoder in SOURCES)):
        texts = [attribute_text(name) for name in names]
        return AttributeVectors(encode_attributes(source, texts), list(names), [[text] for text in texts], {})
    if path.suffix.lower() not in _READY or not path.is_file():
        return sum_vectors(names, load_words(source, words_of(names)))
    made = AttributeVectors(_ready_vectors(path, len(names), "choose another --source"), list(names), [], {})
    for k in np.flatnonzero(~made.vectors.any(1)).tolist():
        log.warning("%s: its vector in %s is all zeros; kept as published", names[k], path.name)
        made.unknown[names[k]] = clean_name(names[k])
    return made
