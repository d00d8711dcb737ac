"""Word vectors of attributes: one (K,V) float32 array a data set, the sum of the vectors of each name's words.

The published files (DAZLE's) are sums of word2vec-google-news-300 vectors, V = 300. GloVe's and fastText's text is read
as a stream, of which the wanted words are kept; word2vec's binary files by gensim, which also downloads two models.
"""

import gzip
import hashlib
import json
import logging
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from core.datasets.class_text import SENTENCE, attribute_text, encode_attributes
from core.datasets.names import FALLBACK, clean_name, read_names_file, words_of
from core.files.atomic import read_json, sha256_file, write_bytes
from core.files.errors import UserError, first_line
from core.files.hdf5 import matrix
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


def _finite(values: np.ndarray, where: Path | str) -> np.ndarray:
    vectors = np.ascontiguousarray(matrix(values, str(where)))
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
    return AttributeVectors(_finite(np.array(sums), "word vectors"), list(names), words, unknown)


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


def load_attribute_vectors(path: Path | str, K: int) -> np.ndarray:
    """Attribute vectors (K,V) float32.

    A row of zeros is accepted only where the sidecar declares it (the published SUN file has one: man-made).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(missing(path, "attribute vectors"))
    vectors, sidecar, record = _ready_vectors(path, K), path.with_suffix(".json"), None
    if sidecar.is_file():
        record = read_json(sidecar)
        if not isinstance(record, dict) or record.get("sha256") != sha256_file(path):
            raise UserError(f"{path} is not the file that {sidecar.name} describes; make the vectors again")
    if zero := sorted({*np.flatnonzero(~vectors.any(1)).tolist()} - {*(record or {}).get("zero_rows", [])}):
        raise UserError(f"{path}: attributes {[z + 1 for z in zero]} have a vector of zeros; make the vectors again")
    return vectors


def _ready_vectors(path: Path, K: int) -> np.ndarray:
    """The array (K,V) float32 of a .npy file or a pickle."""
    try:
        array = np.asarray(np.load(path)) if path.suffix.lower() == ".npy" else load_array_pickle(path)
    except (OSError, ValueError, EOFError) as error:
        raise unreadable(path, "numpy array", error) from error
    if array.shape[:1] != (K,):
        raise UserError(f"{path} holds an array {array.shape}; ({K}, V), one row an attribute, is needed")
    return _finite(array, path)


def hashed_word_vector(word: str) -> np.ndarray:
    """A fixed random unit vector (300,) float32, drawn from the word's SHA-256."""
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest(), "big")
    draw = np.random.default_rng(seed).standard_normal(300)
    return np.asarray(draw / np.linalg.norm(draw), dtype=np.float32)


def write_demo_vectors(attribute_file: Path | str, out: Path | str) -> None:
    """Vectors of an attribute file (``1 has_wing_color::red`` lines) from hashed words: no download."""
    names = read_names_file(attribute_file)
    made = sum_vectors(names, {word: hashed_word_vector(word) for word in words_of(names)})
    write_attribute_vectors(out, made, "hashed words (no meaning; demo only)")


def attribute_vectors(source: str, names: Sequence[str]) -> AttributeVectors:
    """Vectors of attributes from word vectors, a text encoder, or ready ones (K,V) from a .pkl or .npy file."""
    path = Path(source)
    if source.startswith(SENTENCE):
        texts = [attribute_text(name) for name in names]
        vectors = _finite(encode_attributes(source.removeprefix(SENTENCE), texts), source)
        return AttributeVectors(vectors, list(names), [[text] for text in texts], {})
    if path.suffix.lower() not in (".pkl", ".pickle", ".npy") or not path.is_file():
        return sum_vectors(names, load_words(source, words_of(names)))
    vectors = _ready_vectors(path, len(names))
    zero = {names[k]: clean_name(names[k]) for k in np.flatnonzero(~vectors.any(1)).tolist()}
    if zero:
        log.warning("%s: the vectors of %s are all zeros; kept as published", path.name, ", ".join(zero))
    return AttributeVectors(vectors, list(names), [], zero)


def load_words(source: str, words: Sequence[str]) -> dict[str, np.ndarray]:
    """Vectors (V,) of those of ``words`` that a file, or a model that gensim downloads, has; runs nothing in it."""
    if not Path(source).is_file() and source not in MODELS:
        others = ", ".join((*MODELS, f"{SENTENCE}NAME"))
        raise UserError(f"{missing(source, 'file of word vectors')}, nor is it one of {others}")
    path = source
    try:
        if source in MODELS:
            import gensim.downloader

            logging.getLogger("gensim").setLevel(logging.CRITICAL)  # it prints a traceback where there is no network
            log.info("loading %s through gensim (downloaded once, some GB)", source)
            path = str(gensim.downloader.load(source, return_path=True))
        with _opened(path) as handle:
            binary = b"\0" in handle.read(1 << 20)
        if not binary:
            return _from_text(path, words)
        from gensim.models import KeyedVectors

        found = KeyedVectors.load_word2vec_format(path, binary=True)
        return {word: found[word] for word in words if word in found}
    except Exception as error:  # no gensim, no network; and a damaged file raises nearly anything
        why = f"it is {what}" if (what := what_it_is(path)) else f"{type(error).__name__}: {first_line(error)}"
        other = f"Name a file with --source PATH: {FORMATS}, such as of nlp.stanford.edu/projects/glove's glove.6B.zip"
        raise UserError(f"no word vectors can be read from {path} ({why}). {other}") from error


def _from_text(path: str, words: Sequence[str]) -> dict[str, np.ndarray]:
    """From lines of a word and V numbers, which a header ``count V`` may precede."""
    wanted, found, rows, count, V = {word.encode(): word for word in words}, dict[str, np.ndarray](), 0, 0, 0
    with _opened(path) as lines:
        for line in lines:
            word, *numbers = line.split(None, 1) or [b""]
            values = numbers[0].split() if numbers and (word in wanted or not V) else []
            if not V and len(values) == 1:
                count, V = int(word), int(values[0])
                continue
            V, rows = V or len([*map(float, values)]), rows + 1
            # other counts are of tokens with spaces, whose other words are the first of them: glove.840B has some
            if word in wanted and len(values) == V:
                found.setdefault(wanted[word], np.array(values, np.float32))  # gensim takes the first of two, too
    if not V or rows < count:
        raise ValueError(f"it ends after {rows} vectors of {V} numbers, its first line names {count}")
    return found


def _opened(path: str) -> IO[bytes]:
    return gzip.open(path) if path.endswith(".gz") else open(path, "rb")  # type: ignore[return-value]
