"""Word vectors of attributes: one (K,V) float32 array a data set, the sum of the vectors of each name's words.

The published files (DAZLE's) are sums of word2vec-google-news-300 vectors, V = 300. GloVe's and fastText's text is read
as a stream, of which the wanted words are kept; word2vec's binary files by gensim, which also downloads two models.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import logging
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from core.datasets.names import FALLBACK, clean_name, read_names_file, words_of
from core.datasets.text_vectors import OPEN_CLIP, SENTENCE, SOURCES, attribute_text, encode_attributes
from core.files.atomic import read_json, sha256_file, write_bytes
from core.files.errors import UserError, first_line
from core.files.kinds import missing, unreadable, what_it_is
from core.files.pickles import load_array_pickle

log = logging.getLogger(__name__)

MODELS = ("glove-wiki-gigaword-300", "word2vec-google-news-300")
FORMATS = "GloVe's or fastText's text (.txt, .vec, also .gz) or word2vec .bin[.gz]"


@dataclass
class AttributeVectors:
    """Vectors of a data set's attributes and how they were made."""

    vectors: np.ndarray  # (K,V) float32
    names: list[str]  # (K,)
    words: list[list[str]]  # (K,) the words summed; empty for ready-made vectors
    unknown: dict[str, list[str]]  # attribute -> its words outside the vocabulary


def _float32(vectors: np.ndarray, where: Path | str) -> np.ndarray:
    with np.errstate(over="ignore"):  # to infinity, which the next line refuses
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    for k in np.flatnonzero(~np.isfinite(vectors).all(axis=1))[:1]:
        raise UserError(f"{where}: the vector of attribute {k + 1} is not finite")
    return vectors


def sum_vectors(names: Sequence[str], vocabulary: Mapping[str, np.ndarray]) -> AttributeVectors:
    """Sum the vectors of each name's words -> (K,V) float32; words outside the vocabulary are logged and listed."""
    sums, words, unknown = [], [], dict[str, list[str]]()
    for name in names:
        parts = []
        for word in clean_name(name):
            parts += [word] if word in vocabulary else FALLBACK.get(word, word).split()
        used = [word for word in parts if word in vocabulary]
        if left := [word for word in parts if word not in vocabulary]:
            unknown[name] = left
            log.warning("%s: outside the vocabulary, left out: %s", name, ", ".join(left))
        if not used:
            raise UserError(f"no word of the attribute {name!r} is among the word vectors; use another --source")
        sums.append(np.sum([np.asarray(vocabulary[word], dtype=np.float64) for word in used], axis=0))
        words.append(used)
    return AttributeVectors(_float32(np.array(sums), "word vectors"), list(names), words, unknown)


def source_record(source: str) -> dict[str, str | None]:
    """What the sidecar says of a source: of a file its name alone, since a path means nothing on another machine."""
    local = Path(source).is_file()
    return {"source": Path(source).name if local else source, "source_sha256": sha256_file(source) if local else None}


def write_attribute_vectors(out: Path | str, made: AttributeVectors, source: str) -> None:
    """Write the pickle (plain float32 array, protocol 2: DAZLE's scripts read it) and its .json sidecar."""
    out = Path(out)
    content = pickle.dumps(made.vectors, protocol=2)
    # numpy 1, which DAZLE's scripts run on, knows the function by its old module only; numpy 2 knows both
    content = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n", 1)
    sidecar = source_record(source) | {
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
    path, again = Path(path), f"make the vectors again{command and f' with: {command}'}"
    if not path.is_file():
        raise UserError(f"{missing(path, 'attribute vectors')}; {again}")
    vectors, sidecar, declared = _ready_vectors(path, K), path.with_suffix(".json"), list[int]()
    if sidecar.is_file():
        record = read_json(sidecar)
        if not isinstance(record, dict) or record.get("sha256") != sha256_file(path):
            raise UserError(f"{path} is not the file that {sidecar.name} describes; {again}")
        declared = record.get("zero_rows", [])
    if zero := sorted({*np.flatnonzero(~vectors.any(1)).tolist()} - {*declared}):
        raise UserError(f"{path}: attributes {[z + 1 for z in zero]} have a vector of zeros; {again}")
    return vectors


def _ready_vectors(path: Path, K: int) -> np.ndarray:
    """The array (K,V) float32 of a .npy file or a pickle."""
    try:
        array = np.asarray(np.load(path)) if path.suffix.lower() == ".npy" else load_array_pickle(path)
    except (OSError, ValueError, EOFError) as error:
        raise unreadable(path, "numpy array", error) from error
    if array.dtype.kind not in "fiu" or array.ndim != 2 or len(array) != K:
        is_of = f"{array.shape} of {array.dtype}"
        raise UserError(f"{path} holds an array {is_of}; ({K}, V) real numbers, one row an attribute, are needed")
    return _float32(array, path)


def hashed_word_vector(word: str, V: int = 300) -> np.ndarray:
    """A fixed random unit vector (V,) float32, drawn from the word's SHA-256."""
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest(), "big")
    draw = np.random.default_rng(seed).standard_normal(V)
    return np.asarray(draw / np.linalg.norm(draw), dtype=np.float32)


def write_demo_vectors(attribute_file: Path | str, out: Path | str) -> None:
    """Vectors of an attribute file (``1 has_wing_color::red`` lines) from hashed words: no download."""
    names = read_names_file(attribute_file)
    made = sum_vectors(names, {word: hashed_word_vector(word) for word in words_of(names)})
    write_attribute_vectors(out, made, "hashed words (no meaning; demo only)")


def attribute_vectors(source: str, names: Sequence[str]) -> AttributeVectors:
    """Vectors of attributes from word vectors, a text encoder, or ready ones (K,V) from a .pkl or .npy file."""
    path = Path(source)
    if source.startswith((OPEN_CLIP, SENTENCE)):
        texts = [attribute_text(name) for name in names]
        vectors = _float32(encode_attributes(source, texts), f"--source {source}")
        return AttributeVectors(vectors, list(names), [[text] for text in texts], {})
    if path.suffix.lower() not in (".pkl", ".pickle", ".npy") or not path.is_file():
        return sum_vectors(names, load_words(source, words_of(names)))
    made = AttributeVectors(_ready_vectors(path, len(names)), list(names), [], {})
    for k in np.flatnonzero(~made.vectors.any(1)).tolist():
        log.warning("%s: its vector in %s is all zeros; kept as published", names[k], path.name)
        made.unknown[names[k]] = clean_name(names[k])
    return made


def load_words(source: str, words: Sequence[str]) -> dict[str, np.ndarray]:
    """Vectors (V,) of those of ``words`` that a file, or a model that gensim downloads, has; runs nothing in it."""
    if not Path(source).is_file() and source not in MODELS:
        raise UserError(f"{missing(source, 'file of word vectors')}, nor is it one of {', '.join((*MODELS, *SOURCES))}")
    path = _downloaded(source) if source in MODELS else source
    try:
        with _opened(path) as handle:
            binary = b"\0" in handle.read(1 << 20)
        if not binary:
            return _from_text(path, words)
        from gensim.models import KeyedVectors

        found = KeyedVectors.load_word2vec_format(path, binary=True)
        return {word: found[word] for word in words if word in found}
    except Exception as error:  # a damaged file raises nearly anything
        why = f"it is {what}" if (what := what_it_is(path)) else first_line(error)
        raise UserError(f"{path} holds no word vectors that can be read ({why}). Give {FORMATS}") from error


def _downloaded(name: str) -> str:
    """The file of a gensim-data model, which gensim downloads once."""
    try:
        import gensim.downloader

        logging.getLogger("gensim").setLevel(logging.CRITICAL)  # it prints a traceback where there is no network
        log.info("loading %s through gensim (downloaded once, some GB)", name)
        return str(gensim.downloader.load(name, return_path=True))
    except Exception as error:  # no gensim, no network
        raise UserError(
            f"cannot get the word vectors {name} ({type(error).__name__}: {error}). Download a file, such as "
            f"glove.6B.zip from nlp.stanford.edu/projects/glove, unpack it, and give it with --source PATH: {FORMATS}."
        ) from error


def _from_text(path: str, words: Sequence[str]) -> dict[str, np.ndarray]:
    """From lines of a word and V numbers, which a header ``count V`` may precede."""
    wanted, found, rows = {word.encode(): word for word in words}, dict[str, np.ndarray](), 0
    with _opened(path) as lines:
        first = lines.readline().removeprefix(b"\xef\xbb\xbf")
        header = re.fullmatch(rb"(\d+)\s(\d+)\s*", first)
        count, V = map(int, header.groups()) if header else (0, np.array(first.split()[1:], np.float32).size)
        if not V:
            raise ValueError("its first line is no word and numbers")
        for line in lines if header else itertools.chain([first], lines):
            rows += 1
            word, *numbers = line.split(None, 1) or [b""]
            # other counts are of tokens with spaces, whose other words are the first of them: glove.840B has some
            if word in wanted and numbers and len(values := numbers[0].split()) == V:
                found.setdefault(wanted[word], np.array(values, np.float32))  # gensim takes the first of two, too
    if rows < count:
        raise ValueError(f"it ends after {rows} vectors, but its header names {count}: truncated, get it again")
    return found


def _opened(path: str) -> IO[bytes]:
    return gzip.open(path) if path.endswith(".gz") else open(path, "rb")  # type: ignore[return-value]
